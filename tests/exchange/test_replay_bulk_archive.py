"""The replayed archive: files, delays and listings as Binance has them, faults as people have met them."""

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
import requests

from exchange.replay import ArchiveStyle, Fault, PartFault, ReplayClock, ReplayExchange
from storage.schema import SeriesKey
from tests.support.candles import full_candles

DAY = 86_400_000
HOUR = 3_600_000
S3 = "{http://s3.amazonaws.com/doc/2006-03-01/}"
SPOT = SeriesKey.parse("spot:BTCUSDT", "1h")
UM = SeriesKey.parse("um:DOGEUSDT", "1h")
SPOT_MONTHS = "data/spot/monthly/klines/BTCUSDT/1h/"
UM_MONTHS = "data/futures/um/monthly/klines/DOGEUSDT/1h/"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


MARKET = {
    SPOT: full_candles(24 * 75, start_ms=ms("2024-11-20"), seed=1),
    UM: full_candles(24 * 75, start_ms=ms("2022-04-10"), seed=2),
}


@pytest.fixture(scope="module")
def running() -> Iterator[ReplayExchange]:
    with ReplayExchange(MARKET, clock=ReplayClock(ms("2025-06-01"))) as exchange:
        yield exchange


@pytest.fixture
def exchange(running: ReplayExchange) -> Iterator[ReplayExchange]:
    yield running
    running.clock.set(ms("2025-06-01"))
    running.archive.style = ArchiveStyle()
    running.faults = ()


def get(exchange: ReplayExchange, path: str) -> bytes | None:
    answer = requests.get(f"{exchange.url}/{path}", timeout=10)
    assert answer.status_code in (200, 404)
    return answer.content if answer.status_code == 200 else None


def lines_of(content: bytes | None) -> list[list[str]]:
    assert content is not None
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.testzip() is None
        (name,) = opened.namelist()
        assert name.endswith(".csv")
        return list(csv.reader(io.StringIO(opened.read(name).decode())))


