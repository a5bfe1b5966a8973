"""What rules about pools cost where the truth is known: the figures of docs/decisions.md on synthetic markets.

    python benchmarks/pools.py [--cases weights,keeping,location,dealt,bands] [--quick] [--save]

A market draws a volatility for each origin, and each member forecasts random walks by its own guess of it; the network
may also lean, by noise or by what it knows. `weights`: how far rules for the weights are above the pool of the best
weights. `keeping`: what a rule costs that keeps a good network's blend and gives up a broken one's. `location`: what
taking a median away seems to gain where there is nothing to know. `dealt`: how far the fair CRPS of dealt paths is
from that of draws. `bands`: what a 90 % band of paths covers of a truth like them. Everything is seeded.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, write_results
from kronos_model.evaluation.fit_location import jackknife_variance
from kronos_model.evaluation.fit_postprocess import time_blocks
from kronos_model.evaluation.fit_weights import Distances, best_weights, shrunk_weights
from kronos_model.evaluation.metrics import crps, pool_crps
from kronos_model.pool import deal, equal, member_of, pooled
from kronos_model.postprocess import NETWORK, located
from kronos_model.references import REFERENCES
from kronos_model.spread import order_quantiles

ORIGINS, PATHS, HORIZON, TRUTH = (96, 320), 30, 6, 20_000
RUNS, QUICK_RUNS, QUICK_TRUTH = 40, 2, 1_000
BAND = (0.05, 0.95)

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Market:
    """How well its members know the volatility, in standard deviations of their errors of its logarithm."""

    network: float = 0.3
    references: tuple[float, ...] = (0.3, 0.35, 0.4)
    width: float = 1.0
    """Of the network's fan, times what is right."""
    noise: float = 0.0
    """The network's lean that means nothing, in standard deviations of a step."""

    def draw(self, rng: np.random.Generator, count: int) -> tuple[dict[str, Floats], Floats]:
        """Log returns (N, S, H) by member, and the truth's (N, H)."""
        sigma = 0.01 * np.exp(rng.normal(0, 0.5, count))
        realised = _walks(rng, sigma, 1)[:, 0]
        lean = self.noise * sigma[:, None] * rng.normal(size=(count, 1)) * np.arange(1, HORIZON + 1)
        own = self.width * sigma * np.exp(rng.normal(0, self.network, count))
        drawn = {NETWORK: lean[:, None] + _walks(rng, own, PATHS)}
        for name, error in zip(REFERENCES, self.references, strict=True):
            drawn[name] = _walks(rng, sigma * np.exp(rng.normal(0, error, count)), PATHS)
        return drawn, realised

    def distances(self, rng: np.random.Generator, count: int) -> Distances:
        return Distances.of(*self.draw(rng, count))


MARKETS = {
    "alike": Market(),
    "knows": Market(network=0.1, references=(0.4, 0.5, 0.6)),
    "narrow": Market(width=0.7),
    "leans": Market(network=0.2, noise=0.2),
    "one good reference": Market(network=0.5, references=(0.1, 0.5, 0.6)),
}
GOOD = Market(network=0.35, references=(0.35, 0.4, 0.45))
BROKEN = Market(network=0.6, references=(0.2, 0.2, 0.2), width=2.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
        "weights": weights, "keeping": keeping, "location": location, "dealt": dealt, "bands": bands
    }  # fmt: skip
    parser.add_argument("--cases", default=",".join(cases), help="which cases to run, separated by commas")
    parser.add_argument("--quick", action="store_true", help="few runs; the numbers mean nothing")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    arguments = parser.parse_args()
    asked = arguments.cases.split(",")
    if unknown := sorted(set(asked) - set(cases)):
        parser.error(f"expected cases out of {', '.join(cases)}, found {', '.join(unknown)}")
    report = {
        "theme": "pools",
        **machine(),
        "versions": {"python": platform.python_version(), "numpy": importlib.metadata.version("numpy")},
        "quick": arguments.quick,
        "cases": [one for name in asked for one in cases[name](arguments.quick)],
    }
    if arguments.save:
        write_results(report, table(report))
    print(json.dumps(report))


