"""Whole nights over a replay exchange, with a real Prefect server and a real MLflow store."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect import task

from flows import nightly as nightly_module
from flows.nightly import nightly
from kronos_model.evaluation.gate import GatePolicy, judge
from kronos_model.evaluation.scores import Scores
from kronos_model.postprocess import PostProcess
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.registry import read_champion
from storage.schema import SeriesKey
from tasks.policies import IDEMPOTENT
from tests.support.databases import lend_mlflow
from tests.support.homes import copy_home
from tests.support.nights import CANDLES, SERIES, quick_settings, write_klines

pytestmark = pytest.mark.usefixtures("prefect_api")


@dataclass
class Night:
    """A finished night and where it left things."""

    home: Home
    klines: Path
    summary: dict[str, Any]

    def again(self, **settings: Any) -> dict[str, Any]:
        return nightly("demo", settings=quick_settings(self.klines, **settings))

    def copy(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> "Night":
        """The same night in a home of its own, with candles of its own, for a test that goes on from it."""
        write_klines(root / "klines")
        monkeypatch.setenv("KRONOS_HOME", str(root / "home"))
        return Night(copy_home(self.home, root / "home"), root / "klines", self.summary)

    def run(self) -> Run:
        return MlflowClient(self.home.mlflow_uri).get_run(self.summary["mlflow_run"])

    def history(self, name: str) -> list[tuple[int, float]]:
        points = MlflowClient(self.home.mlflow_uri).get_metric_history(self.summary["mlflow_run"], name)
        return [(point.step, point.value) for point in points]


def run_night(root: Path, monkeypatch: pytest.MonkeyPatch, *, count: int = CANDLES) -> Night:
    klines = root / "klines"
    write_klines(klines, count=count)
    monkeypatch.setenv("KRONOS_HOME", str(root / "home"))
    lend_mlflow(Home.at(root / "home"))
    summary = nightly("demo", settings=quick_settings(klines))
    return Night(Home(root / "home"), klines, summary)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, prefect_api: None) -> Iterator[Night]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield run_night(tmp_path_factory.mktemp("night"), monkeypatch)


def test_every_closed_candle_of_the_exchange_is_in_the_lake(night: Night) -> None:
    for key, expected in write_klines(night.klines).items():
        assert Lake(night.home.lake).read(key).equals(expected)


def test_both_stages_end_with_a_lower_loss_than_they_began(night: Night) -> None:
    assert [stage["stage"] for stage in night.summary["stages"]] == ["tokenizer", "predictor"]
    for stage in night.summary["stages"]:
        assert stage["best_loss"] < stage["initial_loss"]


def test_the_mlflow_run_has_settings_losses_of_every_step_figures_and_model_files(night: Night) -> None:
    run, client = night.run(), MlflowClient(night.home.mlflow_uri)
    assert run.info.status == "FINISHED"
    assert run.data.params["dataset.lookback"] == "24"
    assert run.data.tags["kronos.dataset_digest"] == night.summary["dataset"]["digest"]
    for stage in night.summary["stages"]:
        lines = [json.loads(line) for line in (Path(stage["job"]) / "metrics.jsonl").read_text().splitlines()]
        for phase in ("train", "validation"):
            expected = [(line["step"], line["loss"]) for line in lines if line["phase"] == phase]
            assert night.history(f"{stage['stage']}/{phase}/loss") == expected
    figures = {item.path for item in client.list_artifacts(run.info.run_id, "figures")}
    drawn = (
        "losses",
        "fans",
        "leaderboard",
        "fans_extremes",
        "skill",
        "coverage",
        "pit",
        "reliability",
        "equity",
    )
    assert {f"figures/{name}.png" for name in drawn} <= figures
    page = Path(client.download_artifacts(run.info.run_id, "report.html", dst_path=tempfile.mkdtemp()))
    assert page.read_bytes() == Path(night.summary["report"]).read_bytes()
    assert night.summary["night"] in page.read_text()
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    folder = Path(model.artifact_location.removeprefix("file://"))
    weights = {path.read_bytes() for path in folder.rglob("model.safetensors")}
    assert weights == {
        (Path(one["best"]) / "model.safetensors").read_bytes() for one in night.summary["stages"]
    }
    version = client.get_model_version_by_alias("kronos-demo", "champion")
    assert (version.run_id, version.tags["kronos.verdict"]) == (run.info.run_id, "promote")
    assert {item.path.rpartition(".")[2] for item in client.list_artifacts(run.info.run_id, "ingest")} == {
        "json",
        "png",
    }
    assert run.inputs.dataset_inputs[0].dataset.digest == night.summary["dataset"]["digest"][:36]


def test_the_challenger_that_beats_the_base_becomes_champion_and_is_published(night: Night) -> None:
    assert night.summary["verdict"] == "promote"
    champion = read_champion(night.home, "demo")
    assert champion is not None
    assert champion.predictor_digest == night.summary["stages"][1]["digest"]
    assert [one["name"] for one in night.summary["published"]] == [
        "demo-kronos-tokenizer",
        "demo-kronos-predictor",
    ]
    for one in night.summary["published"]:
        names = {path.name for path in Path(one["path"]).iterdir()}
        assert {"README.md", "config.json", "model.safetensors", "kronos_nightly.json"} <= names


def test_the_published_folders_load_in_upstreams_classes_and_forecast(night: Night) -> None:
    import pandas as pd
    from model import Kronos, KronosPredictor, KronosTokenizer

    tokenizer = KronosTokenizer.from_pretrained(str(night.home.hub / "demo-kronos-tokenizer"))
    model = Kronos.from_pretrained(str(night.home.hub / "demo-kronos-predictor"))
    predictor = KronosPredictor(model.eval(), tokenizer.eval(), device="cpu", max_context=512)
    candles = Lake(night.home.lake).read(SeriesKey.parse("spot:BTCUSDT", "1h")).tail(24)
    past = pd.Series(candles["open_time"].dt.replace_time_zone(None).to_numpy())
    future = pd.Series(pd.date_range(past.iloc[-1] + pd.Timedelta("1h"), periods=4, freq="1h"))
    frame = pd.DataFrame(
        {name: candles[name].to_numpy() for name in ("open", "high", "low", "close", "volume")}
    )
    forecast = predictor.predict(frame, past, future, pred_len=4, verbose=False)
    assert forecast.shape == (4, 6)
    assert np.isfinite(forecast.to_numpy()).all()


def test_the_forecast_starts_after_the_newest_closed_candle(night: Night) -> None:
    for name in SERIES:
        key = SeriesKey.parse(name, "1h")
        stored = ForecastStore(night.home.forecasts).list(key)[-1]
        span = Lake(night.home.lake).span(key)
        assert stored is not None
        assert span is not None
        frame = stored.frame()
        assert stored.origin_ms == span.last_ms
        assert frame["open_time"].dt.epoch("ms").to_list() == [
            span.last_ms + h * 3_600_000 for h in range(1, 5)
        ]
        assert (frame["close_q05"] <= frame["close_q95"]).all()
        assert Path(night.summary["forecasts"][SERIES.index(name)]["figure"]).stat().st_size > 10_000


def test_the_prefect_run_shows_candles_losses_leaderboard_and_forecasts(night: Night) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        flow_run_id = night.run().data.tags["prefect.flow_run_id"]
        artifacts = client.read_artifacts()
        keys = {artifact.key for artifact in artifacts if str(artifact.flow_run_id) == flow_run_id}
    shown = {
        "candles",
        "train-tokenizer",
        "train-predictor",
        "losses",
        "fans",
        "skill",
        "leaderboard",
        "report",
    }
    assert shown | {"forecast-spot-btcusdt", "forecast-um-dogeusdt"} <= keys


def test_the_same_night_again_asks_for_one_page_a_series_and_trains_nothing(
    night: Night, caplog: pytest.LogCaptureFixture
) -> None:
    files = {path: path.stat().st_mtime_ns for path in night.home.root.rglob("*.safetensors")}
    with caplog.at_level("INFO", logger="flows"):
        summary = night.again()
    assert summary["nothing_new"]
    assert "Nothing new" in caplog.text
    assert all(one["requests"] <= 1 and one["added"] == 0 for one in summary["candles"])
    assert {path: path.stat().st_mtime_ns for path in night.home.root.rglob("*.safetensors")} == files


def test_two_nights_with_the_same_seed_give_identical_windows_losses_and_forecasts(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = run_night(tmp_path, monkeypatch)
    assert other.summary["night"] == night.summary["night"]
    assert other.summary["dataset"]["digest"] == night.summary["dataset"]["digest"]
    for mine, theirs in zip(night.summary["stages"], other.summary["stages"], strict=True):
        assert (mine["digest"], mine["best_loss"]) == (theirs["digest"], theirs["best_loss"])
    assert other.summary["leaderboard"] == night.summary["leaderboard"]
    for name in SERIES:
        key = SeriesKey.parse(name, "1h")
        frames = [ForecastStore(one.home.forecasts).list(key)[-1].frame() for one in (night, other)]
        assert frames[0].equals(frames[1])


def test_new_candles_make_a_new_night_judged_against_the_champion(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = night.copy(tmp_path, monkeypatch)
    write_klines(first.klines, count=CANDLES + 48)
    before = read_champion(first.home, "demo")
    second = first.again(**{"evaluation.postprocess": True})
    assert [one["added"] for one in second["candles"]] == [48, 48]
    assert second["night"] != first.summary["night"]
    models = {row["model"] for row in second["leaderboard"]}
    assert {"challenger", "blend", "champion", "base", "ewma", "last_value", "references"} <= models
    assert "champion_blend" not in models, "the first night fitted nothing"
    (evaluation,) = (
        path for path in first.home.jobs.glob("evaluate-*") if "blend" in (path / "scores.json").read_text()
    )
    policy = GatePolicy(coverage_low=0.0, reference_margin=None)
    told = judge(Scores.load(evaluation), policy, champion="champion")
    assert second["verdict"] == told.verdict
    assert second["reasons"][: len(told.reasons)] == list(told.reasons)
    assert any("champion" in reason and "CRPS" in reason for reason in told.reasons)
    serving = read_champion(first.home, "demo")
    assert before is not None
    assert serving is not None
    assert (serving.night == second["night"]) == (told.verdict == "promote")
    table = pl.read_parquet(evaluation / "forecasts.parquet")
    rows = [row for row in second["leaderboard"] if row["series"] == "all"]
    assert len(table) == sum(row["origins"] for row in rows) * 4
    assert set(table["model"]) == models
    errors = table.group_by("model").agg((pl.col("q0.5") - pl.col("realised")).abs().mean())
    assert np.isfinite(errors["q0.5"].to_numpy()).all()
    assert not list(first.home.jobs.glob("*.work"))
    fitted = list(first.home.jobs.glob("postprocessed-*/predictor/postprocess.json"))
    assert len(fitted) == 2  # challenger and base
    weights = PostProcess.load(Path(second["challenger"]["predictor"])).pool
    metrics = MlflowClient(first.home.mlflow_uri).get_run(second["mlflow_run"]).data.metrics
    assert metrics["postprocess/weight/network"] == pytest.approx(weights["network"])
    assert metrics["postprocess/kept/blend"] in (0.0, 1.0)
    assert second["leaderboard"][0]["model"] == told.served
    assert second["leaderboard"][0]["served"]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, prefect_api: None) -> Night:
    """A night that trained and was then not judged."""
    root = tmp_path_factory.mktemp("failed")
    write_klines(root / "klines")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("KRONOS_HOME", str(root / "home"))
        fail_at("judge_challenger", root / "klines", monkeypatch)
    return Night(Home(root / "home"), root / "klines", {})


def fail_at(step: str, klines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a night that ends with a full disk at that step."""

    @task(**IDEMPOTENT)
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(nightly_module, step, broken)
        with pytest.raises(OSError, match="No space left"):
            nightly("demo", settings=quick_settings(klines))


