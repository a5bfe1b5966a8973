"""What is mistyped is told before a home is made or a server started, in the words of the product, with a guess."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.lake import Lake
from storage.ledger import Source
from storage.schema import SeriesKey
from tests.support.candles import full_candles
from tests.support.terminal import ROOT, Terminal


@pytest.fixture
def kronos(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """`kronos` over a home that is not there, which starts no server."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a Prefect server was started before the input was checked")

    monkeypatch.setattr("flows.site.embedded.begin_embedded", refuse)
    monkeypatch.chdir(tmp_path)
    return Terminal(tmp_path / "home", capsys)


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        ("run --recipe dmo", 1, ["found 'dmo'; did you mean demo?"]),
        ("run --set dataset.lookback=abc", 1, ["dataset.lookback: expected int", "found 'abc'; it means"]),
        ("run --set predictor.epoch=3", 1, ["did you mean predictor.epochs?"]),
        ("run --series BTCUSDT", 1, ["expected market:SYMBOL, found 'BTCUSDT'"]),
        ("run --start 2024-02-01 --end 2024-01-01", 1, ["Expected start before end"]),
        ("finetune --interval 60m", 1, ["found '60m'; did you mean 1h?"]),
        ("evaluate -r majors-1h", 1, ["did you mean majors_1h?"]),
        ("forecast --set forecast.samples=none", 1, ["forecast.samples: expected int"]),
        ("forecast --export out.xls", 1, ["ends in .csv, .json, .parquet, found out.xls"]),
        ("ingest --symbols BTCUSDT --top 3", 1, ["one of series, symbols and top"]),
        ("ingest --symbols um:BTCUSDT", 1, ["found 'um:BTCUSDT'", "write it as Binance does"]),
        ("each -r majors_1h-um-DOGEUSDT", 1, ["Expected a recipe of several series"]),
        ("each --cluster here", 2, ["expected an address such as tcp://", "found 'here'"]),
        ("run --klines nowhere", 2, ["expected a folder of klines, or the word synthetic, found none at /"]),
        ("ingest --start yesterday", 2, ["expected a day such as 2024-06-01, UTC, found 'yesterday'"]),
        ("export out.csv --series um:DOGEUSDT --end 2024-02-30", 2, ["'--end'", "found '2024-02-30'"]),
        ("gc --set job_day=3", 1, ["did you mean job_days"]),
        ("promote -r dmo --to x --reason y", 1, ["did you mean demo?"]),
        ("rollback -r dmo --reason y", 1, ["did you mean demo?"]),
        ("scores", 1, ["Expected a champion in", "found none"]),
        ("serve --follow --klines synthetic --speed -3", 2, ["'--speed'", "-3"]),
        ("monitor --speed soon", 2, ["'soon' is not a valid number"]),
        ("replay --speed nan", 2, ["'nan' is not a finite number"]),
        ("replay --series ,", 1, ["Expected series to serve, found ','; give --series"]),
        ("up --prefect-port soon", 2, ["'soon' is not a valid whole number"]),
        ("forecast --export .", 1, ["found a folder; choose another name"]),
        ("serve --klines synthetic", 2, ["--klines needs --follow"]),
        ("serve --set queue=x", 1, ["queue: expected int"]),
        ("monitor --backfill yesterday", 1, ["Expected a time such as 90s", "found 'yesterday'"]),
        ("monitor --series BTCUSDT", 1, ["expected market:SYMBOL, found 'BTCUSDT'"]),
        ("import nothing.csv --series um:DOGEUSDT", 1, ["a file of candles at nothing.csv, found none"]),
        ("candles --interval 1H", 1, ["found '1H'; did you mean 1h?"]),
        ("verify --interval 1hour", 1, ["found '1hour'; did you mean 1h?"]),
        ("candles --series DOGEUSDT", 1, ["expected market:SYMBOL, found 'DOGEUSDT'"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_made_or_started(
    typed: str, code: int, words: list[str], kronos: Terminal
) -> None:
    outcome = kronos(*typed.split())
    assert outcome.code == code
    for word in words:
        assert word in outcome.complaint()
    assert not kronos.home.exists()


@pytest.mark.parametrize("typed", ["gc", "gc --set job_days=1", "doctor", "scores", "candles", "verify"])
def test_what_only_looks_makes_no_home(typed: str, kronos: Terminal) -> None:
    kronos(*typed.split())
    assert not kronos.home.exists()


@pytest.mark.parametrize(
    "typed",
    ["--home|", "--home=", "run|--klines|", "run|--series=", "ingest|--symbols|", "monitor|--klines|"],
)
def test_an_empty_text_is_no_value_of_an_option(typed: str, kronos: Terminal) -> None:
    outcome = kronos(*typed.split("|"), *(["candles"] if typed.startswith("--home") else []))
    assert outcome.code == 2
    assert "Expected a value after --" in outcome.complaint()
    assert "found an empty text" in outcome.complaint()


@pytest.mark.parametrize("home", ["http://127.0.0.1/home", "file:///tmp/home", "gs://bucket/home", " "])
def test_a_home_is_a_folder_or_object_storage(home: str, kronos: Terminal, tmp_path: Path) -> None:
    outcome = kronos("--home", home, "ingest")
    assert outcome.code == 1
    assert f"expected a folder or s3://bucket/prefix as the home, found {home!r}" in outcome.complaint()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_kronos_home_is_no_place(tmp_path: Path) -> None:
    done = _process("candles", KRONOS_HOME="")
    assert done.returncode == 1
    assert "as the home, found ''; correct --home or KRONOS_HOME" in done.stderr


def test_an_interval_that_the_lake_lacks_is_told_with_those_that_it_has(kronos: Terminal) -> None:
    key = SeriesKey.parse("um:DOGEUSDT", "1h")
    Lake(kronos.home / "lake").upsert(key, full_candles(30), source=Source(kind="import", detail="test"))
    for command in ("candles", "verify"):
        complaint = kronos(command, "--interval", "4h").complaint()
        assert "Expected candles of 4h in " in complaint
        assert "found those of 1h; choose one of these" in complaint


@pytest.mark.parametrize("command", ["import {} --series um:DOGEUSDT", "export {} --series um:DOGEUSDT"])
def test_a_folder_in_place_of_a_file_is_told_by_what_is_in_it(
    command: str, kronos: Terminal, tmp_path: Path
) -> None:
    key, folder = SeriesKey.parse("um:DOGEUSDT", "1h"), tmp_path / "mine"
    Lake(kronos.home / "lake").upsert(key, full_candles(30), source=Source(kind="import", detail="test"))
    folder.mkdir()
    words = command.format(folder).split()
    assert f"found the folder {folder}, which has no such file; name one" in kronos.refused(*words)
    for number in range(5):
        (folder / f"{number}.csv").touch()
    assert f"found the folder {folder}, which has 0.csv, 1.csv, 2.csv and 2 more; name one" in kronos.refused(
        *words
    )


@pytest.mark.parametrize(
    ("setting", "choices"),
    [
        ("model.preset=huge", "tiny|mini|small|base"),
        ("evaluation.baselines=foo", "drift|seasonal_24h|seasonal_7d|ewma|bootstrap|har|garch"),
        ("dataset.normaliser=none", "window_zscore|window_robust|global_robust"),
    ],
)
def test_choices_are_told_once(setting: str, choices: str, kronos: Terminal) -> None:
    complaint = kronos("run", "--set", setting).complaint()
    for choice in choices.split("|"):
        assert complaint.count(choice) == 1, choice
    assert complaint.endswith("; choose one")


def test_the_choices_of_an_argument_are_told_once(kronos: Terminal) -> None:
    complaint = kronos("ui", "grafana").complaint()
    assert complaint.count("mlflow") == 1


@pytest.mark.parametrize(
    ("typed", "meant"), [("nigthly", "run"), ("nightly", "run"), ("ingset", "ingest"), ("trian", "finetune")]
)
def test_a_mistyped_command_gets_a_guess(typed: str, meant: str, kronos: Terminal) -> None:
    outcome = kronos(typed)
    assert outcome.code == 2
    assert f"No such command '{typed}' (did you mean {meant}?); `kronos --help`" in outcome.complaint()


@pytest.mark.parametrize("typed", ["recipes demo", "recipes", "--help", "run --help"])
def test_a_closed_pipe_ends_quietly(typed: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = _process(*typed.split(), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def _process(
    *typed: str, stdout: int = subprocess.PIPE, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *typed],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
    )
