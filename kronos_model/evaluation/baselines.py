"""Competitors without a neural network: what a model must beat to be worth its electricity.

All of them see a Context alone, work on whole batches, and draw from a generator of each row's series and origin.
Shapes: B origins, C bars of lookback, K bars of history, S sample paths, H steps, F=6 features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation.bars_from_closes import bars_along, one_bar_moves, row_generators
from kronos_model.evaluation.competitors import Competitor, Context, LastValue
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.intervals import stretches
from kronos_model.evaluation.volatility import EWMA_DECAY, HAR_LOOKBACK, Garch, HarRv
from kronos_model.features import CLOSE
from kronos_model.forecaster import Forecast

__all__ = ["BlockBootstrap", "EwmaCone", "RandomWalkWithDrift", "SeasonalNaive", "make_baselines"]

HOUR_MS = 3_600_000
_SEASONS_MS = {"seasonal_24h": 24 * HOUR_MS, "seasonal_7d": 7 * 24 * HOUR_MS}

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RandomWalkWithDrift:
    """The line through the first and the last close of the lookback, in logarithms, goes on."""

    name: str = "drift"

    def forecast(self, context: Context) -> Forecast:
        close = np.log(context.features[:, :, CLOSE].astype(np.float64))
        slope = (close[:, -1] - close[:, 0]) / (close.shape[1] - 1)  # (B,)
        steps = np.arange(1, context.future_open_time.shape[1] + 1)
        return _twice(context, slope[:, None] * steps)


@dataclass(frozen=True, kw_only=True)
class SeasonalNaive:
    """Every bar closes where the bar one season earlier closed; the last whole season repeats."""

    name: str
    bars: int  # of a season

    def forecast(self, context: Context) -> Forecast:
        steps = np.arange(context.future_open_time.shape[1])
        season = context.history[:, -self.bars :]
        last = context.history[:, -1:]
        # Before a series' first candle there is no season to repeat: the last close stands in.
        closes = np.where(np.isnan(season), last, season)[:, steps % self.bars]
        return _twice(context, np.log(closes / last))


@dataclass(frozen=True, kw_only=True)
class EwmaCone:
    """A random walk without drift, its variance an exponentially weighted mean of squared returns (RiskMetrics)."""

    samples: int
    seed: int
    name: str = "ewma"

    def forecast(self, context: Context) -> Forecast:
        moves = one_bar_moves(context)
        weights = EWMA_DECAY ** np.arange(moves.shape[1] - 1, -1, -1.0) * ~np.isnan(moves)
        sigma = np.sqrt((weights * np.nan_to_num(moves) ** 2).sum(axis=1) / weights.sum(axis=1))  # (B,)
        shape = (self.samples, context.future_open_time.shape[1])
        shocks = np.stack([one.standard_normal(shape) for one in row_generators(context, self.seed)])
        return bars_along(context, np.cumsum(sigma[:, None, None] * shocks, axis=-1))


@dataclass(frozen=True, kw_only=True)
class BlockBootstrap:
    """A walk made of stretches of the series' own past returns, less their mean.

    Stationary bootstrap (Politis and Romano 1994): stretches of geometric length, around the end of the
    history, so that volatility clusters and fat tails stay.
    """

    samples: int
    seed: int
    mean_block: int = 24  # bars
    name: str = "bootstrap"

    def forecast(self, context: Context) -> Forecast:
        moves = one_bar_moves(context)
        known = (~np.isnan(moves)).sum(axis=1)  # (B,); they stand at the end
        centred = np.nan_to_num(moves - np.nanmean(moves, axis=1, keepdims=True))
        shape = (self.samples, context.future_open_time.shape[1])
        uniforms = np.stack([one.random((2, *shape)) for one in row_generators(context, self.seed)])
        share, offset = stretches(uniforms[:, 0] < 1 / self.mean_block, uniforms[:, 1])
        start = np.floor(share * known[:, None, None]).astype(np.int64)
        row = (moves.shape[1] - known)[:, None, None] + (start + offset) % known[:, None, None]
        returns = np.take_along_axis(centred[:, None], row, axis=-1)
        return bars_along(context, np.cumsum(returns, axis=-1))


def make_baselines(
    config: EvaluationConfig, *, interval_ms: int, lookback: int, history: int, seed: int
) -> tuple[list[Competitor], list[str]]:
    """The configured baselines, the last value first, and a sentence for each that cannot be had here."""
    sampled: Mapping[str, Callable[[], Competitor]] = {
        "drift": RandomWalkWithDrift,
        "ewma": lambda: EwmaCone(samples=config.samples, seed=seed),
        "bootstrap": lambda: BlockBootstrap(samples=config.samples, seed=seed),
        "har": lambda: HarRv(samples=config.samples, seed=seed),
        "garch": lambda: Garch(samples=config.samples, seed=seed),
    }
    made: list[Competitor] = [LastValue()]
    notes = []
    for name in config.baselines:
        if name == "har" and lookback < HAR_LOOKBACK:
            notes.append(f"har was left out: it needs a lookback of {HAR_LOOKBACK} candles, found {lookback}")
            continue
        if name not in _SEASONS_MS:
            made.append(sampled[name]())
            continue
        bars, odd = divmod(_SEASONS_MS[name], interval_ms)
        if odd or bars < 2:
            notes.append(f"{name} was left out: a season is not two or more whole candles")
        elif bars > history:
            notes.append(f"{name} was left out: a season has {bars} candles, {history} are kept in mind")
        else:
            made.append(SeasonalNaive(name=name, bars=bars))
    return made, notes


def _twice(context: Context, returns: Floats) -> Forecast:
    """A point forecast (B, H) as two equal paths: its CRPS is its absolute error."""
    return bars_along(context, np.repeat(returns[:, None], 2, axis=1))
