"""The home: one root, writable, held by one run at a time."""

import errno
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from storage.errors import LockedError, StorageError
from storage.layout import Home, series_folder
from storage.schema import SeriesKey
from tests.support.candles import second_process

HOLD = """
import sys
from storage.layout import Home
with Home.at(sys.argv[1]).exclusive("nightly btc_1h"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_everything_lies_under_one_root(tmp_path):
    home = Home.at(tmp_path / "a" / ".." / "kronos")
    assert home.root == tmp_path / "kronos"
    assert home.root.is_dir()
    assert list(home.root.iterdir()) == []
    places = ("lake", "datasets", "jobs", "models", "forecasts", "hub", "mlartifacts", "prefect")
    assert [getattr(home, place) for place in places] == [tmp_path / "kronos" / place for place in places]


def test_the_tracking_uri_is_an_absolute_sqlite_file(tmp_path):
    uri = Home.at(tmp_path).mlflow_uri
    assert uri == f"sqlite:////{str(tmp_path).lstrip('/')}/mlflow.db"
    sqlite3.connect(uri.removeprefix("sqlite:///")).close()
    assert (tmp_path / "mlflow.db").exists()


def test_a_relative_home_is_made_absolute_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = Home.at(".kronos")
    monkeypatch.chdir("/")
    assert home.root == tmp_path / ".kronos"


@pytest.mark.parametrize("step", ["mkdir", "touch"])
def test_a_read_only_home_is_one_sentence(tmp_path, monkeypatch, step):
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, step, refuse)
    with pytest.raises(
        StorageError, match=rf"^expected to write {tmp_path}.*read-only; choose another home"
    ) as caught:
        Home.at(tmp_path / "home")
    assert "\n" not in str(caught.value)


def test_a_home_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "home").touch()
    with pytest.raises(StorageError, match="found a file; choose another home"):
        Home.at(tmp_path / "home")
    with pytest.raises(StorageError, match="a part of its path is a file; choose another home"):
        Home.at(tmp_path / "home" / "deeper")


def test_a_second_run_is_told_who_holds_the_home(tmp_path):
    home = Home.at(tmp_path)
    with second_process(HOLD, tmp_path) as process:
        pattern = (
            rf"found process {process.pid} \(nightly btc_1h\) at work since 20..-..-.. ..:..:.. UTC; wait"
        )
        with pytest.raises(LockedError, match=pattern), home.exclusive("finetune"):
            pass
        process.communicate("")
        with home.exclusive("finetune"):
            pass


def test_the_lock_dies_with_its_process(tmp_path):
    home = Home.at(tmp_path)
    with second_process(HOLD, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".lock.json").exists()
        with home.exclusive("after the kill"):
            assert "after the kill" in (tmp_path / ".lock.json").read_text()


def test_a_second_run_in_the_same_process_is_refused_too(tmp_path):
    with Home.at(tmp_path).exclusive("one"):
        with (
            pytest.raises(LockedError, match=rf"process {os.getpid()} \(one\)"),
            Home.at(tmp_path).exclusive("two"),
        ):
            pass
        with pytest.raises(LockedError), Home.at(tmp_path).exclusive("three"):
            pass


def test_a_failing_run_frees_the_home(tmp_path):
    home = Home.at(tmp_path)

    def fail() -> None:
        with home.exclusive("one"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with home.exclusive("two"):
        pass


def test_a_holder_that_has_not_signed_is_another_process(tmp_path):
    with Home.at(tmp_path).exclusive("one"):
        (tmp_path / ".lock.json").write_text("{")
        with (
            pytest.raises(LockedError, match="found another process at work"),
            Home.at(tmp_path).exclusive("two"),
        ):
            pass


def test_a_series_has_its_folder(tmp_path):
    assert series_folder(tmp_path, SeriesKey.parse("um:DOGEUSDT", "1M")) == (
        tmp_path / "market=um" / "symbol=DOGEUSDT" / "interval=1mo"
    )
