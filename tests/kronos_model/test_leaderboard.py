"""The leaderboard and the pictures' numbers against loops over the scores and against public implementations."""

import math
from statistics import mean

import numpy as np
import polars as pl
import pytest
from scipy.stats import kstest, pearsonr, spearmanr
from utilsforecast import losses

from kronos_model.evaluation.baselines import make_baselines
from kronos_model.evaluation.config import FEE_BAND, EvaluationConfig
from kronos_model.evaluation.correlations import information_coefficient
from kronos_model.evaluation.diagnostics import coverage_by_step, pit_histogram, reliability
from kronos_model.evaluation.leaderboard import leaderboard
from kronos_model.evaluation.metrics import wilson_interval
from kronos_model.evaluation.scores import LEVELS, Scores
from kronos_model.evaluation.walk_forward import walk_forward
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from tests.support.datasets import HOUR_MS, build, make_candles
from tests.support.scores import planted_scores

HORIZON = 6


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    config = DatasetConfig(lookback=24, horizon=HORIZON)
    candles = {"um:DOGEUSDT": make_candles(700, seed=1), "um:BTCUSDT": make_candles(700, seed=2)}
    dataset = WindowDataset.open(build(candles, config, tmp_path_factory.mktemp("datasets")).path)
    settings = EvaluationConfig(origins=9, samples=11)
    competitors, _ = make_baselines(settings, interval_ms=HOUR_MS, lookback=64, history=168, seed=1)
    return walk_forward(dataset, competitors, settings)


def chosen_of(scores: Scores, series: str) -> list[int]:
    names = [scores.series[index] for index in scores.series_index]
    return [n for n, name in enumerate(names) if series in ("all", name)]


def test_the_leaderboard_equals_loops_over_the_scores(scores):
    rows = leaderboard(scores)
    assert [row["series"] for row in rows] == [
        name for name in ("all", *scores.series) for _ in range(len(scores.models))
    ]
    reference = scores.models.index("last_value")
    for row in rows:
        m, chosen = scores.models.index(row["model"]), chosen_of(scores, row["series"])
        cells = [(n, h) for n in chosen for h in range(HORIZON)]
        y, last = scores.realised, scores.last_close
        truth = {(n, h): float(last[n] * math.exp(y[n, h])) for n, h in cells}
        point = {(n, h): float(last[n] * math.exp(scores.median[m, n, h])) for n, h in cells}
        average = {(n, h): float(last[n] * scores.mean_ratio[m, n, h]) for n, h in cells}
        scale = {n: float(scores.price_scale[scores.series_index[n]]) for n in chosen}
        step = {n: float(scores.return_scale[scores.series_index[n]]) for n in chosen}
        crps = mean(float(scores.crps[m, n, h]) for n, h in cells)
        expected = {
            "origins": len(chosen),
            "mae_bps": 1e4 * mean(abs(float(scores.median[m, n, h] - y[n, h])) for n, h in cells),
            "rmse_bps": 1e4 * math.sqrt(mean(float(scores.mean[m, n, h] - y[n, h]) ** 2 for n, h in cells)),
            "mase": mean(abs(point[c] - truth[c]) / scale[c[0]] for c in cells),
            "mase_return": mean(abs(float(scores.median[m][c] - y[c])) / step[c[0]] for c in cells),
            "bias_bps": 1e4 * mean(float(scores.mean[m, n, h] - y[n, h]) for n, h in cells),
            "crps_bps": 1e4 * crps,
            "skill": 1 - crps / mean(float(scores.crps[reference, n, h]) for n, h in cells),
            "pinball_bps": 1e4 * mean(float(scores.pinball[m, n, h]) for n, h in cells),
            "energy_bps": 1e4 * mean(float(scores.energy[m, n]) for n in chosen),
            "brier": mean((float(scores.probability_up[m, n, -1]) - (y[n, -1] > 0)) ** 2 for n in chosen),
            "width_90_bps": 1e4 * mean(float(scores.width[2, m, n, h]) for n, h in cells),
            "winkler_90_bps": 1e4 * mean(float(scores.winkler[2, m, n, h]) for n, h in cells),
            "rv_mae_bps": 1e4
            * mean(
                abs(math.sqrt(scores.variance[m, n]) - math.sqrt(scores.realised_variance[n])) for n in chosen
            ),
            "violation_rate": 0.0,
        }
        for level, share in enumerate(LEVELS):
            covered = mean(float(scores.covered[level, m, n, h]) for n, h in cells)
            expected[f"coverage_{round(100 * share)}"] = covered
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-9), name
        assert row["pit_ks"] == pytest.approx(kstest(scores.pit[m, chosen].ravel(), "uniform").statistic)
        if row["series"] == "all":
            assert row["mae_price"] is row["rmse_price"] is None
        else:
            assert row["mae_price"] == pytest.approx(mean(abs(point[c] - truth[c]) for c in cells), abs=1e-9)
            square = mean((average[c] - truth[c]) ** 2 for c in cells)
            assert row["rmse_price"] == pytest.approx(math.sqrt(square), abs=1e-9)