def weights(quick: bool) -> list[dict[str, Any]]:
    """Excess CRPS of the pool of each rule's weights over that of the best, mean of all markets and the highest."""
    found = []
    for count in ORIGINS:
        excess: dict[str, list[float]] = {}
        for at, market in enumerate(MARKETS.values()):
            known = market.distances(_rng(0, at), QUICK_TRUTH if quick else TRUTH)
            best = _score(known, best_weights(known.truth.mean(axis=0), known.between.mean(axis=0)))
            for name, chosen in _of_rules(market, at, count, _runs(quick)).items():
                mean = float(np.mean([_score(known, one) for one in chosen]))
                excess.setdefault(name, []).append(100 * (mean / best - 1))
        for name, values in excess.items():
            told = {"percent": round(float(np.mean(values)), 2), "highest": round(max(values), 2)}
            found.append({"case": "weights", "what": f"{name}, {count} origins", **told})
    return found


def _of_rules(market: Market, at: int, count: int, runs: int) -> dict[str, list[Floats]]:
    """Weights by each rule, of every run."""
    found: dict[str, list[Floats]] = {}
    for run in range(runs):
        distances, blocks = market.distances(_rng(1 + run, at, count), count), time_blocks(np.arange(count))
        for name, one in _rules(distances, blocks).items():
            found.setdefault(name, []).append(one)
    return found


def _rules(distances: Distances, blocks: np.ndarray) -> dict[str, Floats]:
    """Weights (M,) as the quadratic programme gives them, and moved towards equal ones."""
    best = best_weights(distances.truth.sum(axis=0), distances.between.sum(axis=0))
    rest = [(distances.truth[blocks != one], distances.between[blocks != one]) for one in np.unique(blocks)]
    without = np.stack([best_weights(truth.sum(axis=0), between.sum(axis=0)) for truth, between in rest])
    fair = np.full(len(best), 1 / len(best))
    apart = float(((best - fair) ** 2).sum())
    factor = min(1.0, 2 * jackknife_variance(without) / apart) if apart else 1.0
    shares = {"programme": 0.0, "equal": 1.0, "half of the way": 0.5, "factor alone": factor}
    found = {name: share * fair + (1 - share) * best for name, share in shares.items()}
    return {**found, "factor, at least half": shrunk_weights(distances, blocks)}


def keeping(quick: bool) -> list[dict[str, Any]]:
    """How often a blend is kept whose held-out CRPS rises by at most so many standard errors, and what that costs."""
    found = []
    for told, market in (("good", GOOD), ("broken", BROKEN)):
        known = market.distances(_rng(0, 99), QUICK_TRUTH if quick else TRUTH)
        rises, costs = [], []
        for run in range(5 * _runs(quick)):
            mean, error, chosen = _held_out(market.distances(_rng(1 + run, 99), ORIGINS[0]))
            rises.append(mean / error)
            costs.append((_score(known, chosen), _score(known, _ALONE)))
        blend, alone = np.array(costs).T
        for errors in (0, 1, 2):
            kept = np.array(rises) <= errors
            lost = np.where(kept, blend, alone) / np.minimum(blend, alone) - 1
            what = f"{told} network, {errors} standard errors"
            shown = {
                "percent": round(100 * float(lost.mean()), 2),
                "highest": round(100 * float(lost.max()), 2),
            }
            found.append({"case": "keeping", "what": what, "kept": round(float(kept.mean()), 3), **shown})
    return found


def _held_out(distances: Distances) -> tuple[float, float, Floats]:
    """How far the blend's CRPS is above the references' on the other half of the times, its error, the weights."""
    blocks, rises = time_blocks(np.arange(len(distances.truth))), []
    for half in (0, 1):
        fitted, other = blocks % 2 == half, blocks % 2 != half
        trial = shrunk_weights(_part(distances, fitted), blocks[fitted])
        rise = _part(distances, other).crps(trial) - _part(distances, other).crps(_ALONE)
        rises += [float(rise[blocks[other] == one].mean()) for one in np.unique(blocks[other])]
    error = float(np.std(rises, ddof=1)) / math.sqrt(len(rises))
    return float(np.mean(rises)), error, shrunk_weights(distances, blocks)


