"""`kronos ingest`, `candles` and `verify` over a folder of klines, as a user types them."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from exchange.errors import Banned
from exchange.replay import synthetic_market
from flows.cli.program import cli
from flows.ingest import ingest
from storage.candle_files import read_candles, write_candles
from storage.lake import Lake
from storage.schema import SeriesKey
from tasks import download as download_module
from tasks.download import IncompleteIngest
from tests.support.nights import START_MS

pytestmark = pytest.mark.usefixtures("prefect_api")

SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT", "DDDUSDT", "EEEUSDT", "FFFBTC")
KEYS = [SeriesKey.parse(f"um:{symbol}", "1h") for symbol in SYMBOLS]
MARKET = dict(synthetic_market(KEYS, start_ms=START_MS, count=300, seed=2))

Kronos = Callable[..., Result]


@pytest.fixture(scope="module")
def klines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("klines")
    for number, (key, frame) in enumerate(MARKET.items()):
        louder = frame.with_columns(pl.col("volume", "quote_volume") * 10.0**number)
        MARKET[key] = louder
        write_candles(louder, folder / f"um_{key.symbol}_1h.parquet")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KRONOS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def kronos(home: Path) -> Kronos:
    return lambda *words: CliRunner().invoke(cli, ["--home", str(home), *map(str, words)])


def test_the_named_symbols_of_a_market_are_stored_value_by_value(
    kronos: Kronos, home: Path, klines: Path
) -> None:
    result = kronos("ingest", "--symbols", "AAAUSDT,CCCUSDT", "--klines", klines)
    assert result.exit_code == 0, result.output
    lake = Lake(home / "lake")
    assert [key.symbol for key in lake.series()] == ["AAAUSDT", "CCCUSDT"]
    for key in lake.series():
        assert lake.read(key).equals(MARKET[key])


def test_the_most_traded_symbols_of_a_quote_asset_are_chosen_by_the_ticker(
    kronos: Kronos, home: Path, klines: Path
) -> None:
    result = kronos("ingest", "--top", 2, "--quote", "usdt", "--klines", klines)
    assert result.exit_code == 0, result.output
    assert [key.symbol for key in Lake(home / "lake").series()] == ["DDDUSDT", "EEEUSDT"]


def test_one_failing_symbol_does_not_stop_the_others_and_is_told_at_the_end(
    kronos: Kronos, home: Path, klines: Path
) -> None:
    result = kronos("ingest", "--symbols", "AAAUSDT,NONEUSDT,BBBUSDT", "--klines", klines)
    assert isinstance(result.exception, IncompleteIngest)  # which `main` turns into exit code 1
    assert "1 of 3 series failed" in str(result.exception)
    assert "um:NONEUSDT:1h: Expected a symbol that Binance um lists" in str(result.exception)
    assert "um:AAAUSDT" in result.output
    assert [key.symbol for key in Lake(home / "lake").series()] == ["AAAUSDT", "BBBUSDT"]
    (report,) = (home / "reports").glob("*.json")
    assert [one["series"] for one in json.loads(report.read_text())["failures"]] == ["um:NONEUSDT:1h"]


def test_a_defect_is_not_taken_for_a_failing_symbol(
    home: Path, klines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(download_module, "sync_series", broken)
    with pytest.raises(ZeroDivisionError):
        ingest("demo", symbols=["AAAUSDT", "BBBUSDT"], settings={"replay": str(klines)})


def test_a_ban_ends_every_series_and_is_told(
    home: Path, klines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def banned(*arguments: object, **options: object) -> None:
        raise Banned("banned until noon", until_ms=0, seconds=60)

    monkeypatch.setattr(download_module, "sync_series", banned)
    with pytest.raises(Banned, match="banned until noon"):
        ingest("demo", symbols=["AAAUSDT", "BBBUSDT"], settings={"replay": str(klines)})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--symbols", "AAAUSDT", "--top", "3"), "one of series, symbols and top"),
        (("--top", "0"), "0 is not in the range 1<=x<=500"),
        (("--top", "3", "--quote", "EUR"), "quoted in 'EUR', found none"),
        (("--symbols", "aaausdt"), "symbol in capital letters"),
    ],
)
def test_a_wrong_choice_of_symbols_is_refused_in_one_sentence(
    kronos: Kronos, klines: Path, words: tuple[str, ...], sentence: str
) -> None:
    result = kronos("ingest", *words, "--klines", klines)
    assert result.exit_code != 0
    assert sentence in f"{result.output}{result.exception}"


def test_the_report_has_numbers_holes_and_a_picture(kronos: Kronos, home: Path, klines: Path) -> None:
    kronos("ingest", "--series", "um:AAAUSDT,um:BBBUSDT", "--klines", klines)
    (report,) = (home / "reports").glob("*.json")
    first, second = json.loads(report.read_text())["series"]
    frame = MARKET[KEYS[0]]
    assert (first["series"], first["rows"], first["new"]) == ("um:AAAUSDT", 300, 300)
    assert first["holes"] == {"outage": 0, "open": 0, "repaired": 0, "stale": 0}
    assert (first["lowest"], first["highest"]) == (frame["low"].min(), frame["high"].max())
    assert second["volume"] == pytest.approx(MARKET[KEYS[1]]["volume"].sum())
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    kronos("ingest", "--series", "um:AAAUSDT,um:BBBUSDT", "--klines", klines)
    assert len(list((home / "reports").glob("*.json"))) == 1, "nothing was new"


def test_candles_tells_range_rows_holes_and_source(
    kronos: Kronos, klines: Path, home: Path, tmp_path: Path
) -> None:
    gappy = tmp_path / "gappy"
    shutil.copytree(klines, gappy)
    write_candles(pl.concat([MARKET[KEYS[0]][:100], MARKET[KEYS[0]][110:]]), gappy / "um_AAAUSDT_1h.parquet")
    kronos("ingest", "--series", "um:AAAUSDT,um:BBBUSDT", "--klines", gappy)
    text = kronos("candles").output
    line = next(one for one in text.splitlines() if "um:AAAUSDT:1h" in one)
    assert "290" in line
    assert "rest 127.0.0.1" in line
    assert "1 outage" in line
    assert "um:BBBUSDT:1h" in text
    assert "um:BBBUSDT:1h" not in kronos("candles", "--series", "um:AAAUSDT").output
    assert "Expected um:ZZZUSDT in" in str(kronos("candles", "--series", "um:ZZZUSDT").exception)


def test_verify_says_sound_or_names_the_month_and_exits_with_1(
    kronos: Kronos, home: Path, klines: Path
) -> None:
    kronos("ingest", "--series", "um:AAAUSDT,um:BBBUSDT", "--klines", klines)
    sound = kronos("verify", "--klines", klines)
    assert (sound.exit_code, "nothing wrong" in sound.output) == (0, True)
    path = Lake(home / "lake").files(KEYS[0])["2024-07"]
    path.write_bytes(path.read_bytes()[:900])
    harmed = kronos("verify", "--sample", 0)
    assert harmed.exit_code == 1
    assert "um:AAAUSDT:1h 2024-07: expected candles, found a damaged file" in harmed.output
    assert "um:BBBUSDT:1h: sound" in harmed.output
    path.unlink()
    kronos("ingest", "--series", "um:AAAUSDT,um:BBBUSDT", "--klines", klines)
    assert kronos("verify", "--klines", klines).exit_code == 0


def test_verify_compares_series_of_every_interval_with_a_folder(
    kronos: Kronos, klines: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(klines, both)
    slow = SeriesKey.parse("um:AAAUSDT", "4h")
    (candles,) = synthetic_market([slow], start_ms=START_MS, count=80, seed=3).values()
    write_candles(candles, both / "um_AAAUSDT_4h.parquet")
    for interval in ("1h", "4h"):
        kronos("ingest", "--series", "um:AAAUSDT", "--interval", interval, "--klines", both)
    result = kronos("verify", "--klines", both)
    assert (
        "2 series read again, 3 pages and zips of each compared with the exchange: nothing" in result.output
    )
    assert result.exit_code == 0
    write_candles(candles.with_columns(pl.col("volume") + 1), both / "um_AAAUSDT_4h.parquet")
    harmed = kronos("verify", "--klines", both)
    assert (harmed.exit_code, "um:AAAUSDT:1h: sound" in harmed.output) == (1, True)
    assert "um:AAAUSDT:4h: sound" not in harmed.output


def test_verify_finds_what_the_exchange_has_otherwise(kronos: Kronos, klines: Path, tmp_path: Path) -> None:
    kronos("ingest", "--series", "um:AAAUSDT", "--klines", klines)
    other = tmp_path / "other"
    other.mkdir()
    write_candles(MARKET[KEYS[0]].with_columns(pl.col("volume") + 1), other / "um_AAAUSDT_1h.parquet")
    result = kronos("verify", "--klines", other)
    assert result.exit_code == 1
    assert "with other values" in result.output


def test_the_majors_arrive_as_their_files_have_them(kronos: Kronos, home: Path, shared_data: Path) -> None:
    result = kronos("ingest", "--recipe", "majors_1h", "--start", "2023-09-01", "--klines", shared_data)
    assert result.exit_code == 0, result.output
    lake = Lake(home / "lake")
    assert len(lake.series()) == 8
    exact = ["open_time", "open", "high", "low", "close", "volume", "close_time"]
    for key in lake.series():
        stored = lake.read(key).select(exact)
        theirs = read_candles(shared_data / f"um_{key.symbol}_1h.parquet", key.interval).select(exact)
        assert stored.height > 6_000
        assert stored.equals(theirs.filter(pl.col("open_time") >= stored["open_time"][0]))
        assert stored["open_time"][0] == datetime(2023, 9, 1, tzinfo=UTC)
