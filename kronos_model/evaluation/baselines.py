"""Competitors without a neural network: what a model must beat to be worth its electricity.

All of them see a Context alone and work on whole batches; those that draw paths are in kronos_model.references.
Shapes: B origins, H steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kronos_model.bars_from_closes import bars_along
from kronos_model.context import Context, Forecast
from kronos_model.evaluation.competitors import Competitor, LastValue
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.features import CLOSE
from kronos_model.references import REFERENCES, make_references

__all__ = ["RandomWalkWithDrift", "SeasonalNaive", "make_baselines"]

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


def make_baselines(
    config: EvaluationConfig,
    *,
    interval_ms: int,
    lookback: int,
    history: int,
    seed: int,
    members: Sequence[str] = REFERENCES,
) -> tuple[list[Competitor], list[str]]:
    """The configured baselines, the last value first, and a sentence for each that cannot be had here.

    With them come `members`, whom somebody pools: the references, which serve where no network does.
    """
    made: list[Competitor] = [LastValue()]
    notes: list[str] = []
    for name in dict.fromkeys((*config.baselines, *members)):
        if name == "drift":
            made.append(RandomWalkWithDrift())
            continue
        if name not in _SEASONS_MS:
            found, told = make_references(lookback, samples=config.samples, seed=seed, names=(name,))
            made.extend(found.values())
            notes.extend(told)
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
