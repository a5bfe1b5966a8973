"""A model of its own for every series: one night each, on two workers of this machine, or one after another."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows import each as module
from flows.config import ConfigError
from flows.each import IncompleteNights, each
from flows.failures import explain
from flows.forecast import forecast
from storage.errors import StorageError
from storage.layout import Home
from storage.registry import read_champion
from tasks.download import IncompleteIngest
from tasks.fan_out import Ended, NightOrder, _own_facts, _problem
from tasks.refs import FailureRef, ForecastsRef, IngestRef
from tests.support.nights import SERIES, quick_settings, write_klines
from tests.support.prefect_site import prefect_site, wait_for
from tests.support.terminal import Terminal, finish, holdings, start
from tests.support.webhook import webhook

pytestmark = pytest.mark.usefixtures("prefect_api")

OWN = ("demo-spot-BTCUSDT", "demo-um-DOGEUSDT")


def settings_of(root: Path, **others: Any) -> dict[str, Any]:
    """Nights of seconds that promote whatever they trained."""
    write_klines(root / "klines")
    return quick_settings(root / "klines", **{"gate.min_origins": 10, "forecast.samples": 4, **others})


@dataclass(frozen=True)
class Fanned:
    """Three nights on two workers, of which that of um:BTCUSDT failed."""

    home: Home
    settings: dict[str, Any]
    failure: IncompleteNights

    @property
    def nights(self) -> list[dict[str, Any]]:
        return self.failure.nights


@pytest.fixture(scope="module")
def fanned(tmp_path_factory: pytest.TempPathFactory, prefect_api: None) -> Fanned:
    pytest.importorskip("prefect_dask", reason="the extra dask is not installed")
    root = tmp_path_factory.mktemp("each")
    home, settings = Home(root / "home"), settings_of(root)
    shutil.copy(root / "klines" / "spot_BTCUSDT_1h.parquet", root / "klines" / "um_BTCUSDT_1h.parquet")
    broken = home.models / "demo-um-BTCUSDT" / "champion.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a champion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRONOS_HOME", str(home.root))
        with pytest.raises(IncompleteNights) as caught:
            each("demo", series=["um:BTCUSDT", *SERIES], settings=settings, workers=2)
    return Fanned(home, settings, caught.value)


def test_every_series_has_its_champion_repositories_and_forecast(fanned: Fanned) -> None:
    assert [one["recipe"] for one in fanned.nights] == list(OWN)
    for one, series in zip(fanned.nights, SERIES, strict=True):
        champion = read_champion(fanned.home, one["recipe"])
        assert champion is not None
        assert champion.predictor_digest == one["stages"][1]["digest"]
        assert [forecast["series"] for forecast in one["forecasts"]] == [series]
    assert {path.name for path in fanned.home.hub.iterdir() if not path.name.startswith(".")} == {
        f"{name}-kronos-{part}" for name in OWN for part in ("tokenizer", "predictor")
    }


def test_a_failed_night_stops_no_other_and_is_told_in_one_sentence(fanned: Fanned) -> None:
    sentence = explain(fanned.failure)
    assert sentence is not None
    assert sentence.startswith(
        "1 of 3 nights failed, the others are done: um:BTCUSDT: Expected a champion record in "
    )
    assert sentence.endswith("the next promoted night writes it anew.")
    assert "\n" not in sentence


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nights_one_after_another_end_with_the_same_models_scores_and_champions(
    fanned: Fanned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setenv("KRONOS_HOME", str(tmp_path / "home"))
    nights = each("demo", series=[*SERIES[-count:]], settings=settings_of(tmp_path))
    for name in ("recipe", "night", "leaderboard", "verdict", "reasons"):
        assert [one[name] for one in nights] == [one[name] for one in fanned.nights[-count:]]
    for home in (Home(tmp_path / "home"), fanned.home):
        champions = [read_champion(home, name) for name in OWN[-count:]]
        digests = [champion and champion.digest for champion in champions]
        models = [one["challenger"] for one in fanned.nights[-count:]]
        assert digests == [f"{one['tokenizer_digest']}-{one['predictor_digest']}" for one in models]


def test_every_night_has_a_run_of_its_own_in_prefect_and_in_mlflow(fanned: Fanned) -> None:
    client = MlflowClient(fanned.home.mlflow_uri)
    with get_client(sync_client=True) as prefect:
        for one in fanned.nights:
            run = client.get_run(one["mlflow_run"])
            assert run.info.status == "FINISHED"
            night = prefect.read_flow_run(run.data.tags["prefect.flow_run_id"])
            assert night.state_name == "Completed"
            assert night.parent_task_run_id is not None
            place = prefect.read_task_run(night.parent_task_run_id)
            assert (place.state_name, place.state.state_details.child_flow_run_id) == ("Completed", night.id)
            assert place.flow_run_id is not None
            assert prefect.read_flow_run(place.flow_run_id).name.startswith("each demo ")
            assert night.name.startswith(f"night {one['recipe']} ")
            its = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[night.id]))
            shown = {artifact.key for artifact in prefect.read_artifacts(artifact_filter=its)}
            assert {"leaderboard", "losses", "train-predictor"} <= shown
            assert (
                client.get_model_version_by_alias(f"kronos-{one['recipe']}", "champion").run_id
                == run.info.run_id
            )


def test_every_command_takes_the_name_of_a_recipe_of_one_series(fanned: Fanned, terminal: Terminal) -> None:
    terminal.home = fanned.home.root
    assert "um:DOGEUSDT" in terminal("recipes", OWN[1]).out
    assert "Expected a champion of demo-um-DOGEUSDT before the present one" in terminal.refused(
        "rollback", "-r", OWN[1], "--reason", "a test"
    )
    assert "Live forecasts of the champions of demo-um-DOGEUSDT" in terminal("scores", "-r", OWN[1]).out


def test_a_recipe_is_forecast_by_the_models_of_its_series(
    fanned: Fanned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KRONOS_HOME", str(fanned.home.root))
    found = forecast("demo", settings=fanned.settings)
    assert isinstance(found, ForecastsRef)
    assert not any(one.made for one in found.forecasts), "the nights have made them"
    assert [(one.series, one.model_digest, one.path) for one in found.forecasts] == [
        (one["forecasts"][0]["series"], one["stages"][1]["digest"], one["forecasts"][0]["path"])
        for one in fanned.nights
    ]


def test_a_recipe_of_one_series_and_repositories_for_several_are_refused(terminal: Terminal) -> None:
    complaint = terminal.refused("each", "--recipe", "demo-um-DOGEUSDT")
    assert "Expected a recipe of several series, found demo-um-DOGEUSDT" in complaint
    complaint = terminal.refused("each", "--set", "publish.predictor_name=mine")
    assert "found that 2 of them would share 'mine'; add it." in complaint
    complaint = terminal.refused("each", "--cluster", "10.0.0.1")
    assert "expected an address such as tcp://10.0.0.1:8786, found '10.0.0.1'" in complaint


def test_without_the_extra_nights_run_one_after_another_and_a_series_without_candles_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KRONOS_HOME", str(tmp_path / "home"))
    luna = FailureRef(series="um:LUNAUSDT:1h", reason="Expected a symbol that Binance um lists.")
    ingested = IngestRef(series=(), failures=(luna,), report=None, picture=None)
    ran: list[str] = []

    def half(*_: Any) -> None:
        raise IncompleteIngest("1 of 3 failed", ingested)

    def here(order: NightOrder) -> Ended:
        ran.append(order.recipe)
        summary = {"recipe": order.recipe, "verdict": "keep", "reasons": ["-"]}
        return Ended(order=order, summary={**summary, "nothing_new": False, "candles": []})

    monkeypatch.setattr(module, "ingest_series", half)
    monkeypatch.setattr(module, "can_fan_out", lambda: False)
    monkeypatch.setattr(module, "_here", here)
    with pytest.raises(IncompleteNights) as caught:
        each("demo", series=[*SERIES, "um:LUNAUSDT"], settings=settings_of(tmp_path), workers=3)
    assert str(caught.value) == (
        "1 of 3 nights failed, the others are done: um:LUNAUSDT: Expected a symbol that Binance um lists."
    )
    assert ran == list(OWN)
    assert "The extra `dask` is not installed, so the nights run one after another." in caplog.text


def test_a_worker_that_does_not_see_the_home_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    mark.write_text("of this home")
    facts = {"path": str(mark), "text": "of this home", "api": "http://127.0.0.1:1/api", **_own_facts()}
    assert _problem({**facts, "text": "of another"}).startswith("that it does not see that folder; mount")
    assert _problem({**facts, "path": "/nowhere/mark"}).startswith("that it does not see that folder; mount")
    assert "and 9.9 here; install the same on both" in _problem({**facts, "version": "9.9"})
    assert "does not reach Prefect at http://127.0.0.1:1/api (ConnectionError)" in _problem(facts)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert "another MLFLOW_TRACKING_URI" in _problem(facts)


def test_a_scheduler_that_does_not_answer_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prefect_dask", reason="the extra dask is not installed")
    from tasks import fan_out

    monkeypatch.setattr(fan_out, "_CONNECT_S", 0.5)
    with (
        pytest.raises(
            StorageError, match=r"expected a Dask scheduler at tcp://127\.0\.0\.1:1, found that none"
        ),
        fan_out.fanned_out(Home.at(tmp_path), workers=2, address="tcp://127.0.0.1:1"),
    ):
        pass


def test_an_unknown_setting_is_told_before_anything_starts() -> None:
    with pytest.raises(
        ConfigError, match=re.escape("found 'predictor.epoch'; did you mean predictor.epochs")
    ):
        each("demo", settings={"predictor.epoch": 3})


@pytest.mark.slow
def test_sigterm_while_two_nights_train_ends_every_process_and_leaves_resumable_jobs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = settings_of(tmp_path, **{"tokenizer.epochs": 5_000})
    arguments = [f"--set={name}={value}" for name, value in settings.items()]
    process = start(home, "each", "--workers", "2", *arguments)
    deadline = time.monotonic() + 240
    while len(list(home.glob("jobs/*/checkpoint"))) < 2:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    commands = [" ".join(child.cmdline()) for child in children]
    assert sum("kronos_model.train" in command for command in commands) == 2
    assert sum("flows.night_process" in command for command in commands) == 2
    told = time.monotonic()
    process.terminate()
    training = [one for one, what in zip(children, commands, strict=True) if "kronos_model.train" in what]
    _, left = psutil.wait_procs(training, timeout=20)
    seconds = time.monotonic() - told
    process.wait(60)
    _, others = psutil.wait_procs(children, timeout=10)
    for one in others:
        one.kill()
    assert left == others == [], "a process is left behind"
    outcome = finish(process)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (
        143, "Stopped; the same command resumes where it was."
    )  # fmt: skip
    runs = [what for what in holdings(home).values() if what in ("RUNNING", "KILLED", "FAILED")]
    assert runs == ["KILLED", "KILLED"]
    assert not list(home.glob("jobs/*/result.json"))
    assert seconds < 15


@pytest.mark.slow
def test_the_nights_of_a_killed_run_end_on_their_cluster_and_the_next_run_finishes_them(
    tmp_path: Path,
) -> None:
    home, facts = tmp_path / "home", tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = [
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        facts,
    ]
    worker = ["worker", "--host", "127.0.0.1", "--no-dashboard", "--nthreads", "1", "--scheduler-file", facts]
    with ExitStack() as stack:
        for command in (scheduler, worker, worker):
            process = stack.enter_context(subprocess.Popen([*dask, *map(str, command)], **quiet))
            stack.callback(process.terminate)
        wait_for(facts.exists, within_s=60, what="the scheduler")
        address = json.loads(facts.read_text())["address"]

        def begin(**others: Any) -> subprocess.Popen[str]:
            settings = settings_of(tmp_path, **others)
            arguments = [f"--set={name}={value}" for name, value in settings.items()]
            return start(home, "each", "--cluster", address, *arguments)

        killed = begin(**{"tokenizer.epochs": 5_000})
        wait_for(lambda: len(list(home.glob("jobs/*/checkpoint"))) == 2, within_s=240, what="both to train")
        nights = [one for one in psutil.process_iter() if str(home) in " ".join(_command(one))]
        killed.kill()
        killed.communicate()
        _, left = psutil.wait_procs(nights, timeout=40)
        assert left == [], "a night goes on without its run"
        outcome = finish(begin())
    assert outcome.code == 0, outcome.err
    assert [name for name in OWN if read_champion(Home(home), name)] == list(OWN)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_deployed_run_cancelled_while_two_nights_train_ends_both(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, **{"tokenizer.epochs": 5_000})
    with webhook() as hook, prefect_site(tmp_path, notify=hook.url) as site:
        run = site.run("each", {"recipe": "demo", "settings": settings, "workers": 2})
        wait_for(
            lambda: len(list(site.home.jobs.glob("*/checkpoint"))) == 2, within_s=300, what="both to train"
        )
        site.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        wait_for(lambda: site.training() is None, within_s=30, what="the training to end")
        (ended,) = site.finished(run, within_s=150)
        assert ended["state_type"] == "CANCELLED", ended["state"]
        nights = site.post("flow_runs/filter", {"flow_runs": {"name": {"like_": "night "}}})
        assert [one["state_type"] for one in nights] == ["CRASHED", "CRASHED"]
        client = MlflowClient(site.mlflow)
        runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
        assert [one.info.status for one in runs] == ["KILLED", "KILLED"]
        assert not list(site.home.jobs.glob("*/result.json"))
