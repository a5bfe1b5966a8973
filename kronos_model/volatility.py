"""Two forecasters that know volatility better than the cone: HAR-RV, and GARCH(1,1), which needs the library `arch`.

Both are fitted anew at every origin, on what is known there, and draw random walks without drift.
Shapes: B origins, C bars of lookback, K bars of history, S sample paths, H steps, R rows of a regression, F=6 features.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kronos_model.bars_from_closes import bars_along, one_bar_moves, row_generators
from kronos_model.context import Context, Forecast
from kronos_model.features import CLOSE

__all__ = ["EWMA_DECAY", "HAR_LOOKBACK", "Garch", "GarchFit", "HarRv", "fit_garch"]

_SPANS = (1, 5, 22)  # bars: Corsi's day, week and month of trading, taken as bars
HAR_LOOKBACK = 64
"""Fewest bars of lookback of HAR-RV: 42 rows for four coefficients."""
_RIDGE = 1e-9  # of the sum of squares; without it a market that stands still has no solution
_ROOM = math.log(4.0)  # how far a simulated log variance may leave the range seen
_FLOOR = 1e-14  # variance of a bar that did not move: a millionth of a basis point, squared, is still above 0
_FEWEST_MOVES = 100  # returns: with fewer, GARCH's likelihood says next to nothing
EWMA_DECAY = 0.97
"""Weight of a squared return relative to the next one: half of it is gone after 23 bars."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class HarRv:
    """Corsi's heterogeneous autoregression (2009) of the log variance of bars, simulated forward.

    A bar's variance is Parkinson's (1980), from its high and low, scaled to that of the close's returns. Its
    logarithm is regressed on its means over 1, 5 and 22 bars; residuals are redrawn, and shocks are normal. A
    simulated variance stays within four times the range seen, since a regression on few bars may explode.
    """

    samples: int
    seed: int
    name: str = "har"

    def forecast(self, context: Context) -> Forecast:
        horizon = context.future_open_time.shape[1]
        level = _log_variance(context)  # (B, C)
        coefficients, residuals = _har(level)
        shape = (self.samples, horizon)
        numbers = [
            (one.random(shape), one.standard_normal(shape)) for one in row_generators(context, self.seed)
        ]
        uniforms, shocks = np.stack(numbers, axis=1)  # (B, S, H) each
        chosen = (uniforms * residuals.shape[1]).astype(np.int64)  # (B, S, H)
        surprise = np.take_along_axis(residuals[:, None], chosen, axis=-1)
        low, high = level.min(axis=1)[:, None] - _ROOM, level.max(axis=1)[:, None] + _ROOM
        known = np.repeat(level[:, None, -_SPANS[-1] :], self.samples, axis=1)  # (B, S, 22)
        simulated = np.concatenate([known, np.empty(chosen.shape)], axis=-1)
        for step in range(horizon):
            at = _SPANS[-1] + step
            expected = coefficients[:, :1] + sum(
                coefficients[:, 1 + index, None] * simulated[..., at - span : at].mean(axis=-1)
                for index, span in enumerate(_SPANS)
            )
            simulated[..., at] = np.clip(expected + surprise[..., step], low, high)
        returns = np.exp(simulated[..., _SPANS[-1] :] / 2) * shocks
        return bars_along(context, np.cumsum(returns, axis=-1))


@dataclass(frozen=True, kw_only=True, slots=True)
class GarchFit:
    """v(t+1) = omega + alpha r(t)^2 + beta v(t), with r = sqrt(v) x Student's t of unit variance."""

    omega: float
    alpha: float
    beta: float
    degrees: float  # of freedom; infinite: normal shocks
    next_variance: float  # of the first bar to come


@dataclass(frozen=True, kw_only=True)
class Garch:
    """GARCH(1,1) (Bollerslev 1986) with Student's shocks (1987), fitted by maximum likelihood to the history's returns.

    Where there are fewer than a hundred of them, or the fit does not converge, it is the EWMA cone, which is the
    GARCH with omega 0, alpha 0.03 and beta 0.97.
    """

    samples: int
    seed: int
    name: str = "garch"

    def forecast(self, context: Context) -> Forecast:
        horizon = context.future_open_time.shape[1]
        fits = [fit_garch(moves[~np.isnan(moves)]) for moves in one_bar_moves(context)]
        omega, alpha, beta, variance = (
            np.array([getattr(fit, name) for fit in fits])[:, None]
            for name in ("omega", "alpha", "beta", "next_variance")
        )
        shape, generators = (self.samples, horizon), row_generators(context, self.seed)
        shocks = np.stack(
            [_student(one, fit.degrees, shape) for one, fit in zip(generators, fits, strict=True)]
        )
        returns = np.empty_like(shocks)
        for step in range(horizon):
            returns[..., step] = np.sqrt(variance) * shocks[..., step]
            variance = omega + alpha * returns[..., step] ** 2 + beta * variance
        return bars_along(context, np.cumsum(returns, axis=-1))


