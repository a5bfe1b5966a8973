"""prefect.yaml as a user deploys it: a real server and worker, and runs triggered the way the UI's form does."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from flows.environment import DEFAULTS
from flows.recipes import RECIPES
from tests.support.nights import CANDLES, SERIES, quick_settings, write_klines
from tests.support.prefect_site import Site, prefect_site, wait_for

pytestmark = pytest.mark.timeout(480)  # the first test also waits for the site and its runs

SHARED = {"recipe", "series", "interval", "start", "end", "settings"}
PARAMETERS = {
    "nightly": SHARED,
    "ingest": SHARED | {"symbols", "market", "top", "quote"},
    "finetune": SHARED,
    "evaluate": SHARED,
    "forecast": {"recipe", "settings"},
    "monitor": {"series", "interval", "backfill", "every", "duration", "csv_file", "json_file", "settings"},
}
TASKS = {
    "check publishing", "base model", "download spot:BTCUSDT:1h", "download um:DOGEUSDT:1h", "dataset",
    "train tokenizer", "train predictor", "evaluate", "gate", "publish", "promote", "forecast",
}  # fmt: skip


@dataclass(frozen=True)
class Triggered:
    """A site after three runs: of two nightly ones triggered at once `night` was executed, `other` was not."""

    site: Site
    night: dict[str, Any]
    other: dict[str, Any]
    mistaken: dict[str, Any]  # an ingest with a setting that does not exist

    def artifact(self, key: str) -> dict[str, Any]:
        query = {"artifacts": {"flow_run_id": {"any_": [self.night["id"]]}, "key": {"any_": [key]}}}
        (found,) = self.site.post("artifacts/filter", query)
        return dict(found)

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(self.site.home.mlflow_uri)

    def tracked(self) -> Run:
        """The only MLflow run there is."""
        experiment = self.mlflow.get_experiment_by_name("kronos-demo")
        assert experiment is not None
        (run,) = self.mlflow.search_runs([experiment.experiment_id])
        return run


@pytest.fixture(scope="module")
def triggered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triggered]:
    folder = tmp_path_factory.mktemp("site")
    write_klines(folder / "klines")
    form = {"recipe": "demo", "series": None, "interval": None, "start": None, "end": None}
    night = {**form, "settings": quick_settings(folder / "klines")}
    with prefect_site(folder) as site:
        runs = [site.run("nightly", night), site.run("nightly", night)]
        runs.append(site.run("ingest", {**form, "settings": {"dataset.lokback": 80}}))
        *nights, mistaken = site.finished(*runs, within_s=180)
        executed, other = sorted(nights, key=lambda run: run["run_count"], reverse=True)
        yield Triggered(site, executed, other, mistaken)


@pytest.fixture(autouse=True)
def _show_logs_of_a_failure(request: pytest.FixtureRequest, triggered: Triggered) -> Iterator[None]:
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        sys.stderr.write(triggered.site.tails())


def test_every_flow_is_deployed_with_typed_and_described_parameters(triggered: Triggered) -> None:
    assert set(triggered.site.deployments) == set(PARAMETERS)
    for name, deployment in triggered.site.deployments.items():
        fields = deployment["parameter_openapi_schema"]["properties"]
        assert set(fields) == PARAMETERS[name]
        assert fields.get("recipe", {"enum": list(RECIPES)})["enum"] == list(RECIPES)
        assert [one["description"] for one in fields.values() if len(one.get("description", "")) < 20] == []
        for day in {"start", "end"} & set(fields):
            assert {"type": "string", "format": "date"} in fields[day]["anyOf"]
        assert deployment["enforce_parameter_schema"]
        assert deployment["description"]


def test_a_run_is_told_what_the_command_line_tells_its_own(triggered: Triggered) -> None:
    elsewhere = (
        "PREFECT_SERVER_",
        "PREFECT_CLI_",
        "MLFLOW_SERVER_",
    )  # read by servers and the prefect command
    expected = {name: value for name, value in DEFAULTS.items() if not name.startswith(elsewhere)}
    for deployment in triggered.site.deployments.values():
        told = dict(deployment["job_variables"]["env"])
        assert told.pop("PREFECT_FLOWS_HEARTBEAT_FREQUENCY") == "30"
        assert told == expected


def test_nightly_runs_by_the_utc_clock_and_a_second_one_is_cancelled(triggered: Triggered) -> None:
    for name, deployment in triggered.site.deployments.items():
        assert len(deployment["schedules"]) == (name == "nightly")
    nightly = triggered.site.deployments["nightly"]
    (schedule,) = nightly["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "30 0 * * *"
    assert schedule["schedule"]["timezone"] == "UTC"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


@pytest.mark.parametrize(
    "parameters",
    [
        {"recipe": "doge_2h"},
        {"recipe": 1},
        {"series": "um:DOGEUSDT"},
        {"interval": 4},
        {"start": 20240101},
        {"settings": "predictor.epochs=3"},
    ],
)
def test_a_wrong_parameter_is_refused_before_a_run_exists(
    triggered: Triggered, parameters: dict[str, Any]
) -> None:
    before = triggered.site.post("flow_runs/count", {})
    answer = triggered.site.submit("nightly", parameters)
    assert answer.status_code == 409
    (name,) = parameters
    assert f"Validation failed for field '{name}'" in answer.json()["detail"]
    assert triggered.site.post("flow_runs/count", {}) == before


def test_an_unknown_setting_fails_the_run_with_one_sentence(triggered: Triggered) -> None:
    assert triggered.mistaken["state_type"] == "FAILED"
    message = triggered.mistaken["state"]["message"]
    assert "Expected a known setting, found 'dataset.lokback'; did you mean dataset.lookback" in message
    assert "\n" not in message


def test_a_run_triggered_as_the_form_does_is_completed_by_the_worker(triggered: Triggered) -> None:
    assert triggered.night["state_type"] == "COMPLETED", triggered.night["state"]
    assert triggered.night["name"] == "nightly demo"
    assert triggered.night["work_pool_name"] == "local-process"


def test_of_two_nights_triggered_at_once_one_is_cancelled_unstarted(triggered: Triggered) -> None:
    assert triggered.other["state_type"] == "CANCELLED", triggered.other["state"]
    assert triggered.other["state"]["message"] == "Deployment concurrency limit reached."
    assert (triggered.other["run_count"], triggered.night["run_count"]) == (0, 1)
    count = {"flow_runs": {"id": {"any_": [triggered.other["id"]]}}}
    assert triggered.site.post("task_runs/count", count) == 0


def test_the_task_runs_bear_the_names_of_a_nights_steps(triggered: Triggered) -> None:
    query = {"flow_runs": {"id": {"any_": [triggered.night["id"]]}}}
    tasks = triggered.site.post("task_runs/filter", query)
    assert {one["state_type"] for one in tasks} == {"COMPLETED"}
    assert sorted(re.sub(r"-[0-9a-f]{3}$", "", one["name"]) for one in tasks) == sorted(TASKS)


def test_the_run_shows_a_table_of_candles(triggered: Triggered) -> None:
    rows = json.loads(triggered.artifact("candles")["data"])
    assert [(row["series"], row["candles"], row["new"]) for row in rows] == [
        (name, CANDLES, CANDLES) for name in SERIES
    ]


def test_the_run_shows_the_leaderboard_with_the_verdict(triggered: Triggered) -> None:
    shown = triggered.artifact("leaderboard")
    assert shown["type"] == "markdown"
    assert re.match(r"## Verdict: (promote|keep|reject)\n\n- ", shown["data"])
    for model in ("challenger", "base", "last_value"):
        assert f"| {model} |" in shown["data"]


@pytest.mark.parametrize("key", ["losses", "skill", "forecast-spot-btcusdt", "forecast-um-dogeusdt"])
def test_the_run_shows_losses_skill_and_forecasts_as_pictures(triggered: Triggered, key: str) -> None:
    shown = triggered.artifact(key)
    picture = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", shown["data"])
    assert picture is not None
    assert base64.b64decode(picture[1]).startswith(b"\x89PNG\r\n")
    assert shown["description"]


def test_both_training_stages_showed_their_progress_to_the_end(triggered: Triggered) -> None:
    for stage in ("tokenizer", "predictor"):
        shown = triggered.artifact(f"train-{stage}")
        assert (shown["type"], float(shown["data"])) == ("progress", 100.0)


def test_the_runs_log_in_the_ui_has_the_lines_of_our_packages(triggered: Triggered) -> None:
    expected = {
        "tasks.download": "Candles come from a replay exchange",
        "kronos_model.evaluation.walk_forward": "scored 3 models",
        "kronos_model.publish": "nothing was uploaded",
    }

    def shown() -> bool:  # a run's last lines arrive seconds after its last state
        lines = [(line["name"], line["message"]) for line in triggered.site.log_of(triggered.night["id"])]
        return all(any(a == name and text in b for a, b in lines) for name, text in expected.items())

    wait_for(shown, within_s=15, what=f"log lines of {', '.join(expected)}")


def test_the_mlflow_run_is_finished_and_names_its_prefect_run(triggered: Triggered) -> None:
    run = triggered.tracked()
    assert run.info.status == "FINISHED"
    assert run.data.tags["prefect.flow_run_id"] == triggered.night["id"]
    assert run.data.params["recipe"] == "demo"
    assert run.data.params["dataset.lookback"] == "24"


@pytest.mark.parametrize("stage", ["tokenizer", "predictor"])
def test_the_mlflow_run_has_the_loss_of_every_step_of_a_stage(triggered: Triggered, stage: str) -> None:
    (job,) = triggered.site.home.jobs.glob(f"{stage}-*")
    lines = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
    for phase, count in (("train", 12), ("validation", 2)):
        history = triggered.mlflow.get_metric_history(
            triggered.tracked().info.run_id, f"{stage}/{phase}/loss"
        )
        assert len(history) == count
        assert [(point.step, point.value) for point in history] == [
            (line["step"], line["loss"]) for line in lines if line["phase"] == phase
        ]


def test_the_mlflow_run_has_figures_and_model_files(triggered: Triggered) -> None:
    run = triggered.tracked().info.run_id
    figures = {item.path for item in triggered.mlflow.list_artifacts(run, "figures")}
    assert {"figures/losses.png", "figures/skill.png"} < figures
    for part in ("tokenizer", "predictor"):
        files = {item.path: item.file_size for item in triggered.mlflow.list_artifacts(run, f"model/{part}")}
        (best,) = triggered.site.home.jobs.glob(f"{part}-*/best/model.safetensors")
        assert files[f"model/{part}/model.safetensors"] == best.stat().st_size
        assert f"model/{part}/config.json" in files
