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
from tests.support.webhook import Webhook, webhook

pytestmark = pytest.mark.timeout(900)  # the first test also waits for the site and its runs

SHARED = {"recipe", "series", "interval", "start", "end", "settings"}
PARAMETERS = {
    "nightly": SHARED,
    "each": SHARED | {"workers", "cluster"},
    "ingest": SHARED | {"symbols", "market", "top", "quote"},
    "finetune": SHARED,
    "evaluate": SHARED,
    "forecast": {"recipe", "settings"},
    "gc": {"delete", "settings"},
    "monitor": {"series", "interval", "backfill", "every", "duration", "csv_file", "json_file", "settings"},
}
SCHEDULES = {
    "nightly": "30 0 * * *",
    "ingest": "2 * * * *",
    "forecast": "5 * * * *",
    "evaluate": "0 12 * * 0",
    "gc": "40 23 * * *",
}
TASKS = {
    "check publishing", "base model", "download spot:BTCUSDT:1h", "download um:DOGEUSDT:1h", "dataset",
    "train tokenizer", "tokenizer gate", "train predictor",
    "postprocess challenger", "postprocess base",
    "evaluate", "gate", "report", "register", "publish", "promote", "forecast", "score live forecasts",
}  # fmt: skip


@dataclass(frozen=True)
class Triggered:
    """A site after three runs: of two nightly ones triggered at once `night` was executed, `other` was not."""

    site: Site
    night: dict[str, Any]
    other: dict[str, Any]
    mistaken: dict[str, Any]  # an ingest with a setting that does not exist, from an unchecked form
    hook: Webhook

    def artifact(self, key: str) -> dict[str, Any]:
        query = {"artifacts": {"flow_run_id": {"any_": [self.night["id"]]}, "key": {"any_": [key]}}}
        (found,) = self.site.post("artifacts/filter", query)
        return dict(found)

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(self.site.mlflow)

    def tracked(self, run: str = "") -> Run:
        """The only MLflow run there is of a flow run, of the night's unless told."""
        experiment = self.mlflow.get_experiment_by_name("kronos-demo")
        assert experiment is not None
        wanted = f"tags.`prefect.flow_run_id` = '{run or self.night['id']}'"
        (found,) = self.mlflow.search_runs([experiment.experiment_id], wanted)
        return found


@pytest.fixture(scope="module")
def triggered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triggered]:
    folder = tmp_path_factory.mktemp("site")
    write_klines(folder / "klines")
    form = {"recipe": "demo", "series": None, "interval": None, "start": None, "end": None}
    night = {**form, "settings": quick_settings(folder / "klines")}
    with webhook() as hook, prefect_site(folder, notify=hook.url) as site:
        runs = [site.run("nightly", night), site.run("nightly", night)]
        runs.append(site.run("ingest", {**form, "settings": {"dataset.lokback": 80}}, checked=False))
        *nights, mistaken = site.finished(*runs, within_s=400)
        executed, other = sorted(nights, key=lambda run: run["run_count"], reverse=True)
        yield Triggered(site, executed, other, mistaken, hook)


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
        assert deployment["entrypoint"] == f"flows.{name}.{name}", (
            "a file would be imported under another name"
        )
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


def test_flows_run_by_the_utc_clock_one_at_a_time_and_a_second_one_is_cancelled(triggered: Triggered) -> None:
    schedules = {
        name: [(one["schedule"]["cron"], one["schedule"]["timezone"]) for one in deployment["schedules"]]
        for name, deployment in triggered.site.deployments.items()
    }
    expected = {name: [(SCHEDULES[name], "UTC")] if name in SCHEDULES else [] for name in PARAMETERS}
    assert schedules == expected
    for name in set(PARAMETERS) - {"monitor"}:
        deployment = triggered.site.deployments[name]
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_schedules_may_be_left_paused(triggered: Triggered) -> None:
    schedules = [one for deployment in triggered.site.deployments.values() for one in deployment["schedules"]]
    assert {one["active"] for one in schedules} == {False}


def test_deploying_again_changes_nothing_but_a_schedule_that_is_no_longer_declared(
    triggered: Triggered,
) -> None:
    def all_of_it() -> dict[str, Any]:
        kinds = ("deployments", "automations", "work_pools", "block_documents", "v2/concurrency_limits")
        found = {kind: triggered.site.post(f"{kind}/filter", {}) for kind in kinds}
        for deployment in found["deployments"]:  # what a worker's polling changes
            deployment.pop("last_polled")
            deployment.pop("status")
        found["work_pools"] = [
            (one["name"], one["type"], one["base_job_template"]) for one in found["work_pools"]
        ]
        return found

    before = all_of_it()
    monitor = triggered.site.deployments["monitor"]["id"]
    cron = {"schedule": {"cron": "0 0 1 1 *", "timezone": "UTC"}, "slug": "once", "active": False}
    triggered.site.post(f"deployments/{monitor}/schedules", [cron])
    printed = triggered.site.command(f"kronos deploy --notify {triggered.hook.url}")
    assert all_of_it() == before
    *rest, last = printed.splitlines()
    assert {line.split()[0] for line in rest} == {"unchanged"}
    assert last == "deployed   schedule once of monitor, no longer declared"


def test_a_bad_run_is_told_to_the_webhook_with_its_cause_in_one_sentence(triggered: Triggered) -> None:
    wait_for(lambda: triggered.hook.told, within_s=120, what="the webhook to be told")
    (told,) = triggered.hook.told
    assert re.fullmatch(
        r"Kronos Nightly: ingest demo \d{4}-\d\d-\d\d failed: ConfigError: Expected a known setting, found "
        r"'dataset.lokback'; did you mean dataset.lookback\?",
        told["text"],
    )
    assert told["url"].endswith(f"/runs/flow-run/{triggered.mistaken['id']}")


