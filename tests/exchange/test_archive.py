"""The archive client: what it lists, what it makes of files as Binance writes them, and what it refuses."""

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import requests
from requests.adapters import HTTPAdapter

from exchange.archive import PARTS_PER_THREAD, ArchiveClient, ArchiveConfig, ArchivePart, FetchedPart
from exchange.errors import ArchiveError, BadRequest, ExchangeError, Malformed, NotYetPublished, Unreachable
from exchange.replay import ArchiveStyle, Fault, PartFault, ReplayClock, ReplayExchange
from storage.candle_files import read_candles
from storage.interval import Interval
from storage.schema import SeriesKey
from tests.support.candles import full_candles

DAY = 86_400_000
SPOT = SeriesKey.parse("spot:BTCUSDT", "1h")
UM = SeriesKey.parse("um:DOGEUSDT", "1h")
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore"
)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def rounded(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(pl.Float64).round(6))


MARKET = {
    SPOT: rounded(full_candles(24 * 75, start_ms=ms("2024-11-20"), seed=1)),
    UM: rounded(full_candles(24 * 75, start_ms=ms("2022-04-10"), seed=2)),
}
LATER = ms("2025-06-01")


@contextmanager
def archive(
    *faults: Fault,
    key: SeriesKey = SPOT,
    style: ArchiveStyle | None = None,
    sleep: Any = lambda seconds: None,
) -> Iterator[tuple[ReplayExchange, ArchiveClient]]:
    clock = ReplayClock(LATER)
    with (
        ReplayExchange(MARKET, clock=clock, faults=faults, archive=style) as exchange,
        ArchiveClient(key.market, exchange.archive_config, sleep=sleep) as client,
    ):
        yield exchange, client


def month_of(key: SeriesKey, month: str) -> pl.DataFrame:
    return MARKET[key].filter(pl.col("open_time").dt.strftime("%Y-%m") == month)


def paths(exchange: ReplayExchange) -> list[str]:
    return [request.path.rpartition("/")[2] for request in exchange.requests]


# What is there


