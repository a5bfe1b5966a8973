"""The strategy view against a ledger kept by hand and against empyrical's ratios."""

import empyrical
import numpy as np
import pytest

from kronos_model.evaluation.strategy import StrategyConfig, annual_ratios, backtest, drawdown
from tests.support.scores import HOUR_MS, planted_scores

OPENS = [100.0, 110.0, 99.0, 104.0, 104.0, 130.0]
UP = [0.9, 0.2, 0.5, 0.55, 0.8, 0.9]
SERIES = "um:COIN0USDT"


def scores():
    made = planted_scores({"model": np.full(6, 0.01)})
    made.next_open[:] = OPENS
    made.probability_up[0, :, -1] = UP
    made.mean[0, :, -1] = [0.02, -0.02, 0.0, 0.001, 0.03, 0.01]
    return made


def test_equity_equals_a_ledger_kept_by_hand():
    found = backtest(scores(), "model", SERIES, StrategyConfig(fee_bps=20, slippage_bps=5))
    positions = [1, -1, 0, 0, 1]  # the last signal has no exit left
    assert found.position.tolist() == positions
    equity, before, traded = [1.0], 0, 0.0
    for at, position in enumerate(positions):
        change = abs(position - before) + (abs(position) if at == len(positions) - 1 else 0)
        gain = position * (OPENS[at + 1] / OPENS[at] - 1) - change * 0.0025
        equity.append(equity[-1] * (1 + gain))
        before, traded = position, traded + change
    assert found.equity.tolist() == pytest.approx(equity, abs=1e-12)
    assert found.turnover == traded == 6
    assert found.hold.tolist() == pytest.approx([price / 100 for price in OPENS])
    assert (np.diff(found.time_ms) == 24 * HOUR_MS).all()
    assert found.time_ms[0] == scores().origin_ms[0] + HOUR_MS  # the open after the last known candle


def test_at_the_break_even_cost_nothing_is_left_of_the_gains():
    free = backtest(scores(), "model", SERIES, StrategyConfig(fee_bps=0, slippage_bps=0))
    costly = backtest(scores(), "model", SERIES, StrategyConfig(fee_bps=free.break_even_bps, slippage_bps=0))
    assert free.equity[-1] > 1
    assert (costly.equity[1:] / costly.equity[:-1] - 1).sum() == pytest.approx(0, abs=1e-12)


def test_signals_of_the_mean_return_and_without_shorts():
    config = StrategyConfig(signal="return", threshold=0.01)
    assert backtest(scores(), "model", SERIES, config).position.tolist() == [1, -1, 0, 0, 1]
    config = StrategyConfig(short=False)
    assert backtest(scores(), "model", SERIES, config).position.tolist() == [1, 0, 0, 0, 1]


def test_the_fee_is_the_markets_unless_it_is_given():
    made = backtest(scores(), "model", SERIES, StrategyConfig(slippage_bps=0))
    given = backtest(scores(), "model", SERIES, StrategyConfig(slippage_bps=0, fee_bps=5))
    np.testing.assert_array_equal(made.equity, given.equity)


def test_a_model_without_an_opinion_never_trades_and_has_no_ratios():
    found = backtest(scores(), "model", SERIES, StrategyConfig(threshold=0.5))
    assert found.equity.tolist() == [1.0] * 6
    assert (found.turnover, found.max_drawdown) == (0, 0)
    assert (found.sharpe, found.sortino, found.calmar, found.break_even_bps) == (None,) * 4


def test_ratios_equal_empyricals():
    returns = np.random.default_rng(1).normal(0.001, 0.02, 365)
    sharpe, sortino, calmar = annual_ratios(returns, 365)
    assert sharpe == pytest.approx(empyrical.sharpe_ratio(returns, annualization=365), abs=1e-9)
    assert sortino == pytest.approx(empyrical.sortino_ratio(returns, annualization=365), abs=1e-9)
    assert calmar == pytest.approx(empyrical.calmar_ratio(returns, annualization=365), abs=1e-9)
    equity = np.concatenate([[1.0], np.cumprod(1 + returns)])
    assert drawdown(equity) == pytest.approx(empyrical.max_drawdown(returns), abs=1e-9)


def test_too_few_origins_are_refused():
    with pytest.raises(ValueError, match="at least 3 origins, found 2"):
        backtest(planted_scores({"model": np.full(2, 0.01)}), "model", SERIES, StrategyConfig())
    with pytest.raises(ValueError, match="threshold: expected at least 0, found -1; raise it"):
        StrategyConfig(threshold=-1)
