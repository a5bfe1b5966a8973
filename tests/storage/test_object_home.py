"""Homes on object storage: what one machine writes another reads, one writes at a time, nothing is half there."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.environment import open_home
from storage import lease, object_home
from storage.dataset import DatasetConfig, load_manifest
from storage.errors import LockedError, StorageError
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.lease import Lease, LostLeaseError
from storage.ledger import Source
from storage.object_home import describe, kept_fresh, refresh
from storage.object_store import ObjectStore, s3_url
from storage.registry import (
    Champion,
    changing_champion,
    keep_model,
    read_champion,
    read_night,
    write_champion,
    write_night,
)
from storage.retention import RetentionPolicy, discard, expired
from storage.working_copy import WorkingCopy
from tests.support.candles import BTC, JUNE_MS, ROOT, asked, full_candles, second_process
from tests.support.datasets import build, make_candles
from tests.support.s3_server import S3Server
from tests.support.terminal import closed_url, holdings

HELD = """
import sys
from flows.environment import open_home
with open_home(sys.argv[1]).exclusive("nightly btc_1h"):
    print("held", flush=True)
    sys.stdin.read()
"""
DIES_WHILE_PUSHING = """
import os, signal, sys
from pathlib import Path
from flows.environment import open_home
from storage.object_store import ObjectStore
upload, done = ObjectStore.upload, []
def dying(self, *arguments):
    if len(done) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    upload(self, *arguments)
    done.append(arguments)
ObjectStore.upload = dying
home = open_home(sys.argv[1])
with home.writing("ingest"):
    for number in range(20):
        path = home.datasets / f"d{number}" / "manifest.json"
        path.parent.mkdir(parents=True)
        path.write_text(f"new {number}")
    (home.models / "demo" / "champion.json").write_text("new")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server().running() as server:
        yield server


@pytest.fixture
def store(server: S3Server) -> S3Server:
    server.empty()
    return server


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def crown(home: Home, name: str) -> Champion:
    """Make a model of that name serve."""
    weights = write(home.jobs / name / "best" / "model.safetensors", name).parent
    with changing_champion(home, "demo"):
        folders = keep_model(home, "demo", name, {"tokenizer": weights, "predictor": weights})
        champion = Champion(
            **folders,
            tokenizer_digest=name,
            predictor_digest=name,
            night=name,
            mlflow_run=name,
            since="2026-01-01T00:00:00+00:00",
            reasons=("better",),
        )
        write_champion(home, "demo", champion)
    return champion


