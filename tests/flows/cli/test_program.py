"""What a tired person types, and what a machine in trouble does: one sentence, and everything is as it was."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from exchange.replay import ReplayClock, ReplayExchange
from flows.site import doctor
from kronos_model.config import PRESETS
from kronos_model.hub import scratch_pair
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.schema import SeriesKey
from tests.support.candles import second_process
from tests.support.nights import CANDLES, SERIES, START_MS, write_klines
from tests.support.publishing import PublishedNight
from tests.support.terminal import Terminal, closed_url, finish, start

HOUR_MS = 3_600_000
NEXT_MS = START_MS + CANDLES * HOUR_MS  # the first candle that the finished night does not have
HEADER = "timestamp,open,high,low,close,volume"
HOLD = """
import sys
from storage.layout import Home
with Home.at(sys.argv[1]).exclusive("nightly demo"):
    print("holding", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def finished(published: PublishedNight, terminal: Terminal, prefect_api: None) -> Terminal:
    """`kronos` over the home of a finished night, which no refusal may change."""
    terminal.home = published.home.root
    return terminal


@pytest.fixture
def copied(published: PublishedNight, terminal: Terminal, prefect_api: None) -> Terminal:
    """`kronos` over a copy of that home, which may be damaged."""
    for name in ("lake", "models"):
        shutil.copytree(published.home.root / name, terminal.home / name)
    shutil.copyfile(published.home.root / "mlflow.db", terminal.home / "mlflow.db")
    return terminal


# what is typed


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("run --recipe doge1h", ["expected a recipe", "'doge1h'", "did you mean doge_1h?"]),
        ("run --set dataset.lokback=80", ["known setting", "'dataset.lokback'", "did you mean dataset.look"]),
        ("run --set dataset.lookback", ["key=value", "'dataset.lookback'", "add the missing part"]),
        ("run --set dataset.lookback=many", ["expected int", "'many'", "it means"]),
        ("run --series BTCUSDT", ["market:SYMBOL", "'BTCUSDT'", "write it as spot:BTCUSDT"]),
        ("run --series coin:BTCUSDT", ["a market out of spot, um", "'coin'", "write a series as"]),
        ("run --series spot:btcusdt", ["capital letters", "'btcusdt'", "as Binance does"]),
        ("run --series [/bold]", ["market:SYMBOL", "'[/bold]'", "write it as"]),
        ("run --interval 7h", ["an interval out of 1s, 1m", "'7h'", "choose one"]),
        ("run --interval 1H", ["an interval out of 1s, 1m", "'1H'", "case matters"]),
        ("run --start 2024-02-01 --end 2024-01-01", ["start before end", "start 2024-02-01", "swap or correct"]),
        ("run --start 2024-02-01 --end 2024-02-01", ["start before end", "end 2024-02-01", "swap or correct"]),
        ("run --start yesterday", ["--start", "'yesterday'", "a day such as 2024-06-01", "`kronos run --help`"]),
        ("run --lookback 3", ["No such option", "--lookback", "`kronos run --help`"]),
        ("fly", ["No such command 'fly'", "`kronos --help`"]),
        ("recipes doge1h", ["expected a recipe", "did you mean doge_1h?"]),
        ("import candles.csv", ["Missing option '--series'", "`kronos import --help`"]),
        ("import candles.txt --series spot:BTCUSDT", [".csv, .json, .parquet", "candles.txt", "convert or rename"]),
        ("import nothing.csv --series spot:BTCUSDT", ["a file of candles", "found none", "correct the path"]),
        ("export out.csv --series spot:ETHUSDT", ["candles of spot:ETHUSDT", "found none", "ingest"]),
        ("export out.csv --series spot:BTCUSDT --start 2030-01-01", ["found none", "2024-07-01", "choose dates"]),
        ("export out.xls --series spot:BTCUSDT", [".csv, .json, .parquet", "out.xls", "convert or rename"]),
        ("replay --port 70000", ["--port", "70000", "0<=x<=65535", "`kronos replay --help`"]),
        ("replay --speed -1", ["--speed", "-1", "x>=0"]),
        ("verify --sample -1", ["--sample", "-1", "x>=0"]),
        ("verify --seed -2", ["--seed", "-2", "x>=0"]),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_answered_in_one_sentence(
    typed: str, words: list[str], finished: Terminal
) -> None:
    complaint = finished.refused(*typed.split())
    for word in words:
        assert word.lower() in complaint.lower()


# files that people bring


def _rows(*rows: tuple[object, ...], header: str = HEADER) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def _row(number: int, **changes: object) -> tuple[object, ...]:
    row = {"at": NEXT_MS + number * HOUR_MS, "open": 10, "high": 12, "low": 9, "close": 11, "volume": 5}
    return tuple((row | changes).values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (_rows(_row(0)[:5], header="timestamp,open,high,low,close"), ["found open_time", "add volume"]),
        (_rows(_row(0), _row(1), _row(1)), ["one row per open_time", "rows 2 and 3", "keep one of them"]),
        (_rows(_row(1), _row(0)), ["the oldest row first", "found row 2", "sort the rows"]),
        (_rows(_row(0), _row(1, close="NaN")), ["a finite number in close", "row 2", "correct the value"]),
        (_rows(_row(0), _row(1, close="")), ["a finite number in close", "row 2", "correct the value"]),
        (_rows(_row(0, volume=-1)), ["volume >= 0", "volume=-1.0", "correct the volume"]),
        (_rows(_row(0, high=8)), ["high >= low", "high=8.0", "columns swapped?"]),
        (_rows(_row(0, close=20)), ["low <= close <= high", "close=20.0", "correct the row"]),
        (_rows(_row(0, at=NEXT_MS // 1000)), ["milliseconds", "looks like seconds", "multiply by 1000"]),
        (_rows(_row(0, at=NEXT_MS + 60_000)), ["the 1h grid", "row 1", "name the interval that it has"]),
        (_rows(_row(0, at="soon")), ["milliseconds since 1970 or a date", "'soon'", "write it so"]),
        (_rows(_row(0, open="ten")), ["a number in open", "'ten'", "decimal point"]),
        (_rows((*_row(0), 1, 2)), ["as many fields in every row", "found otherwise", "export it again"]),
        ("", ["expected candles", "an empty file", "export it again"]),
    ],
    ids=[
        "missing column", "duplicate", "unordered", "NaN", "empty cell", "negative volume", "high below low",
        "close outside", "seconds", "off the grid", "no time", "no number", "ragged", "empty file",
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_row_and_remedy_and_the_lake_stays(
    text: str, words: list[str], finished: Terminal, tmp_path: Path
) -> None:
    path = tmp_path / "candles.csv"
    path.write_text(text)
    complaint = finished.refused("import", path, "--series", "um:DOGEUSDT")
    for word in [str(path), *words]:
        assert word in complaint


def test_a_damaged_parquet_file_is_refused(finished: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "candles.parquet"
    path.write_bytes(b"PAR1 and then nothing of the kind")
    complaint = finished.refused("import", path, "--series", "um:DOGEUSDT")
    assert f"{path}: expected Parquet, found a damaged file; export it again" in complaint


# ranges and exchanges


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ingest --start 2030-01-01", ["whole 1h candle of spot:BTCUSDT:1h", "none is closed", "move the range"]),
        ("ingest --end 2020-01-01", ["closed candles of spot:BTCUSDT:1h", "since 2024-07-01", "move the range"]),
        ("run --start 2024-07-01 --end 2024-07-03", ["windows of 28 candles", "needs at least", "ingest more"]),
        ("finetune --start 2030-01-01", ["needs candles", "found none of spot:BTCUSDT:1h", "ingest them"]),
        ("run --series spot:ETHUSDT", ["klines of spot:ETHUSDT", "found spot:BTCUSDT, um:DOGEUSDT", "add files"]),
        ("run --interval 4h", ["um_DOGEUSDT_4h.parquet", "found none", "correct the folder or the interval"]),
        ("run --set model.weights=pretrained", ["tiny has no released weights", "from scratch"]),
        ("run --set model.weights=/nowhere", ["lacks the folder tokenizer and predictor", "give"]),
        ("run --set publish.namespace=me", ["needs a token", "found none", "set HF_TOKEN"]),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_one_sentence(
    command: str, words: list[str], published: PublishedNight, finished: Terminal
) -> None:
    name, *options = command.split()
    complaint = finished.refused(name, *published.options(), *options)
    for word in words:
        assert word in complaint


def _market(published: PublishedNight) -> ReplayExchange:
    return ReplayExchange(write_klines(published.klines), clock=ReplayClock(NEXT_MS + HOUR_MS // 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--series spot:BTCUSDX", ["lists, found 'BTCUSDX'", "check the spelling (near it: BTCUSDT)"]),
        ("--series um:DOGEUSDT --interval 1s", ["Binance um", "'1s'", "choose one"]),
    ],
)
def test_what_the_exchange_does_not_know_is_refused_in_one_sentence(
    options: str, words: list[str], published: PublishedNight, finished: Terminal
) -> None:
    with _market(published) as market:
        urls = {"replay": "", "exchange.spot_url": market.url, "exchange.um_url": market.url}
        complaint = finished.refused("ingest", *published.options(**urls), *options.split())
    for word in words:
        assert word in complaint


def test_an_exchange_that_does_not_answer_is_named(published: PublishedNight, finished: Terminal) -> None:
    urls = {"replay": "", "exchange.spot_url": closed_url(), "exchange.attempts": 1}
    complaint = finished.refused("ingest", *published.options(**urls))
    assert (
        f"an answer from {urls['exchange.spot_url']}, found connection refused; check the network"
        in complaint
    )


def test_a_predictor_of_another_tokenizer_is_refused(
    published: PublishedNight, finished: Terminal, tmp_path: Path
) -> None:
    (trained,) = published.home.jobs.glob("predictor-*/best")
    shutil.copytree(trained, tmp_path / "predictor")
    shutil.copytree(scratch_pair(PRESETS["tiny"], tmp_path / "other", 9).tokenizer, tmp_path / "tokenizer")
    complaint = finished.refused("run", *published.options(), f"--set=model.weights={tmp_path}")
    assert f"{tmp_path / 'predictor'} was trained with tokenizer" in complaint
    assert "give the tokenizer that it was trained with" in complaint


def test_without_a_champion_the_references_forecast_and_the_terminal_says_so(
    published: PublishedNight, terminal: Terminal, prefect_api: None
) -> None:
    outcome = terminal("forecast", *published.options())
    assert outcome.code == 0, outcome.err
    shown = " ".join(outcome.out.split())
    assert "spot:BTCUSDT, um:DOGEUSDT by the references: no network has earned a place yet." in shown
    for key in Lake(terminal.home / "lake").series():
        (stored,) = ForecastStore(terminal.home / "forecasts").list(key)
        assert (stored.summary["model"], stored.model_digest) == ("references", "references")


# a machine in trouble


@pytest.mark.parametrize("command", ["import", "ingest", "run", "export"])
def test_a_full_disk_leaves_everything_as_it_was(
    command: str,
    published: PublishedNight,
    finished: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_klines(tmp_path / "klines", count=CANDLES + 48)
    monkeypatch.setattr(os, "fsync", full)
    complaint = finished.refused(
        *{
            "import": ("import", tmp_path / "klines" / "um_DOGEUSDT_1h.parquet", "--series", "um:DOGEUSDT"),
            "ingest": ("ingest", "--klines", tmp_path / "klines"),
            "run": ("run", *published.options(**{"dataset.lookback": 25})),
            "export": ("export", tmp_path / "candles.csv", "--series", "um:DOGEUSDT"),
        }[command]
    )
    assert "the disk is full; free some space and run again" in complaint
    assert not (tmp_path / "candles.csv").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_home_that_cannot_be_written_is_refused(
    code: int, finished: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    complaint = finished.refused("ingest")
    assert str(finished.home) in complaint
    remedy = "check the path and the disk" if code == errno.EIO else "choose another home"
    assert remedy in complaint


def test_a_home_where_a_file_is_is_refused(finished: Terminal, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finished.home = tmp_path / "file"
    assert "expected a folder" in finished.refused("doctor")
    finished.home = tmp_path / "file" / "below"
    assert "choose another home" in finished.refused("doctor")


@pytest.mark.parametrize("command", ["ingest", "finetune", "export"])
def test_a_damaged_month_is_named_and_comes_back_with_the_next_ingest(
    command: str, published: PublishedNight, copied: Terminal, tmp_path: Path
) -> None:
    key = SeriesKey.parse(SERIES[1], "1h")
    (month,) = (copied.home / "lake" / "market=um").rglob("candles.parquet")
    candles, good = Lake(copied.home / "lake").read(key), month.read_bytes()
    month.write_bytes(good[: len(good) // 2])
    if command == "export":
        complaint = copied.refused("export", tmp_path / "candles.csv", "--series", key.name)
    else:
        complaint = copied.refused(command, *published.options())
    assert f"expected candles in {month}, found a damaged file; delete it, the next ingest" in complaint
    month.unlink()
    assert copied("ingest", *published.options()).code == 0
    assert Lake(copied.home / "lake").read(key).equals(candles)


@pytest.mark.parametrize("command", ["run", "finetune", "evaluate"])
def test_a_second_run_on_a_home_is_refused_and_says_who_holds_it(
    command: str, published: PublishedNight, finished: Terminal
) -> None:
    with second_process(HOLD, finished.home) as holder:
        complaint = finished.refused(command, *published.options())
    assert f"expected the home {finished.home} to be free" in complaint
    assert f"process {holder.pid} (nightly demo) at work since" in complaint
    assert "wait until it ends or stop it" in complaint


def test_a_damaged_champion_is_named(copied: Terminal, published: PublishedNight) -> None:
    record = copied.home / "models" / "demo" / "champion.json"
    record.write_text(record.read_text()[:50])
    assert f"a champion record in {record}" in copied.refused("forecast", *published.options())


def test_a_tracking_server_that_does_not_answer_ends_a_run_before_it_trains(
    published: PublishedNight, copied: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_url())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copytree(published.home.datasets, copied.home / "datasets")
    complaint = copied.refused("finetune", *published.options())
    assert "Expected MLflow to answer" in complaint
    assert "check MLFLOW_TRACKING_URI" in complaint
    assert list((copied.home / "jobs").glob("*")) == []


def test_the_doctor_names_a_damaged_month_in_full_and_fails(
    published: PublishedNight, copied: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _market(published) as market:
        monkeypatch.setattr(doctor, "ExchangeConfig", lambda **_: market.config)
        healthy = copied("doctor")
        assert (healthy.code, healthy.err) == (0, "")
        assert "champion of demo" in healthy.out
        assert f"{2 * CANDLES:,} candles" in healthy.out
        (month,) = (copied.home / "lake" / "market=um").rglob("candles.parquet")
        month.write_bytes(b"PAR1")
        ill = copied("doctor")
    assert ill.code == 1
    assert "missing" in ill.out
    assert str(month) in "".join(re.split(r"[│\s]+", ill.out)), "a path is for copying"


# real processes: nothing of Prefect's own logging may reach the terminal


@pytest.fixture(scope="module")
def processes(
    published: PublishedNight, prefect_api: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str, str]]:
    """Home, complaint and output of three commands that fail in three places, side by side."""
    root, away = tmp_path_factory.mktemp("processes"), closed_url()
    shutil.copytree(published.home.lake, root / "lake" / "lake")
    for path in (root / "lake").rglob("candles.parquet"):
        path.write_bytes(b"PAR1")
    server = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    hub = {"HF_ENDPOINT": away, "HF_HOME": str(root / "hub")}
    base = ("run", "--recipe", "doge_1h", "--klines", published.klines)
    running = {
        "lake": start(root / "lake", "run", *published.options(), **server),
        "base": start(root / "base", *base, **server, **hub),
        "prefect": start(root / "prefect", "ingest", *published.options(), PREFECT_API_URL=f"{away}/api"),
    }
    ended = {name: finish(process) for name, process in running.items()}
    return {name: (root / name, one.complaint(), one.out + one.err) for name, one in ended.items()}


def test_a_failed_flow_leaves_one_sentence_in_the_terminal(
    processes: dict[str, tuple[Path, str, str]],
) -> None:
    _, complaint, said = processes["lake"]
    assert "found a damaged file; delete it, the next ingest fetches the month again" in complaint
    assert "prefect" not in said.lower()


def test_a_base_model_that_cannot_be_reached_ends_the_night_before_candles_are_fetched(
    processes: dict[str, tuple[Path, str, str]],
) -> None:
    home, complaint, said = processes["base"]
    assert "NeoQuasar/Kronos-Tokenizer-base" in complaint
    assert "could not be fetched from http://127.0.0.1" in complaint
    assert "check the network or HF_ENDPOINT, or give a folder" in complaint
    assert "Candles come from" not in said
    assert Lake(home / "lake").series() == []


def test_a_prefect_server_that_does_not_answer_is_named(
    processes: dict[str, tuple[Path, str, str]],
) -> None:
    _, complaint, _ = processes["prefect"]
    assert "Expected the Prefect API to answer, found Failed to reach API at http://127.0.0.1" in complaint
    assert "check PREFECT_API_URL, or unset it to run alone" in complaint