def fit_garch(moves: Floats) -> GarchFit:
    """Fitted to one-bar log returns in order of time."""
    weights = EWMA_DECAY ** np.arange(len(moves) - 1, -1, -1.0)
    cone = float((weights * moves**2).sum() / weights.sum())
    plain = GarchFit(omega=0.0, alpha=1 - EWMA_DECAY, beta=EWMA_DECAY, degrees=math.inf, next_variance=cone)
    scale = float(moves.std())
    if len(moves) < _FEWEST_MOVES or not scale > 0:
        return plain
    from arch.univariate import GARCH, StudentsT, ZeroMean  # brings statsmodels and pandas: seconds

    model = ZeroMean(moves / scale, volatility=GARCH(p=1, q=1), distribution=StudentsT(), rescale=False)
    found = model.fit(disp="off", show_warning=False)
    values = [float(value) for value in found.params]  # omega, alpha, beta, degrees
    if found.convergence_flag != 0 or not np.isfinite(values).all():
        return plain
    omega, alpha, beta, degrees = values
    last = float(found.conditional_volatility[-1]) ** 2
    following = omega + alpha * float(moves[-1] / scale) ** 2 + beta * last
    return GarchFit(
        omega=omega * scale**2,
        alpha=alpha,
        beta=beta,
        degrees=degrees,
        next_variance=following * scale**2,
    )


def _log_variance(context: Context) -> Floats:
    """(B, C) of every known bar: Parkinson's, scaled so that its mean is that of the squared returns."""
    prices = context.features[:, :, :4].astype(np.float64)
    high, low = prices[:, :, :4].max(axis=2), prices[:, :, :4].min(axis=2)
    parkinson = np.log(high / low) ** 2 / (4 * math.log(2))
    squared = np.diff(np.log(prices[:, :, CLOSE]), axis=1) ** 2
    scale = (squared.mean(axis=1) + _FLOOR) / (parkinson[:, 1:].mean(axis=1) + _FLOOR)
    # A bar without a range is one that was seldom traded: a hundredth of the mean keeps its logarithm near the others.
    least = np.maximum(parkinson.mean(axis=1) / 100, _FLOOR)[:, None]
    return np.asarray(np.log(np.maximum(parkinson, least) * scale[:, None]))


def _har(level: Floats) -> tuple[Floats, Floats]:
    """Coefficients (B, 4) of the constant and the three means, and residuals (B, R) less their mean."""
    longest, count = _SPANS[-1], level.shape[1]
    centre = level.mean(axis=1, keepdims=True)  # far from 0: squares of what is left lose less
    level = level - centre
    sums = np.concatenate([np.zeros((len(level), 1)), np.cumsum(level, axis=1)], axis=1)
    ends = np.arange(longest, count)  # each row's target stands here
    means = [(sums[:, ends] - sums[:, ends - span]) / span for span in _SPANS]
    regressors = np.stack([np.ones_like(means[0]), *means], axis=-1)  # (B, R, 4)
    target = level[:, longest:]
    square = np.einsum("brk,brl->bkl", regressors, regressors)
    square += _RIDGE * np.eye(4) * np.einsum("bkk->b", square)[:, None, None]
    moment = np.einsum("brk,br->bk", regressors, target)
    coefficients = np.linalg.solve(square, moment[..., None])[..., 0]
    residuals = target - np.einsum("brk,bk->br", regressors, coefficients)
    coefficients[:, :1] += centre * (1 - coefficients[:, 1:].sum(axis=1, keepdims=True))
    return coefficients, residuals - residuals.mean(axis=1, keepdims=True)


def _student(generator: np.random.Generator, degrees: float, shape: tuple[int, int]) -> Floats:
    """Shocks of unit variance."""
    if math.isinf(degrees):
        return generator.standard_normal(shape)
    return generator.standard_t(degrees, shape) * math.sqrt((degrees - 2) / degrees)