def test_months_and_days_are_listed_by_period() -> None:
    with archive() as (_, client):
        parts = client.list_parts(SPOT)
    months = [part.period for part in parts if part.kind == "monthly"]
    days = [part.period for part in parts if part.kind == "daily"]
    assert months == ["2024-11", "2024-12", "2025-01", "2025-02"]
    assert (days[0], days[-1], len(days)) == ("2024-11-20", "2025-02-02", 75)
    assert [part.first_ms for part in parts] == sorted(part.first_ms for part in parts)
    december = next(part for part in parts if part.period == "2024-12")
    assert parts[parts.index(december) + 1].period == "2024-12-01"
    assert (december.first_ms, december.last_ms) == (ms("2024-12-01"), ms("2024-12-31T23:00"))
    assert december.name == "BTCUSDT-1h-2024-12.zip"
    assert december.etag is not None


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_listing_of_many_pages_is_the_listing_of_one(size: int) -> None:
    with archive(style=ArchiveStyle(page_size=size)) as (exchange, client):
        listed = [(part.kind, part.period) for part in client.list_parts(SPOT)]
        keys = {"monthly": 8, "daily": 150}  # each zip has a CHECKSUM
        assert len(exchange.requests) == sum(-(-count // size) for count in keys.values())
        assert len(set(listed)) == len(listed) == 79


def test_a_listing_from_a_time_on_begins_with_the_period_that_holds_it() -> None:
    with archive(style=ArchiveStyle(page_size=10)) as (exchange, client):
        parts = client.list_parts(SPOT, start_ms=ms("2025-01-30T13:00"))
        assert [part.period for part in parts if part.kind == "monthly"] == ["2025-01", "2025-02"]
        assert next(part.period for part in parts if part.kind == "daily") == "2025-01-30"
        assert len(exchange.requests) == 2
        assert client.list_parts(SPOT, kinds=["monthly"], start_ms=LATER) == []


def test_the_month_interval_is_1mo_in_paths() -> None:
    key = SeriesKey.parse("spot:BTCUSDT", "1M")
    with archive() as (exchange, client):
        parts = client.list_parts(key)
        assert [part.name for part in parts] == [
            "BTCUSDT-1mo-2024-11.zip",
            "BTCUSDT-1mo-2024-12.zip",
            "BTCUSDT-1mo-2025-01.zip",
        ]
        assert "/klines/BTCUSDT/1mo/" in parts[0].url
        fetched = client.fetch(parts[1])
        assert fetched.candles["open_time"].dt.epoch("ms").to_list() == [ms("2024-12-01")]
        assert all(request.params["prefix"].endswith("/1mo/") for request in exchange.requests[:1])


def test_a_symbol_without_an_archive_has_no_parts() -> None:
    with archive() as (_, client):
        assert client.list_parts(SeriesKey.parse("spot:NOPEUSDT", "1h")) == []


def test_a_listing_that_is_none_is_refused() -> None:
    with archive(Fault("html403", "/", times=1), Fault("truncated", "/", times=1)) as (_, client):
        assert len(client.list_parts(SPOT)) == 79
    with archive(Fault("truncated", "/")) as (exchange, client):
        with pytest.raises(Malformed, match="listing of the archive"):
            client.list_parts(SPOT)
        assert len(exchange.requests) == client.config.attempts
        elsewhere = replace(exchange.archive_config, listing_url=f"{exchange.url}/nothing")
        with pytest.raises(BadRequest, match="listing_url"):
            ArchiveClient("spot", elsewhere).list_parts(SPOT)


# What is in it


@pytest.mark.parametrize(
    ("key", "month"), [(SPOT, "2024-12"), (SPOT, "2025-01"), (UM, "2022-04"), (UM, "2022-05")]
)
def test_a_month_is_the_candles_that_went_in(key: SeriesKey, month: str) -> None:
    with archive(key=key) as (exchange, client):
        fetched = client.fetch(client.part(key, "monthly", month))
        assert fetched.candles.equals(month_of(key, month))
        content = exchange.archive.content(fetched.part.url.removeprefix(f"{exchange.url}/"))
    assert content is not None
    assert fetched.sha256 == hashlib.sha256(content).hexdigest()
    assert fetched.source.detail == f"{key.symbol}-1h-{month}.zip"


@pytest.mark.parametrize("columns", [11, 12])
@pytest.mark.parametrize("header_from_ms", [None, 0])
@pytest.mark.parametrize("us_from_ms", [None, 0, ms("2024-12-17T05:00")])
def test_every_form_of_a_file_gives_the_same_candles(
    columns: Any, header_from_ms: int | None, us_from_ms: int | None
) -> None:
    style = ArchiveStyle(spot_header_from_ms=header_from_ms, spot_us_from_ms=us_from_ms, columns=columns)
    with archive(style=style) as (_, client):
        assert client.fetch(client.part(SPOT, "monthly", "2024-12")).candles.equals(month_of(SPOT, "2024-12"))


def test_days_make_up_their_month() -> None:
    with archive() as (_, client):
        days = [
            part for part in client.list_parts(SPOT, kinds=["daily"]) if part.period.startswith("2024-12")
        ]
        got: list[pl.DataFrame] = []
        client.fetch_many(days, on_part=lambda part, fetched: got.append(fetched.candles))  # type: ignore[union-attr]
    assert pl.concat(got).equals(month_of(SPOT, "2024-12"))


def test_a_day_that_a_month_lacks_is_named() -> None:
    style = ArchiveStyle(faults=(PartFault("lacks-day", "*/monthly/*", day="2024-12-21"),))
    with archive(style=style) as (_, client):
        month = client.fetch(client.part(SPOT, "monthly", "2024-12"))
        assert month.short_days == ("2024-12-21",)
        assert month.day_counts["2024-12-20"] == 24
        assert len(month.day_counts) == 30
        day = client.fetch(client.part(SPOT, "daily", "2024-12-21"))
        assert (day.short_days, dict(day.day_counts)) == ((), {"2024-12-21": 24})
        assert (
            "2024-11-19" in client.fetch(client.part(SPOT, "monthly", "2024-11")).short_days
        )  # not yet listed


def test_a_candle_that_closes_after_its_month_is_left_out() -> None:
    key = SeriesKey.parse("spot:BTCUSDT", "1w")
    with archive(style=ArchiveStyle(month_delay_s=20 * 86_400)) as (exchange, client):
        parts = client.list_parts(key)
        december = client.fetch(next(part for part in parts if part.period == "2024-12"))
        weeks = [ms("2024-12-02"), ms("2024-12-09"), ms("2024-12-16"), ms("2024-12-23")]
        assert december.candles["open_time"].dt.epoch("ms").to_list() == weeks
        served = exchange.archive.content(december.part.url.removeprefix(f"{exchange.url}/"))
        assert served is not None
        with zipfile.ZipFile(io.BytesIO(served)) as opened:
            assert len(opened.read(opened.namelist()[0]).splitlines()) == 5  # the week of 30 December too


# Files made by hand


ROW = "{},7.1,7.3,7.0,7.2,10.5,{},75.2,42,5.1,36.7,0"


def rows(*opens: str, step: int = 3_600_000) -> list[str]:
    return [ROW.format(ms(text), ms(text) + step - 1) for text in opens]


def zipped(text: str | bytes, *names: str, stored: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as opened:
        for name in names or ("BTCUSDT-1h-2018-02.csv",):
            opened.writestr(name, text)
    return buffer.getvalue()


def fetch_file(folder: Path, content: bytes, checksum: str | None = None) -> FetchedPart:
    """What the client makes of these bytes as spot BTCUSDT 1h of 2018-02, served from a folder."""
    place = folder / "data/spot/monthly/klines/BTCUSDT/1h"
    place.mkdir(parents=True, exist_ok=True)
    name = "BTCUSDT-1h-2018-02.zip"
    (place / name).write_bytes(content)
    stated = f"{hashlib.sha256(content).hexdigest()}  {name}\n" if checksum is None else checksum
    (place / f"{name}.CHECKSUM").write_text(stated)
    with archive(style=ArchiveStyle(folder=folder)) as (_, client):
        parts = client.list_parts(SPOT)
        assert [part.name for part in parts] == [name]
        return client.fetch(parts[0])


@pytest.mark.parametrize("form", ["plain", "header", "crlf", "stored", "no end of line", "header in crlf"])
def test_a_file_reads_as_the_careful_reader_reads_it(tmp_path: Path, form: str) -> None:
    lines = rows("2018-02-01", "2018-02-01T01:00", "2018-02-28T23:00")
    head = [HEADER] if "header" in form else []
    text = ("\r\n" if "crlf" in form else "\n").join([*head, *lines]) + ("" if "no end" in form else "\n")
    (tmp_path / "plain.csv").write_text("\n".join(lines))
    fetched = fetch_file(tmp_path, zipped(text, stored=form == "stored"))
    assert fetched.candles.equals(read_candles(tmp_path / "plain.csv", Interval("1h")))
    assert fetched.candles["taker_buy_quote_volume"].to_list() == [36.7] * 3


def test_candles_off_the_grid_are_left_out(tmp_path: Path) -> None:
    # As on 2018-02-09, when candles opened at hh:28:14.
    lines = rows("2018-02-08", "2018-02-09T09:28:14", "2018-02-09T10:00")
    fetched = fetch_file(tmp_path, zipped("\n".join(lines)))
    assert fetched.candles["open_time"].dt.epoch("ms").to_list() == [ms("2018-02-08"), ms("2018-02-09T10:00")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an empty file"),
        (HEADER + "\n", "none"),
        ("hello,world\n", "expected 11 or 12 columns, found 2"),
        ("a,b,c,d,e,f,g,h,i,j,k,l\n" + rows("2018-02-01")[0], "a header such as open_time"),
        (
            rows("2018-02-01")[0] + "\n" + rows("2018-02-01T01:00")[0].replace("7.3", "seven"),
            "rows of numbers",
        ),
        (rows("2018-02-01")[0] + "\n" + rows("2018-02-01T01:00")[0].rpartition(",36.7")[0], "empty field"),
        (rows("2018-02-01")[0] + "\n" + rows("2018-02-01T01:00")[0].replace("42", ""), "1 empty field"),
        ("\n".join(rows("2018-02-01", "2018-02-01")), "one row per open_time"),
        ("\n".join(rows("2018-02-02", "2018-02-01")), "the oldest row first"),
        (rows("2018-02-01")[0].replace("7.3", "6.9"), "high"),
        (rows("2018-02-01")[0].replace("10.5", "-10.5"), "volume"),
        ("\n".join(rows("2018-01-31T23:00", "2018-02-01")), "candles of 2018-02"),
        ("\n".join(rows("2018-02-28T23:00", "2018-03-01")), "candles of 2018-02"),
        (ROW.format(ms("2018-02-01") // 1000, ms("2018-02-01") // 1000), "looks like seconds"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_its_name(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ArchiveError, match=reason) as raised:
        fetch_file(tmp_path, zipped(text))
    assert "BTCUSDT-1h-2018-02.zip" in str(raised.value)


def test_a_zip_that_is_none_is_refused(tmp_path: Path) -> None:
    good = zipped("\n".join(rows("2018-02-01")))
    assert len(fetch_file(tmp_path, good).candles) == 1
    for bad in (b"", b"<html>", good[:-30], good[:60] + b"XXXX" + good[64:], good[: len(good) // 2]):
        with pytest.raises(ArchiveError, match=r"BTCUSDT-1h-2018-02\.zip: expected"):
            fetch_file(tmp_path, bad)
    with pytest.raises(ArchiveError, match="one file in the zip, found 2"):
        fetch_file(tmp_path, zipped("x", "a.csv", "b.csv"))


def test_a_changed_byte_of_the_text_does_not_pass_the_crc(tmp_path: Path) -> None:
    text = "\n".join(rows("2018-02-01"))
    content = zipped(text, stored=True).replace(b"7.1,7.3", b"7.1,7.4")
    with pytest.raises(ArchiveError, match="Bad CRC-32"):
        fetch_file(tmp_path, content)
    deflated = bytearray(zipped(text))
    at = deflated.rindex(b"PK\x01\x02") + 16  # the CRC that the directory states
    deflated[at] ^= 1
    with pytest.raises(ArchiveError, match="CRC"):
        fetch_file(tmp_path, bytes(deflated))


# What proves it


def test_a_checksum_is_of_that_file_and_of_that_name(tmp_path: Path) -> None:
    content = zipped("\n".join(rows("2018-02-01")))
    right = hashlib.sha256(content).hexdigest()
    name = "BTCUSDT-1h-2018-02.zip"
    for good in (f"{right}  {name}\n", f"{right} *{name}", f"{right.upper()}  {name}\r\n"):
        assert fetch_file(tmp_path, content, good).sha256 == right
    for bad in ("", right, f"{right}  ETHUSDT-1h-2018-02.zip", f"{right[:-1]}  {name}", "<html>"):
        with pytest.raises(ArchiveError, match="sha256 and name in its CHECKSUM"):
            fetch_file(tmp_path, content, bad)
    with pytest.raises(ArchiveError, match=f"expected the sha256 {'0' * 64} of its CHECKSUM, found {right}"):
        fetch_file(tmp_path, content, f"{'0' * 64}  {name}")


@pytest.mark.parametrize(
    ("kind", "words", "asked"),
    [
        ("wrong-checksum", "it is not used", 6),
        ("no-checksum", "found none; it is not used without one", 6),
        ("broken-zip", "a zip that opens", 6),
    ],
)
def test_a_part_that_stays_damaged_is_tried_three_times(kind: Any, words: str, asked: int) -> None:
    style = ArchiveStyle(faults=(PartFault(kind),))
    with archive(style=style) as (exchange, client):
        with pytest.raises(ArchiveError, match=words) as raised:
            client.fetch(client.part(SPOT, "monthly", "2024-12"))
        assert not isinstance(raised.value, NotYetPublished)
        assert len(exchange.requests) == asked


def test_what_is_not_published_is_asked_for_once() -> None:
    with archive() as (exchange, client):
        with pytest.raises(NotYetPublished, match=r"Expected BTCUSDT-1h-2025-03\.zip in the archive"):
            client.fetch(client.part(SPOT, "monthly", "2025-03"))
        assert paths(exchange) == ["BTCUSDT-1h-2025-03.zip"]


@pytest.mark.parametrize("kind", ["wrong-checksum", "no-checksum", "broken-zip"])
def test_a_part_that_is_replaced_meanwhile_is_fetched(kind: Any) -> None:
    style = ArchiveStyle(faults=(PartFault(kind, until_ms=LATER + 1),))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        exchange.clock.advance(1000)

    with archive(style=style, sleep=sleep) as (exchange, client):
        fetched = client.fetch(client.part(SPOT, "monthly", "2024-12"))
        assert fetched.candles.equals(month_of(SPOT, "2024-12"))
    assert len(waits) == 1


@pytest.mark.parametrize("kind", ["reset", "short", "truncated", "500", "503", "429", "html403"])
@pytest.mark.parametrize("path", ["*.zip", "*.CHECKSUM"])
def test_a_passing_fault_costs_another_try(kind: Any, path: str) -> None:
    with archive(Fault(kind, path, on=(1,))) as (exchange, client):
        fetched = client.fetch(client.part(SPOT, "monthly", "2024-12"))
        assert fetched.candles.equals(month_of(SPOT, "2024-12"))
        assert [request.fault for request in exchange.requests].count(kind) == 1
        assert len(exchange.requests) in (3, 4)


def test_an_archive_out_of_reach_says_so() -> None:
    with archive(Fault("503")) as (exchange, client):
        with pytest.raises(Unreachable, match="HTTP 503"):
            client.fetch(client.part(SPOT, "monthly", "2024-12"))
        assert len(exchange.requests) == client.config.attempts
    config = ArchiveConfig(archive_url="http://127.0.0.1:9", attempts=2)
    with pytest.raises(Unreachable, match="connection refused"):
        ArchiveClient("spot", config, sleep=lambda seconds: None).fetch(
            ArchivePart.of(SPOT, "daily", "2024-12-01", archive_url=config.archive_url)
        )
    with archive(Fault("slow", "*.zip", delay_s=30)) as (exchange, _):
        impatient = replace(exchange.archive_config, timeout_s=0.1, attempts=1)
        with (
            ArchiveClient("spot", impatient) as client,
            pytest.raises(Unreachable, match="no answer in time"),
        ):
            client.fetch(client.part(SPOT, "monthly", "2024-12"))


def test_a_checksum_alone_tells_whether_a_part_was_replaced() -> None:
    altered = PartFault("altered", "*-2024-12.zip", until_ms=LATER + 1)
    with archive(style=ArchiveStyle(faults=(altered,))) as (exchange, client):
        part = client.list_parts(SPOT, kinds=["monthly"])[1]
        before = client.fetch(part)
        assert client.checksum(part) == before.sha256
        exchange.clock.advance(1)
        exchange.forget_requests()
        assert client.checksum(part) != before.sha256
        assert client.list_parts(SPOT, kinds=["monthly"])[1].etag != part.etag
        assert "BTCUSDT-1h-2024-12.zip" not in paths(exchange)
        after = client.fetch(part)
        assert after.sha256 == client.checksum(part)
        assert after.candles["volume"].sum() > 100 * before.candles["volume"].sum()


# Many


def collect(
    client: ArchiveClient, parts: Sequence[ArchivePart]
) -> list[tuple[str, FetchedPart | ExchangeError]]:
    got: list[tuple[str, FetchedPart | ExchangeError]] = []
    client.fetch_many(parts, on_part=lambda part, outcome: got.append((part.period, outcome)))
    return got


def test_parts_come_by_period_however_long_each_takes() -> None:
    late = Fault("slow", "*-2024-11-2[0-2].zip", delay_s=0.3)
    with archive(late) as (_, client):
        parts = client.list_parts(SPOT, kinds=["daily"])[:12]
        got = collect(client, parts[::-1])
    assert [period for period, _ in got] == [part.period for part in parts]
    assert all(isinstance(outcome, FetchedPart) for _, outcome in got)


def test_one_failing_part_does_not_stop_the_others() -> None:
    style = ArchiveStyle(
        faults=(PartFault("broken-zip", "*-2024-11-25.zip"), PartFault("absent", "*-11-27.zip"))
    )
    with archive(style=style) as (_, client):
        parts = [client.part(SPOT, "daily", f"2024-11-{day}") for day in range(22, 30)]
        got = dict(collect(client, parts))
    failed = {
        period: type(outcome) for period, outcome in got.items() if not isinstance(outcome, FetchedPart)
    }
    assert failed == {"2024-11-25": ArchiveError, "2024-11-27": NotYetPublished}
    assert len(got) == 8


def test_slow_takers_of_several_series_hold_the_downloads_back_together() -> None:
    begun: list[int] = []
    series = 3
    with archive() as (exchange, _):
        parts = [ArchiveClient("spot").part(SPOT, "daily", f"2024-12-{day:02}") for day in range(1, 13)]
        parts = [
            replace(part, url=part.url.replace(ArchiveConfig().archive_url, exchange.url)) for part in parts
        ]

        def take(part: ArchivePart, outcome: FetchedPart | ExchangeError) -> None:
            time.sleep(0.02)
            begun.append(sum(path.endswith(".zip") for path in paths(exchange)))

        config = replace(exchange.archive_config, threads=2)
        with ArchiveClient("spot", config) as client, ThreadPoolExecutor(series) as pool:
            for done in [pool.submit(client.fetch_many, parts, on_part=take) for _ in range(series)]:
                done.result()
    assert len(begun) == series * 12
    most = PARTS_PER_THREAD * 2
    assert all(count <= taken + most + series for taken, count in enumerate(begun))  # each may hold one more
    assert max(count - taken for taken, count in enumerate(begun)) > 2  # it reads ahead


def test_large_parts_are_fetched_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange.archive.CANDLES_UNDER_WAY", 24 + 23)
    taken: list[int] = []
    with archive() as (exchange, client):
        parts = client.list_parts(SPOT, kinds=["daily"])[:6]
        exchange.forget_requests()

        def take(part: ArchivePart, outcome: FetchedPart | ExchangeError) -> None:
            taken.append(sum(path.endswith(".zip") for path in paths(exchange)))

        client.fetch_many(parts, on_part=take)
    assert taken == [1, 2, 3, 4, 5, 6]


def test_series_that_share_a_client_share_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, crowd = 3, threading.Condition()
    now, most, waited = [0], [0], threading.Event()
    send = HTTPAdapter.send

    def counted(adapter: HTTPAdapter, *arguments: Any, **options: Any) -> requests.Response:
        with crowd:
            now[0] += 1
            most[0] = max(most[0], now[0])
            crowd.notify_all()
            if not waited.is_set():  # the first ones wait for one too many
                crowd.wait_for(lambda: most[0] > threads, timeout=0.5)
                waited.set()
        try:
            return send(adapter, *arguments, **options)
        finally:
            with crowd:
                now[0] -= 1

    with archive() as (exchange, client):
        parts = client.list_parts(SPOT, kinds=["daily"])[:8]
        monkeypatch.setattr(HTTPAdapter, "send", counted)
        config = replace(exchange.archive_config, threads=threads)
        with ArchiveClient("spot", config) as shared, ThreadPoolExecutor(8) as pool:
            running = [pool.submit(collect, shared, parts) for _ in range(4)]
            running += [pool.submit(shared.list_parts, SPOT) for _ in range(4)]  # type: ignore[arg-type]
            found = [done.result() for done in running]
    assert [len(one) for one in found] == [8] * 4 + [79] * 4
    assert most[0] == threads


def test_a_taker_that_fails_ends_the_downloads_and_their_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, woken = threading.Event(), []

    def sleep_until(stop: threading.Event) -> Callable[[float], None]:
        def sleep(seconds: float) -> None:
            waiting.set()
            woken.append(stop.wait(60))

        return sleep

    def interrupt(part: ArchivePart, outcome: object) -> None:
        assert waiting.wait(60), "no download waits for its next try"
        raise KeyboardInterrupt

    monkeypatch.setattr("exchange.archive.sleep_using_event", sleep_until)
    with archive(Fault("503", "*-2024-11-2[1-9].zip"), sleep=None) as (exchange, client):
        parts = [client.part(SPOT, "daily", f"2024-11-{day}") for day in range(20, 30)]
        with pytest.raises(KeyboardInterrupt):
            client.fetch_many(parts, on_part=interrupt)
        assert woken
        assert all(woken), "a wait ends by the stop and not by its time"
        asked = len(exchange.requests)
        assert len(collect(client, parts[:1])) == 1  # the client itself goes on
        client.close()  # once every thread of its pool is done
        assert paths(exchange)[asked:] == [parts[0].name, f"{parts[0].name}.CHECKSUM"]


def test_a_bad_line_gives_the_same_candles() -> None:
    faults = [
        Fault("reset", "*.zip", probability=0.15, seed=1),
        Fault("truncated", "*.zip", probability=0.1, seed=2),
        Fault("503", "*", probability=0.1, seed=3),
    ]
    with archive(*faults) as (exchange, _):
        patient = replace(exchange.archive_config, attempts=20, threads=4)
        with ArchiveClient("spot", patient, sleep=lambda seconds: None) as client:
            parts = client.list_parts(SPOT, kinds=["monthly"])
            got = collect(client, parts)
        assert {"reset", "503"} & {request.fault for request in exchange.requests}
    frames = [outcome.candles for _, outcome in got if isinstance(outcome, FetchedPart)]
    assert pl.concat(frames).equals(MARKET[SPOT])


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"archive_url": "data.binance.vision"}, "archive_url: expected a URL such as"),
        ({"listing_url": ""}, "listing_url: expected a URL such as"),
        ({"threads": 0}, "threads: expected from 1 to 64, found 0; raise it"),
        ({"timeout_s": 0.0}, "timeout_s: expected above 0 seconds, found 0.0; raise it"),
        ({"attempts": 0}, "attempts: expected at least 1, found 0; raise it"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ArchiveConfig(**settings)


def test_a_client_of_one_market_refuses_the_other() -> None:
    with pytest.raises(ValueError, match=r"make an ArchiveClient\('um'\)"):
        ArchiveClient("spot").list_parts(UM)