@pytest.mark.parametrize("step", ["judge_challenger", "publish", "promote", "forecast_series", "write_night"])
def test_a_night_that_fails_midway_is_finished_by_the_next_run_without_training_again(
    step: str, night: Night, failed: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = failed.copy(tmp_path, monkeypatch)
    home = copy.home
    trained = {path: path.stat().st_mtime_ns for path in home.jobs.rglob("best/model.safetensors")}
    assert len(trained) == 2
    fail_at(step, copy.klines, monkeypatch)
    summary = copy.again()
    assert {path: path.stat().st_mtime_ns for path in home.jobs.rglob("best/model.safetensors")} == trained
    for name in ("verdict", "reasons", "leaderboard"):
        assert summary[name] == night.summary[name]
    runs = MlflowClient(home.mlflow_uri).search_runs(
        [run.info.experiment_id for run in [MlflowClient(home.mlflow_uri).get_run(summary["mlflow_run"])]]
    )
    assert [run.info.status for run in runs] == ["FINISHED"], "the run is resumed, not doubled"
    history = MlflowClient(home.mlflow_uri).get_metric_history(summary["mlflow_run"], "predictor/train/loss")
    assert [point.step for point in history] == list(range(1, 13)), "each step once"


def test_a_challenger_that_is_not_promoted_leaves_the_champion_and_the_hub_as_they_were(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = night.copy(tmp_path, monkeypatch)
    before = (first.home.models / "demo" / "champion.json").read_bytes()
    card = (first.home.hub / "demo-kronos-predictor" / "README.md").read_bytes()
    summary = first.again(**{"gate.min_origins": 100_000})
    assert summary["verdict"] == "keep"
    assert summary["published"] == []
    assert (first.home.models / "demo" / "champion.json").read_bytes() == before
    assert (first.home.hub / "demo-kronos-predictor" / "README.md").read_bytes() == card
    assert "champion" in summary["forecasts"][0]["model"]


def test_the_lake_is_never_left_with_the_forming_candle(night: Night) -> None:
    for key, expected in write_klines(night.klines).items():
        stored = Lake(night.home.lake).read(key)
        assert stored["open_time"].max() == expected["open_time"].max()
        assert stored.select(pl.len()).item() == CANDLES
