"""Scoring 1,000 origins x 8 models x 30 paths x 48 steps: every metric of an evaluation, sampling aside.

    python benchmarks/evaluate.py [--cases score,crps,leaderboard] [--quick] [--save]

Paths are made beforehand (a pool of random walks, scaled per origin), so that what is timed is the scoring of all
paths, the leaderboard with its bootstrap intervals, and the gate. Peers: a loop of numpy and scoringrules' default
calls per origin and model for the scores, utilsforecast for the point and quantile scores of the leaderboard, on the
same numbers. Each run is a process of its own; peak memory is its highest resident set, inputs and imports included.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, peak_mb, run_json, write_results

CASES = {"score": "s", "crps": "s", "leaderboard": "s"}
PEERS = {
    "score": "numpy and scoringrules, one call per origin and metric",
    "crps": "scoringrules, estimator='fair'",
    "leaderboard": "utilsforecast on a long frame (mae, rmse, quantile loss, coverage; no intervals)",
}
FULL, QUICK = (1000, 8, 30, 48), (100, 4, 30, 48)  # origins, models, samples, steps
ORDER = ("ours", "peer", "ours", "peer", "ours")
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to run, separated by commas")
    parser.add_argument("--quick", action="store_true", help="100 origins, 4 models; ends within a minute")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    size = QUICK if arguments.quick else FULL
    if arguments.side:
        seconds = RUNS[cases[0], arguments.side](*size)
        print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))
        return
    report = compare(cases, quick=arguments.quick, size=size)
    if arguments.save:
        write_results(report, table(report))
    print(json.dumps(report))


def compare(cases: list[str], *, quick: bool, size: tuple[int, ...]) -> dict:
    """Both sides in turn, medians of each."""
    rows = []
    for case in cases:
        runs: dict[str, list[dict]] = {"ours": [], "peer": []}
        for side in ORDER:
            options = ["--cases", case, "--side", side, *(["--quick"] if quick else [])]
            runs[side].append(run_json("benchmarks.evaluate", *options))
            print(case, side, runs[side][-1], file=sys.stderr)
        ours, peer = (
            {name: statistics.median(run[name] for run in runs[side]) for name in ("seconds", "peak_mb")}
            for side in ("ours", "peer")
        )
        rows.append(
            {
                "case": case,
                "ours": round(ours["seconds"], 3),
                "peer": round(peer["seconds"], 3),
                "peer_name": PEERS[case],
                "unit": CASES[case],
                "ratio": round(peer["seconds"] / ours["seconds"], 2),
                "ours_peak_mb": round(ours["peak_mb"]),
                "peer_peak_mb": round(peer["peak_mb"]),
            }
        )
    libraries = ("numpy", "scipy", "scoringrules", "utilsforecast", "polars")
    return {
        "theme": "evaluate",
        **machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in libraries},
        "size": dict(zip(("origins", "models", "samples", "steps"), size, strict=True)),
        "runs": {side: ORDER.count(side) for side in ("ours", "peer")},
        "cases": rows,
    }


def table(report: dict) -> list[str]:
    size = report["size"]
    lines = [
        f"# Scoring {size['origins']:,} origins x {size['models']} models x {size['samples']} paths x "
        f"{size['steps']} steps, sampling aside",
        "",
        f"{report['hardware']}, {report['processor']}; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + f". Medians of {report['runs']['ours']} and {report['runs']['peer']} runs.",
        "",
        "| case | ours (s) | peer (s) | peer is slower by | ours, peak MB | peer, peak MB | peer |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['case']} | {row['ours']} | {row['peer']} | {row['ratio']} | {row['ours_peak_mb']} | "
        f"{row['peer_peak_mb']} | {row['peer_name']} |"
        for row in report["cases"]
    ]
    return lines


class Market:
    """Random walks for every origin and model, made batch by batch from one pool so that making them costs little."""

    def __init__(self, origins: int, models: int, samples: int, steps: int) -> None:
        import numpy as np

        self.np = np
        rng = np.random.default_rng(1)
        self.origins, self.models, self.samples, self.steps = origins, models, samples, steps
        self.pool = rng.normal(0, 0.01, (BATCH * 4, samples, steps)).cumsum(axis=-1)
        self.truth = rng.normal(0, 0.01, (origins, steps)).cumsum(axis=-1)

    def returns(self, start: int, model: int):
        """(B, S, H) log returns of one model at the origins from `start`."""
        rows = (self.np.arange(start, min(start + BATCH, self.origins)) * 7 + model) % len(self.pool)
        return self.pool[rows] * (1 + 0.1 * model)

    def paths(self, start: int, model: int):
        """(B, S, H, 6) bars along them."""
        close = 100 * self.np.exp(self.returns(start, model)).astype(self.np.float32)
        return self.np.repeat(close[..., None], 6, axis=-1)

    def starts(self) -> range:
        return range(0, self.origins, BATCH)


def score_ours(*size: int) -> float:
    """The walk-forward's scoring of every batch and model, without keeping the results' folder."""
    seconds, _ = scored(Market(*size))
    return seconds


def scored(market: Market):
    """Seconds spent scoring, and the Scores."""
    import numpy as np

    from kronos_model.context import Forecast
    from kronos_model.evaluation.metrics import variance
    from kronos_model.evaluation.scores import FAN_QUANTILES, Fans, Scores
    from kronos_model.evaluation.scoring import Truth, score_paths

    seconds, parts = 0.0, []
    hour_ms, levelled = 3_600_000, ("covered", "width", "winkler")
    names = [f"um:COIN{index}USDT" for index in range(4)]
    index = np.arange(market.origins) * 4 // market.origins
    times = (np.arange(market.origins) % -(-market.origins // 4)) * hour_ms * 12 + 1_720_000_000_000
    for start in market.starts():
        rows = slice(start, start + BATCH)
        bars = np.repeat(100 * np.exp(market.truth[rows])[..., None], 4, axis=-1)
        made = [market.paths(start, model) for model in range(market.models)]
        began = time.perf_counter()
        truth = Truth.of(
            np.full(len(bars), 100.0),
            bars,
            series=[names[at] for at in index[rows]],
            origin_ms=times[rows],
        )
        whole = [Forecast(paths=paths, violation_rate=np.zeros(len(paths))) for paths in made]
        per_model = [score_paths(one, truth)[0] for one in whole]
        parts.append(
            {
                name: np.stack([one[name] for one in per_model], axis=1 if name in levelled else 0)
                for name in per_model[0]
            }
        )
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    joined = {
        name: np.concatenate([part[name] for part in parts], axis=2 if name in levelled else 1)
        for name in parts[0]
    }
    seconds += time.perf_counter() - began
    models = ("challenger", "base", "last_value", *(f"model_{at}" for at in range(3, market.models)))
    steps = market.steps
    return seconds, Scores(
        models=models,
        series=tuple(names),
        interval="1h",
        interval_ms=hour_ms,
        horizon=steps,
        dataset_digest="0" * 16,
        notes=(),
        series_index=index.astype(np.int32),
        origin_ms=times,
        last_close=np.full(market.origins, 100.0),
        next_open=np.full(market.origins, 100.0),
        realised=market.truth,
        realised_variance=variance(market.truth),
        price_scale=np.ones(4),
        return_scale=np.full(4, 0.01),
        fans=Fans(
            origin_ms=times[:4],
            context=np.ones((4, 8)),
            realised=np.ones((4, steps)),
            quantiles=np.ones((4, len(models), len(FAN_QUANTILES), steps)),
        ),
        **joined,
    )


def score_peer(*size: int) -> float:
    """The same metrics as people write them: loops over origins and models, library calls inside."""
    import numpy as np
    import scoringrules
    from scipy.stats import spearmanr

    market, seconds = Market(*size), 0.0
    levels = [0.025, *np.arange(0.05, 0.951, 0.05), 0.975]
    for start in market.starts():
        for model in range(market.models):
            batch = market.returns(start, model)
            began = time.perf_counter()
            for samples, truth in zip(batch, market.truth[start:], strict=False):
                values = np.quantile(samples, levels, axis=0)
                scoringrules.crps_ensemble(truth, samples, m_axis=0, estimator="fair")
                scoringrules.es_ensemble(truth, samples, m_axis=0, v_axis=1, estimator="fair")
                for level, value in zip(levels, values, strict=True):
                    scoringrules.quantile_score(truth, value, level)
                for share, low, high in ((0.5, 6, 16), (0.8, 2, 18), (0.9, 1, 19), (0.95, 0, 20)):
                    scoringrules.interval_score(truth, values[low], values[high], 1 - share)
                    (values[low] <= truth) & (truth <= values[high])
                abs(np.median(samples, axis=0) - truth), (samples.mean(axis=0) - truth) ** 2
                (samples < truth).sum(axis=0), (samples > 0).mean(axis=0)
                (np.diff(samples, axis=1, prepend=0.0) ** 2).sum(axis=1).mean()
                np.corrcoef(samples.mean(axis=0), truth)
                spearmanr(samples.mean(axis=0), truth)
            seconds += time.perf_counter() - began
    return seconds


def crps_ours(*size: int) -> float:
    from kronos_model.evaluation.metrics import crps

    return _timed_crps(Market(*size), crps)


def crps_peer(*size: int) -> float:
    import scoringrules

    return _timed_crps(
        Market(*size),
        lambda samples, truth: scoringrules.crps_ensemble(truth, samples, m_axis=1, estimator="fair"),
    )


def _timed_crps(market: Market, crps) -> float:
    seconds = 0.0
    for start in market.starts():
        for model in range(market.models):
            samples = market.returns(start, model)
            began = time.perf_counter()
            crps(samples, market.truth[start : start + BATCH])
            seconds += time.perf_counter() - began
    return seconds


def leaderboard_ours(*size: int) -> float:
    """All rows with their bootstrap intervals, and the gate's decision."""
    from kronos_model.evaluation.gate import GatePolicy, judge
    from kronos_model.evaluation.leaderboard import leaderboard

    _, scores = scored(Market(*size))
    began = time.perf_counter()
    leaderboard(scores)
    judge(scores, GatePolicy())
    return time.perf_counter() - began


