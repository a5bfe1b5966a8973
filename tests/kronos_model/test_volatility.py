"""HAR-RV and GARCH: fitted as least squares and the library `arch` fit them, and drawn with the variance they imply."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from kronos_model import volatility
from kronos_model.context import Context
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.volatility import Garch, HarRv, fit_garch

HOUR_MS = 3_600_000
B, C, K, H = 3, 120, 400, 6


def make_context(rows: slice = slice(None), *, known: int = K) -> Context:
    """Random walks whose volatility clusters; the first one's history is `known` closes long."""
    rng = np.random.default_rng(4)
    level = np.zeros((B, K))
    for t in range(1, K):
        level[:, t] = 0.95 * level[:, t - 1] + rng.normal(0, 0.3, B)
    moves = 0.005 * np.exp(level) * rng.standard_normal((B, K))
    history = 100 * np.exp(moves.cumsum(axis=1))
    close = history[:, -C:]
    opened = history[:, -C - 1 : -1]
    wick = np.exp(np.abs(moves[:, -C:]) * rng.random((B, C)))
    bars = [opened, np.maximum(opened, close) * wick, np.minimum(opened, close) / wick, close]
    features = np.stack([*bars, np.full((B, C), 7.0), np.full((B, C), 700.0)], axis=-1).astype(np.float32)
    history[0, : K - known] = np.nan
    times = np.arange(C + H) * HOUR_MS + 1_700_000_000_000
    return Context(
        features=features[rows],
        open_time=np.tile(times[:C], (B, 1))[rows],
        future_open_time=np.tile(times[C:], (B, 1))[rows],
        series=["um:A", "um:B", "um:C"][rows],
        history=history[rows],
    )


def returns(competitor, context: Context) -> np.ndarray:
    """One-bar log returns (B, S, H) of its closes."""
    paths = competitor.forecast(context).paths[..., 3].astype(np.float64)
    closes = np.concatenate([np.broadcast_to(context.features[:, -1:, 3:4], (*paths.shape[:2], 1)), paths], 2)
    return np.diff(np.log(closes), axis=-1)


def competitors(samples: int, seed: int = 3) -> list:
    return [HarRv(samples=samples, seed=seed), Garch(samples=samples, seed=seed)]


def test_hars_coefficients_are_least_squares_on_means_over_1_5_and_22_bars():
    level = volatility._log_variance(make_context())
    coefficients, residuals = volatility._har(level)
    for b in range(B):
        rows = [[1.0, *(level[b, t - span : t].mean() for span in (1, 5, 22))] for t in range(22, C)]
        expected, *_ = np.linalg.lstsq(np.array(rows), level[b, 22:], rcond=None)
        np.testing.assert_allclose(np.array(rows) @ coefficients[b], np.array(rows) @ expected, atol=1e-6)
        assert abs(residuals[b].mean()) < 1e-12


def test_a_bars_variance_is_parkinsons_at_the_level_of_the_closes_returns():
    context = make_context()
    found = np.exp(volatility._log_variance(context))
    squared = np.diff(np.log(context.features[..., 3].astype(np.float64)), axis=1) ** 2
    np.testing.assert_allclose(
        found[:, 1:].mean(axis=1), squared.mean(axis=1), rtol=0.05
    )  # quiet bars are lifted
    bar = context.features[0, 50].astype(np.float64)
    another = context.features[0, 60].astype(np.float64)
    ratio = (math.log(bar[1] / bar[2]) / math.log(another[1] / another[2])) ** 2
    assert found[0, 50] / found[0, 60] == pytest.approx(ratio, rel=1e-9)


def test_hars_first_bar_has_the_variance_its_regression_expects():
    context = make_context()
    level = volatility._log_variance(context)
    coefficients, residuals = volatility._har(level)
    drawn = returns(HarRv(samples=20_000, seed=3), context)[..., 0]
    for b in range(B):
        expected = coefficients[b] @ [1.0, *(level[b, -span:].mean() for span in (1, 5, 22))]
        variance = np.exp(expected + residuals[b]).mean()
        assert drawn[b].std() == pytest.approx(math.sqrt(variance), rel=0.05)


