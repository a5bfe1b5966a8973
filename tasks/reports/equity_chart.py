"""The picture of what trading on the forecasts would have earned. All times UTC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation.scores import Scores
from kronos_model.evaluation.strategy import Backtest, StrategyConfig, backtest
from tasks.reports import chart_style as style
from tasks.reports.chart_style import Chart, Floats

__all__ = ["equity_chart"]

_FEWEST_ORIGINS = 3  # of a series, for a strategy


def equity_chart(scores: Scores, config: StrategyConfig) -> Chart | None:
    """What trading on each model's forecasts would have earned, all series weighing the same; None without trades."""
    series = [
        name for at, name in enumerate(scores.series) if (scores.series_index == at).sum() >= _FEWEST_ORIGINS
    ]
    if not series:
        return None
    figure, (axis,) = style.canvas(1)
    words = []
    for model in style.contenders(scores):
        tested = [backtest(scores, model, name, config) for name in series]
        times, equity = _together([(one.time_ms, one.equity) for one in tested])
        colour, label = style.colour_of(scores.models, model), style.name_of(model)
        axis.step(times / style.DAY_MS, equity, where="post", color=colour, label=label)
        if model == style.CHALLENGER:
            words = [_in_words(one) for one in tested]
            times, hold = _together([(one.time_ms, one.hold) for one in tested])
            axis.plot(times / style.DAY_MS, hold, color=style.MUTED, label="buy and hold")
    axis.axhline(1, color=style.GRID, linewidth=1)
    axis.set_ylabel("equity, from 1")
    style.time_axis(axis)
    style.legend(figure, [axis])
    return Chart(
        "equity",
        "Illustration: what trading on it would have earned",
        f"No part of the gate, and no advice. At each origin long, short or flat by P(up) at the last step, entered at "
        f"the next open, with taker fees and {config.slippage_bps:g} bps of slippage; funding, spread, market impact "
        f"and limits are left out. All series weigh the same. The challenger: {'; '.join(words)}.",
        figure,
    )


def _together(curves: Sequence[tuple[NDArray[np.int64], Floats]]) -> tuple[NDArray[np.int64], Floats]:
    """The mean of several curves at every time of any of them, each holding its last value in between."""
    times = np.unique(np.concatenate([one for one, _ in curves]))
    rows = [values[np.maximum(np.searchsorted(own, times, side="right") - 1, 0)] for own, values in curves]
    return times, np.mean(rows, axis=0)


def _in_words(one: Backtest) -> str:
    sharpe = "none" if one.sharpe is None else f"{one.sharpe:.2f}"
    even = (
        "no trades" if one.break_even_bps is None else f"breaks even at {one.break_even_bps:.1f} bps per side"
    )
    gain, held = (100 * (curve[-1] - 1) for curve in (one.equity, one.hold))
    return (
        f"{one.series} {gain:+.1f} % (holding {held:+.1f} %), Sharpe {sharpe}, "
        f"deepest fall {100 * one.max_drawdown:.1f} %, turnover {one.turnover:.0f}, {even}"
    )