def test_volatility_scores_equal_their_formulas_and_are_absent_where_none_is_expected(scores):
    rows = {row["model"]: row for row in leaderboard(scores) if row["series"] == "all"}
    m = scores.models.index("ewma")
    ratios = (scores.realised_variance / scores.variance[m]).tolist()
    assert rows["ewma"]["rv_qlike"] == pytest.approx(mean(r - math.log(r) - 1 for r in ratios), abs=1e-9)
    v = scores.realised_variance.tolist()
    residual = sum((e - r) ** 2 for e, r in zip(scores.variance[m].tolist(), v, strict=True))
    assert rows["ewma"]["rv_r2"] == pytest.approx(1 - residual / sum((r - mean(v)) ** 2 for r in v), abs=1e-9)
    assert rows["last_value"]["rv_qlike"] is None


def test_point_and_interval_scores_equal_utilsforecast(scores):
    """Long frame, one column per model, one row per series and step of each origin."""
    rows = {(row["model"], row["series"]): row for row in leaderboard(scores)}
    nine = scores.level(0.9)
    for model in ("ewma", "drift"):
        m = scores.models.index(model)
        names = [scores.series[index] for index in np.repeat(scores.series_index, HORIZON)]
        median, half = scores.median[m].ravel(), scores.width[nine, m].ravel() / 2
        frame = pl.DataFrame(
            {
                "unique_id": names,
                "ds": np.arange(len(names)),
                "y": scores.realised.ravel(),
                model: median,
                "mean": scores.mean[m].ravel(),
                f"{model}-lo-90": median - half,
                f"{model}-hi-90": median + half,
            }
        )
        train = pl.concat(
            [
                pl.DataFrame(
                    {"unique_id": [name] * 2, "ds": [0, 1], "y": [0.0, float(scores.return_scale[at])]}
                )
                for at, name in enumerate(scores.series)
            ]
        )  # a history whose in-sample naive error is the scale
        public = {
            "mae_bps": 1e4 * losses.mae(frame, [model])[model],
            "mase_return": losses.mase(frame, [model], seasonality=1, train_df=train)[model],
            "rmse_bps": 1e4 * losses.rmse(frame, ["mean"])["mean"],
        }
        order = losses.mae(frame, [model])["unique_id"].to_list()
        for name, values in public.items():
            for series, value in zip(order, values.to_list(), strict=True):
                assert rows[model, series][name] == pytest.approx(value, abs=1e-9), name
        covers = (np.abs(scores.realised - scores.median[m]) <= scores.width[nine, m] / 2).mean(axis=1)
        found = losses.coverage(frame, [model], 90)[model].to_list()
        for series, value in zip(order, found, strict=True):
            assert covers[chosen_of(scores, series)].mean() == pytest.approx(value, abs=1e-9)


def test_skill_stands_inside_its_interval_and_the_reference_has_exactly_none(scores):
    for row in leaderboard(scores):
        if row["model"] == "last_value":
            assert (row["skill"], row["skill_low"], row["skill_high"]) == (0.0, 0.0, 0.0)
        else:
            assert row["skill_low"] < row["skill"] < row["skill_high"]


def test_direction_is_a_share_of_moves_beyond_the_fees_and_absent_where_nothing_moves(scores):
    rows = {row["model"]: row for row in leaderboard(scores) if row["series"] == "all"}
    m = scores.models.index("ewma")
    last = [
        (float(scores.median[m, n, -1]), float(scores.realised[n, -1])) for n in range(len(scores.realised))
    ]
    hits = [(p > 0) == (y > 0) for p, y in last if abs(y) > FEE_BAND]
    assert 0 < len(hits) < len(last)
    assert rows["ewma"]["direction"] == pytest.approx(mean(hits))
    trials = 18 * len(hits) / len(last)
    interval = (rows["ewma"]["direction_low"], rows["ewma"]["direction_high"])
    assert interval == pytest.approx(wilson_interval(mean(hits), trials))
    assert rows["last_value"]["direction"] is None
    assert rows["last_value"]["direction_low"] is None


