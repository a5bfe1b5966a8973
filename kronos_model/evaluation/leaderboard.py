"""The table of a night: one row per model, over all series and for each."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kronos_model.evaluation import metrics
from kronos_model.evaluation.config import FEE_BAND
from kronos_model.evaluation.correlations import information_coefficient
from kronos_model.evaluation.diagnostics import distance_from_uniform
from kronos_model.evaluation.intervals import Resampler
from kronos_model.evaluation.scores import BLENDS, LEVELS, RAW, REFERENCES_POOL, Scores
from kronos_model.references import REFERENCES

__all__ = ["ALL_SERIES", "CONFIDENCE", "arranged", "leaderboard"]

ALL_SERIES = "all"
CONFIDENCE = 0.95
_DRAWS = 1000
_BPS = 10_000

Floats = NDArray[np.float64]
Chosen = NDArray[np.bool_]


def leaderboard(scores: Scores, *, reference: str = "last_value") -> list[dict[str, Any]]:
    """Rows sorted by CRPS, first those over all series (series "all"), then those of each.

    Means pool origins and steps; None where a number cannot be had. With r = ln(close / last known close) and
    y its realised value:
      origins         forecasts behind the row
      mae_bps         mean |median - y|, basis points, lower is better
      rmse_bps        sqrt(mean (mean - y)^2), basis points, lower is better
      mase            mean |median close - close| / the random walk's one-bar error over the series' training rows
      mase_return     the same of ln close
      bias_bps        mean (mean - y), basis points: above 0 the model is too hopeful; best at 0
      crps_bps        mean fair CRPS, basis points, lower is better
      skill           1 - crps / crps of the reference, 0 is as good as it, higher is better; None without one
      skill_low, skill_high   95 % interval of it, by a stationary block bootstrap over time
      skill_references, skill_references_low, skill_references_high   the same against the references' pool
      pinball_bps     mean quantile loss at 0.05 ... 0.95, basis points, lower is better
      energy_bps      mean energy score of whole paths, basis points, lower is better
      direction       share of origins whose median has the right sign at the last step, of those that move by
                      more than the fees of a round trip (20 basis points)
      direction_low, direction_high   Wilson 95 % interval of it, for as many trials as there are horizons
                      that do not overlap, times the share that moves; series count as independent
      brier           mean (P(r > 0) - 1{y > 0})^2 at the last step; 0.25 says nothing, lower is better
      ic, rank_ic     correlation of mean and y at the last step, Pearson's and Spearman's, higher is better
      ic_kind         "per time across symbols" (mean over times) or "per symbol" (over time, mean over symbols)
      price_ic, price_rank_ic   the paper's: correlation over the steps of one path, mean over prices and origins
      coverage_50, _80, _90, _95      share of bars inside the central interval, best at 0.5 and so on
      width_90_bps    mean width of the 90 % interval, basis points
      winkler_90_bps  mean interval score of it, basis points, lower is better
      pit_ks          largest distance of the PIT's distribution from the uniform one, 0 to 1, lower is better
      rv_mae_bps      mean |sqrt(expected variance) - realised volatility| over the horizon, basis points
      rv_qlike        mean of v / e - ln(v / e) - 1, realised variance v, expected e; lower is better
      rv_r2           1 - mean (e - v)^2 / variance of v, higher is better
      mae_price, rmse_price   of the close in the quote currency; only for one series
      violation_rate  share of sampled bars that broke high >= open, close >= low before they were repaired
    """
    rows = _table(scores, ALL_SERIES, np.ones(len(scores.origin_ms), np.bool_), reference=reference)
    for index, name in enumerate(scores.series):
        rows += _table(scores, name, scores.series_index == index, reference=reference)
    return rows


def arranged(rows: Iterable[Mapping[str, Any]], served: str) -> list[dict[str, Any]]:
    """The same rows, in each series first what is served, then its members, then its network as it draws.

    Every row also says whether it is the one that is served. The rest stays in order of CRPS.
    """
    network = next((name for name, blend in BLENDS.items() if blend == served), served)
    first = (served, network, *REFERENCES, network + RAW)
    told = [dict(row) | {"served": row["model"] == served} for row in rows]
    places = {series: place for place, series in enumerate(dict.fromkeys(row["series"] for row in told))}
    rank = {name: place for place, name in reversed(list(enumerate(first)))}
    return sorted(told, key=lambda row: (places[row["series"]], rank.get(row["model"], len(first))))


def _table(scores: Scores, series: str, chosen: Chosen, *, reference: str) -> list[dict[str, Any]]:
    """The rows of one group of origins, best CRPS first."""
    times = scores.origin_ms[chosen]
    resampler = Resampler.of(times, scores.horizon_ms, confidence=CONFIDENCE, draws=_DRAWS)
    hits = scores.direction_hit(band=FEE_BAND)[:, :, -1]  # (M, N)
    rows = [
        {"model": model, "series": series, "origins": int(chosen.sum())}
        | _points(scores, at, chosen, one_series=series != ALL_SERIES)
        | _distribution(scores, at, chosen)
        | _skill(scores, at, chosen, resampler, reference=reference)
        | {
            f"skill_references{name.removeprefix('skill')}": value
            for name, value in _skill(scores, at, chosen, resampler, reference=REFERENCES_POOL).items()
        }
        | _direction(scores, at, chosen, hits)
        | _correlations(scores, at, chosen)
        | _volatility(scores, at, chosen)
        for at, model in enumerate(scores.models)
    ]
    return sorted(rows, key=lambda row: float(row["crps_bps"]))


def _points(scores: Scores, at: int, chosen: Chosen, *, one_series: bool) -> dict[str, float | None]:
    """Errors of the median, squared errors and bias of the mean."""
    truth, median, mean = scores.realised[chosen], scores.median[at, chosen], scores.mean[at, chosen]
    last, ratio = scores.last_close[chosen, None], scores.mean_ratio[at, chosen]
    index = scores.series_index[chosen]
    price = last * np.abs(np.exp(median) - np.exp(truth))  # (N, H)
    return {
        "mae_bps": float(np.abs(median - truth).mean()) * _BPS,
        "rmse_bps": float(np.sqrt(((mean - truth) ** 2).mean())) * _BPS,
        "mase": _finite((price / scores.price_scale[index, None]).mean()),
        "mase_return": _finite((np.abs(median - truth) / scores.return_scale[index, None]).mean()),
        "bias_bps": float((mean - truth).mean()) * _BPS,
        "mae_price": float(price.mean()) if one_series else None,
        "rmse_price": float(np.sqrt(((last * (ratio - np.exp(truth))) ** 2).mean())) if one_series else None,
        "violation_rate": float(scores.violation_rate[at, chosen].mean()),
    }


def _distribution(scores: Scores, at: int, chosen: Chosen) -> dict[str, float | None]:
    ninety = scores.level(0.9)
    up = scores.realised[chosen, -1] > 0
    coverage = {
        f"coverage_{round(100 * share)}": float(scores.covered[level, at, chosen].mean())
        for level, share in enumerate(LEVELS)
    }
    return {
        "crps_bps": float(scores.crps[at, chosen].mean()) * _BPS,
        "pinball_bps": float(scores.pinball[at, chosen].mean()) * _BPS,
        "energy_bps": float(scores.energy[at, chosen].mean()) * _BPS,
        "brier": float(((scores.probability_up[at, chosen, -1] - up) ** 2).mean()),
        **coverage,
        "width_90_bps": float(scores.width[ninety, at, chosen].mean()) * _BPS,
        "winkler_90_bps": float(scores.winkler[ninety, at, chosen].mean()) * _BPS,
        "pit_ks": distance_from_uniform(scores.pit[at, chosen]),
    }


def _skill(
    scores: Scores, at: int, chosen: Chosen, resampler: Resampler, *, reference: str
) -> dict[str, float | None]:
    """Skill with its interval; of the reference itself it is 0 by definition."""
    if reference in scores.models:
        ours, theirs = (scores.crps[row, chosen].mean(axis=1) for row in (at, scores.index(reference)))
        if (skill := metrics.skill(float(ours.mean()), float(theirs.mean()))) is not None:
            low, high = resampler.skill(ours, theirs, CONFIDENCE)
            return {"skill": skill, "skill_low": _finite(low), "skill_high": _finite(high)}
    return {"skill": None, "skill_low": None, "skill_high": None}


def _direction(scores: Scores, at: int, chosen: Chosen, hits: Floats) -> dict[str, float | None]:
    """Hit rate and its interval, narrowed only by trials that are independent."""
    hits = hits[at, chosen]
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


def _correlations(scores: Scores, at: int, chosen: Chosen) -> dict[str, Any]:
    found = information_coefficient(scores, scores.models[at], chosen=chosen)
    return {
        "ic": found.ic,
        "rank_ic": found.rank_ic,
        "ic_kind": found.kind,
        "price_ic": _mean_of_known(scores.price_ic[at, chosen]),
        "price_rank_ic": _mean_of_known(scores.price_rank_ic[at, chosen]),
    }


def _volatility(scores: Scores, at: int, chosen: Chosen) -> dict[str, float | None]:
    expected, realised = scores.variance[at, chosen], scores.realised_variance[chosen]
    spread = float(((realised - realised.mean()) ** 2).mean())
    moved = realised > 0
    qlike = None
    if (expected > 0).all() and moved.any():
        ratio = realised[moved] / expected[moved]
        qlike = float((ratio - np.log(ratio) - 1).mean())
    return {
        "rv_mae_bps": float(np.abs(np.sqrt(expected) - np.sqrt(realised)).mean()) * _BPS,
        "rv_qlike": qlike,
        "rv_r2": 1 - float(((expected - realised) ** 2).mean()) / spread if spread > 0 else None,
    }


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean_of_known(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
