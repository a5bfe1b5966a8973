"""One run at a time on a home: the second is skipped with a word, the dead are written off, the slow cut off."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Running

from flows.failures import explain
from flows.home_access import with_home
from storage.layout import Home
from tasks.policies import IDEMPOTENT, within
from tasks.time_limits import OutOfTime, TimeLimits
from tests.support.terminal import Terminal

pytestmark = pytest.mark.usefixtures("prefect_api")


@flow
def night(root: str) -> str | State:
    return with_home(Home.at(root), "nightly demo", lambda: "worked")


@flow
def ingest(root: str) -> str | State:
    return with_home(Home.at(root), "ingest demo", lambda: "worked", alone=False)


@task(name="slow", **IDEMPOTENT)
def slow(ended: list[str]) -> None:
    try:
        for _ in range(6_000):  # pytest-timeout has the alarm, so Prefect raises between two instructions
            time.sleep(0.01)
    finally:
        ended.append("tidied up")


@pytest.fixture
def client(prefect_api: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def _died_holding(home: Home, run: str) -> None:
    """What a killed process leaves: the name it signed with, without its lock."""
    told = {"pid": 1, "purpose": "nightly demo", "since": "2026-01-01 00:30:00 UTC", "run": run}
    (home.root / ".lock.json").write_text(json.dumps(told))


def test_a_night_that_overlaps_another_is_skipped_and_says_whose_it_is(tmp_path: Path) -> None:
    with Home.at(tmp_path).exclusive("nightly btc_1h"):
        state = night(str(tmp_path), return_state=True)
    assert (state.type.value, state.name) == ("CANCELLED", "Skipped")
    assert state.message is not None
    assert "found process" in state.message
    assert "(nightly btc_1h) at work since" in state.message
    assert night(str(tmp_path)) == "worked"


def test_an_ingest_runs_beside_a_night_of_the_same_machine(tmp_path: Path) -> None:
    with Home.at(tmp_path).exclusive("nightly btc_1h"):
        assert ingest(str(tmp_path)) == "worked"


def test_the_run_of_a_process_that_was_killed_is_marked_as_crashed_by_the_next(
    tmp_path: Path, client: SyncPrefectClient
) -> None:
    home = Home.at(tmp_path)
    dead = client.create_flow_run(night, parameters={"root": str(tmp_path)}, state=Running())
    _died_holding(home, str(dead.id))
    assert night(str(tmp_path)) == "worked"
    state = client.read_flow_run(dead.id).state
    assert state is not None
    assert (state.type.value, state.message) == (
        "CRASHED", "Its process ended without a word; the run that came next goes on from what it had done."
    )  # fmt: skip


def test_a_run_that_ended_before_its_process_died_and_one_unknown_here_stay_as_they_are(
    tmp_path: Path, client: SyncPrefectClient
) -> None:
    home = Home.at(tmp_path)
    done = client.create_flow_run(night, parameters={"root": str(tmp_path)}, state=Completed())
    for run in (str(done.id), str(uuid4())):
        _died_holding(home, run)
        assert night(str(tmp_path)) == "worked"
    state = client.read_flow_run(done.id).state
    assert state is not None
    assert state.is_completed()


def test_a_task_that_takes_too_long_is_cut_off_in_order_and_told_in_one_sentence() -> None:
    ended: list[str] = []
    limits = TimeLimits(train_h=0.2 / 3600)

    @flow
    def run() -> None:
        within(slow, limits, "train_h")(ended)

    with pytest.raises(OutOfTime) as caught:
        run()
    assert ended == ["tidied up"]
    sentence = explain(caught.value)
    assert sentence is not None
    assert sentence.startswith(
        "Expected slow to end within 5.55556e-05 hours (limits.train_h), found it still"
    )


def test_a_limit_of_no_time_is_refused(terminal: Terminal) -> None:
    complaint = terminal.refused("run", "--set", "limits.train_h=0")
    assert "limits.train_h: expected above 0 hours, found 0.0; raise it" in complaint


def test_gc_shows_what_would_go_and_deletes_when_told_to(terminal: Terminal) -> None:
    job = terminal.home / "jobs" / "evaluate-old"
    job.mkdir(parents=True)
    (job / "scores.npz").write_bytes(b"x" * 1_000_000)
    shown = terminal("gc", "--set", "job_days=0")
    assert shown.code == 0
    assert "evaluation" in shown.out
    assert "Nothing was deleted" in shown.out
    assert job.exists()
    assert terminal("gc", "--set", "job_days=0", "--yes").code == 0
    assert not job.exists()
    assert "is older than it may be" in terminal("gc", "--set", "job_days=0").out
    assert "did you mean job_days" in terminal.refused("gc", "--set", "jobs_day=0")
