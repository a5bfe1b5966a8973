"""Outages of the exchange that are publicly known, so that a hole can be told by its name.

From binance/binance-public-data #312, #365 and #368, which compare spot archives and the REST API, and for
2023-03-24 and 2025-08-29 from the exchange's own notices. The list is incomplete between 2019-08 and 2020-02.
Where only hours are known the outage is taken from the first of them to the end of the last.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from storage.interval import Interval
from storage.schema import Market

__all__ = ["OUTAGES", "Outage", "known_outage"]

_SPOT = (
    # No candle of 1m opens from the first time up to, not at, the second (UTC).
    ("2017-09-06 16:01", "2017-09-06 23:00"),
    ("2017-12-04 06:01", "2017-12-04 06:49"),
    ("2017-12-18 10:01", "2017-12-18 10:14"),
    ("2017-12-18 12:30", "2017-12-18 13:34"),
    ("2018-01-04 03:01", "2018-01-04 05:06"),
    ("2018-02-08 00:29", "2018-02-09 10:00"),
    ("2018-02-10 06:01", "2018-02-10 06:15"),
    ("2018-02-11 04:01", "2018-02-11 04:35"),
    ("2018-06-26 02:01", "2018-06-26 12:00"),
    ("2018-06-27 13:01", "2018-06-27 14:45"),
    ("2018-07-04 00:23", "2018-07-04 08:00"),
    ("2018-10-19 06:01", "2018-10-19 09:30"),
    ("2018-11-14 02:01", "2018-11-14 09:00"),
    ("2019-03-12 02:01", "2019-03-12 08:00"),
    ("2019-05-15 03:01", "2019-05-15 13:00"),
    ("2019-06-07 21:14", "2019-06-07 22:15"),
    ("2020-02-09 02:00", "2020-02-09 04:00"),
    ("2020-02-19 11:36", "2020-02-19 17:30"),
    ("2020-03-04 09:22", "2020-03-04 11:30"),
    ("2020-04-25 02:01", "2020-04-25 04:30"),
    ("2020-06-28 02:01", "2020-06-28 05:30"),
    ("2020-11-30 06:00", "2020-11-30 08:00"),
    ("2020-12-21 13:48", "2020-12-21 18:00"),
    ("2020-12-25 02:00", "2020-12-25 04:00"),
    ("2021-02-11 03:42", "2021-02-11 05:00"),
    ("2021-03-06 02:01", "2021-03-06 03:30"),
    ("2021-04-20 02:01", "2021-04-20 04:30"),
    ("2021-04-25 04:02", "2021-04-25 08:45"),
    ("2021-08-13 02:01", "2021-08-13 06:30"),
    ("2021-09-29 07:00", "2021-09-29 10:00"),
)
_PUBLIC_DATA = "binance-public-data #312, #365, #368"
_NOTICE = "Binance's notice on the trailing-stop fault"


@dataclass(frozen=True, slots=True)
class Outage:
    """A stretch in which a market did not trade: nothing opens from `start_ms` up to, not at, `end_ms`."""

    market: Market
    start_ms: int
    end_ms: int
    source: str

    @property
    def name(self) -> str:
        """`exchange outage 2018-02-08 00:29 to 2018-02-09 10:00 UTC (source)`."""
        start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (self.start_ms, self.end_ms))
        return f"exchange outage {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC ({self.source})"


def known_outage(market: Market, start_ms: int, end_ms: int, interval: Interval) -> Outage | None:
    """The known outage that explains a hole in candles of that interval, if there is one: most of the hole.

    Not all of it, because candles that open off the grid after an outage are missing too.
    """
    for outage in OUTAGES:
        first_ms = interval.floor(outage.start_ms)
        last_ms = interval.next(interval.floor(outage.end_ms - 1))
        shared_ms = min(end_ms, last_ms) - max(start_ms, first_ms)
        if outage.market == market and 2 * shared_ms >= end_ms - start_ms:
            return outage
    return None


def _ms(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()) * 1000


OUTAGES: tuple[Outage, ...] = (
    *(Outage("spot", _ms(start), _ms(end), _PUBLIC_DATA) for start, end in _SPOT),
    Outage("spot", _ms("2023-03-24 12:40"), _ms("2023-03-24 14:00"), _NOTICE),
    Outage("um", _ms("2025-08-29 06:35"), _ms("2025-08-29 07:00"), "news of the futures halt"),
)
