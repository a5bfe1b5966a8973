"""What each of our CPU kernels gains: the model with all of them against the model with one of torch's own.

    python benchmarks/kernels.py [--cases sample_s8,step2_mini] [--kernels product,attention] [--quick] [--save]

The cases are those of benchmarks/model.py at a quarter of their size: 28 bars, 2 windows. In one process and in
turn, over the same weights and inputs, each round runs a case with every kernel of ours, then without one after
the other. Measured is the processor's time of one thread, which other processes on the machine disturb least;
medians over the rounds. A kernel that gains less than a tenth in each case does not pay for its lines. Cases in
bfloat16 are left out where the processor has no arithmetic for it.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import model_sampling, model_training
from benchmarks.harness import machine, write_results
from kronos_model import cache, decoding, layers

ROUNDS, QUICK_ROUNDS = 4, 1
HORIZON, BATCH = 28, 2
WORTH = 1.1


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel: where it is called from, and what torch has in its place."""

    modules: tuple[Any, ...]
    name: str
    plain: Callable[..., Any]
    peer_name: str

    @contextmanager
    def off(self) -> Iterator[None]:
        """Torch's own, for a while."""
        kept = [getattr(module, self.name) for module in self.modules]
        for module in self.modules:
            setattr(module, self.name, self.plain)
        try:
            yield
        finally:
            for module, ours in zip(self.modules, kept, strict=True):
                setattr(module, self.name, ours)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, share: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=share, is_causal=True)


def plain_projection(weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32):
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    return lambda x: F.linear(x.to(dtype), weight, bias)


def plain_normalise(x: Tensor, norm: layers.RMSNorm) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


KERNELS = {
    "product": Kernel(modules=(layers,), name="linear", plain=F.linear, peer_name="F.linear"),
    "attention": Kernel(
        modules=(layers,),
        name="causal_attention",
        plain=plain_attention,
        peer_name="F.scaled_dot_product_attention",
    ),
    "packed_product": Kernel(
        modules=(cache, decoding), name="projection", plain=plain_projection, peer_name="F.linear"
    ),
    "cached_norm": Kernel(modules=(cache,), name="normalise", plain=plain_normalise, peer_name="F.rms_norm"),
}


def sampling(quick: bool, *, samples: int, bfloat16: bool = False) -> Callable[[], object]:
    """A forecast; weights are packed and warmed up by then."""
    horizon = model_sampling.QUICK_HORIZON if quick else HORIZON
    sizes = {"preset": model_sampling.QUICK_PRESET, "context": model_sampling.QUICK_CONTEXT} if quick else {}
    precision = "bfloat16" if bfloat16 else "float32"
    run = model_sampling.ours(samples=samples, horizon=horizon, precision=precision, **sizes)
    run(2)
    return partial(run, horizon)


def training(
    quick: bool, *, make: Callable[..., Callable[[], object]], preset: str, bfloat16: bool = False
) -> Callable[[], object]:
    """A training step."""
    batch, length = (1, model_training.QUICK_LENGTH) if quick else (BATCH, model_training.LENGTH)
    step = make(preset, batch, length, "cpu", bfloat16=bfloat16)
    step()
    return step


_FLOAT32: dict[str, Callable[..., Callable[[], object]]] = {
    "sample_s1": partial(sampling, samples=1),
    "sample_s8": partial(sampling, samples=8),
    "sample_s30": partial(sampling, samples=30),
    "step2_small": partial(training, make=model_training.step_two_ours, preset="small"),
    "step2_mini": partial(training, make=model_training.step_two_ours, preset="mini"),
    "step1": partial(training, make=model_training.step_one_ours, preset="small"),
}
CASES: Mapping[str, Callable[..., Callable[[], object]]] = _FLOAT32 | {
    f"{name}_bf16": partial(make, bfloat16=True)
    for name, make in _FLOAT32.items()
    if name not in ("sample_s8", "sample_s30")
}
_PARTS = {  # what a case can tell of: a forecast drops nothing, a training packs nothing
    "sample": ("product", "packed_product", "cached_norm"),
    "step": ("product", "attention"),
}


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to report, separated by commas")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="which kernels, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round; ends within a minute")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    arguments = parser.parse_args()
    cases, kernels = chosen(parser, arguments.cases, CASES), chosen(parser, arguments.kernels, KERNELS)
    torch.set_num_threads(1)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    report = {
        "theme": "kernels",
        **machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")},
        "threads": 1,
        "rounds": rounds,
        "cases": [
            found for name in cases for found in compare(name, kernels, rounds=rounds, quick=arguments.quick)
        ],
    }
    if arguments.save:
        write_results(report, table(report))
    print(json.dumps(report))


