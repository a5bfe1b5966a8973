"""Nights on a home in object storage: the working copy is deleted, another machine comes, and nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from flows.nightly import nightly
from storage.lake import Lake
from storage.object_store import ObjectStore
from storage.registry import read_champion
from tests.support.candles import ROOT
from tests.support.nights import SERIES, quick_settings, write_klines
from tests.support.s3_server import S3Server
from tests.support.terminal import Terminal, closed_url, holdings

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    with S3Server().running() as store:
        yield store


def night(
    cache: Path, klines: Path, series: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A night as a machine would run it whose working copies are in `cache`."""
    monkeypatch.setenv("KRONOS_CACHE", str(cache))
    monkeypatch.setenv("KRONOS_HOME", S3Server.url)
    summary: dict[str, Any] = nightly(
        "demo", series=[*series], settings=quick_settings(klines, **{"gate.min_origins": 10})
    )
    return summary


@pytest.mark.parametrize("series", [SERIES[1:], pytest.param(SERIES, marks=pytest.mark.slow)])
def test_a_night_goes_on_where_another_machine_ended_it(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, series: tuple[str, ...]
) -> None:
    store.empty()
    klines = tmp_path / "klines"
    expected = {key: frame for key, frame in write_klines(klines).items() if key.name in series}
    first = night(tmp_path / "a", klines, series, monkeypatch)
    assert (first["nothing_new"], first["verdict"]) == (False, "promote")
    before = holdings(store.machine(tmp_path / "a").root)
    assert {name.split("/")[0] for name in before if "/" in name} == {
        "lake", "datasets", "models", "forecasts", "hub"
    }  # fmt: skip
    shutil.rmtree(tmp_path / "a")
    again = night(tmp_path / "b", klines, series, monkeypatch)
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
    assert [key.name for key in expected] == [*series]
    for key, candles in expected.items():
        assert Lake(home.lake).read(key).equals(candles)


def test_commands_read_and_write_a_home_on_object_storage_from_any_machine(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert "to serve s3://quants/kronos/btc, found no credentials; set AWS_ACCESS_KEY_ID" in terminal.refused(
        "candles"
    )


@pytest.mark.slow
def test_a_machine_that_is_killed_while_it_trains_is_followed_by_another_from_its_checkpoint(
    store: S3Server, tmp_path: Path
) -> None:
    store.empty()
    klines = tmp_path / "klines"
    write_klines(klines)
    first = _run(tmp_path / "a", klines)
    try:
        deadline = time.monotonic() + 240
        while not (pushed := _checkpointed(store)):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    time.sleep(7)  # until its lease is over
    second = _run(tmp_path / "b", klines)
    out, err = second.communicate(timeout=280)
    assert second.returncode == 0, err
    assert "finished (earlier run)" in out
    (metrics,) = (tmp_path / "b").glob("*/jobs/predictor-*/metrics.jsonl")
    lines = metrics.read_text().splitlines()
    assert (
        lines[: len(pushed)] == pushed
    )  # with the times that the killed machine took: no step was made again
    steps = [line["step"] for line in map(json.loads, lines) if line["phase"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > sum(json.loads(line)["phase"] == "train" for line in pushed)


def _run(cache: Path, klines: Path) -> "subprocess.Popen[str]":
    """`kronos run` as a process of its own that saves every second and is given up after five."""
    code = (
        "from storage import lease, object_home; object_home._SAVE_S, lease.TTL_S = 1.0, 5.0;"
        "object_home.BEAT_S = 1.0; from flows.cli.program import main; main()"
    )
    wanted = quick_settings(
        klines, **{"predictor.epochs": 4, "predictor.steps_per_epoch": 50, "predictor.checkpoint_steps": 10}
    )
    del wanted["replay"]
    settings = [part for name, value in wanted.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-c", code, "--home", S3Server.url, "run", "--klines", str(klines)]
    foreign = ("PREFECT_", "MLFLOW_", "KRONOS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return subprocess.Popen(
        [*command, *settings],
        cwd=ROOT,
        env=inherited | {"KRONOS_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _checkpointed(store: S3Server) -> list[str]:
    """The metrics that belong to the checkpoint of stage 2 as the store has it; none before there is one."""
    bucket = ObjectStore(store.url)
    found = bucket.get("manifest.json")
    told = json.loads(found.content)["files"] if found else {}
    names = {
        path.rpartition("/")[2]: (path, digest)
        for path, (digest, *_) in told.items()
        if "/predictor-" in path
    }
    if not {"progress.json", "metrics.jsonl"} <= names.keys():
        return []
    read = {}
    for name in ("progress.json", "metrics.jsonl"):
        path, digest = PurePosixPath(names[name][0]), names[name][1]
        content = bucket.get(f"files/{path.parent}/{path.stem}.{digest[:16]}{path.suffix}")
        if content is None:  # replaced since
            return []
        read[name] = content.content.decode()
    return read["metrics.jsonl"].splitlines()[: json.loads(read["progress.json"])["progress"]["lines"]]
