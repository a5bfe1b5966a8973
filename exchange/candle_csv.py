"""A CSV that grows by closed candles: whole lines, every candle once, each series in order."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from storage.atomic import storage_errors
from storage.errors import StorageError
from storage.schema import CANDLE_SCHEMA, SeriesKey

__all__ = ["CandleCsv"]

HEADER = ("series", "interval", *CANDLE_SCHEMA)
TIME = "%Y-%m-%dT%H:%M:%S%.3fZ"


class CandleCsv:
    """Continues an existing file after its last candles; a line that a crash has torn is removed."""

    def __init__(self, path: Path, keys: Iterable[SeriesKey]) -> None:
        self.path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            last = self._resume()
        self._last_ms = {key: last.get((key.name, key.interval.name)) for key in keys}

    def last_ms(self, key: SeriesKey) -> int | None:
        """Open time of the last candle of a series in the file."""
        return self._last_ms[key]

    def append(self, key: SeriesKey, candles: pl.DataFrame) -> None:
        """Add the candles that open after the last one, in one write."""
        opened = pl.col("open_time").dt.epoch("ms")
        last_ms = self._last_ms[key]
        news = candles if last_ms is None else candles.filter(opened > last_ms)
        if news.is_empty():
            return
        names = (pl.lit(key.name).alias("series"), pl.lit(key.interval.name).alias("interval"))
        times = pl.col("open_time", "close_time").dt.strftime(TIME)
        text = news.with_columns(times).select(*names, *CANDLE_SCHEMA).write_csv(include_header=False)
        self._write(text)
        self._last_ms[key] = int(news.select(opened.last()).item())

    def _write(self, text: str) -> None:
        with storage_errors(self.path), self.path.open("ab", buffering=0) as file:
            file.write(text.encode())

    def _resume(self) -> dict[tuple[str, str], int]:
        """Last open times by series and interval."""
        if not self.path.exists() or not self.path.stat().st_size:
            self._write(",".join(HEADER) + "\n")
            return {}
        with self.path.open("rb+") as file:
            text = file.read()
            if text.partition(b"\n")[0].decode(errors="replace").strip() != ",".join(HEADER):
                raise StorageError(
                    f"expected {self.path} to begin with the columns {', '.join(HEADER[:4])}, ..., "
                    "found another file; choose another name"
                )
            file.truncate(text.rfind(b"\n") + 1)
        known = pl.read_csv(self.path, columns=["series", "interval", "open_time"])
        opened = pl.col("open_time").str.to_datetime(TIME, time_unit="ms", time_zone="UTC").dt.epoch("ms")
        last = known.group_by("series", "interval").agg(opened.max())
        return {(series, interval): ms for series, interval, ms in last.iter_rows()}
