"""Which network forecasts better, by what post-processing finds on the validation range of a dataset.

    python benchmarks/networks.py DATASET NAME=FOLDER [NAME=FOLDER ...] [--origins N] [--samples S] [--save]

A folder holds tokenizer/ and predictor/; FOLDER+FOLDER is the mean of the weights of two predictors, with the first
one's tokenizer. Every network draws from the same origins with the same random numbers. What it draws is scored on
origins that were held out from whatever was fitted, in basis points of log return: as it draws, without what is to be
shrunk of its location, and with its own spread; weight is its share in the pool with the references. Nothing of the
test range is read.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, write_results
from kronos_model.evaluation.competitors import ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.postprocessing import fit_postprocess
from kronos_model.forecaster import Forecaster
from kronos_model.postprocess import PostProcess
from kronos_model.windows import WindowDataset


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dataset", type=Path, help="the folder of a dataset, such as .kronos/datasets/0123..."
    )
    parser.add_argument("networks", nargs="+", metavar="NAME=FOLDER", help="the networks, by name")
    parser.add_argument("--origins", type=int, default=60, help="forecast origins per series")
    parser.add_argument("--samples", type=int, default=16, help="paths per origin")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    arguments = parser.parse_args()
    windows = WindowDataset.open(arguments.dataset)
    config = EvaluationConfig(
        postprocess_origins=arguments.origins, samples=arguments.samples, sampling_origins=12
    )
    cases = []
    for told in arguments.networks:
        name, _, folder = told.partition("=")
        cases.append({"case": name} | judged(windows, folder.split("+"), config))
        print(json.dumps(cases[-1]), file=sys.stderr)
    report = {
        "theme": "networks",
        **machine(),
        "versions": {"python": platform.python_version(), "torch": importlib.metadata.version("torch")},
        "dataset": {name: windows.manifest[name] for name in ("digest", "interval")}
        | {"series": list(windows.series), "lookback": windows.lookback, "horizon": windows.horizon},
        "origins_per_series": arguments.origins,
        "samples": arguments.samples,
        "cases": cases,
    }
    if arguments.save:
        write_results(report, table(report))
    print(json.dumps(report))


def judged(windows: WindowDataset, folders: list[str], config: EvaluationConfig) -> dict[str, Any]:
    """What post-processing finds of one network."""
    found, _ = fit_postprocess(
        windows, ModelCompetitor(name="model", forecaster=network(folders, windows), config=config, seed=0)
    )
    return figures(found)


def figures(found: PostProcess) -> dict[str, Any]:
    steps = {step.name: step for step in found.steps}
    location, alone, blend = steps["location"], steps["spread of the network"], steps["blend"]
    return {
        "as_it_draws": location.before,
        "location": location.after,
        "alone": alone.after,
        "references": blend.before,
        "blend": blend.after,
        "weight": round(found.weights[0], 3),
        "left_of_location": [round(share, 2) for share in found.location],
        "temperature": found.temperature,
        "top_p": found.top_p,
        "sampling": steps["sampling"].reason,
    }


def network(folders: list[str], windows: WindowDataset) -> Forecaster:
    """The pair in one folder, or the first one with the mean of two predictors' weights."""
    first, *others = map(Path, folders)
    if not others:
        return _loaded(first / "tokenizer", first / "predictor", windows)
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as made:
        weights = [load_file(one / "predictor" / "model.safetensors") for one in (first, *others)]
        mean = {name: sum(one[name] for one in weights) / len(weights) for name in weights[0]}
        save_file(mean, Path(made) / "model.safetensors")
        config = (first / "predictor" / "config.json").read_bytes()
        (Path(made) / "config.json").write_bytes(config)
        return _loaded(first / "tokenizer", Path(made), windows)


def _loaded(tokenizer: Path, predictor: Path, windows: WindowDataset) -> Forecaster:
    return Forecaster.load(tokenizer, predictor, normaliser=windows.normaliser)


def table(report: dict[str, Any]) -> list[str]:
    dataset = report["dataset"]
    lines = [
        f"# Networks on the validation range, {report['hardware']}",
        "",
        f"{', '.join(dataset['series'])} of {dataset['interval']}, {dataset['lookback']} candles seen and "
        f"{dataset['horizon']} forecast; {report['origins_per_series']} origins per series, {report['samples']} paths. "
        "CRPS in basis points of log return.",
        "",
        "| network | as it draws | location shrunk | and its spread | references | blend | weight | sampling |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {one['case']} | {_two(one['as_it_draws'])} | {_two(one['location'])} | {_two(one['alone'])} | "
        f"{_two(one['references'])} | {_two(one['blend'])} | {one['weight']:.2f} | "
        f"T {one['temperature']:g}, top-p {one['top_p']:g} |"
        for one in report["cases"]
    ]
    return lines


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
