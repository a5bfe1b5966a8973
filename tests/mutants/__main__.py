"""How many single changes to the product the mirrored tests notice: `make mutants N=40`.

Every change is made in a copy of the checkout and undone before the next; the checkout itself is only read. Neither
mutmut nor cosmic-ray fits: both want the whole suite for each change, or know no seeded sample, and neither takes a
lock or an argument away.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.changes import Change, changed, changes

__all__ = ["MODULES", "ROOT", "Trial", "dealt", "mirrored"]

ROOT = Path(__file__).resolve().parents[2]

# What decides, locks, counts or recovers: a change here that no test notices costs candles, a champion or a night.
MODULES = (
    *(f"exchange/{name}.py" for name in ("archive", "governor", "rest", "stream", "sync")),
    *(f"flows/{name}.py" for name in ("config", "home_access", "night_identity")),
    *(f"kronos_model/{name}.py" for name in ("checkpoint", "fit", "forecaster", "objective", "postprocess", "spread")),
    "kronos_model/windows.py",
    *(f"kronos_model/evaluation/{name}.py" for name in ("diagnostics", "gate", "intervals", "scores")),
    "kronos_model/volatility.py",
    *(f"service/{name}.py" for name in ("api", "candle_cache", "champion_models", "sampling_queue")),
    *(f"storage/{name}.py" for name in ("atomic", "dataset", "locks", "registry", "retention", "verify")),
    *(f"tasks/{name}.py" for name in ("evaluate", "forecast", "promotion")),
)  # fmt: skip
# Tests of a module besides those that bear its name, in the folder of its package.
FURTHER = {
    "kronos_model/evaluation/diagnostics.py": ("test_leaderboard.py", "test_intervals.py"),
    "kronos_model/evaluation/scores.py": ("test_walk_forward.py", "test_strategy.py"),
    "kronos_model/fit.py": ("test_train.py",),
    "service/candle_cache.py": ("test_api.py",),
    "service/champion_models.py": ("test_api.py",),
    "service/sampling_queue.py": ("test_api.py", "test_load.py"),
    "storage/registry.py": ("test_retention.py", "../tasks/test_promotion.py"),
    "tasks/promotion.py": ("test_promotion_on_the_hub.py",),
}
_PATIENCE, _LEAST_S = 4, 60.0  # a change that makes the tests this many times slower hangs them
_NOTICED = (1, 2)  # pytest's exit codes of failed tests, and of a module that cannot be imported


@dataclass(frozen=True)
class Trial:
    """One change, and how the tests took it: noticed, hung or survived."""

    module: str
    change: Change
    end: str


def mirrored(module: str) -> list[str]:
    """The test files of a module, those that bear its name first."""
    folder = Path("tests", module.partition("/")[0])
    named = sorted((ROOT / folder).rglob(f"test_{Path(module).stem}.py"))
    found = [*(str(path.relative_to(ROOT)) for path in named)]
    found += [os.path.normpath(folder / name) for name in FURTHER.get(module, ())]
    return list(dict.fromkeys(found))


def dealt(modules: Sequence[str], *, count: int, seed: int) -> dict[str, list[Change]]:
    """So many changes by module, one for each in turn."""
    found = {}
    for place, module in enumerate(modules):
        share = count // len(modules) + (place < count % len(modules))
        known = changes((ROOT / module).read_bytes())
        drawn = random.Random(f"{seed} {module}").sample(known, min(share, len(known)))
        found[module] = sorted(drawn, key=lambda change: change.start)
    return found


class Copy:
    """The checkout as git sees it, in a folder where it may be changed."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0"):
            source = ROOT / os.fsdecode(name)
            if name and source.is_file():
                target = self.root / os.fsdecode(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        if (ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(ROOT.parent / "shared")

    def tests(self, paths: Iterable[str], *, within_s: float) -> int | None:
        """Exit code of pytest over these files up to the first failure; None: not ended in time."""
        plain = ["-x", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
        environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *plain, *paths],
            cwd=self.root, env=environment, start_new_session=True, **quiet,  # type: ignore[call-overload]
        )  # fmt: skip
        try:
            return int(process.wait(within_s))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def try_changes(self, module: str, drawn: Sequence[Change]) -> list[Trial]:
        """Each by itself; raises RuntimeError where the tests fail on the unchanged module."""
        paths, target = mirrored(module), self.root / module
        began = time.monotonic()
        if (code := self.tests(paths, within_s=3_600)) != 0:
            raise RuntimeError(
                f"Expected {' '.join(paths)} to pass unchanged, found exit code {code}; mend them."
            )
        limit = max(_LEAST_S, _PATIENCE * (time.monotonic() - began))
        source, found = target.read_bytes(), []
        for change in drawn:
            target.write_bytes(changed(source, change))
            try:
                code = self.tests(paths, within_s=limit)
            finally:
                target.write_bytes(source)
            end = "hung" if code is None else "noticed" if code in _NOTICED else "survived"
            found.append(Trial(module, change, end))
            told = " ".join(f"{change.before} -> {change.after}".split())
            print(f"{end:9} {module}:{change.line}  {change.kind}: {told[:110]}", flush=True)
        return found


def _table(trials: Sequence[Trial]) -> str:
    lines = [f"{'module':46} {'changes':>8} {'noticed':>8}"]
    for module in dict.fromkeys(one.module for one in trials):
        ends = [one.end != "survived" for one in trials if one.module == module]
        lines.append(f"{module:46} {len(ends):8} {sum(ends):8}")
    noticed = sum(one.end != "survived" for one in trials)
    rate = 100 * noticed / max(1, len(trials))
    return "\n".join([*lines, f"{'all':46} {len(trials):8} {noticed:8}   {rate:.0f} % noticed"])


def main() -> None:
    """Draw, try, print, and write all trials as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("-n", "--count", type=int, default=40, help="changes, over all modules")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="modules whose path contains this")
    parser.add_argument("--minutes", type=float, default=60.0, help="no further module is begun after these")
    parser.add_argument("--json", type=Path, help="file for the trials")
    given = parser.parse_args()
    modules = [one for one in MODULES if given.only in one]
    random.Random(given.seed).shuffle(modules)
    end, trials = time.monotonic() + 60 * given.minutes, list[Trial]()
    with tempfile.TemporaryDirectory(prefix="kronos-mutants-") as folder:
        copy = Copy(Path(folder))
        for module, drawn in dealt(modules, count=given.count, seed=given.seed).items():
            if drawn and time.monotonic() < end:
                trials += copy.try_changes(module, drawn)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in trials], indent=1))
    print(_table(trials))


if __name__ == "__main__":
    main()
