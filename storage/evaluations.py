"""Forecasts of a walk-forward at rest: one long Parquet table, written batch by batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.atomic import atomic_path
from storage.errors import StorageError
from storage.parquet import PARQUET_ERRORS, read_parquet, write_parquet

__all__ = ["ForecastTable", "forecast_frame", "paths_frame", "quantile_name"]

_TIME = pl.Datetime("ms", "UTC")


class ForecastTable:
    """One table of an evaluation: parts below the folder that it works in, one file where it is complete."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.parquet"
        self._parts = folder / f"{name}.parts"

    def write(self, part: int, frame: pl.DataFrame) -> None:
        """Keep the rows of one batch; the same batch again replaces them."""
        write_parquet(frame, self._parts / f"{part:05d}.parquet")

    def join(self, folder: Path) -> None:
        """Join the parts, in order, a few at a time, into the table of `folder`; nothing where none was ever written.

        The parts stay: until the whole evaluation is in place they are all there is of it.
        """
        if parts := sorted(self._parts.glob("[0-9]*.parquet")):
            with atomic_path(folder / self.path.name) as temporary:
                pl.scan_parquet(parts, hive_partitioning=False).sink_parquet(
                    temporary, compression="zstd", compression_level=3
                )

    def read(self) -> pl.DataFrame:
        """The finished table; StorageError where it is missing or damaged."""
        try:
            return read_parquet(self.path)
        except (*PARQUET_ERRORS, FileNotFoundError) as error:
            raise StorageError(
                f"expected the forecasts of an evaluation in {self.path}, found none that can be read; "
                "delete that evaluation's folder and evaluate again"
            ) from error


def quantile_name(level: float) -> str:
    """Column of a quantile: q0.05, q0.5, q0.975."""
    return f"q{level:g}"


def forecast_frame(
    *,
    models: Sequence[str],
    series: Sequence[str],
    origin_ms: NDArray[np.int64],
    open_time: NDArray[np.int64],
    quantiles: NDArray[np.float64],
    levels: Sequence[float],
    mean: NDArray[np.float64],
    realised: NDArray[np.float64],
) -> pl.DataFrame:
    """One row per series, origin, step and model, in this order of columns: M models, B origins, H steps, Q levels.

    Closes in the quote currency: quantiles (M, B, H, Q), mean (M, B, H), realised (B, H); open_time (B, H) of the
    candle forecast; step counts from 1; origin is the open time of the last known candle.
    """
    count, batch, horizon = mean.shape

    def long(values: NDArray[np.generic]) -> NDArray[np.generic]:
        """(M, B, H) as rows ordered by origin, step, model."""
        return np.moveaxis(np.broadcast_to(values, (count, batch, horizon)), 0, -1).ravel()

    keys = {
        "series": long(np.asarray(series)[None, :, None]),
        "origin": long(origin_ms[None, :, None]),
        "step": long(np.arange(1, horizon + 1, dtype=np.int32)[None, None]),
        "open_time": long(open_time[None]),
        "model": long(np.asarray(models)[:, None, None]),
        "mean": long(mean),
        "realised": long(realised[None]),
    }
    columns = keys | {quantile_name(level): long(quantiles[..., at]) for at, level in enumerate(levels)}
    return pl.DataFrame(columns).with_columns(
        pl.col("origin", "open_time").cast(_TIME), pl.col("series", "model").cast(pl.String)
    )


def paths_frame(
    paths: Mapping[str, NDArray[np.float32]], *, series: Sequence[str], origin_ms: NDArray[np.int64]
) -> pl.DataFrame:
    """One row per model, series, origin and sample, its closes as a list; paths are (B, S, H) by model."""
    frames = []
    for model, closes in paths.items():
        batch, samples, horizon = closes.shape
        frames.append(
            pl.DataFrame(
                {
                    "series": np.repeat(np.asarray(series), samples),
                    "origin": np.repeat(origin_ms, samples),
                    "model": [model] * (batch * samples),
                    "sample": np.tile(np.arange(1, samples + 1, dtype=np.int32), batch),
                    "closes": closes.reshape(-1, horizon),
                }
            ).with_columns(
                pl.col("origin").cast(_TIME),
                pl.col("series").cast(pl.String),
                pl.col("closes").cast(pl.List(pl.Float32)),
            )
        )
    return pl.concat(frames)
