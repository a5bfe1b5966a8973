"""A replay exchange out of what a user names: a folder of klines, or a synthetic market."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from exchange.replay.clock import ReplayClock
from exchange.replay.replay_server import ReplayExchange
from exchange.replay.synthetic import synthetic_market
from storage.candle_files import read_folder
from storage.errors import CandleError
from storage.schema import SeriesKey

__all__ = ["replay_exchange"]

SYNTHETIC_START_MS = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1000)
SYNTHETIC_CANDLES = 6_000  # 250 days of 1h: enough for every split of the demo


def replay_exchange(
    source: str,
    keys: Sequence[SeriesKey],
    *,
    seed: int,
    port: int = 0,
    speed: float = 0.0,
    ahead: int = 0,
    whole_folder: bool = False,
) -> ReplayExchange:
    """A replay exchange over `keys` out of a folder of klines or, for 'synthetic', of a seeded synthetic market.

    Its clock starts half an interval after the last candle of the data closes: that candle counts as closed, and
    the next one would be forming. Or so many candles `ahead` of the end, half of the data at most, which then
    close as the clock runs. Raises StorageError when the folder lacks one of `keys`.
    """
    if source == "synthetic":
        count = SYNTHETIC_CANDLES + ahead
        candles = synthetic_market(keys, start_ms=SYNTHETIC_START_MS, count=count, seed=seed)
    elif whole_folder:
        candles = read_folder(Path(source), keys[0].interval)
    else:
        candles = _klines(Path(source), keys)
    opened = {key: frame["open_time"].dt.epoch("ms") for key, frame in candles.items()}
    first_of_end = {key: times[-1 - min(ahead, len(times) // 2)] for key, times in opened.items()}
    start_ms = max(key.interval.next(int(open_ms)) for key, open_ms in first_of_end.items())
    half_ms = min(key.interval.next(start_ms) - start_ms for key in candles) // 2
    return ReplayExchange(candles, clock=ReplayClock(start_ms + half_ms, speed=speed), port=port)


def _klines(folder: Path, keys: Sequence[SeriesKey]) -> dict[SeriesKey, pl.DataFrame]:
    """The candles of `keys`, of one interval or several."""
    served: dict[SeriesKey, pl.DataFrame] = {}
    for interval in dict.fromkeys(key.interval for key in keys):
        candles = read_folder(folder, interval)
        wanted = [key for key in keys if key.interval == interval]
        if missing := [key.name for key in wanted if key not in candles]:
            found = ", ".join(key.name for key in candles)
            raise CandleError(
                f"Expected klines of {', '.join(missing)} at {interval} in {folder}, found {found}; add files such "
                f"as um_DOGEUSDT_{interval.slug}.parquet, or choose other series with --series."
            )
        served |= {key: candles[key] for key in wanted}
    return served
