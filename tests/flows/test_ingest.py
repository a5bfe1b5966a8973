"""Real candles all the way in and out: exchange, lake, files, another lake."""

from pathlib import Path

import polars as pl
import pytest
import requests
from polars.testing import assert_frame_equal

from exchange.replay import ReplayClock, ReplayExchange
from flows.ingest import ingest
from storage.lake import Lake
from storage.layout import Home
from storage.schema import SeriesKey
from tests.support.datasets import real_candles
from tests.support.terminal import Terminal

BTC, DOGE = (SeriesKey.parse(name, "1h") for name in ("spot:BTCUSDT", "um:DOGEUSDT"))
HOUR_MS = 3_600_000


def _file(folder: Path, key: SeriesKey) -> pl.DataFrame:
    """The file as it is; nothing of ours but the type of its times."""
    frame = pl.read_parquet(folder / f"{key.market}_{key.symbol}_{key.interval}.parquet")
    return frame.with_columns(pl.col("open_time").cast(pl.Datetime("ms", "UTC")))


def _parquets(home: Path) -> dict[str, bytes]:
    paths = (home / "lake").rglob("*.parquet")
    return {str(path.relative_to(home)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, prefect_api: None) -> Home:
    """A lake of two years of BTCUSDT and four of DOGEUSDT, fetched over HTTP by the ingest flow."""
    root = tmp_path_factory.mktemp("ingest") / "home"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("KRONOS_HOME", str(root))
        found = ingest("demo", settings={"replay": str(shared_data)}).series
    assert [(one.series, one.added, one.holes) for one in found] == [
        (BTC.name, 17_520, 0),
        (DOGE.name, 34_492, 0),
    ]
    return Home(root)


@pytest.mark.parametrize(
    ("key", "columns"),
    [
        (BTC, ["open_time", "open", "high", "low", "close", "volume", "quote_volume"]),
        (DOGE, ["open_time", "open", "high", "low", "close", "volume"]),  # its source had no quote volume
    ],
    ids=["BTCUSDT", "DOGEUSDT"],
)
def test_the_lake_equals_the_exchanges_candles_value_by_value(
    key: SeriesKey, columns: list[str], home: Home, shared_data: Path
) -> None:
    stored = Lake(home.lake).read(key)
    assert_frame_equal(stored.select(columns), _file(shared_data, key).select(columns), check_exact=True)
    assert (stored["close_time"] - stored["open_time"]).unique().dt.total_milliseconds().to_list() == [
        HOUR_MS - 1
    ]


def test_the_candle_that_still_forms_is_not_in_the_lake(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: None
) -> None:
    candles = real_candles(shared_data, DOGE.name).head(500)
    forming_ms = int(candles["open_time"].dt.epoch("ms")[400])
    monkeypatch.setenv("KRONOS_HOME", str(tmp_path))
    with ReplayExchange({DOGE: candles}, clock=ReplayClock(forming_ms + HOUR_MS - 1)) as market:
        settings = {"replay": "", "exchange.um_url": market.url}
        query = {"symbol": "DOGEUSDT", "interval": "1h", "limit": 1}
        offered = requests.get(f"{market.url}/fapi/v1/klines", params=query, timeout=10).json()
        assert offered[0][0] == forming_ms, "the exchange does offer it"
        for rows in (400, 401):
            ingest("demo", series=[DOGE.name], settings=settings)
            stored = Lake(tmp_path / "lake").read(DOGE).select("open_time", "close", "volume")
            assert_frame_equal(stored, candles.select(stored.columns).head(rows), check_exact=True)
            market.clock.set(forming_ms + HOUR_MS)  # now it has closed


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_what_is_exported_imports_into_another_home_byte_by_byte(
    suffix: str, home: Home, terminal: Terminal, tmp_path: Path
) -> None:
    path, other = tmp_path / f"candles.{suffix}", terminal.home
    for key in (BTC, DOGE):
        terminal.home = home.root
        exported = terminal("export", path, "--series", key.name)
        terminal.home = other
        imported = terminal("import", path, "--series", key.name)
        assert (exported.code, imported.code) == (0, 0), exported.err + imported.err
        expected = Lake(home.lake).read(key)
        assert f"{len(expected):,} candles of {key} written to {path}" in exported.out
        assert_frame_equal(Lake(other / "lake").read(key), expected, check_exact=True)
    assert _parquets(other) == _parquets(home.root)
    before = _parquets(other)
    assert terminal("import", path, "--series", DOGE.name).code == 0
    assert _parquets(other) == before


def test_an_export_takes_the_days_from_start_to_before_end(
    home: Home, terminal: Terminal, tmp_path: Path
) -> None:
    terminal.home, path = home.root, tmp_path / "days.csv"
    done = terminal("export", path, "--series", BTC.name, "--start", "2024-02-28", "--end", "2024-03-02")
    assert done.code == 0
    times = pl.read_csv(path, try_parse_dates=True)["open_time"]
    assert len(times) == 72
    assert (f"{times[0]:%F %H:%M}", f"{times[-1]:%F %H:%M}") == ("2024-02-28 00:00", "2024-03-01 23:00")