def leaderboard_peer(*size: int) -> float:
    import numpy as np
    import polars as pl
    from utilsforecast import losses

    _, scores = scored(Market(*size))
    names = np.repeat([scores.series[at] for at in scores.series_index], scores.horizon)
    columns = {"unique_id": names, "ds": np.arange(len(names)), "y": scores.realised.ravel()}
    for at, model in enumerate(scores.models):
        half = scores.width[2, at].ravel() / 2
        columns |= {
            model: scores.median[at].ravel(),
            f"{model}-lo-90": scores.median[at].ravel() - half,
            f"{model}-hi-90": scores.median[at].ravel() + half,
        }
    frame, models = pl.DataFrame(columns), list(scores.models)
    began = time.perf_counter()
    losses.mae(frame, models)
    losses.rmse(frame, models)
    losses.coverage(frame, models, 90)
    losses.quantile_loss(frame, {model: f"{model}-lo-90" for model in models}, q=0.05)
    return time.perf_counter() - began


RUNS = {
    ("score", "ours"): score_ours,
    ("score", "peer"): score_peer,
    ("crps", "ours"): crps_ours,
    ("crps", "peer"): crps_peer,
    ("leaderboard", "ours"): leaderboard_ours,
    ("leaderboard", "peer"): leaderboard_peer,
}


if __name__ == "__main__":
    main()