def listing(exchange: ReplayExchange, **params: Any) -> ElementTree.Element:
    answer = requests.get(exchange.url, params=params, timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/xml")
    return ElementTree.fromstring(answer.content)


def keys(page: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in page.iterfind(f"{S3}Contents/{S3}Key")]


def test_a_zip_and_its_checksum_fit(exchange: ReplayExchange) -> None:
    for path in (f"{SPOT_MONTHS}BTCUSDT-1h-2024-12.zip", f"{UM_MONTHS}DOGEUSDT-1h-2022-05.zip"):
        content, checksum = get(exchange, path), get(exchange, f"{path}.CHECKSUM")
        assert content is not None
        assert checksum is not None
        assert checksum.decode().split() == [hashlib.sha256(content).hexdigest(), path.rpartition("/")[2]]
        assert get(exchange, path) == content


@pytest.mark.parametrize(
    ("prefix", "endpoint", "name"),
    [(SPOT_MONTHS, "/api/v3", "BTCUSDT-1h-2024-12"), (UM_MONTHS, "/fapi/v1", "DOGEUSDT-1h-2022-05")],
)
def test_the_files_rows_are_the_rows_of_the_rest_api(
    exchange: ReplayExchange, prefix: str, endpoint: str, name: str
) -> None:
    rows = [row for row in lines_of(get(exchange, f"{prefix}{name}.zip")) if row[0] != "open_time"]
    month = name[-7:]
    asked = {
        "symbol": name.partition("-")[0],
        "interval": "1h",
        "startTime": ms(f"{month}-01"),
        "endTime": ms(f"{month}-01") + 31 * DAY - 1,
        "limit": 1000,
    }
    answer = requests.get(f"{exchange.url}{endpoint}/klines", params=asked, timeout=10).json()
    assert [[str(value) for value in row] for row in answer] == rows
    assert len(rows) == 744


def test_headers_and_units_change_when_binances_did(exchange: ReplayExchange) -> None:
    first = {
        name: lines_of(get(exchange, f"{prefix}{name}.zip"))[0][0]
        for prefix, name in (
            (SPOT_MONTHS, "BTCUSDT-1h-2024-12"),
            (SPOT_MONTHS, "BTCUSDT-1h-2025-01"),
            (UM_MONTHS, "DOGEUSDT-1h-2022-04"),
            (UM_MONTHS, "DOGEUSDT-1h-2022-05"),
        )
    }
    assert first == {
        "BTCUSDT-1h-2024-12": "1733011200000",
        "BTCUSDT-1h-2025-01": "1735689600000000",
        "DOGEUSDT-1h-2022-04": "1649548800000",
        "DOGEUSDT-1h-2022-05": "open_time",
    }
    january = lines_of(get(exchange, f"{SPOT_MONTHS}BTCUSDT-1h-2025-01.zip"))[0]
    assert january[6] == "1735693199999999"


def test_styles_can_be_set(exchange: ReplayExchange) -> None:
    exchange.archive.style = ArchiveStyle(spot_header_from_ms=0, spot_us_from_ms=None, columns=11)
    rows = lines_of(get(exchange, f"{SPOT_MONTHS}BTCUSDT-1h-2025-01.zip"))
    assert rows[0][0] == "open_time"
    assert rows[1][0] == "1735689600000"
    assert {len(row) for row in rows} == {11}


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12-05.zip", "2024-12-06T06:00"),
        (f"{SPOT_MONTHS}BTCUSDT-1h-2024-11.zip", "2024-12-02T06:00"),  # the first Monday of December
        (f"{SPOT_MONTHS}BTCUSDT-1h-2024-12.zip", "2025-01-06T06:00"),
        (f"{UM_MONTHS}DOGEUSDT-1h-2022-05.zip", "2022-06-06T06:00"),
    ],
)
def test_a_part_appears_when_it_is_published(exchange: ReplayExchange, path: str, published: str) -> None:
    prefix = path.rpartition("/")[0] + "/"
    exchange.clock.set(ms(published) - 1)
    assert get(exchange, path) is None
    assert get(exchange, f"{path}.CHECKSUM") is None
    assert path not in keys(listing(exchange, prefix=prefix, delimiter="/"))
    exchange.clock.set(ms(published))
    assert get(exchange, path) is not None
    assert {path, f"{path}.CHECKSUM"} <= set(keys(listing(exchange, prefix=prefix, delimiter="/")))


def test_what_never_was_is_404(exchange: ReplayExchange) -> None:
    answer = requests.get(f"{exchange.url}/{SPOT_MONTHS}BTCUSDT-1h-2024-10.zip", timeout=10)
    assert answer.status_code == 404
    assert b"<Code>NoSuchKey</Code>" in answer.content
    for path in (
        "data/spot/monthly/klines/DOGEUSDT/1h/DOGEUSDT-1h-2022-05.zip",
        "data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-13.zip",
        "data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12-01.zip",
        "data/spot/daily/klines/BTCUSDT/1w/BTCUSDT-1w-2024-12-02.zip",
        "data/spot/monthly/klines/BTCUSDT/7h/BTCUSDT-7h-2024-12.zip",
        "data/spot/monthly/klines/BTCUSDT/1h/ETHUSDT-1h-2024-12.zip",
        "data/futures/cm/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12.zip",
    ):
        assert get(exchange, path) is None


def test_a_listing_goes_on_where_a_page_ends(exchange: ReplayExchange) -> None:
    prefix = "data/spot/daily/klines/BTCUSDT/1h/"
    whole = keys(listing(exchange, prefix=prefix, delimiter="/"))
    assert len(whole) == 150
    assert whole == sorted(whole)
    exchange.archive.style = ArchiveStyle(page_size=40)
    found, marker = [], ""
    while True:
        page = listing(exchange, prefix=prefix, delimiter="/", marker=marker)
        found += keys(page)
        assert page.findtext(f"{S3}MaxKeys") == "40"
        if page.findtext(f"{S3}IsTruncated") == "false":
            assert page.find(f"{S3}NextMarker") is None
            break
        marker = page.findtext(f"{S3}NextMarker") or ""
        assert marker == found[-1]
    assert found == whole
    assert len(keys(listing(exchange, prefix=prefix, delimiter="/", **{"max-keys": 3}))) == 3
    assert keys(listing(exchange, prefix=f"{prefix}BTCUSDT-1h-2025-01-0")) == [
        key for key in whole if "-2025-01-0" in key
    ]