def chosen(parser: argparse.ArgumentParser, told: str, known: Mapping[str, object]) -> list[str]:
    names = told.split(",")
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"expected names out of {', '.join(known)}, found {', '.join(unknown)}")
    return names


def compare(name: str, kernels: list[str], *, rounds: int, quick: bool) -> list[dict]:
    """A case with all kernels, and without each in turn."""
    if name.endswith("_bf16") and not has_bfloat16():
        print(f"{name} is left out: the processor has no bfloat16", file=sys.stderr)
        return []
    make, parts = CASES[name], _PARTS[name.split("_")[0].rstrip("12")]
    without = [kernel for kernel in kernels if kernel in parts]
    runs = {"": make(quick)}
    for kernel in without:
        with KERNELS[kernel].off():  # weights are packed while a forecaster is made
            runs[kernel] = make(quick)
    seconds: dict[str, list[float]] = {kernel: [] for kernel in runs}
    peaks = dict.fromkeys(runs, 0.0)
    for _ in range(rounds):
        for kernel, run in runs.items():
            begin_peak()
            with KERNELS[kernel].off() if kernel else nullcontext():
                seconds[kernel].append(cpu_seconds(run))
            peaks[kernel] = max(peaks[kernel], peak_since_mb())
        print(name, {kernel: round(times[-1], 3) for kernel, times in seconds.items()}, file=sys.stderr)
    return [verdict(name, kernel, seconds, peaks) for kernel in without]


def verdict(name: str, kernel: str, seconds: dict[str, list[float]], peaks: dict[str, float]) -> dict:
    ours, peer = seconds[""], seconds[kernel]
    return {
        "case": f"{kernel}/{name}",
        "ours": float(f"{statistics.median(ours):.4g}"),
        "peer": float(f"{statistics.median(peer):.4g}"),
        "peer_name": KERNELS[kernel].peer_name,
        "unit": "CPU s",
        "ratio": round(statistics.median(peer) / statistics.median(ours), 3),
        "ratio_of_fastest": round(min(peer) / min(ours), 3),
        "ours_peak_mb": round(peaks[""], 1),
        "peer_peak_mb": round(peaks[kernel], 1),
    }


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def begin_peak() -> None:
    """Let Linux count this process's highest resident set anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_since_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def table(report: dict) -> list[str]:
    """The report as markdown, a kernel after the other."""
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    lines = [
        f"# CPU kernels on {report['hardware']}",
        "",
        f"{versions}, {report['capability']}; one thread's processor time; one process, both sides in turn, medians "
        f"of {report['rounds']} rounds. With is the model with all kernels, without has torch's own function in "
        "the place of one.",
        "",
        "| kernel | torch's own | case | with, s | without, s | ratio | of the fastest | peak MB with | without |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in sorted(report["cases"], key=lambda one: list(KERNELS).index(one["case"].split("/")[0])):
        kernel, case = one["case"].split("/")
        lines.append(
            f"| {kernel} | {one['peer_name']} | {case} | {one['ours']:,} | {one['peer']:,} | {one['ratio']} "
            f"| {one['ratio_of_fastest']} | {one['ours_peak_mb']:,} | {one['peer_peak_mb']:,} |"
        )
    return lines


if __name__ == "__main__":
    main()
