"""What is served against forecasts that cost nothing, on candles that nothing was fitted to; and what it costs.

    python benchmarks/forecast.py [--home HOME] [--recipe NAME] [--cases accuracy,sources,...] [--quick] [--save]

`accuracy`, `sources` and `coverage` read the newest night of a recipe in a home, as docs/evaluation.md makes one: its
scores on the test range, its post-processing, and its validation range, on which the best of the references is chosen.
Ratios are another forecast's CRPS / ours; intervals hold 90 %, by redrawing stretches of time. `coverage` draws
100 paths at 80 origins of each series, which takes minutes, and makes what is served from the first 20, 30 and 100.
`time` fits and applies post-processing of Kronos-small with seeded weights (benchmarks/forecast_times.py).
"""

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.forecast_sources import loss_sources
from benchmarks.forecast_times import times
from benchmarks.harness import joined, machine, write_results
from kronos_model.evaluation.competitors import ModelCompetitor
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.intervals import Resampler, block_length, diebold_mariano, holm, per_time
from kronos_model.evaluation.leaderboard import ALL_SERIES
from kronos_model.evaluation.metrics import crps, log_returns
from kronos_model.evaluation.scores import RAW, REFERENCES_POOL, Scores
from kronos_model.evaluation.walk_forward import choose_origins, draw_returns
from kronos_model.features import CLOSE, FEATURES
from kronos_model.forecaster import Forecaster
from kronos_model.postprocess import NETWORK, PostProcess
from kronos_model.references import make_references
from kronos_model.spread import order_quantiles
from kronos_model.windows import WindowDataset
from storage.layout import Home
from storage.registry import read_nights

CASES = ("accuracy", "sources", "coverage", "time")
CONFIDENCE, DRAWS, BPS = 0.9, 2000, 10_000
PATHS = (20, 30, 100)
COLUMNS = (
    *("model", "crps_bps", "skill", "skill_low", "skill_high"),
    *("skill_references", "skill_references_low", "skill_references_high"),
    *("mae_bps", "rmse_bps", "direction", "coverage_50", "coverage_90"),
)
COVERAGE_ORIGINS, COVERAGE_BATCH = 80, 64  # per series; whose paths are pooled at once

Floats = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path(".kronos"), help="a home with a finished night")
    parser.add_argument("--recipe", default="doge_1h", help="whose newest night is read")
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to run, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a tiny model in `time`; ends within a minute")
    parser.add_argument(
        "--save", action="store_true", help="also write benchmarks/results/, over these cases alone"
    )
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    report = {"theme": "forecast", **machine(), "versions": _versions(), "cases": []}
    if set(cases) - {"time"} or arguments.save:
        nights = read_nights(Home(arguments.home), arguments.recipe)
        if not nights:
            parser.error(f"expected a finished night of {arguments.recipe} in {arguments.home}, found none")
        night = Night(nights[-1])
        report["night"] = night.described()
        report["cases"] += accuracy(night) if "accuracy" in cases else []
        if "sources" in cases:
            report["cases"].append(loss_sources(night.scores, night.windows, night.summary["challenger"]))
        report["cases"] += coverage(night) if "coverage" in cases else []
    report["cases"] += times(quick=arguments.quick) if "time" in cases else []
    if arguments.save:
        kept = joined(json.loads(json.dumps(report)), same=("processor", "versions", "night"))
        write_results(kept, table(kept))
    print(json.dumps(report))