def test_folders_are_listed_as_common_prefixes(exchange: ReplayExchange) -> None:
    def folders(prefix: str, **params: Any) -> list[str]:
        page = listing(exchange, prefix=prefix, delimiter="/", **params)
        assert keys(page) == []
        return [one.text or "" for one in page.iterfind(f"{S3}CommonPrefixes/{S3}Prefix")]

    assert folders("data/") == ["data/futures/", "data/spot/"]
    assert folders("data/spot/monthly/klines/") == ["data/spot/monthly/klines/BTCUSDT/"]
    intervals = [one.split("/")[-2] for one in folders("data/spot/monthly/klines/BTCUSDT/")]
    assert {"1h", "4h", "1d", "1w", "1mo"} <= set(intervals)
    assert "1m" not in intervals
    first = folders("data/", **{"max-keys": 1})
    assert folders("data/", marker=first[0]) == ["data/spot/"]


def test_a_coarser_interval_is_aggregated(exchange: ReplayExchange) -> None:
    prefix = "data/spot/monthly/klines/BTCUSDT/1mo/"
    rows = lines_of(get(exchange, f"{prefix}BTCUSDT-1mo-2024-12.zip"))
    december = MARKET[SPOT].filter(pl.col("open_time").dt.strftime("%Y-%m") == "2024-12")
    assert len(rows) == 1
    assert float(rows[0][2]) == december["high"].max()
    assert float(rows[0][4]) == december["close"][-1]


@pytest.mark.parametrize(
    ("kind", "zip_is_right", "checksum_fits"),
    [("wrong-checksum", True, False), ("broken-zip", False, True), ("altered", False, True)],
)
def test_a_part_is_wrong_until_it_is_replaced(
    exchange: ReplayExchange, kind: Any, zip_is_right: bool, checksum_fits: bool
) -> None:
    path = f"{SPOT_MONTHS}BTCUSDT-1h-2024-12.zip"
    right, other = get(exchange, path), get(exchange, path.replace("2024-12", "2025-01"))
    now_ms = exchange.clock.now_ms
    fault = PartFault(kind, "*-2024-12.zip", until_ms=now_ms + HOUR)
    exchange.archive.style = ArchiveStyle(faults=(fault,))
    wrong, checksum = get(exchange, path), get(exchange, f"{path}.CHECKSUM")
    assert wrong is not None
    assert checksum is not None
    assert (wrong == right) is zip_is_right
    assert (checksum.decode().split()[0] == hashlib.sha256(wrong).hexdigest()) is checksum_fits
    etags = [one.text for one in listing(exchange, prefix=path).iter(f"{S3}ETag")]
    assert get(exchange, path.replace("2024-12", "2025-01")) == other
    exchange.clock.advance(HOUR)
    assert get(exchange, path) == right
    assert [one.text for one in listing(exchange, prefix=path).iter(f"{S3}ETag")] != etags


def test_a_part_or_its_checksum_is_missing(exchange: ReplayExchange) -> None:
    path = f"{SPOT_MONTHS}BTCUSDT-1h-2024-12.zip"
    exchange.archive.style = ArchiveStyle(faults=(PartFault("absent", "*-2024-12.zip"),))
    assert get(exchange, path) is None
    assert get(exchange, f"{path}.CHECKSUM") is None
    assert keys(listing(exchange, prefix=path)) == []
    exchange.archive.style = ArchiveStyle(faults=(PartFault("no-checksum", "*-2024-12.zip"),))
    assert get(exchange, path) is not None
    assert get(exchange, f"{path}.CHECKSUM") is None
    assert keys(listing(exchange, prefix=path)) == [path]


