"""How a replayed exchange writes and publishes its bulk archive, and what is wrong with it on demand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exchange.archive_parts import DAY_MS, PartKind
from kronos_model.settings import Count, Counted, checked, settings
from storage.schema import Market

__all__ = ["ArchiveStyle", "PartFault", "PartFaultKind"]

PartFaultKind = Literal[
    "absent", "no-checksum", "wrong-checksum", "broken-zip", "lacks-day", "altered", "unordered"
]


@dataclass(frozen=True, slots=True)
@checked
class PartFault:
    """What is wrong with a part, until the exchange replaces it by the right one."""

    kind: PartFaultKind
    """absent: neither zip nor CHECKSUM. no-checksum: the zip alone. wrong-checksum: that of other bytes.
    broken-zip: half a zip, with a CHECKSUM that fits. lacks-day: no candles of `day`. altered: volumes
    2750 times too low, on `day` or throughout. unordered: the newest row first."""
    part: str = "*"
    """Shell pattern of the paths it hits, e.g. "*/BTCUSDT-1m-2024-06.zip" or "*/monthly/*"."""
    day: str | None = None
    """A UTC day such as 2024-06-07."""
    until_ms: int | None = None
    """The exchange's time at which the part is replaced by the right one; None means never."""

    def __post_init__(self) -> None:
        if self.kind == "lacks-day" and self.day is None:
            raise ValueError("expected the day that is to be missing, found none; say day='2024-06-07'")


@settings
class ArchiveStyle:
    """How the archive is written and published. The defaults are Binance's."""

    folder: Path | None = None
    """A folder that holds `data/...`, served as it is and without delays; None builds from candles."""
    spot_header_from_ms: int | None = None
    """Spot files of periods from then on have a header; None means none has."""
    um_header_from_ms: int | None = 1_651_363_200_000
    """USD-M files of periods from then on have a header: 2022-05 on."""
    spot_us_from_ms: int | None = 1_735_689_600_000
    """Spot candles from then on have their times in microseconds: 2025 on. None means none has."""
    um_us_from_ms: int | None = None
    """USD-M candles from then on have their times in microseconds; None means none has."""
    columns: Literal[11, 12] = 12
    """Columns of the files; the twelfth holds nothing."""
    day_delay_s: Counted = 6 * 3600
    """Seconds from the end of a day to the publication of its file."""
    month_delay_s: Counted | None = None
    """Seconds from the end of a month to the publication of its file; None is the first Monday after it, as
    many seconds after midnight as a day's file."""
    page_size: Count = 1000
    """Keys in one page of a listing."""
    faults: tuple[PartFault, ...] = ()
    """What is wrong with parts."""

    def changes_ms(self, market: Market) -> tuple[int | None, int | None]:
        """From when on the files of a market have a header, and from when on its candles have microseconds."""
        spot = self.spot_header_from_ms, self.spot_us_from_ms
        return spot if market == "spot" else (self.um_header_from_ms, self.um_us_from_ms)

    def published_ms(self, kind: PartKind, end_ms: int) -> int:
        """When the part of a period that ends then appears."""
        if kind == "daily":
            return end_ms + self.day_delay_s * 1000
        if self.month_delay_s is not None:
            return end_ms + self.month_delay_s * 1000
        days_to_monday = (4 - end_ms // DAY_MS) % 7  # 1970-01-01 was a Thursday
        return end_ms + days_to_monday * DAY_MS + self.day_delay_s * 1000