@pytest.mark.parametrize(
    ("deployment", "parameters"),
    [
        ("nightly", {"recipe": "doge_2h"}),
        ("nightly", {"recipe": 1}),
        ("nightly", {"series": "um:DOGEUSDT"}),
        ("nightly", {"series": ["DOGEUSDT"]}),
        ("nightly", {"interval": 4}),
        ("nightly", {"interval": "7m"}),
        ("nightly", {"start": 20240101}),
        ("nightly", {"settings": "predictor.epochs=3"}),
        ("nightly", {"settings": {"dataset.lokback": 80}}),
        ("nightly", {"settings": {"dataset.lookback": 1}}),
        ("nightly", {"settings": {"dataset.lookback": "many"}}),
        ("nightly", {"settings": {"predictor.precision": "float8"}}),
        ("evaluate", {"settings": {"gate.confidence": 1}}),
        ("monitor", {"settings": {"stream.silence_s": 0}}),
        ("gc", {"settings": {"job_days": -1}}),
        ("each", {"workers": 0}),
        ("each", {"cluster": "10.0.0.1"}),
        ("ingest", {"market": "coin"}),
        ("ingest", {"top": 0}),
        ("ingest", {"top": 501}),
        ("monitor", {"every": "soon"}),
        ("gc", {"delete": "perhaps"}),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_run_exists(
    triggered: Triggered, deployment: str, parameters: dict[str, Any]
) -> None:
    before = triggered.site.post("flow_runs/count", {})
    answer = triggered.site.submit(deployment, parameters)
    assert answer.status_code == 409
    (name,) = parameters
    assert "Validation failed" in answer.json()["detail"]
    assert name in answer.json()["detail"]
    assert triggered.site.post("flow_runs/count", {}) == before


def test_the_forecast_service_answers_beside_the_others(triggered: Triggered) -> None:
    answer = triggered.site.fetch(f"http://127.0.0.1:{triggered.site.service_port}/health")
    assert answer["status"] in ("ok", "empty")


def test_an_unknown_setting_fails_the_run_with_one_sentence(triggered: Triggered) -> None:
    assert triggered.mistaken["state_type"] == "FAILED"
    message = triggered.mistaken["state"]["message"]
    assert "Expected a known setting, found 'dataset.lokback'; did you mean dataset.lookback" in message
    assert "\n" not in message


def test_a_run_triggered_as_the_form_does_is_completed_by_the_worker(triggered: Triggered) -> None:
    assert triggered.night["state_type"] == "COMPLETED", triggered.night["state"]
    assert re.fullmatch(r"nightly demo BTCUSDT\+DOGEUSDT 1h \d{4}-\d\d-\d\d", triggered.night["name"])
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
        assert re.search(rf"\| (served: )?{model} \|", shown["data"])


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
        "exchange.connect": "Candles come from a replay exchange",
        "kronos_model.evaluation.walk_forward": "models at",
        "kronos_model.publish": "nothing was uploaded",
    }

    def shown() -> bool:  # a run's last lines arrive seconds after its last state
        lines = [(line["name"], line["message"]) for line in triggered.site.log_of(triggered.night["id"])]
        return all(any(a == name and text in b for a, b in lines) for name, text in expected.items())

    wait_for(shown, within_s=15, what=f"log lines of {', '.join(expected)}")


def test_the_mlflow_run_is_finished_and_both_runs_link_to_each_other(triggered: Triggered) -> None:
    run = triggered.tracked()
    assert (run.info.status, run.info.run_name) == ("FINISHED", triggered.night["name"])
    url = run.data.tags["prefect.flow_run_url"]
    assert url.endswith(f"/runs/flow-run/{triggered.night['id']}")
    assert run.data.tags["mlflow.note.content"].startswith(f"[Prefect run]({url})\n\n## Verdict: ")
    assert f"{triggered.site.mlflow}/#/experiments/" in triggered.artifact("mlflow-run")["data"]
    assert run.info.run_id in triggered.artifact("mlflow-run")["data"]
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


def test_the_mlflow_run_has_figures_and_its_registered_model(triggered: Triggered) -> None:
    run, client = triggered.tracked().info, triggered.mlflow
    figures = {item.path for item in client.list_artifacts(run.run_id, "figures")}
    assert {"figures/losses.png", "figures/skill.png"} < figures
    (version,) = client.search_model_versions("name = 'kronos-demo'")
    assert version.run_id == run.run_id
    models = client.search_logged_models([run.experiment_id])
    (model,) = [one for one in models if one.source_run_id == run.run_id]
    files = {item.path for item in client.list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "artifacts", "input_example.json"} <= files


def test_a_run_cancelled_while_it_trains_stops_its_child_and_can_be_resumed(triggered: Triggered) -> None:
    site = triggered.site
    settings = quick_settings(site.folder / "klines", **{"tokenizer.epochs": 5_000})
    run = site.run("nightly", {"recipe": "demo", "settings": settings})
    job = wait_for(lambda: site.training(), within_s=120, what="the training to begin")
    site.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    (ended,) = site.finished(run, within_s=150)  # Prefect looks for hooks in a process of its own
    assert ended["state_type"] == "CANCELLED", ended["state"]
    assert site.training() is None
    assert (job / "checkpoint").is_dir()
    assert not (job / "result.json").exists()
    assert triggered.tracked(run).info.status == "KILLED"
    wait_for(lambda: site.slots() == 0, within_s=30, what="its concurrency slot to be free")