@dataclass(frozen=True)
class Night:
    """A finished night: what it recorded, and what its evaluation wrote."""

    summary: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Of the evaluation."""
        return Path(self.summary["report"]).parent

    @cached_property
    def scores(self) -> Scores:
        return Scores.load(self.folder)

    @property
    def served(self) -> str:
        """By its name in the scores."""
        return next(row["model"] for row in self.summary["leaderboard"] if row["served"])

    @cached_property
    def postprocess(self) -> PostProcess:
        """Of the challenger."""
        found = PostProcess.load(Path(self.summary["challenger"]["predictor"]))
        assert found is not None, "the night was run with evaluation.postprocess=false"
        return found

    @cached_property
    def windows(self) -> WindowDataset:
        return WindowDataset.open(Path(self.summary["dataset"]["path"]))

    def crps(self, model: str) -> Floats:
        """(N,) mean over the horizon."""
        return np.asarray(self.scores.crps[self.scores.index(model)].mean(axis=1))

    def described(self) -> dict[str, Any]:
        scores = self.scores
        days = [
            f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d}" for at in np.sort(scores.origin_ms)[[0, -1]]
        ]
        return {
            "recipe": self.summary["recipe"],
            "verdict": self.summary["verdict"],
            "served": self.served,
            "series": list(scores.series),
            "interval": scores.interval,
            "origins": len(scores.origin_ms),
            "samples": scores.samples,
            "horizon": scores.horizon,
            "from": days[0],
            "to": days[1],
            "leaderboard": [
                {name: _rounded(row[name]) for name in COLUMNS}
                for row in self.summary["leaderboard"]
                if row["series"] == ALL_SERIES
            ],
            "reasons": self.summary["reasons"],
            "weights": self.postprocess.pool,
            "location": self.postprocess.location,
            "steps": {step.name: step.reason for step in self.postprocess.steps},
        }


def accuracy(night: Night) -> list[dict[str, Any]]:
    """Served against each kind of reference, and the network alone against one."""
    best = best_reference(night)
    served = night.crps(night.served)
    located = night.scores.stage_crps[night.scores.stages.index("location")].mean(axis=1)
    raw = "challenger" + RAW if "challenger" + RAW in night.scores.models else "challenger"
    opponents = {
        "served_vs_ewma": (served, "ewma"),
        "served_vs_har": (served, "har"),
        "served_vs_best_reference": (served, best),
        "network_adds": (served, REFERENCES_POOL),
        "blend_vs_references": (night.crps("blend"), REFERENCES_POOL),
        "blend_vs_ewma": (night.crps("blend"), "ewma"),
        "network_vs_ewma_as_it_draws": (night.crps(raw), "ewma"),
        "network_vs_ewma_after_location": (located, "ewma"),
        "network_vs_ewma_alone": (night.crps("challenger"), "ewma"),
    }
    return [
        {"case": case, "peer_name": name} | against(night.scores, ours, night.crps(name))
        for case, (ours, name) in opponents.items()
    ]


def best_reference(night: Night) -> str:
    """The reference with the lowest CRPS on the validation range."""
    windows, fitted = night.windows, night.postprocess
    config = EvaluationConfig(samples=night.scores.samples)
    members, _ = make_references(fitted.lookback, samples=config.samples, seed=0)
    returns, realised, _ = draw_returns(windows, list(members.values()), config, split="validation")
    return min(returns, key=lambda name: float(crps(returns[name], realised).mean()))


def against(scores: Scores, ours: Floats, theirs: Floats) -> dict[str, Any]:
    """CRPS (N,) of two forecasts: pooled with its interval, the worst series, and how many tests say worse."""
    difference = ours - theirs
    low, high = _interval(scores, difference)
    by_series = {
        name: _relative(ours[scores.series_index == at], theirs[scores.series_index == at])
        for at, name in enumerate(scores.series)
    }
    worst = max(by_series, key=lambda name: by_series[name])
    return {
        "ratio": round(float(theirs.mean() / ours.mean()), 4),
        "relative_percent": round(_relative(ours, theirs), 2),
        "difference_bps": round(BPS * float(difference.mean()), 3),
        "low_bps": round(BPS * low, 3),
        "high_bps": round(BPS * high, 3),
        "low_percent": round(100 * low / float(theirs.mean()), 2),
        "high_percent": round(100 * high / float(theirs.mean()), 2),
        "by_series_percent": {name: round(value, 2) for name, value in by_series.items()},
        "worst_series": worst,
        **significantly_worse(scores, difference),
    }


def significantly_worse(scores: Scores, difference: Floats) -> dict[str, Any]:
    """On how many series and quarters (N,) is above zero by Diebold and Mariano's test, after Holm."""
    quarter = scores.origin_ms.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64) // 3
    families = {
        f"{name} {1970 + int(at) // 4}Q{int(at) % 4 + 1}": (scores.series_index == index) & (quarter == at)
        for index, name in enumerate(scores.series)
        for at in np.unique(quarter)
    }
    families |= {name: scores.series_index == index for index, name in enumerate(scores.series)}
    means, values = [], []
    for chosen in families.values():
        times = scores.origin_ms[chosen]
        sums, counts = per_time(times, difference[chosen])
        test = diebold_mariano(sums / counts, block_length(np.unique(times), scores.horizon_ms))
        means.append(float(difference[chosen].mean()))
        values.append(test.p_value)
    corrected = holm(values)
    worse = [
        name
        for name, mean, p in zip(families, means, corrected, strict=True)
        if mean > 0 and p < 1 - CONFIDENCE
    ]
    return {"tests": len(families), "significantly_worse": worse}


def coverage(night: Night) -> list[dict[str, Any]]:
    """Of the 90 % band of what the challenger would serve, from the first paths of each member."""
    returns, realised, series = drawn(night)
    cases = []
    for count in PATHS:
        inside = covered(night, {name: one[:, :count] for name, one in returns.items()}, realised).mean(
            axis=1
        )
        by_series = {
            name: round(float(inside[series == at].mean()), 4) for at, name in enumerate(night.windows.series)
        }
        cases.append(
            {
                "case": f"coverage_90_s{count}",
                "value": round(float(inside.mean()), 4),
                "origins": len(inside),
                "by_series": by_series,
            }
        )
    return cases


