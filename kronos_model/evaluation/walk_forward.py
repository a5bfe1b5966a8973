"""Walk forward over the test range: every competitor forecasts from the same origins, then the truth arrives.

Shapes: B origins, S sample paths, C bars of lookback, H steps, L = C + H, M models, N origins, F=6 features.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation import metrics
from kronos_model.evaluation.competitors import Competitor, Context
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.scores import FAN_QUANTILES, Fans, Scores
from kronos_model.features import FEATURES
from kronos_model.forecaster import Forecast
from kronos_model.windows import WindowDataset, Windows

__all__ = ["choose_origins", "walk_forward"]

CLOSE = FEATURES.index("close")
logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]


def choose_origins(locations: NDArray[np.int32], *, origins: int) -> NDArray[np.int64]:
    """Indices of at most `origins` windows per series, evenly spaced from first to last, by series and time.

    `locations` is (N, 2): series index and start row of every window.
    """
    chosen = []
    for series in np.unique(locations[:, 0]):
        own = np.flatnonzero(locations[:, 0] == series)
        own = own[np.argsort(locations[own, 1], kind="stable")]
        picks = np.linspace(0, len(own) - 1, min(origins, len(own))).round().astype(np.int64)
        chosen.append(own[picks])
    return np.concatenate(chosen) if chosen else np.empty(0, np.int64)


def walk_forward(
    dataset: WindowDataset,
    competitors: Sequence[Competitor],
    config: EvaluationConfig,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Scores:
    """Score every competitor at the same origins of the test range; progress counts origins x models."""
    names = [competitor.name for competitor in competitors]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected competitors with different names, found {names}; rename or add some")
    origins = choose_origins(dataset.locations("test"), origins=config.origins)
    if len(origins) == 0:
        raise DataError("expected windows in the test range, found none; give the dataset more candles")
    fan_rows = _last_of_each(dataset.locations("test")[origins, 0])
    parts: list[Arrays] = []
    fans: list[Arrays] = []
    for start in range(0, len(origins), config.batch_origins):
        windows = dataset.batch("test", origins[start : start + config.batch_origins])
        wanted = fan_rows[(fan_rows >= start) & (fan_rows < start + config.batch_origins)] - start
        scored, fan = _score_batch(windows, competitors, lookback=dataset.lookback, fan_rows=wanted)
        parts.append(scored)
        fans.append(fan)
        done = min(start + config.batch_origins, len(origins)) * len(names)
        progress(done, len(origins) * len(names))
    logger.info("scored %d models at %d origins", len(names), len(origins))
    return _assemble(dataset, names, parts=parts, fans=fans)


def _last_of_each(series: NDArray[np.int32]) -> NDArray[np.int64]:
    """Position of the last origin of every series, in an array sorted by series."""
    return np.flatnonzero(np.append(series[1:] != series[:-1], True))


def _score_batch(
    windows: Windows, competitors: Sequence[Competitor], *, lookback: int, fan_rows: NDArray[np.int64]
) -> tuple[Arrays, Arrays]:
    """Scores of every competitor at these origins, and the fans of some of them."""
    close = windows.features[:, :, CLOSE].numpy().astype(np.float64)  # (B, L)
    last_close, future = close[:, lookback - 1], close[:, lookback:]  # (B,), (B, H)
    origin_ms = windows.open_time[:, lookback - 1]
    per_model, quantiles = [], []
    for competitor in competitors:
        # A fresh context each: none can reach another's through an array they share.
        forecast = competitor.forecast(_context(windows, lookback))
        paths = _closes(forecast, competitor.name, windows=windows, lookback=lookback)  # (B, S, H)
        per_model.append(_scores(paths, future, last_close, violation_rate=forecast.violation_rate))
        quantiles.append(np.quantile(paths[fan_rows], FAN_QUANTILES, axis=1))  # (Q, B', H)
    scored: Arrays = {name: np.stack([one[name] for one in per_model]) for name in per_model[0]}
    scored |= {"origin_ms": origin_ms, "last_close": last_close, "series": np.array(windows.series)}
    fan: Arrays = {
        "origin_ms": origin_ms[fan_rows],
        "context": close[fan_rows, :lookback],
        "realised": future[fan_rows],
        "quantiles": np.stack(quantiles).transpose(2, 0, 1, 3),  # (B', M, Q, H)
    }
    return scored, fan


def _context(windows: Windows, lookback: int) -> Context:
    return Context(
        features=windows.features[:, :lookback].numpy().copy(),
        open_time=windows.open_time[:, :lookback].copy(),
        future_open_time=windows.open_time[:, lookback:].copy(),
        series=list(windows.series),
    )


def _closes(forecast: Forecast, model: str, *, windows: Windows, lookback: int) -> NDArray[np.float64]:
    """The paths of the close (B, S, H) in float64, checked: a model that fails must say where."""
    paths = np.asarray(forecast.paths)
    batch, horizon = len(windows.series), windows.open_time.shape[1] - lookback
    if paths.ndim != 4 or (paths.shape[0], *paths.shape[2:]) != (batch, horizon, len(FEATURES)):
        raise ModelError(
            f"expected paths of shape ({batch}, samples, {horizon}, {len(FEATURES)}) from {model}, "
            f"found {paths.shape}; correct that competitor"
        )
    good = np.isfinite(paths).all(axis=(1, 2, 3)) & (paths[..., CLOSE] > 0).all(axis=(1, 2))  # (B,)
    if not good.all():
        row = int(np.argmin(good))
        origin = np.datetime64(int(windows.open_time[row, lookback - 1]), "ms")
        raise ModelError(
            f"expected finite paths with positive closes from {model}, found others at the origin {origin}Z "
            f"of {windows.series[row]}; its weights or its normaliser are broken, so train or load it again"
        )
    return paths[..., CLOSE].astype(np.float64)


def _scores(
    paths: NDArray[np.float64],
    future: NDArray[np.float64],
    last_close: NDArray[np.float64],
    *,
    violation_rate: float,
) -> Arrays:
    """One model's scores at B origins: (B, H) each, (B,) for direction and violations."""
    samples = metrics.log_returns(paths, last_close)
    realised = metrics.log_returns(future, last_close)
    scores: Arrays = {
        "absolute_error": metrics.absolute_error(samples, realised),
        "squared_error": metrics.squared_error(samples, realised),
        "crps": metrics.crps(samples, realised),
        "price_error": metrics.absolute_error(paths, future),
        "direction_hit": metrics.direction_hit(samples, realised),
        "violation_rate": np.full(len(future), violation_rate),
    }
    for percent in (50, 90):
        low, high = metrics.central_interval(samples, percent / 100)
        scores[f"covered_{percent}"] = metrics.covered(low, high, realised)
        scores[f"width_{percent}"] = high - low
    return scores


def _assemble(
    dataset: WindowDataset, names: Sequence[str], *, parts: Sequence[Arrays], fans: Sequence[Arrays]
) -> Scores:
    """Join the batches along the origins."""
    per_origin = ("origin_ms", "last_close", "series")
    joined: Arrays = {
        name: np.concatenate([part[name] for part in parts], axis=0 if name in per_origin else 1)
        for name in parts[0]
    }
    named = joined.pop("series")
    series = tuple(dict.fromkeys(named.tolist()))
    return Scores(
        models=tuple(names),
        series=series,
        interval=str(dataset.manifest["interval"]),
        interval_ms=dataset.interval_ms,
        horizon=dataset.horizon,
        dataset_digest=str(dataset.manifest["digest"]),
        series_index=np.array([series.index(name) for name in named.tolist()], np.int32),
        fans=Fans(**{name: np.concatenate([fan[name] for fan in fans]) for name in fans[0]}),
        **joined,
    )