def files(home: Home) -> dict[str, tuple[bytes, int]]:
    """Content and time of all that is kept."""
    return {
        str(path.relative_to(home.root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in home.root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(home.root).parts)
    }


def objects(store: S3Server) -> set[str]:
    return set(ObjectStore(store.url).keys("files"))


def test_candles_datasets_champions_and_forecasts_of_one_machine_are_those_of_the_next(store, tmp_path):
    mine = store.machine(tmp_path / "a")
    candles, dataset_config = full_candles(3000), DatasetConfig(lookback=12, horizon=4)
    frame = full_candles(12).select("open_time", mean="close")
    with mine.exclusive("nightly"):
        Lake(mine.lake).upsert(BTC, candles, source=Source("rest", "klines"))
        dataset = build({"um:DOGEUSDT": make_candles(300)}, dataset_config, mine.datasets)
        champion = crown(mine, "first")
        forecast = frame.with_columns(step=frame["mean"].cum_count())
        closes = np.random.default_rng(1).uniform(1, 2, (8, 12)).astype(np.float32)
        question = asked(BTC, JUNE_MS, "ab" * 32)
        ForecastStore(mine.forecasts).save(question, forecast, {"samples": 8}, closes=closes)
    theirs = store.machine(tmp_path / "b")
    assert theirs.root != mine.root
    assert holdings(theirs.root) == holdings(mine.root)
    assert files(theirs) == files(mine)
    assert Lake(theirs.lake).read(BTC).equals(candles)
    assert load_manifest(theirs.datasets / dataset.path.name)["digest"] == dataset.digest
    assert read_champion(theirs, "demo") == champion
    (stored,) = ForecastStore(theirs.forecasts).list(BTC)
    assert stored.frame().equals(forecast)
    np.testing.assert_array_equal(stored.closes(), closes)


def test_a_bucket_and_a_copy_as_the_first_version_wrote_them_open_as_they_were(store, tmp_path):
    copy, bucket = store.machine(tmp_path / "a"), ObjectStore(store.url)
    facts = {}
    for path, text in {"lake/x/candles.parquet": "rows", "models/demo/champion.json": "{}"}.items():
        written, digest = write(copy.root / path, text), hashlib.sha256(text.encode()).hexdigest()
        stem, _, suffix = path.rpartition(".")
        bucket.put(f"files/{stem}.{digest[:16]}.{suffix}", text.encode(), expect=None)
        facts[path] = (digest, len(text), written.stat().st_mtime_ns)
    told = {"version": 1, "files": facts}
    etag = bucket.put("manifest.json", json.dumps({**told, "number": "0" * 32}).encode(), expect=None)
    bucket.put("lease.json", b"{}\n", expect=None)
    write(copy.root / ".remote" / "manifest.json", json.dumps({**told, "etag": etag}))
    write(copy.root / "reports" / "new.json", "made before the update, not pushed yet")
    assert set(files(store.machine(tmp_path / "b"))) == set(facts)
    with store.machine(tmp_path / "a").writing("ingest"):
        pass
    assert files(store.machine(tmp_path / "b")) == files(copy)


def test_writing_in_turns_gives_what_one_machine_alone_would_have(store, tmp_path):
    candles, alone = full_candles(3000), Home.at(tmp_path / "alone")
    machines = [tmp_path / "a", tmp_path / "b"]
    for number, at in enumerate(range(0, 3000, 500)):
        part = candles[max(0, at - 20) : at + 500]
        Lake(alone.lake, now_ms=lambda: 5).upsert(BTC, part, source=Source("rest", "klines"))
        home = store.machine(machines[number % 2])
        with home.writing("ingest"):
            Lake(home.lake, now_ms=lambda: 5).upsert(BTC, part, source=Source("rest", "klines"))
    assert holdings(store.machine(tmp_path / "c").root) == holdings(alone.root)


def test_a_home_that_did_not_change_costs_a_handful_of_requests_whatever_its_size(store, tmp_path):
    home = store.machine(tmp_path / "a")
    with home.writing("ingest"):
        for number in range(60):
            write(home.lake / f"market=um/{number}.json", str(number))
    store.requests.clear()
    store.machine(tmp_path / "a")
    assert store.requests == ["GET /quants/kronos/btc/manifest.json HTTP/1.1"]
    store.requests.clear()
    with home.exclusive("nightly"):
        pass
    assert len(store.requests) == 5, store.requests
    assert "60 files" in describe(home.root)
    assert "nobody writes" in describe(home.root)


def test_the_variables_that_worked_for_the_parent_work_for_a_run_by_the_copys_own_path(store, tmp_path):
    home = store.machine(tmp_path / "a")
    with home.writing("ingest"):
        write(home.reports / "one.json", "1")
    other = store.machine(tmp_path / "b")
    with other.writing("ingest"):
        write(other.reports / "two.json", "2")
    assert files(open_home(home.root)) == files(other)  # what KRONOS_HOME says below a worker


def test_a_second_machine_is_told_who_writes_and_since_when(store, tmp_path):
    home = store.machine(tmp_path / "b")
    with second_process(HELD, store.machine(tmp_path / "a").root) as process:
        pattern = (
            rf"expected the home s3://quants/kronos/btc to be free, found process {process.pid} on "
            rf"{socket.gethostname()} \(nightly btc_1h\) at work since 20..-..-.. ..:..:.. UTC; wait until"
        )
        for enter in (home.exclusive, home.writing):
            with pytest.raises(LockedError, match=pattern), enter("finetune"):
                pass
        assert str(process.pid) in describe(home.root)
        process.communicate("")
        with home.exclusive("finetune"):
            pass


def test_processes_of_one_machine_share_its_turn_until_the_last_one_ends(store, tmp_path):
    home, other = store.machine(tmp_path / "a"), store.machine(tmp_path / "b")
    with second_process(HELD, home.root) as process:
        with home.writing("ingest"):
            write(home.reports / "one.json", "1")
        assert (store.machine(tmp_path / "b").reports / "one.json").exists()
        with pytest.raises(LockedError, match="at work since"), other.writing("ingest"):
            pass
        process.communicate("")
        with other.writing("ingest"):
            pass


def test_a_machine_that_died_is_followed_by_the_next_once_its_time_is_over(store, tmp_path, monkeypatch):
    Lease(ObjectStore(store.url), "another machine").take("nightly", run="its flow run")
    home = store.machine(tmp_path / "a")
    with pytest.raises(LockedError, match="at work since"), home.exclusive("too early"):
        pass
    monkeypatch.setattr(lease, "TTL_S", 1.0)
    time.sleep(2.1)  # the store tells times to the second
    with home.exclusive("in time") as dead:
        assert dead == "its flow run"
    with home.exclusive("after an end in order") as dead:
        assert dead == ""


def test_the_summary_of_a_night_names_the_folders_of_the_machine_that_reads_it(store, tmp_path):
    home = store.machine(tmp_path / "a")
    with home.exclusive("nightly"):
        best = write(home.jobs / "predictor-1" / "best" / "model.safetensors", "weights").parent
        write_night(home, "demo", "night", {"night": "night", "challenger": {"predictor": str(best)}})
    other = store.machine(tmp_path / "b")
    for machine in (home, other):
        assert read_night(machine, "demo", "night") == {
            "night": "night",
            "challenger": {"predictor": str(machine.jobs / "predictor-1" / "best")},
        }


def test_two_threads_share_the_turn_of_their_process_whichever_ends_first(store, tmp_path):
    home, other = store.machine(tmp_path / "a"), store.machine(tmp_path / "b")
    joined, left = threading.Event(), threading.Event()

    def second() -> None:
        with home.writing("second"):
            joined.set()
            assert left.wait(60)
            with pytest.raises(LockedError, match="at work since"), other.writing("ingest"):
                pass
            write(home.reports / "second.json", "2")
            with changing_champion(home, "demo"):  # asks the store
                pass

    with ThreadPoolExecutor(1) as pool:
        with home.writing("first"):
            ends = pool.submit(second)
            assert joined.wait(60)
            write(home.reports / "first.json", "1")
        assert set(files(store.machine(tmp_path / "b"))) == {"reports/first.json"}
        left.set()
        ends.result(60)
    assert set(files(store.machine(tmp_path / "b"))) == {"reports/first.json", "reports/second.json"}
    with other.writing("ingest"):
        pass


def test_a_killed_process_is_followed_at_once_on_the_same_machine(store, tmp_path):
    home = store.machine(tmp_path / "a")
    with second_process(HELD, home.root) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        other = store.machine(tmp_path / "b")
        with (
            pytest.raises(LockedError, match=f"found process {process.pid} on"),
            other.exclusive("too early"),
        ):
            pass
        with home.exclusive("after the kill"):
            assert f"process {os.getpid()} on" in describe(home.root)


def test_the_lease_is_renewed_while_a_machine_is_at_work(store, tmp_path, monkeypatch):
    monkeypatch.setattr(object_home, "BEAT_S", 0.1)
    bucket, seen = ObjectStore(store.url), set()
    with store.machine(tmp_path / "a").writing("nightly"):
        deadline = time.monotonic() + 20
        while len(seen) < 3:
            assert time.monotonic() < deadline
            found = bucket.get("lease.json")
            assert found is not None
            seen.add(found.etag)
    found = bucket.get("lease.json")
    assert found is not None
    assert found.content == b"{}\n"


def test_a_machine_that_lost_its_turn_moves_no_champion(store, tmp_path, monkeypatch):
    asleep, awake = store.machine(tmp_path / "a"), store.machine(tmp_path / "b")

    def sleep_and_go_on() -> None:
        with asleep.exclusive("nightly of a"):
            crown(asleep, "before")
            monkeypatch.setattr(lease, "TTL_S", -1.0)  # its time is over
            with awake.exclusive("nightly of b"):
                crown(awake, "of b")
                with pytest.raises(
                    LostLeaseError, match=r"process .* on .* \(nightly of b\) .* run the same"
                ):
                    crown(asleep, "of a")
                recorded = json.loads((asleep.models / "demo" / "champion.json").read_text())
                assert recorded["night"] == "before"
                write(asleep.models / "demo" / "champion.json", "what it must not push")

    with pytest.raises(LostLeaseError, match="it given back"):
        sleep_and_go_on()
    with pytest.raises(StorageError, match=r"found 2 changes such as jobs/of a/.* and that another machine"):
        store.machine(tmp_path / "a")
    for area in ("models", "jobs"):
        (asleep.root / area).rename(tmp_path / area)
    for cache in ("a", "b", "c"):
        champion = read_champion(store.machine(tmp_path / cache), "demo")
        assert champion is not None
        assert champion.night == "of b"


def test_a_machine_that_sleeps_between_its_last_question_and_its_last_word_is_fenced_off(store, tmp_path):
    home = store.machine(tmp_path / "a")
    other = store.machine(tmp_path / "b")
    copy, another = WorkingCopy.of(home.root), WorkingCopy.of(other.root)
    assert copy is not None
    assert another is not None
    write(home.reports / "one.json", "1")
    answers = iter([lambda: None, lambda: another.push(lambda: None, fence=True)])
    with pytest.raises(LostLeaseError, match="another one has written to it"):
        copy.push(lambda: next(answers)())
    assert files(store.machine(tmp_path / "c")) == {}


def test_a_push_that_is_killed_leaves_the_old_state_and_the_next_one_completes_it(store, tmp_path):
    home = store.machine(tmp_path / "a")
    with home.writing("nightly"):
        crown(home, "old")
    before = files(store.machine(tmp_path / "b"))
    died = subprocess.run([sys.executable, "-c", DIES_WHILE_PUSHING, home.root], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert files(store.machine(tmp_path / "b")) == before
    assert files(store.machine(tmp_path / "c")) == before
    with home.writing("the same again"):
        pass
    after = files(store.machine(tmp_path / "b"))
    assert after == files(home)
    assert after["models/demo/champion.json"][0] == b"new"
    assert len(objects(store)) == len(after)


def test_what_a_dead_machine_put_and_never_named_is_swept_up(store, tmp_path, monkeypatch):
    home = store.machine(tmp_path / "a")
    (home.models / "demo").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", DIES_WHILE_PUSHING, home.root], cwd=ROOT, check=False)
    assert objects(store)
    monkeypatch.setattr(lease, "TTL_S", -1.0)
    with store.machine(tmp_path / "b").writing("ingest"):
        pass
    assert objects(store) == set()


def test_a_training_that_was_interrupted_is_resumed_on_another_machine(store, tmp_path, monkeypatch):
    monkeypatch.setattr(object_home, "_SAVE_S", 0.1)
    home = store.machine(tmp_path / "a")
    with home.writing("nightly"):
        write(home.jobs / "predictor-1" / "checkpoint" / "state.safetensors", "step 200")
        deadline = time.monotonic() + 20
        while not (store.machine(tmp_path / "b").jobs / "predictor-1/checkpoint/state.safetensors").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_checkpoint_that_is_replaced_while_it_is_pushed_is_pushed_whole_or_not_at_all(
    store, tmp_path, monkeypatch
):
    home = store.machine(tmp_path / "a")
    job, upload = home.jobs / "predictor-1", ObjectStore.upload

    def checkpoint(step: str) -> None:
        for name in ("progress.json", "tensors.safetensors"):
            write(job / "checkpoint" / name, step)
        write(job / "metrics.jsonl", "line\n" * int(step))

    def slow_upload(self: ObjectStore, key: str, *arguments: Any) -> None:
        upload(self, key, *arguments)
        if "tensors" in key:
            checkpoint("30")

    with home.writing("nightly"):
        checkpoint("10")
    monkeypatch.setattr(ObjectStore, "upload", slow_upload)
    with home.writing("nightly"):
        checkpoint("20")
    other = store.machine(tmp_path / "b").jobs / "predictor-1"
    told = {(other / "checkpoint" / name).read_text() for name in ("progress.json", "tensors.safetensors")}
    assert told == {"10"}
    assert (other / "metrics.jsonl").read_text().count("line") == 30
    monkeypatch.setattr(ObjectStore, "upload", upload)
    with home.writing("nightly"):
        pass
    assert files(store.machine(tmp_path / "b")) == files(home)
    assert len(objects(store)) == 3


def test_a_service_sees_a_new_champion_of_another_machine(store, tmp_path, monkeypatch):
    monkeypatch.setattr(object_home, "_FRESH_S", 0.1)
    serving, home = store.machine(tmp_path / "b"), store.machine(tmp_path / "a")
    with kept_fresh(serving.root):
        with home.writing("nightly"):
            champion = crown(home, "new")
        deadline = time.monotonic() + 20
        while read_champion(serving, "demo") != champion:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_gc_deletes_goes_everywhere_and_what_was_lost_elsewhere_comes_back(store, tmp_path):
    home, other = store.machine(tmp_path / "a"), store.machine(tmp_path / "b")
    with home.writing("nightly"):
        for name in ("old", "young"):
            write(home.datasets / name / "manifest.json", name)
            write(home.datasets / name / "windows" / "train.npy", name)
        os.utime(home.datasets / "old" / "manifest.json", (0, 0))
        os.utime(home.datasets / "old" / "windows", (0, 0))
        os.utime(home.datasets / "old", (0, 0))
    refresh(other.root)
    (other.datasets / "old" / ".lock").touch()
    (
        other.datasets / "young" / "manifest.json"
    ).unlink()  # by hand: not in a turn, so no word of the program's
    with other.writing("ingest"):
        pass
    assert (other.datasets / "young" / "manifest.json").exists()
    with home.exclusive("gc"):
        for one in expired(home, RetentionPolicy()):
            discard(one)
    refresh(other.root)
    assert not (other.datasets / "old").exists()
    assert files(other) == files(home)
    assert {name.split("/")[2] for name in objects(store)} == {"young"}


def test_what_was_changed_on_two_machines_is_refused_until_one_of_them_gives_way(store, tmp_path):
    home, other = store.machine(tmp_path / "a"), store.machine(tmp_path / "b")
    series = "lake/market=um/symbol=DOGEUSDT/interval=1h"
    for machine in (home, other):
        with machine.writing("ingest"):
            write(machine.root / series / "ledger.json", "first")
    write(home.root / series / "ledger.json", "unpushed")  # by a run that died
    write(home.datasets / "d" / "manifest.json", "unpushed, and nobody else's")
    with other.writing("ingest"):
        write(other.root / series / "ledger.json", "second, elsewhere")
    theirs, ours = files(other), files(home)
    for enter in (home.writing, home.exclusive):
        with pytest.raises(StorageError) as caught, enter("again"):
            pass
        assert str(caught.value) == (
            f"expected the copy {home.root} as it was last pushed, found 2 changes such as datasets/d/manifest.json "
            f"and that another machine has written to {store.url} since; two writers are not merged: move datasets, "
            "lake out of the copy and run the same again, which pulls what the store has"
        )
    with pytest.raises(StorageError, match="two writers are not merged"):
        refresh(home.root)
    assert files(home) == ours, "a refusal changes nothing here"
    assert "nobody writes" in describe(other.root)
    assert files(store.machine(tmp_path / "c")) == theirs, "nor there"
    for area in ("datasets", "lake"):
        (home.root / area).rename(tmp_path / area)
    with home.writing("again"):
        pass
    assert files(home) == theirs == files(store.machine(tmp_path / "d"))


def test_a_reader_says_what_was_changed_in_its_copy_and_keeps_it_for_the_next_turn(store, tmp_path, caplog):
    home = store.machine(tmp_path / "a")
    with home.writing("ingest"):
        write(home.reports / "one.json", "1")
    write(home.reports / "two.json", "2")
    store.machine(tmp_path / "a")
    assert f"1 of the files in {home.root} are not in {store.url} yet; the next run here that" in caplog.text
    assert set(files(store.machine(tmp_path / "b"))) == {"reports/one.json"}
    with home.writing("again"):
        pass
    assert files(store.machine(tmp_path / "b")) == files(home)


def test_a_pull_that_was_cut_off_is_no_change_of_this_machine(store, tmp_path, monkeypatch):
    home = store.machine(tmp_path / "a")
    download, done = ObjectStore.download, []

    def failing(self: ObjectStore, key: str, path: Path) -> None:
        if done:
            fail(self)
        done.append(key)
        download(self, key, path)

    for text in ("first", "second"):
        with home.writing("ingest"):
            for number in range(9):
                write(home.reports / f"{number}.json", f"{text} {number}")
            write(home.reports / f"{text}.json", text)
        monkeypatch.setattr(ObjectStore, "download", failing)
        with pytest.raises(StorageError, match="no answer"):
            store.machine(tmp_path / "b")
        done.clear()
        monkeypatch.setattr(ObjectStore, "download", download)
    with home.writing("ingest"):
        for path in home.reports.glob("*.json"):
            path.unlink()
        write(home.reports / "third.json", "third")
    assert files(store.machine(tmp_path / "b")) == files(home)


def test_a_machine_that_dies_between_its_push_and_its_note_of_it_goes_on(store, tmp_path, monkeypatch):
    home = store.machine(tmp_path / "a")
    log = write(home.jobs / "predictor-1" / "metrics.jsonl", "line\n")
    with home.writing("nightly"):
        write(home.jobs / "predictor-1" / "spec.json", "{}")
    with monkeypatch.context() as patch:

        def die_after_the_push() -> None:
            with home.writing("nightly"):
                log.write_text("line\n" * 2)
                patch.setattr(WorkingCopy, "_remember", lambda self, manifest: fail(self.store))

        with pytest.raises(StorageError, match="no answer"):
            die_after_the_push()
    log.write_text("line\n" * 3)  # by its training, which lived a moment longer
    with home.writing("nightly"):
        pass
    assert (store.machine(tmp_path / "b").root / log.relative_to(home.root)).read_text() == "line\n" * 3


def test_a_store_that_goes_away_in_the_middle_costs_nothing_but_a_warning_until_the_end(
    store, tmp_path, caplog, monkeypatch
):
    home = store.machine(tmp_path / "a")
    put = ObjectStore.put

    def lose_the_store() -> None:
        with home.writing("nightly"):
            monkeypatch.setattr(ObjectStore, "put", lambda self, *_args, **_options: fail(self))
            with home.writing("dataset"):
                write(home.datasets / "d" / "manifest.json", "made")
            assert "no answer" in caplog.text

    with pytest.raises(StorageError, match="no answer"):
        lose_the_store()
    monkeypatch.setattr(ObjectStore, "put", put)
    with home.writing("the same again"):
        pass
    assert (store.machine(tmp_path / "b").datasets / "d" / "manifest.json").read_text() == "made"


def fail(bucket: ObjectStore) -> None:
    raise StorageError("expected the store, found no answer; try again")


@pytest.mark.parametrize(
    ("address", "spelt"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3:/bucket/a/b/", "s3://bucket/a/b"),
        ("/data/s3:/x", None),
        (".kronos", None),
    ],
)
def test_an_address_is_told_from_a_path_also_after_the_command_line_has_folded_it(address, spelt):
    assert s3_url(address) == spelt


@pytest.mark.parametrize("address", ["s3://", "s3:bucket", "s3:///x", "s3://UPPER/x"])
def test_an_address_that_names_no_bucket_is_one_sentence(address):
    with pytest.raises(StorageError, match="expected a home such as s3://bucket/prefix, found"):
        s3_url(address)


def test_a_bucket_that_is_not_there_is_one_sentence(store, tmp_path):
    with pytest.raises(
        StorageError, match=r"expected http.* to serve s3://nobodys/home, found no such bucket; create it or"
    ) as caught:
        store.machine(tmp_path, "s3://nobodys/home")
    assert "\n" not in str(caught.value)


def test_a_store_that_does_not_answer_is_one_sentence_and_leaves_no_copy_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_url().replace("//", "//user:secret@"))
    with pytest.raises(StorageError, match=r"expected http://127.*found no answer; check AWS_") as caught:
        S3Server.machine(S3Server(), tmp_path)
    assert "secret" not in str(caught.value)


def test_missing_credentials_are_one_sentence(store, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", closed_url())
    with pytest.raises(
        StorageError, match=r"to serve s3://.*found no credentials; set AWS_ACCESS_KEY_ID and"
    ):
        store.machine(tmp_path)


def test_a_refusal_is_one_sentence_without_any_secret(tmp_path, monkeypatch):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>reader</Message></Error>")

        def log_message(self, *_arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-log")
    try:
        with pytest.raises(StorageError, match=r"refuses \(403 AccessDenied\); check the AWS_\*") as caught:
            S3Server.machine(S3Server(), tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert "reader" not in str(caught.value)
    assert "not-for-the-log" not in str(caught.value)


def test_a_missing_library_is_one_sentence_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StorageError, match=r"found it missing; `pip install 'kronos-nightly\[s3\]'`"):
        S3Server.machine(S3Server(), tmp_path)


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written(store, tmp_path, monkeypatch):
    put = ObjectStore.put
    monkeypatch.setattr(ObjectStore, "put", lambda self, key, content, expect: "etag")
    with (
        pytest.raises(StorageError, match=r"obeys If-Match and If-None-Match for s3://.*ignores them"),
        store.machine(tmp_path / "a").writing("ingest"),
    ):
        pass
    monkeypatch.setattr(ObjectStore, "put", put)


def test_a_damaged_object_and_an_emptied_bucket_are_one_sentence_each(store, tmp_path):
    home = store.machine(tmp_path / "a")
    with home.writing("nightly"):
        write(home.models / "demo" / "champion.json", "{}")
    (key,) = objects(store)
    bucket = ObjectStore(store.url)
    found = bucket.get(key)
    assert found is not None
    bucket.put(key, b"[]", expect=found.etag)
    with pytest.raises(
        StorageError, match=r"expected models/demo/champion.json in s3://.* restore that object"
    ):
        store.machine(tmp_path / "b")
    bucket.delete(["manifest.json"])
    with pytest.raises(
        StorageError, match=r"expected manifest.json in s3://.*, found none; restore the bucket"
    ):
        store.machine(tmp_path / "a")
    assert (home.models / "demo" / "champion.json").exists()


def test_a_copy_is_not_pushed_to_another_store(store, tmp_path, monkeypatch):
    home = store.machine(tmp_path / "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with (
        pytest.raises(StorageError, match=r"expected AWS_ENDPOINT_URL to be http.*set it so"),
        home.writing("x"),
    ):
        pass


def test_a_home_on_disk_knows_nothing_of_all_this(tmp_path):
    home = open_home(tmp_path / "home")
    with home.writing("ingest") as dead:
        assert dead == ""
    assert list(home.root.iterdir()) == []
    assert describe(home.root) == ""