def test_a_month_lacks_a_day_that_its_days_have(exchange: ReplayExchange) -> None:
    exchange.archive.style = ArchiveStyle(faults=(PartFault("lacks-day", "*/monthly/*", day="2024-12-21"),))
    month = lines_of(get(exchange, f"{SPOT_MONTHS}BTCUSDT-1h-2024-12.zip"))
    day = lines_of(get(exchange, "data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12-21.zip"))
    assert len(month) == 744 - 24
    assert len(day) == 24
    assert {row[0] for row in month}.isdisjoint(row[0] for row in day)


def test_volumes_are_altered_on_a_day(exchange: ReplayExchange) -> None:
    path = f"{SPOT_MONTHS}BTCUSDT-1h-2024-12.zip"
    right = lines_of(get(exchange, path))
    exchange.archive.style = ArchiveStyle(faults=(PartFault("altered", "*", day="2024-12-21"),))
    wrong = lines_of(get(exchange, path))
    differing = [a[0] for a, b in zip(right, wrong, strict=True) if a != b]
    assert [int(opened) for opened in differing] == [ms("2024-12-21") + at * HOUR for at in range(24)]


def test_faults_of_requests_strike_the_archive_too(exchange: ReplayExchange) -> None:
    path = f"{SPOT_MONTHS}BTCUSDT-1h-2024-12.zip"
    exchange.faults = (Fault("truncated", "*.zip", on=(1,)), Fault("503", "*.CHECKSUM"))
    cut, whole = get(exchange, path), get(exchange, path)
    assert cut is not None
    assert whole is not None
    assert whole[: len(cut)] == cut
    assert len(cut) == len(whole) // 2
    assert requests.get(f"{exchange.url}/{path}.CHECKSUM", timeout=10).status_code == 503
    assert [request.fault for request in exchange.requests][-3:] == ["truncated", None, "503"]
    assert exchange.requests[-1].weight == 0


def test_a_fault_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind: expected absent\|.*, found 'gone'; correct it"):
        PartFault("gone")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="say day='2024-06-07'"):
        PartFault("lacks-day")


def test_a_written_tree_is_served_as_it_was(exchange: ReplayExchange, tmp_path: Path) -> None:
    prefix = "data/spot/monthly/klines/BTCUSDT/1h/"
    assert exchange.archive.write(tmp_path, prefix) == 8
    built = keys(listing(exchange, prefix=prefix, delimiter="/"))
    contents = [get(exchange, key) for key in built]
    (tmp_path / "data/notes.txt").write_text("hello")
    (tmp_path.parent / "secret").write_text("no")
    exchange.archive.style = ArchiveStyle(folder=tmp_path, page_size=5)
    assert keys(listing(exchange, prefix=prefix, delimiter="/")) == built[:5]
    assert [get(exchange, key) for key in built] == contents
    sizes = [int(one.text or "") for one in listing(exchange, prefix=prefix).iter(f"{S3}Size")]
    assert sizes == [len(content or b"") for content in contents][:5]
    assert get(exchange, "data/notes.txt") == b"hello"
    for path in ("data/%2e%2e/%2e%2e/secret", "data/..%2f..%2fsecret", "data/none.zip"):
        prepared = requests.Request("GET", f"{exchange.url}/x").prepare()
        prepared.url = f"{exchange.url}/{path}"
        assert requests.Session().send(prepared, timeout=10).status_code == 404
    assert keys(listing(exchange, prefix="../")) == []


def test_the_real_listing_address_works_too(exchange: ReplayExchange) -> None:
    params = {"prefix": SPOT_MONTHS, "delimiter": "/"}
    answer = requests.get(f"{exchange.url}/data.binance.vision", params=params, timeout=10)
    assert len(keys(ElementTree.fromstring(answer.content))) == 8
    config = replace(exchange.archive_config, listing_url=f"{exchange.url}/data.binance.vision")
    assert config.archive_url == exchange.url
