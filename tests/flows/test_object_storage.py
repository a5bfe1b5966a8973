"""Nights on a home in object storage: the working copy is deleted, another machine comes, and nothing is lost."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.nightly import nightly
from storage.lake import Lake
from storage.registry import read_champion
from tests.support.nights import quick_settings, write_klines
from tests.support.object_store import ObjectStore
from tests.support.terminal import Terminal, closed_url, holdings

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore().running() as store:
        yield store


def night(cache: Path, klines: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A night as a machine would run it whose working copies are in `cache`."""
    monkeypatch.setenv("KRONOS_CACHE", str(cache))
    monkeypatch.setenv("KRONOS_HOME", ObjectStore.url)
    summary: dict[str, Any] = nightly("demo", settings=quick_settings(klines))
    return summary


@pytest.mark.slow
def test_a_night_goes_on_where_another_machine_ended_it(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    klines = tmp_path / "klines"
    expected = write_klines(klines)
    first = night(tmp_path / "a", klines, monkeypatch)
    assert (first["nothing_new"], first["verdict"]) == (False, "promote")
    before = holdings(store.machine(tmp_path / "a").root)
    assert {name.split("/")[0] for name in before if "/" in name} == {
        "lake", "datasets", "models", "forecasts", "hub"
    }  # fmt: skip
    shutil.rmtree(tmp_path / "a")
    again = night(tmp_path / "b", klines, monkeypatch)
    assert again["nothing_new"]
    assert again["night"] == first["night"]
    home = store.machine(tmp_path / "b")
    after = holdings(home.root)
    assert {name: after.get(name) for name in before if "/" in name} == {
        name: digest for name, digest in before.items() if "/" in name
    }
    champion = read_champion(home, "demo")
    assert champion is not None
    assert champion.night == first["night"]
    for key, candles in expected.items():
        assert Lake(home.lake).read(key).equals(candles)


def test_commands_read_and_write_a_home_on_object_storage_from_any_machine(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.empty()
    key, candles = next(iter(write_klines(tmp_path / "klines").items()))
    terminal = Terminal(Path(store.url), capsys)  # as click hands it on, with one slash less
    monkeypatch.setenv("KRONOS_CACHE", str(tmp_path / "a"))
    file = tmp_path / "klines" / "spot_BTCUSDT_1h.parquet"
    assert terminal("import", file, "--series", key.name).code == 0
    monkeypatch.setenv("KRONOS_CACHE", str(tmp_path / "b"))
    assert f"{len(candles):,}" in terminal("candles").out
    found = terminal("doctor").out
    assert f"{store.url}, 2 files" in found
    assert "nobody writes to it" in found
    with store.machine(tmp_path / "a").writing("nightly btc_1h"):
        for command in (["import", file, "--series", key.name], ["ingest"], ["monitor"]):
            complaint = terminal.refused(*command)
            assert f"expected the home {store.url} to be free, found process" in complaint
            assert "(nightly btc_1h) at work since" in complaint
        assert terminal("candles").code == 0
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", closed_url())
    assert "expected credentials for s3://quants/kronos/btc, found none" in terminal.refused("candles")
