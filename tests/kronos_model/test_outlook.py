"""What paths say to people, against loops over them."""

import math

import numpy as np
import pytest

from kronos_model.features import FEATURES
from kronos_model.outlook import QUANTILES, Outlook, outlook_of, quantile_label
from tests.support.quantiles import path_quantiles

LAST = 101.0
SAMPLES, HORIZON = 7, 3


@pytest.fixture(scope="module")
def paths() -> np.ndarray:
    rng = np.random.default_rng(5)
    return (LAST * np.exp(rng.normal(0.002, 0.03, (SAMPLES, HORIZON, 6)))).astype(np.float32)


@pytest.fixture(scope="module")
def outlook(paths: np.ndarray) -> Outlook:
    return outlook_of(paths, LAST)


@pytest.mark.parametrize("step", range(HORIZON))
def test_every_figure_is_its_formula_written_out(paths: np.ndarray, outlook: Outlook, step: int) -> None:
    closes = [float(path[step][3]) for path in paths]
    logs = [math.log(close / LAST) for close in closes]
    middle = sum(logs) / SAMPLES
    assert outlook.mean[step] == pytest.approx(sum(closes) / SAMPLES, rel=1e-12)
    assert outlook.median[step] == sorted(closes)[SAMPLES // 2]
    assert outlook.probability_up[step] == sum(close > LAST for close in closes) / SAMPLES
    assert outlook.expected_return[step] == pytest.approx(sum(closes) / SAMPLES / LAST - 1, rel=1e-9)
    spread = math.sqrt(sum((log - middle) ** 2 for log in logs) / SAMPLES)
    assert outlook.volatility[step] == pytest.approx(spread, rel=1e-12)
    for at, name in enumerate(FEATURES):
        naive = sum(float(path[step][at]) for path in paths) / SAMPLES
        assert outlook.means[at, step] == pytest.approx(naive, rel=1e-12), name


def test_a_quantile_lies_between_its_neighbours_each_path_at_its_rank_of_one_more_than_there_are(
    paths: np.ndarray, outlook: Outlook
) -> None:
    ends = np.array([float(path[-1][3]) for path in paths])
    for level in QUANTILES:
        assert outlook.quantile(level)[-1] == pytest.approx(path_quantiles(ends, level), rel=1e-12)


def test_a_path_that_ends_where_it_began_is_not_up() -> None:
    flat = np.full((4, 2, 6), LAST, dtype=np.float32)
    told = outlook_of(flat, LAST)
    assert told.probability_up.tolist() == [0.0, 0.0]
    assert told.volatility.tolist() == [0.0, 0.0]
    assert told.expected_return.tolist() == [0.0, 0.0]


def test_one_path_has_an_outlook() -> None:
    one = np.full((1, 2, 6), 2 * LAST, dtype=np.float32)
    told = outlook_of(one, LAST)
    assert (told.samples, told.probability_up[-1], told.expected_return[-1], told.volatility[-1]) == (
        1,
        1,
        1,
        0,
    )


def test_figures_of_returns_do_not_depend_on_the_unit_of_prices(paths: np.ndarray, outlook: Outlook) -> None:
    scaled = outlook_of(paths * np.float32(1e-6), LAST * 1e-6)
    np.testing.assert_allclose(scaled.volatility, outlook.volatility, rtol=1e-5)
    np.testing.assert_allclose(scaled.expected_return, outlook.expected_return, rtol=1e-3)


def test_columns_of_quantiles_are_called_by_their_percent() -> None:
    assert [quantile_label(level) for level in (0.05, 0.3, 0.95)] == ["q05", "q30", "q95"]
    assert len({quantile_label(level) for level in QUANTILES}) == 19