def test_garchs_fit_and_the_variance_of_its_paths_are_archs():
    univariate = pytest.importorskip("arch.univariate")
    context = make_context()
    drawn = returns(Garch(samples=20_000, seed=3), context)
    for b in range(B):
        moves = np.diff(np.log(context.history[b]))
        scale = moves.std()
        model = univariate.ZeroMean(
            moves / scale,
            volatility=univariate.GARCH(p=1, q=1),
            distribution=univariate.StudentsT(),
            rescale=False,
        )
        theirs = model.fit(disp="off")
        fit = fit_garch(moves)
        np.testing.assert_allclose(
            [fit.omega / scale**2, fit.alpha, fit.beta, fit.degrees], theirs.params, rtol=1e-9
        )
        analytic = theirs.forecast(horizon=H).variance.to_numpy()[-1] * scale**2
        assert fit.next_variance == pytest.approx(analytic[0], rel=1e-9)
        np.testing.assert_allclose(
            drawn[b].var(axis=0), analytic, rtol=0.25
        )  # shocks of 4 degrees of freedom


def test_garch_is_the_ewma_cone_where_there_is_too_little_to_fit():
    context = make_context(known=60)
    moves = np.diff(np.log(context.history[0]))
    known = moves[~np.isnan(moves)]
    fit = fit_garch(known)
    weights = 0.97 ** np.arange(len(known) - 1, -1, -1.0)
    assert (fit.omega, fit.alpha + fit.beta) == (0.0, 1.0)
    assert fit.next_variance == pytest.approx((weights * known**2).sum() / weights.sum())
    assert fit_garch(np.zeros(200)).next_variance == 0.0


@pytest.mark.parametrize("at", [0, 1], ids=["har", "garch"])
def test_paths_depend_on_their_own_row_and_seed_alone_and_bars_are_consistent(at):
    if at == 1:
        pytest.importorskip("arch")
    whole = competitors(20)[at].forecast(make_context()).paths
    np.testing.assert_array_equal(competitors(20)[at].forecast(make_context()).paths, whole)
    for row in range(B):
        alone = competitors(20)[at].forecast(make_context(slice(row, row + 1))).paths
        np.testing.assert_array_equal(alone[0], whole[row])
    assert (competitors(20, seed=4)[at].forecast(make_context()).paths != whole).any()
    assert (whole[..., 1] >= whole[..., [0, 3]].max(axis=-1)).all()
    assert (whole[..., 2] <= whole[..., [0, 3]].min(axis=-1)).all()


def test_a_market_that_stands_still_is_forecast_to_stand_nearly_still():
    context = make_context()
    context.features[:, :, :4] = 100.0
    paths = HarRv(samples=20, seed=1).forecast(context).paths
    assert np.isfinite(paths).all()
    np.testing.assert_allclose(paths[..., 3], 100.0, rtol=1e-4)


def test_garch_without_its_library_is_refused_at_once_with_the_remedy(monkeypatch):
    monkeypatch.setattr("kronos_model.evaluation.config.find_spec", lambda name: None)
    EvaluationConfig(baselines=("har",))
    with pytest.raises(
        ValueError, match=r"found none; install it with `pip install 'kronos-nightly\[arch\]'`"
    ):
        EvaluationConfig(baselines=("garch",))


@pytest.mark.parametrize("wrong", ["not converged", "not finite"])
def test_garch_is_the_ewma_cone_where_its_fit_has_not_ended_well(monkeypatch, wrong):
    univariate = pytest.importorskip("arch.univariate")
    moves = np.diff(np.log(make_context().history[1]))
    fitted = univariate.ZeroMean.fit

    def failed(model, **options):
        found = fitted(model, **options)
        params = found.params * (np.nan if wrong == "not finite" else 1.0)
        flag = 4 if wrong == "not converged" else 0
        volatility = found.conditional_volatility
        return SimpleNamespace(params=params, convergence_flag=flag, conditional_volatility=volatility)

    assert fit_garch(moves).omega > 0
    monkeypatch.setattr(univariate.ZeroMean, "fit", failed)
    weights = 0.97 ** np.arange(len(moves) - 1, -1, -1.0)
    fit = fit_garch(moves)
    assert (fit.omega, fit.alpha + fit.beta) == (0.0, 1.0)
    assert fit.next_variance == pytest.approx((weights * moves**2).sum() / weights.sum())


def test_a_bar_without_a_range_counts_as_a_hundredth_of_the_mean():
    context = make_context()
    context.features[0, 40:43, :4] = context.features[0, 40:43, 3:4]
    prices = context.features[0].astype(np.float64)
    ranges = [math.log(bar[1] / bar[2]) ** 2 / (4 * math.log(2)) for bar in prices]
    moves = [math.log(after[3] / before[3]) ** 2 for before, after in pairwise(prices)]
    scale = sum(moves) / sum(ranges[1:])
    found = volatility._log_variance(context)[0]
    for at in range(40, 43):
        assert ranges[at] == 0
        assert math.exp(found[at]) == pytest.approx(sum(ranges) / len(ranges) / 100 * scale, rel=1e-4)
