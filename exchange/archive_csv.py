"""From the zip of an archive part to its candles: unzipped, parsed and validated at full speed.

Each file shows whether it has a header and 11 columns or 12, each row whether it counts ms or us.
"""

import io
import struct
import zipfile
import zlib

import polars as pl

from exchange.archive_parts import DAY_MS, ArchivePart, period_ms
from exchange.errors import ArchiveError
from exchange.klines import WHOLE, on_grid
from storage.errors import CandleError
from storage.parse import BINANCE_COLUMNS, epoch_times
from storage.schema import utc_text, validate_candles

__all__ = ["candles_of", "day_counts", "unzip"]

NAMES = BINANCE_COLUMNS[:11]  # the twelfth, "ignore", holds nothing
WIRE_SCHEMA: dict[str, pl.DataType] = {name: pl.Int64() if name in WHOLE else pl.Float64() for name in NAMES}
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError)


def unzip(content: bytes, part: ArchivePart) -> bytes:
    """The one file in a zip, its CRC checked."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                raise ArchiveError(_unfit(part, "one file in the zip", f"{len(members)}"))
            if members[0].compress_type != zipfile.ZIP_DEFLATED:
                return archive.read(members[0])
        text = _inflate(content, members[0])
    except BROKEN_ZIP as error:
        raise ArchiveError(_unfit(part, "a zip that opens", f"a broken one ({error})")) from error
    if zlib.crc32(text) != members[0].CRC:
        raise ArchiveError(_unfit(part, "the CRC that the zip states", "another"))
    return text


def candles_of(text: bytes, part: ArchivePart) -> pl.DataFrame:
    """The validated candles of a part's CSV that open and close within its period.

    Rows between two candles are left out, as some of 2017 and 2018 are, and so is a candle that closes after
    the period, which may have been written while it was open.
    """
    width = _width(text, part)
    try:
        raw = pl.read_csv(
            text,
            has_header=False,
            skip_rows=0 if text[:1].isdigit() else 1,
            schema=WIRE_SCHEMA | dict.fromkeys(BINANCE_COLUMNS[11:width], pl.String()),
            columns=list(range(len(NAMES))),
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0][:200]
        raise ArchiveError(_unfit(part, "rows of numbers", f"otherwise ({reason})")) from error
    if empty := sum(raw.null_count().row(0)):
        raise ArchiveError(_unfit(part, "a value in every field", f"{empty} empty fields"))
    try:
        times = [epoch_times(raw[name], origin=part.name) for name in ("open_time", "close_time")]
        candles = on_grid(raw.with_columns(times), part.key.interval, origin=part.name)
        return _within(validate_candles(candles, part.key.interval, origin=part.name), part)
    except CandleError as error:
        raise ArchiveError(f"{error}; its candles have to come from elsewhere.") from error


def day_counts(candles: pl.DataFrame) -> dict[str, int]:
    """Candles per UTC day that has any: `{"2024-06-01": 1440, ...}`."""
    runs = (candles["open_time"].dt.epoch("ms") // DAY_MS).rle().struct.unnest()
    days = runs["value"].cast(pl.Int32).cast(pl.Date).cast(pl.String)
    return dict(zip(days.to_list(), runs["len"].to_list(), strict=True))


def _inflate(content: bytes, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes. Into a buffer of the right size, which takes two thirds of the time zipfile needs."""
    name_size, extra_size = struct.unpack_from("<HH", content, member.header_offset + 26)
    begin = member.header_offset + 30 + name_size + extra_size
    return zlib.decompress(content[begin : begin + member.compress_size], -15, member.file_size + 1)


def _width(text: bytes, part: ArchivePart) -> int:
    """Columns of the file; its header, if it has one, has to be Binance's."""
    first = text[: text.find(b"\n")] if b"\n" in text[:4096] else text[:4096]
    fields = first.decode("utf-8", errors="replace").strip().split(",")
    if len(fields) not in (len(NAMES), len(BINANCE_COLUMNS)):
        raise ArchiveError(_unfit(part, "11 or 12 columns", f"{len(fields)}" if text else "an empty file"))
    if not text[:1].isdigit() and tuple(fields[: len(NAMES[:8])]) != NAMES[:8]:
        raise ArchiveError(_unfit(part, f"a header such as {','.join(NAMES)}", f"{','.join(fields)}"))
    return len(fields)


def _within(candles: pl.DataFrame, part: ArchivePart) -> pl.DataFrame:
    opened = candles["open_time"].dt.epoch("ms")
    begin_ms, end_ms = period_ms(part.kind, part.period)
    first_ms, last_ms = (opened[0], opened[-1]) if len(opened) else (begin_ms, begin_ms)
    if first_ms < begin_ms or last_ms >= end_ms:
        found = f"some from {utc_text(first_ms)} to {utc_text(last_ms)}"
        raise ArchiveError(_unfit(part, f"candles of {part.period}", found))
    if last_ms > part.last_ms:
        candles = candles.filter(opened <= part.last_ms)
    if candles.is_empty():
        raise ArchiveError(_unfit(part, f"candles of {part.period}", "none"))
    return candles


def _unfit(part: ArchivePart, expected: str, found: str) -> str:
    return (
        f"{part.name}: expected {expected}, found {found}; "
        "its candles have to come from the days of the archive or from the REST API."
    )
