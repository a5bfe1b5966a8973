"""Walk forward over the test range: every competitor forecasts from the same origins, then the truth arrives.

Shapes: B origins, S sample paths, C bars of lookback, K bars of history, H steps, L = C + H, M models,
N origins, Q quantile levels, F=6 features.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kronos_model.context import Context, Forecast, history_bars
from kronos_model.errors import DataError, ModelError
from kronos_model.evaluation.competitors import Competitor, blend_weights, stages, variant_names, variants
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.metrics import crps, log_returns, variance
from kronos_model.evaluation.scores import FAN_QUANTILES, QUANTILES, Fans, Scores
from kronos_model.evaluation.scoring import Truth, score_paths
from kronos_model.features import CLOSE, FEATURES, PRICES
from kronos_model.files import replace_file
from kronos_model.windows import Split, WindowDataset, Windows

__all__ = ["Forecasts", "choose_origins", "draw_returns", "walk_forward"]

_FAN_LEVELS = [QUANTILES.index(level) for level in FAN_QUANTILES]
_LEVELLED = ("covered", "width", "winkler")  # (L, M, N, H)
_STAGE = "stage_"  # begins the name of the CRPS (N, H) after a step of post-processing
_PER_ORIGIN = ("series", "origin_ms", "last_close", "next_open", "realised", "realised_variance")
logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forecasts:
    """What all models said at B origins and what then happened: closes in the quote currency."""

    models: tuple[str, ...]
    series: tuple[str, ...]  # (B,)
    origin_ms: NDArray[np.int64]  # (B,) open time of the last known candle
    open_time: NDArray[np.int64]  # (B, H) ms, of the candles forecast
    quantiles: NDArray[np.float64]  # (M, B, H, Q) at QUANTILES
    mean: NDArray[np.float64]  # (M, B, H)
    realised: NDArray[np.float64]  # (B, H)
    paths: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # (B, S, H) by model, on request


def choose_origins(
    locations: NDArray[np.int32],
    start_ms: NDArray[np.int64],
    *,
    origins: int,
    stride_ms: int | None = None,
) -> NDArray[np.int64]:
    """Indices of the windows that start at the chosen times, by series and time.

    The times are at most `origins` ones, evenly spaced from the first to the last that any series has, or one
    every `stride_ms` from the first. `locations` is (N, 2): series index and start row; `start_ms` (N,).
    """
    times = np.unique(start_ms)
    if stride_ms is None:
        chosen = times[np.linspace(0, len(times) - 1, min(origins, len(times))).round().astype(np.int64)]
    else:
        chosen = times[(times - times[:1]) % stride_ms == 0]
    picked = np.flatnonzero(np.isin(start_ms, chosen))
    return picked[np.lexsort((start_ms[picked], locations[picked, 0]))]


def walk_forward(
    dataset: WindowDataset,
    competitors: Sequence[Competitor],
    config: EvaluationConfig,
    *,
    split: Split = "test",
    notes: Sequence[str] = (),
    work: Path | None = None,
    keep: Callable[[int, Forecasts], object] = lambda batch, forecasts: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Scores:
    """Score every competitor at the same origins of the split; progress counts origins x models.

    `keep` gets the forecasts of each batch, by its number. With a folder `work`, finished batches are stored
    there and not forecast again; what it holds must come from the same arguments.
    """
    names = variant_names(competitors)
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"expected competitors with different names, found {list(names)}; rename or add some"
        )
    origins = _origins(dataset, split, config)
    fan_rows = _last_of_each(dataset.locations(split)[origins, 0])
    parts: list[Arrays] = []
    for batch, start in enumerate(range(0, len(origins), config.batch_origins)):
        chosen = origins[start : start + config.batch_origins]
        wanted = fan_rows[(fan_rows >= start) & (fan_rows < start + config.batch_origins)] - start
        stored = None if work is None else work / f"batch-{batch:05d}.npz"
        if stored is not None and stored.exists():
            parts.append(_load(stored))
        else:
            scored, forecasts = _score_batch(dataset, split, chosen, competitors, config, fan_rows=wanted)
            keep(batch, forecasts)
            if stored is not None:
                _save(stored, scored)
            parts.append(scored)
        progress((start + len(chosen)) * len(names), len(origins) * len(names))
    logger.info("scored %d models at %d origins", len(names), len(origins))
    notes = [*notes, *_absent(dataset, origins, split)]
    return _assemble(
        dataset,
        names,
        parts=parts,
        notes=notes,
        samples=config.samples,
        weights=blend_weights(competitors),
    )


def draw_returns(
    dataset: WindowDataset,
    competitors: Sequence[Competitor],
    config: EvaluationConfig,
    *,
    split: Split,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64], NDArray[np.int64]]:
    """What competitors draw at the chosen origins of a split, and what then happened: nothing is scored.

    Log returns (N, S, H) by name, realised ones (N, H), origins (N,) in ms; progress counts origins x competitors.
    """
    origins = _origins(dataset, split, config)
    returns: dict[str, list[NDArray[np.float64]]] = {one.name: [] for one in competitors}
    truths: list[Truth] = []
    for start in range(0, len(origins), config.batch_origins):
        at = _at(dataset, split, origins[start : start + config.batch_origins])
        for name, forecast in _drawn(at, competitors).items():
            returns[name].append(log_returns(forecast.paths[..., CLOSE], at.truth.last_close))
        truths.append(at.truth)
        progress((start + len(at.truth.series)) * len(returns), len(origins) * len(returns))
    return (
        {name: np.concatenate(parts) for name, parts in returns.items()},
        np.concatenate([one.realised for one in truths]),
        np.concatenate([one.origin_ms for one in truths]),
    )


def _origins(dataset: WindowDataset, split: Split, config: EvaluationConfig) -> NDArray[np.int64]:
    if dataset.count(split) == 0:
        raise DataError(f"expected windows in the {split} range, found none; give the dataset more candles")
    return choose_origins(
        dataset.locations(split),
        dataset.start_ms(split),
        origins=config.origins,
        stride_ms=None if config.stride is None else config.stride * dataset.interval_ms,
    )


def _absent(dataset: WindowDataset, origins: NDArray[np.int64], split: Split) -> list[str]:
    """Which series could not be scored, in a sentence."""
    scored = set(dataset.locations(split)[origins, 0].tolist())
    absent = [name for index, name in enumerate(dataset.series) if index not in scored]
    if not absent:
        return []
    return [
        f"{', '.join(absent)} {'has' if len(absent) == 1 else 'have'} no window at the origins of the {split} "
        "range and could not be scored"
    ]


def _last_of_each(series: NDArray[np.int32]) -> NDArray[np.int64]:
    """Position of the last origin of every series, in an array sorted by series."""
    return np.flatnonzero(np.append(series[1:] != series[:-1], True))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Batch:
    """What is known at some origins, and what then happened."""

    windows: Windows
    lookback: int
    history: NDArray[np.float64]  # (B, K)
    prices: NDArray[np.float64]  # (B, L, P)
    truth: Truth


def _at(dataset: WindowDataset, split: Split, origins: NDArray[np.int64]) -> _Batch:
    lookback, windows = dataset.lookback, dataset.batch(split, origins)
    prices = windows.features[:, :, :PRICES].numpy().astype(np.float64)
    truth = Truth.of(
        prices[:, lookback - 1, CLOSE],
        prices[:, lookback:],
        series=windows.series,
        origin_ms=windows.open_time[:, lookback - 1],
    )
    history = dataset.known_closes(split, origins, history_bars(lookback, dataset.interval_ms))
    return _Batch(windows=windows, lookback=lookback, history=history, prices=prices, truth=truth)


def _drawn(at: _Batch, competitors: Sequence[Competitor]) -> dict[str, Forecast]:
    """Every competitor's paths, once, from a fresh context each: none can reach another's through a shared array."""
    drawn = {}
    for competitor in competitors:
        forecast = competitor.forecast(_context(at.windows, at.lookback, at.history))
        _check(forecast, competitor.name, at.truth)
        drawn[competitor.name] = forecast
    return drawn


def _score_batch(
    dataset: WindowDataset,
    split: Split,
    origins: NDArray[np.int64],
    competitors: Sequence[Competitor],
    config: EvaluationConfig,
    *,
    fan_rows: NDArray[np.int64],
) -> tuple[Arrays, Forecasts]:
    """Scores of every competitor at these origins with the fans of some of them, and the forecasts."""
    at = _at(dataset, split, origins)
    truth, drawn = at.truth, _drawn(at, competitors)
    per_model: dict[str, Arrays] = {}
    quantiles: list[NDArray[np.float64]] = []
    paths: dict[str, NDArray[np.float32]] = {}
    for name, one in variants(competitors, drawn, truth.last_close).items():
        per_model[name], values = score_paths(one, truth)
        quantiles.append(truth.last_close[:, None] * np.exp(values))
        if config.keep_paths:
            paths[name] = np.asarray(one.paths[..., CLOSE], np.float32)
    scored = list(per_model.values())
    joined: Arrays = {
        name: np.stack([one[name] for one in scored], axis=1 if name in _LEVELLED else 0)
        for name in scored[0]
    }
    joined |= {
        _STAGE + name: crps(
            log_returns(after.paths[..., CLOSE], truth.last_close), truth.realised, member=after.member
        )
        for name, after in stages(competitors, drawn, truth.last_close).items()
    }
    fans = np.stack(quantiles)  # (M, Q, B, H)
    joined |= {
        "series": np.array(truth.series),
        "origin_ms": truth.origin_ms,
        "last_close": truth.last_close,
        "next_open": truth.bars[:, 0, 0],
        "realised": truth.realised,
        "realised_variance": variance(truth.realised),
        "fan_origin_ms": truth.origin_ms[fan_rows],
        "fan_context": at.prices[fan_rows, : at.lookback, CLOSE],
        "fan_realised": truth.bars[fan_rows, :, CLOSE],
        "fan_quantiles": fans[:, _FAN_LEVELS][:, :, fan_rows].transpose(2, 0, 1, 3),  # (B', M, Q', H)
    }
    forecasts = Forecasts(
        models=tuple(per_model),
        series=tuple(truth.series),
        origin_ms=truth.origin_ms,
        open_time=at.windows.open_time[:, at.lookback :],
        quantiles=fans.transpose(0, 2, 3, 1),
        mean=truth.last_close[:, None] * joined["mean_ratio"],
        realised=truth.bars[:, :, CLOSE],
        paths=paths,
    )
    return joined, forecasts


def _context(windows: Windows, lookback: int, history: NDArray[np.float64]) -> Context:
    return Context(
        features=windows.features[:, :lookback].numpy().copy(),
        open_time=windows.open_time[:, :lookback].copy(),
        future_open_time=windows.open_time[:, lookback:].copy(),
        series=list(windows.series),
        history=history.copy(),
    )


def _check(forecast: Forecast, model: str, truth: Truth) -> None:
    """A model that fails must say where."""
    paths = np.asarray(forecast.paths)
    batch, horizon = truth.realised.shape
    if paths.ndim != 4 or (paths.shape[0], *paths.shape[2:]) != (batch, horizon, len(FEATURES)):
        raise ModelError(
            f"expected paths of shape ({batch}, samples, {horizon}, {len(FEATURES)}) from {model}, "
            f"found {paths.shape}; correct that competitor"
        )
    if (rates := np.shape(forecast.violation_rate)) != (batch,):
        raise ModelError(
            f"expected a violation rate for each of the {batch} origins from {model}, found the shape {rates}; "
            "correct that competitor"
        )
    good = np.isfinite(paths).all(axis=(1, 2, 3)) & (paths[..., CLOSE] > 0).all(axis=(1, 2))  # (B,)
    if not good.all():
        row = int(np.argmin(good))
        origin = np.datetime64(int(truth.origin_ms[row]), "ms")
        raise ModelError(
            f"expected finite paths with positive closes from {model}, found others at the origin {origin}Z "
            f"of {truth.series[row]}; its weights or its normaliser are broken, so train or load it again"
        )


def _save(path: Path, arrays: Arrays) -> None:
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _assemble(
    dataset: WindowDataset,
    names: Sequence[str],
    *,
    parts: Sequence[Arrays],
    notes: Sequence[str],
    samples: int,
    weights: Mapping[str, Mapping[str, float]],
) -> Scores:
    """Join the batches along the origins."""
    joined: Arrays = {
        name: np.concatenate([part[name] for part in parts], axis=_origin_axis(name)) for name in parts[0]
    }
    named = joined.pop("series")
    series = tuple(dict.fromkeys(named.tolist()))
    fans = Fans(
        **{name.removeprefix("fan_"): joined.pop(name) for name in list(joined) if name.startswith("fan_")}
    )
    staged = [name for name in joined if name.startswith(_STAGE)]
    stage_crps = np.stack([joined.pop(name) for name in staged]) if staged else joined["crps"][:0]
    price_scale, return_scale = _scales(dataset, series)
    return Scores(
        models=tuple(names),
        series=series,
        interval=str(dataset.manifest["interval"]),
        interval_ms=dataset.interval_ms,
        horizon=dataset.horizon,
        dataset_digest=str(dataset.manifest["digest"]),
        notes=tuple(notes),
        samples=samples,
        weights=weights,
        stages=tuple(name.removeprefix(_STAGE) for name in staged),
        stage_crps=stage_crps,
        series_index=np.array([series.index(name) for name in named.tolist()], np.int32),
        price_scale=price_scale,
        return_scale=return_scale,
        fans=fans,
        **joined,
    )


def _origin_axis(name: str) -> int:
    if name in _LEVELLED:
        return 2
    return 0 if name in _PER_ORIGIN or name.startswith(("fan_", _STAGE)) else 1


def _scales(dataset: WindowDataset, series: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean absolute one-bar change of close and of ln close over each series' training rows; NaN without any."""
    prices, returns = [], []
    for name in series:
        close = dataset.rows(dataset.series.index(name), "train")[:, CLOSE].astype(np.float64)
        prices.append(np.abs(np.diff(close)).mean() if len(close) > 1 else np.nan)
        returns.append(np.abs(np.diff(np.log(close))).mean() if len(close) > 1 else np.nan)
    return np.array(prices), np.array(returns)