def location(quick: bool) -> list[dict[str, Any]]:
    """What a fan's fair CRPS seems to gain where its median is taken away though nothing is known."""
    rng, found = _rng(2), []
    for count in (10, 30, 100):
        shape = (2_000 if quick else 6_000_000 // count, count, 1)
        paths, realised = rng.normal(size=shape), rng.normal(size=(shape[0], 1))
        plain = float(crps(paths, realised).mean())
        ways = {
            "of all paths": paths - np.median(paths, axis=1, keepdims=True),
            "of a share of them": located(paths, np.zeros(1)),
        }
        for name, moved in ways.items():
            gain = 100 * (1 - float(crps(moved, realised).mean()) / plain)
            found.append(
                {"case": "location", "what": f"median {name}, {count} paths", "percent": round(gain, 2)}
            )
    return found


def dealt(quick: bool) -> list[dict[str, Any]]:
    """How far the fair CRPS of dealt paths is below what it is where their members are told apart."""
    market = replace(MARKETS["leans"], noise=0.6)
    drawn, realised = market.draw(_rng(3), QUICK_TRUTH if quick else TRUTH)
    counts = deal(equal(tuple(drawn)), PATHS)
    paths = pooled(drawn, counts)
    apart = float(pool_crps(paths, realised, member_of(counts)).mean())
    below = 100 * (1 - float(crps(paths, realised).mean()) / apart)
    return [{"case": "dealt", "what": f"fair, {PATHS} paths", "percent": round(below, 2)}]


def bands(quick: bool) -> list[dict[str, Any]]:
    """Coverage of the 90 % band, and what it is where quantiles are linear in the level."""
    found = []
    for told, law in (("normal", stats.norm), ("Student's t of 4", stats.t(4))):
        for count in (20, 30, 100):
            shape = (QUICK_TRUTH if quick else 3_000_000 // count, count, 1)
            ordered = np.sort(law.rvs(size=shape, random_state=_rng(4, count)), axis=1)
            ours, linear = (
                100 * float((law.cdf(high) - law.cdf(low)).mean())
                for low, high in (
                    order_quantiles(ordered, BAND),
                    np.quantile(ordered, BAND, axis=1, method="weibull"),
                )
            )
            shown = {"percent": round(ours, 2), "linear_in_level": round(linear, 2)}
            found.append({"case": "bands", "what": f"{told}, {count} paths", **shown})
    return found


_ALONE = np.array([0.0, *[1 / len(REFERENCES)] * len(REFERENCES)])


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _runs(quick: bool) -> int:
    return QUICK_RUNS if quick else RUNS


def _walks(rng: np.random.Generator, sigma: Floats, paths: int) -> Floats:
    """Random walks (N, S, H) of these standard deviations (N,) a step."""
    return np.asarray((sigma[:, None, None] * rng.normal(size=(len(sigma), paths, HORIZON))).cumsum(axis=-1))


def _part(distances: Distances, chosen: np.ndarray) -> Distances:
    return Distances(truth=distances.truth[chosen], between=distances.between[chosen])


def _score(distances: Distances, chosen: Floats) -> float:
    return float(distances.crps(chosen).mean())


def table(report: Mapping[str, Any]) -> list[str]:
    rows: Sequence[Mapping[str, Any]] = report["cases"]
    heads = ("case", "what", "percent", "highest", "kept", "linear_in_level")
    lines = [f"# Rules about pools on synthetic markets, on {report['hardware']}", ""]
    lines += [
        "Made by `benchmarks/pools.py`, which says what each case is. Per cent of the CRPS; in `bands`, of the "
        "truths.",
        "",
    ]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(str(row.get(head, '')) for head in heads)} |" for row in rows]


if __name__ == "__main__":
    main()