def test_overlapping_forecasts_do_not_narrow_the_interval_of_the_direction():
    crps = {name: np.random.default_rng(1).uniform(0.01, 0.02, 60) for name in ("a", "last_value")}
    apart = leaderboard(planted_scores(crps, stride_hours=6, horizon=6))[0]
    overlapping = leaderboard(planted_scores(crps, stride_hours=1, horizon=6))[0]
    assert overlapping["direction"] == apart["direction"]
    narrow, wide = (row["direction_high"] - row["direction_low"] for row in (apart, overlapping))
    assert wide == pytest.approx(np.subtract(*wilson_interval(apart["direction"], 10)[::-1]))
    assert wide > 2 * narrow


def test_the_leaderboard_is_sorted_and_has_no_skill_without_its_reference():
    crps = {name: np.full(40, level) for name, level in (("worse", 0.03), ("better", 0.01))}
    rows = leaderboard(planted_scores(crps))
    assert [row["model"] for row in rows[:2]] == ["better", "worse"]
    assert rows[0]["skill"] is None


def test_correlation_is_over_time_for_few_symbols_and_says_so(scores):
    found = information_coefficient(scores, "drift")
    expected = [
        (pearsonr(a, b).statistic, spearmanr(a, b).statistic)
        for g in range(2)
        if (own := scores.series_index == g).any()
        and (a := scores.mean[scores.index("drift"), own, -1]) is not None
        and (b := scores.realised[own, -1]) is not None
    ]
    assert found.kind == "per symbol"
    assert (found.ic, found.rank_ic) == pytest.approx(tuple(np.mean(expected, axis=0)), abs=1e-9)
    assert information_coefficient(scores, "last_value").ic is None  # a straight line


def test_correlation_is_across_symbols_at_each_time_for_many_of_them():
    rng = np.random.default_rng(4)
    many = planted_scores({"a": rng.uniform(0.01, 0.02, 60)}, series=6)
    many.realised[:] = rng.normal(size=many.realised.shape)
    many.mean[:] = many.realised + rng.normal(size=many.mean.shape)
    found = information_coefficient(many, "a")
    per_time = [
        (
            pearsonr(many.mean[0, own, -1], many.realised[own, -1]).statistic,
            spearmanr(many.mean[0, own, -1], many.realised[own, -1]).statistic,
        )
        for time in sorted(set(many.origin_ms.tolist()))
        if (own := many.origin_ms == time).any()
    ]
    ics = [ic for ic, _ in per_time]
    assert len(ics) == 10
    assert found.kind == "per time across symbols"
    assert (found.ic, found.rank_ic) == pytest.approx(tuple(np.mean(per_time, axis=0)), abs=1e-9)
    assert found.icir == pytest.approx(np.mean(ics) / np.std(ics, ddof=1), abs=1e-9)
    assert found.t_statistic == pytest.approx(np.mean(ics) / np.std(ics, ddof=1) * math.sqrt(10), abs=1e-9)


def test_pit_histogram_and_coverage_by_step_count_bars(scores):
    m = scores.index("ewma")
    pits = scores.pit[m].ravel().tolist()
    found = pit_histogram(scores, "ewma", bins=4)
    for at in range(4):
        inside = sum(at / 4 <= p < (at + 1) / 4 or (at == 3 and p == 1) for p in pits)
        assert found[at] == pytest.approx(inside / len(pits) * 4)
    expected = scores.covered[scores.level(0.8), m].mean(axis=0)
    np.testing.assert_array_equal(coverage_by_step(scores, "ewma", 0.8), expected)


def test_reliability_compares_stated_with_observed_frequencies(scores):
    m, found = scores.index("ewma"), reliability(scores, "ewma", bins=5)
    stated = scores.probability_up[m, :, -1].tolist()
    rose = (scores.realised[:, -1] > 0).tolist()
    for at in range(5):
        own = [(p, r) for p, r in zip(stated, rose, strict=True) if min(int(p * 5), 4) == at]
        assert found.count[at] == len(own)
        if own:
            assert found.stated[at] == pytest.approx(mean(p for p, _ in own))
            assert found.observed[at] == pytest.approx(mean(r for _, r in own))
        else:
            assert np.isnan(found.stated[at])


def test_a_model_that_knows_the_truth_has_the_best_of_every_score():
    scores = planted_scores({"last_value": np.full(40, 0.01), "oracle": np.full(40, 1e-9)})
    best, other = leaderboard(scores)[:2]
    assert best["model"] == "oracle"
    assert best["skill"] > 0.99
    assert best["mae_bps"] < other["mae_bps"]


def test_a_probability_of_one_belongs_to_the_last_bin():
    planted = planted_scores({"a": np.full(20, 0.01)})
    planted.probability_up[:] = np.where(np.arange(20) < 5, 1.0, 0.35)[None, :, None]
    found = reliability(planted, "a")
    assert found.count.tolist() == [0, 0, 0, 15, 0, 0, 0, 0, 0, 5]
    assert (found.stated[3], found.stated[9]) == pytest.approx((0.35, 1.0))