def drawn(night: Night) -> tuple[dict[str, Floats], Floats, np.ndarray[Any, np.dtype[np.int32]]]:
    """Log returns (N, S, H) of the members of the pool at some test origins, realised ones (N, H), the series (N,)."""
    pair, fitted, samples, windows = night.summary["challenger"], night.postprocess, max(PATHS), night.windows
    config = EvaluationConfig(origins=COVERAGE_ORIGINS, samples=samples)
    network = Forecaster.load(Path(pair["tokenizer"]), Path(pair["predictor"]))
    names = [name for name in fitted.members if name != NETWORK]
    references, _ = make_references(fitted.lookback, samples=samples, seed=0, names=names)
    members = [ModelCompetitor(name=NETWORK, forecaster=network, config=config, seed=0), *references.values()]
    returns, realised, _ = draw_returns(
        windows, members, config, split="test", progress=partial(print, file=sys.stderr)
    )
    locations = windows.locations("test")
    chosen = choose_origins(locations, windows.start_ms("test"), origins=COVERAGE_ORIGINS)
    return returns, realised, locations[chosen, 0]


def covered(night: Night, returns: Mapping[str, Floats], realised: Floats) -> Floats:
    """Whether the realised return (N, H) is inside the 90 % band of the pool, (N, H)."""
    inside = []
    for start in range(0, len(realised), COVERAGE_BATCH):
        rows = slice(start, start + COVERAGE_BATCH)
        truth = realised[rows]
        bars = {
            name: np.repeat(np.exp(one[rows])[..., None], len(FEATURES), -1).astype(np.float32)
            for name, one in returns.items()
        }
        last = np.ones(len(truth))
        served = np.sort(log_returns(night.postprocess.blend(bars, last)[..., CLOSE], last), axis=1)
        low, high = order_quantiles(served, (0.05, 0.95))
        inside.append((low <= truth) & (truth <= high))
    return np.concatenate(inside)


def _interval(scores: Scores, values: Floats) -> tuple[float, float]:
    resampler = Resampler.of(scores.origin_ms, scores.horizon_ms, confidence=CONFIDENCE, draws=DRAWS)
    low, high = resampler.mean(values, CONFIDENCE)
    return float(low), float(high)


def _relative(ours: Floats, theirs: Floats) -> float:
    """In per cent of theirs; below 0 ours is better."""
    return 100 * float(ours.mean() / theirs.mean() - 1)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _versions() -> dict[str, str]:
    libraries = ("numpy", "scipy", "torch")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in libraries
    }


def table(report: Mapping[str, Any]) -> list[str]:
    lines = [f"# What is served against forecasts that cost nothing, on {report['hardware']}", ""]
    lines.append(", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".")
    if night := report.get("night"):
        lines += ["", *_night_lines(night)]
    rows = {kind: [one for one in report["cases"] if kind in one] for kind in ("ratio", "by_series", "what")}
    if rows["ratio"]:
        lines += [
            "",
            "| case | against | their CRPS / ours | difference | 90 % interval | worst series | significantly worse |",
            "|---|---|---:|---:|---|---|---|",
        ]
    for one in rows["ratio"]:
        worst = f"{one['worst_series']} {one['by_series_percent'][one['worst_series']]:+.2f} %"
        worse = ", ".join(one["significantly_worse"]) or f"none of {one['tests']} tests"
        lines.append(
            f"| {one['case']} | {one['peer_name']} | {one['ratio']:.4f} | {one['relative_percent']:+.2f} % | "
            f"{one['low_percent']:+.2f} to {one['high_percent']:+.2f} % | {worst} | {worse} |"
        )
    if rows["by_series"]:
        lines += ["", "| case | pooled | by series |", "|---|---:|---|"]
    for one in rows["by_series"]:
        told = ", ".join(f"{name} {value:.3f}" for name, value in one["by_series"].items())
        lines.append(f"| {one['case']} | {one['value']:.4f} | {told} |")
    for one in (case for case in report["cases"] if "bps" in case):
        lines += ["", f"| {one['case']} (bps), step | {' | '.join(map(str, one['steps']))} | all |"]
        lines.append("|---|" + "---:|" * (len(one["steps"]) + 1))
        lines += [f"| {name} | {' | '.join(map(str, values))} |" for name, values in one["bps"].items()]
    if rows["what"]:
        lines += ["", "| case | what | value | unit | share of drawing |", "|---|---|---:|---|---:|"]
    for one in rows["what"]:
        share = f"{100 * one['share_of_drawing']:.2f} %" if "share_of_drawing" in one else ""
        lines.append(f"| {one['case']} | {one['what']} | {one['value']} | {one['unit']} | {share} |")
    return lines


def _night_lines(night: Mapping[str, Any]) -> list[str]:
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in night["weights"].items())
    return [
        f"A night of recipe {night['recipe']}: {night['verdict']}, served is {night['served']}; "
        f"{', '.join(night['series'])} of {night['interval']}, {night['origins']} origins from {night['from']} to "
        f"{night['to']}, {night['samples']} paths of {night['horizon']} steps. Weights of the pool: {weights}; what is "
        f"left of the network's median move: {', '.join(f'{share:.2f}' for share in night['location'])}.",
        "",
        *(f"- {name}: {reason}" for name, reason in night["steps"].items()),
        "",
        f"The gate: {night['verdict']}",
        "",
        *(f"- {reason}" for reason in night["reasons"]),
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
        *(
            f"| {' | '.join('' if row[name] is None else str(row[name]) for name in COLUMNS)} |"
            for row in night["leaderboard"]
        ),
    ]


if __name__ == "__main__":
    main()
