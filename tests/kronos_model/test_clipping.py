"""The share of values beyond the clip: a plain loop over torch's normaliser finds the same."""

from typing import get_args

import numpy as np
import pytest
import torch

from kronos_model.clipping import SAMPLED, clipped_shares
from kronos_model.features import Floor, NormaliserKind, fit_state
from kronos_model.normalise import Normaliser
from tests.support.datasets import make_candles

LOOKBACK, HORIZON = 24, 8
COLUMNS = ["open", "high", "low", "close", "volume", "quote_volume"]


def rows(count: int = 300) -> np.ndarray:
    values = make_candles(count, seed=3).select(COLUMNS).to_numpy().astype(np.float32)
    values[count // 2 :, :4] *= 1.5  # a jump, and volumes that are absent for a while
    values[40:90, 4:] = 0.0
    return values


def by_hand(normaliser: Normaliser, values: np.ndarray, starts: np.ndarray) -> dict[str, float]:
    beyond = []
    for start in starts.tolist():
        window = torch.from_numpy(values[start : start + LOOKBACK + HORIZON])[None]
        scale = normaliser.measure(window[:, :LOOKBACK], ["um:AAAUSDT"])
        beyond.append((((window - scale.location) / scale.scale).abs() > normaliser.clip)[0])
    shares = torch.stack(beyond).double().mean(dim=(0, 1))
    return {"prices": float(shares[:4].mean()), "volumes": float(shares[4:].mean())}


@pytest.mark.parametrize("floor", get_args(Floor))
@pytest.mark.parametrize("kind", get_args(NormaliserKind))
def test_the_shares_are_those_of_a_plain_loop(kind: NormaliserKind, floor: Floor) -> None:
    values = rows()
    state = fit_state(kind, {"um:AAAUSDT": values[:100]})
    normaliser = Normaliser(kind=kind, clip=2.5, floor=floor, state=state)
    starts = np.delete(np.arange(len(values) - LOOKBACK - HORIZON + 1), np.arange(60, 75))
    found = clipped_shares(
        "um:AAAUSDT", values, starts, normaliser.to_dict(), lookback=LOOKBACK, horizon=HORIZON
    )
    assert found == pytest.approx(by_hand(normaliser, values, starts), abs=1e-6)
    assert all(0 < share < 1 for share in found.values())


def test_many_windows_are_sampled_evenly_and_few_are_all_counted() -> None:
    values, normaliser = rows(6_000), Normaliser(clip=2.5)
    starts = np.arange(len(values) - LOOKBACK - HORIZON + 1)
    assert len(starts) > 10 * SAMPLED

    def shares(chosen: np.ndarray) -> dict[str, float]:
        told = normaliser.to_dict()
        return clipped_shares("um:AAAUSDT", values, chosen, told, lookback=LOOKBACK, horizon=HORIZON)

    assert shares(starts) == shares(starts)
    assert shares(starts) == pytest.approx(by_hand(normaliser, values, starts), abs=0.005)
    assert shares(starts[:3]) == pytest.approx(by_hand(normaliser, values, starts[:3]), abs=1e-6)
    assert shares(starts[:0]) == {"prices": 0.0, "volumes": 0.0}


@pytest.mark.parametrize("factor", [1e-8, 1e6])
def test_prices_in_other_units_are_cut_alike_and_a_spike_beyond_float32_counts(factor: float) -> None:
    values, normaliser = rows(), Normaliser().to_dict()
    values[:, 4] = 0.0
    values[LOOKBACK, 4] = 3e38  # over a width of 1e-20
    starts = np.array([0])
    one, other = (
        clipped_shares("um:AAAUSDT", made, starts, normaliser, lookback=LOOKBACK, horizon=HORIZON)
        for made in (values, values * np.array([factor] * 4 + [1, factor], np.float32))
    )
    assert one == other
    assert one["volumes"] > 0
