"""The table of a night: one row per model, over all series and for each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation import metrics
from kronos_model.evaluation.scores import Scores

__all__ = ["ALL_SERIES", "leaderboard"]

ALL_SERIES = "all"
_BPS = 10_000


def leaderboard(scores: Scores, *, reference: str = "last_value") -> list[dict[str, Any]]:
    """Rows sorted by CRPS, first those over all series (series "all"), then those of each.

    Means pool origins and steps. With r = ln(close / last known close) and y its realised value:
      origins         forecasts behind the row
      mae_bps         mean |median - y|, basis points, lower is better
      rmse_bps        sqrt(mean (mean - y)^2), basis points, lower is better
      crps_bps        mean fair CRPS, basis points, lower is better
      skill           1 - crps / crps of the reference, 0 is as good as it, higher is better; None without one
      direction       share of origins whose median has the right sign at the last step, of those that move
      direction_low, direction_high   Wilson 95 % interval of it, for as many trials as there are horizons
                      that do not overlap, times the share that moves; series count as independent
      coverage_50, coverage_90        share of bars inside the central interval, best at 0.5 and 0.9
      width_90_bps    mean width of the 90 % interval, basis points
      mae_price       mean |median close - close|, quote currency; only for one series
      violation_rate  share of sampled bars that broke high >= open, close >= low before they were repaired
    """
    everything = np.ones(len(scores.origin_ms), np.bool_)
    rows = _table(scores, ALL_SERIES, everything, reference=reference)
    for index, name in enumerate(scores.series):
        rows += _table(scores, name, scores.series_index == index, reference=reference)
    return rows


def _table(scores: Scores, series: str, chosen: NDArray[np.bool_], *, reference: str) -> list[dict[str, Any]]:
    """The rows of one group of origins, best CRPS first."""
    base = float(scores.crps[scores.index(reference)][chosen].mean()) if reference in scores.models else 0.0
    rows = [_row(scores, model, series, chosen, base=base) for model in scores.models]
    return sorted(rows, key=lambda row: float(row["crps_bps"]))


def _row(
    scores: Scores, model: str, series: str, chosen: NDArray[np.bool_], *, base: float
) -> dict[str, Any]:
    at = scores.index(model)
    crps = float(scores.crps[at][chosen].mean())
    return {
        "model": model,
        "series": series,
        "origins": int(chosen.sum()),
        "mae_bps": float(scores.absolute_error[at][chosen].mean()) * _BPS,
        "rmse_bps": float(np.sqrt(scores.squared_error[at][chosen].mean())) * _BPS,
        "crps_bps": crps * _BPS,
        "skill": metrics.skill(crps, base),
        **_direction(scores, at, chosen),
        "coverage_50": float(scores.covered[scores.level(0.5), at][chosen].mean()),
        "coverage_90": float(scores.covered[scores.level(0.9), at][chosen].mean()),
        "width_90_bps": float(scores.width[scores.level(0.9), at][chosen].mean()) * _BPS,
        "mae_price": None if series == ALL_SERIES else float(scores.price_error[at][chosen].mean()),
        "violation_rate": float(scores.violation_rate[at][chosen].mean()),
    }


def _direction(scores: Scores, at: int, chosen: NDArray[np.bool_]) -> dict[str, float | None]:
    """Hit rate and its interval, narrowed only by trials that are independent."""
    hits = scores.direction_hit()[at, chosen, -1]
    moved = ~np.isnan(hits)
    if not moved.any():
        return {"direction": None, "direction_low": None, "direction_high": None}
    independent = sum(
        metrics.independent_count(
            scores.origin_ms[chosen & (scores.series_index == index)], scores.horizon_ms
        )
        for index in range(len(scores.series))
    )
    share = float(hits[moved].mean())
    low, high = metrics.wilson_interval(share, independent * float(moved.mean()))
    return {"direction": share, "direction_low": low, "direction_high": high}
