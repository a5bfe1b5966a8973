"""Fitting post-processing on validation origins: each step is tried on times it was not fitted on.

Origin times are cut into stretches; what is fitted on every other stretch is tried on those between, and the other
way round. A step is kept where the CRPS of these held-out origins does not rise, and then fitted on all of them; the
blend also where it rises within its noise, a spread where it rises by at most 1 %, for it is there to cover.
Pure functions: the same arrays give the same object.
Shapes: N origins of all series, S sample paths, H steps, K stretches of the horizon, M members.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.fit_location import fit_location
from kronos_model.evaluation.fit_weights import Distances, shrunk_weights
from kronos_model.evaluation.metrics import crps, pool_crps
from kronos_model.pool import deal, equal, member_of, pooled
from kronos_model.postprocess import NETWORK, PostProcess, Step, located, location_at, network_paths
from kronos_model.sampling_config import SamplingConfig
from kronos_model.spread import FEWEST_PATHS, LEVELS, Spread, fewest_origins

__all__ = ["BLOCKS", "ChosenSampling", "choose_sampling", "fit_to_returns", "time_blocks"]

BLOCKS = 8
"""Stretches of origin times: four to fit on and four to try on, and what the jackknife leaves out one by one."""
SPREAD_TOLERANCE = 0.01
"""Of the CRPS may a spread cost: it buys coverage, and so much is within the noise."""

_BPS = 10_000

Floats = NDArray[np.float64]
Chosen = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenSampling:
    """Settings that paths are to be drawn with, and how they were found."""

    sampling: SamplingConfig
    step: Step


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Validation:
    """Log returns of every member and of the truth at some origins."""

    returns: Mapping[str, Floats]  # (N, S, H) each
    realised: Floats  # (N, H)
    blocks: NDArray[np.int64]  # (N,) the stretch of time

    def of(self, chosen: Chosen) -> Self:
        """Some of the origins."""
        return type(self)(
            returns={name: paths[chosen] for name, paths in self.returns.items()},
            realised=self.realised[chosen],
            blocks=self.blocks[chosen],
        )

    def halves(self) -> list[tuple[Self, Self]]:
        """What to fit on and what to try it on: both ways round."""
        odd = self.blocks % 2 == 1
        return [(self.of(~odd), self.of(odd)), (self.of(odd), self.of(~odd))]


def fit_to_returns(
    returns: Mapping[str, Floats],
    realised: Floats,
    origin_ms: NDArray[np.int64],
    *,
    sampling: SamplingConfig,
    lookback: int,
    interval: str,
    chosen: Step | None = None,
) -> PostProcess:
    """From log returns since the last close of each member's paths (N, S, H) and of what happened (N, H).

    `returns` has the network and the references by their names, `origin_ms` (N,) the origins' times, all series
    together, `sampling` how the network's paths were drawn and `chosen` how that was found. A step that cannot be
    tried is left out, which its report says; without a trial the references serve alone. ModelError where a member's
    paths are broken.
    """
    _check(returns, realised, origin_ms)
    samples = returns[NETWORK].shape[1]
    validation = _Validation(returns=returns, realised=realised, blocks=time_blocks(origin_ms))
    # A market that stood still for a whole horizon was closed: as a narrow fan's success it would narrow all others.
    validation = validation.of(np.any(realised != 0, axis=1))
    obstacle = _obstacle(validation)
    location, located_step = _fit_location(validation, obstacle)
    alone = [{NETWORK: 1.0}] * 3
    spread_alone, alone_step = _fit_spread(
        "spread of the network", located_step, validation, alone, location, obstacle
    )
    weights, blend_step = _fit_weights(validation, location, obstacle)
    former = located_step if blend_step.before is None else blend_step
    spread, spread_step = _fit_spread("spread", former, validation, weights, location, obstacle)
    return PostProcess(
        horizon=realised.shape[1],
        lookback=lookback,
        interval=interval,
        temperature=sampling.temperature,
        top_k=sampling.top_k or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        location=location[-1],
        members=tuple(weights[-1]),
        weights=tuple(weights[-1].values()),
        spread=spread,
        spread_alone=spread_alone,
        origins=len(validation.realised),
        samples=samples,
        steps=(*([chosen] if chosen else []), located_step, alone_step, blend_step, spread_step),
    )


def choose_sampling(
    candidates: Mapping[SamplingConfig, Floats], realised: Floats, origin_ms: NDArray[np.int64]
) -> ChosenSampling:
    """The settings whose paths (N, S, H) have the lowest CRPS; the first are the default.

    The default stays unless the best settings of each half of the times are better than it in the other half too.
    Few paths do, for the fair CRPS expects the same of any number; so the paths are judged as drawn, since few of them
    tell no location apart from their noise.
    """
    default = next(iter(candidates))
    for paths in candidates.values():
        _check({NETWORK: paths}, realised, origin_ms)
    blocks = time_blocks(origin_ms)
    obstacle = _obstacle(
        _Validation(returns={NETWORK: candidates[default]}, realised=realised, blocks=blocks)
    )
    if len(candidates) < 2 or obstacle:
        why = "there is one candidate" if len(candidates) < 2 else obstacle
        return ChosenSampling(sampling=default, step=_left_out("sampling", why))
    losses = {one: crps(paths, realised).mean(axis=1) for one, paths in candidates.items()}
    odd = blocks % 2 == 1
    picked = {
        half: min(losses, key=lambda one: losses[one][chosen].mean())
        for half, chosen in ((0, ~odd), (1, odd))
    }
    found = np.where(odd, losses[picked[0]], losses[picked[1]])  # each half by the best of the other
    agreed = all(found[half].mean() < losses[default][half].mean() for half in (odd, ~odd))
    best = min(losses, key=lambda one: losses[one].mean())
    kept = agreed and best != default
    step = _step("sampling", float(losses[default].mean()), float(found.mean()), kept=kept)
    return ChosenSampling(sampling=best if kept else default, step=step)


def time_blocks(origin_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each origin (N,), the stretch of the range in which its time lies; each time is in one alone."""
    times, index = np.unique(origin_ms, return_inverse=True)
    return np.asarray(index * min(BLOCKS, len(times)) // max(len(times), 1), np.int64)


def _check(returns: Mapping[str, Floats], realised: Floats, origin_ms: NDArray[np.int64]) -> None:
    """ModelError where a member's paths are not finite, DataError where shapes differ."""
    if NETWORK not in returns:
        raise DataError(
            f"expected paths of {NETWORK} among the members, found {', '.join(returns)}; draw them"
        )
    for name, paths in returns.items():
        if (
            paths.ndim != 3
            or (paths.shape[0], paths.shape[2]) != realised.shape
            or len(origin_ms) != len(paths)
        ):
            raise DataError(
                f"expected paths of {name} for {realised.shape[0]} origins and {realised.shape[1]} steps, found the "
                f"shape {paths.shape} and {len(origin_ms)} times; forecast from the same origins"
            )
        if not np.isfinite(paths).all():
            row = int(np.argmin(np.isfinite(paths).all(axis=(1, 2))))
            raise ModelError(
                f"expected finite paths of {name}, found others at the origin "
                f"{np.datetime64(int(origin_ms[row]), 'ms')}Z; its weights or the candles it saw are broken"
            )


def _obstacle(validation: _Validation) -> str:
    """Why nothing can be fitted; empty where all can."""
    if not len(validation.realised):
        return "the market does not move in the validation range"
    odd = int((validation.blocks % 2 == 1).sum())
    found, needed = min(odd, len(validation.blocks) - odd), fewest_origins(LEVELS[-1])
    paths = min(one.shape[1] for one in validation.returns.values())
    if found < needed:
        return f"half of the validation range has {found} origins, and {needed} are needed"
    if paths < FEWEST_PATHS:
        return f"there are {paths} paths per origin, and {FEWEST_PATHS} are needed"
    return ""


def _fit_location(validation: _Validation, obstacle: str) -> tuple[list[tuple[float, ...]], Step]:
    """Shares of the median's move, as fitted on either half and on all; as drawn where that is better."""
    as_drawn: list[tuple[float, ...]] = [(1.0,)] * 3
    if obstacle:
        return as_drawn, _left_out("location", obstacle)
    parts = [*(fitted_on for fitted_on, _ in validation.halves()), validation]
    fitted = [fit_location(one.returns[NETWORK], one.realised, one.blocks) for one in parts]
    before = after = 0.0
    for shares, (_, held_out) in zip(fitted, validation.halves(), strict=False):
        share = len(held_out.realised) / len(validation.realised)
        before += share * float(crps(held_out.returns[NETWORK], held_out.realised).mean())
        after += share * float(_located_crps(held_out.returns[NETWORK], held_out.realised, shares).mean())
    step = _step("location", before, after, kept=after <= before)
    return (fitted if step.kept else as_drawn), step


def _fit_weights(
    validation: _Validation, location: list[tuple[float, ...]], obstacle: str
) -> tuple[list[dict[str, float]], Step]:
    """Weights of the pool, as fitted on either half and on all; the references alone where the network does harm."""
    references = tuple(name for name in validation.returns if name != NETWORK)
    if not references:
        return [{NETWORK: 1.0}] * 3, _left_out("blend", "there are no references")
    without = {NETWORK: 0.0, **equal(references)}
    if obstacle:
        return [without] * 3, _left_out("blend", obstacle)
    parts = [*(fitted_on for fitted_on, _ in validation.halves()), validation]
    fitted = [_weights(one, shares) for one, shares in zip(parts, location, strict=True)]
    before, after, blocks = [], [], []
    for weights, shares, (_, held_out) in zip(fitted, location, validation.halves(), strict=False):
        distances = _distances(held_out, shares)
        before.append(distances.crps(np.array([without[name] for name in weights])))
        after.append(distances.crps(np.array(list(weights.values()))))
        blocks.append(held_out.blocks)
    alone, blended = np.concatenate(before), np.concatenate(after)
    harm = _beyond_doubt(blended - alone, np.concatenate(blocks))
    step = _step(
        "blend",
        float(alone.mean()),
        float(blended.mean()),
        kept=not harm,
        told_before=" (the references alone)",
    )
    return (fitted if step.kept else [without] * 3), step


def _beyond_doubt(rise: Floats, blocks: NDArray[np.int64]) -> bool:
    """Whether a score (N,) rises by more than the standard error of its mean over stretches of time.

    On synthetic truth of 96 origins a rule without it gives up a good network every third time, which costs 0.11 %;
    with two standard errors a broken one stays every other time, which costs 1.0 % (benchmarks/pools.py).
    """
    means = np.array([rise[blocks == one].mean() for one in np.unique(blocks)])
    return bool(means.mean() > means.std(ddof=1) / np.sqrt(len(means)))


def _weights(validation: _Validation, location: tuple[float, ...]) -> dict[str, float]:
    """By name, the network first."""
    found = shrunk_weights(_distances(validation, location), validation.blocks)
    return dict(zip(_names(validation), map(float, found), strict=True))


def _distances(validation: _Validation, location: tuple[float, ...]) -> Distances:
    """Between the members, the network first and with its location shrunk, and the truth."""
    paths = {name: validation.returns[name] for name in _names(validation)}
    paths[NETWORK] = located(paths[NETWORK], location_at(location, validation.realised.shape[1]))
    return Distances.of(paths, validation.realised)


def _names(validation: _Validation) -> list[str]:
    return [NETWORK, *(name for name in validation.returns if name != NETWORK)]


def _fit_spread(
    name: str,
    former: Step,
    validation: _Validation,
    weights: list[dict[str, float]],
    location: list[tuple[float, ...]],
    obstacle: str,
) -> tuple[Spread | None, Step]:
    """Factors of the fan of a pool with these weights, as they and the location were fitted on either half and all.

    What they change is measured on as many paths as will be served, and told from what the former step has left.
    """
    if obstacle:
        return None, _left_out(name, obstacle)
    change = 0.0
    for pool, shares, (fitted_on, held_out) in zip(weights, location, validation.halves(), strict=False):
        trial = Spread.fit(_pooled(fitted_on, pool, shares)[0], fitted_on.realised)
        paths, member = _pooled(held_out, pool, shares)
        scaled, plain = (pool_crps(one, held_out.realised, member) for one in (trial.scale(paths), paths))
        change += float((scaled - plain).mean()) * len(held_out.realised) / len(validation.realised)
    before = _left_by(former)
    step = _step(name, before, before + change, kept=change <= SPREAD_TOLERANCE * before)
    if not step.kept:
        return None, step
    return Spread.fit(_pooled(validation, weights[-1], location[-1])[0], validation.realised), step


def _left_by(step: Step) -> float:
    """The CRPS in log return that a step which was tried has left."""
    found = step.after if step.kept else step.before
    assert found is not None
    return found / _BPS


def _pooled(
    validation: _Validation, weights: Mapping[str, float], location: tuple[float, ...]
) -> tuple[Floats, NDArray[np.int64]]:
    """Paths (N, S, H) of the pool as they will be served, and which member each (S,) is from."""
    paths = dict(validation.returns)
    dealt = deal(weights, paths[NETWORK].shape[1])
    if taken := dealt[NETWORK]:
        drawn = paths[NETWORK][:, : network_paths(taken, location)]
        paths[NETWORK] = located(drawn, location_at(location, validation.realised.shape[1]))
    return pooled(paths, dealt), member_of(dealt)


def _located_crps(paths: Floats, realised: Floats, shares: tuple[float, ...]) -> Floats:
    """CRPS (N,) of paths with these shares of their median left."""
    moved = located(paths, location_at(shares, realised.shape[1]))
    return np.asarray(crps(moved, realised).mean(axis=1))


def _step(name: str, before: float, after: float, *, kept: bool, told_before: str = "") -> Step:
    """From CRPS in log return; `told_before` says of what the first one is."""
    before, after = _BPS * before, _BPS * after
    change = f"the CRPS of held-out validation origins from {before:.2f}{told_before} to {after:.2f} bps"
    return Step(
        name=name,
        kept=kept,
        reason=f"it moves {change}" if kept else f"it would move {change}",
        before=before,
        after=after,
    )


def _left_out(name: str, why: str) -> Step:
    return Step(name=name, kept=False, reason=f"not tried: {why}")
