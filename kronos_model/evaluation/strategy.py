"""What trading on the forecasts would have earned: an illustration for reading, never a part of the gate.

At each origin of one series the model says long, short or flat. The position is taken at the open of the next candle,
the first price that could have been had, and held until the next origin's. Fees and slippage are paid on every change
of the position. Funding, spreads, market impact and limits are left out. Shapes: N origins of one series.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation.scores import Scores
from kronos_model.settings import NotNegative, settings

__all__ = ["FEES_BPS", "Backtest", "StrategyConfig", "annual_ratios", "backtest", "drawdown"]

FEES_BPS = {"spot": 10.0, "um": 5.0}
"""Binance's taker fees without discounts, basis points of the traded value, by market."""
_YEAR_MS = 365 * 24 * 3_600_000  # crypto trades on every day

Floats = NDArray[np.float64]


@settings
class StrategyConfig:
    """When the illustration trades and what that costs."""

    signal: Literal["probability", "return"] = "probability"
    """probability: long above 0.5 + threshold, short below 0.5 - threshold. return: long above a mean log return of
    threshold, short below minus that."""
    threshold: NotNegative = 0.1
    """Distance from "no opinion": of P(up) from 0.5, or of the mean log return from 0."""
    short: bool = True
    """Whether it may be short; spot usually may not."""
    fee_bps: NotNegative | None = None
    """Taker fee per side, basis points. None: the market's (spot 10, um 5)."""
    slippage_bps: NotNegative = 1.0
    """What every trade loses beside the fee, basis points."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Backtest:
    """One series and model. Ratios are None where they are not defined."""

    series: str
    model: str
    time_ms: NDArray[np.int64]  # (N,) when each position was taken
    position: Floats  # (N - 1,) 1 long, -1 short, 0 flat
    equity: Floats  # (N,) from 1, after costs
    hold: Floats  # (N,) buying at the first open and holding
    turnover: float  # sum of the changes of the position, the last sale included, in units of equity
    sharpe: float | None  # annualised: mean over deviation of the returns between origins, without a rate
    sortino: float | None  # the same over the downside deviation
    calmar: float | None  # annual growth over the deepest fall
    max_drawdown: float  # deepest fall from a peak, 0 to -1
    break_even_bps: float | None  # cost per trade and side at which the arithmetic gain is gone


def backtest(scores: Scores, model: str, series: str, config: StrategyConfig) -> Backtest:
    """Walk one series with one model's signals; ValueError where it has too few origins."""
    own = np.flatnonzero(scores.series_index == scores.series.index(series))
    if len(own) < 3:
        raise ValueError(f"a strategy needs at least 3 origins, found {len(own)} of {series}; score more")
    opens, times = scores.next_open[own], scores.origin_ms[own] + scores.interval_ms
    position = signals(scores, model, config)[own][:-1]
    moves = opens[1:] / opens[:-1] - 1  # from one entry to the next
    traded = np.abs(np.diff(position, prepend=0.0))
    traded[-1] += abs(position[-1])  # closed at the end
    fee = FEES_BPS[series.partition(":")[0]] if config.fee_bps is None else config.fee_bps
    returns = position * moves - traded * (fee + config.slippage_bps) / 10_000
    equity = np.concatenate([[1.0], np.cumprod(1 + returns)])
    periods = _YEAR_MS / float(np.diff(times).mean())
    sharpe, sortino, calmar = annual_ratios(returns, periods)
    total = float(traded.sum())
    return Backtest(
        series=series,
        model=model,
        time_ms=times,
        position=position,
        equity=equity,
        hold=opens / opens[0],
        turnover=total,
        sharpe=sharpe,
        sortino=sortino,
        calmar=calmar,
        max_drawdown=drawdown(equity),
        break_even_bps=float((position * moves).sum()) / total * 10_000 if total > 0 else None,
    )


def signals(scores: Scores, model: str, config: StrategyConfig) -> Floats:
    """(N,) position at each origin from the forecast of the last step: 1 long, -1 short, 0 flat."""
    at = scores.index(model)
    opinion = scores.mean[at] if config.signal == "return" else scores.probability_up[at] - 0.5
    opinion = opinion[:, -1]
    position = np.where(np.abs(opinion) > config.threshold, np.sign(opinion), 0.0)
    return position if config.short else np.maximum(position, 0.0)


def annual_ratios(returns: Floats, periods: float) -> tuple[float | None, float | None, float | None]:
    """Sharpe (1966), Sortino (1994) and Calmar (1991) ratio of simple returns, of which `periods` make a year."""
    mean, spread = float(returns.mean()), float(returns.std(ddof=1))
    downside = float(np.sqrt((np.minimum(returns, 0) ** 2).mean()))
    equity = np.concatenate([[1.0], np.cumprod(1 + returns)])
    fall = drawdown(equity)
    growth = float(equity[-1]) ** (periods / len(returns)) - 1 if equity[-1] > 0 else -1.0
    return (
        mean / spread * periods**0.5 if spread > 0 else None,
        mean / downside * periods**0.5 if downside > 0 else None,
        growth / -fall if fall < 0 else None,
    )


def drawdown(equity: Floats) -> float:
    """Deepest fall from an earlier peak, as a share of it: 0 to -1."""
    return float((equity / np.maximum.accumulate(equity) - 1).min())
