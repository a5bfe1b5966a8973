"""What a home forgets, and what it never forgets."""

import fcntl
import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.layout import Home
from storage.registry import Champion, write_champion, write_night
from storage.retention import RetentionPolicy, discard, expired

NOW = 1_800_000_000.0
OLD, YOUNG = 1_000.0, 0.5  # days


def write(path: Path, days: float, text: str = "x" * 100) -> Path:
    """A file that was written so many days ago, as was the folder around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for one in (path, path.parent):
        os.utime(one, (NOW - days * 86_400,) * 2)
    return path


def job(home: Home, name: str, days: float, *, dataset: str = "", finished: bool = True) -> Path:
    folder = home.jobs / name
    write(folder / "checkpoint" / "state.safetensors", days)
    if finished:
        write(folder / "result.json", days, "{}")
    told = {"dataset": {"path": str(home.datasets / dataset)}}
    return write(folder / "job.json", days, json.dumps(told)).parent


def dataset(home: Home, name: str, days: float) -> Path:
    write(home.datasets / name / "tokens" / "aa" / "train.npy", days)
    os.utime(home.datasets / name / "tokens", (NOW - days * 86_400,) * 2)
    return write(home.datasets / name / "manifest.json", days, "{}").parent


def model(home: Home, name: str, days: float) -> Path:
    for part in ("tokenizer", "predictor"):
        write(home.models / "demo" / name / part / "model.safetensors", days)
    os.utime(home.models / "demo" / name, (NOW - days * 86_400,) * 2)
    return home.models / "demo" / name


def champion(name: str, previous: Champion | None = None) -> Champion:
    return Champion(
        tokenizer=f"models/demo/{name}/tokenizer",
        tokenizer_digest="t",
        predictor=f"models/demo/{name}/predictor",
        predictor_digest="p",
        night=name,
        mlflow_run=f"run-{name}",
        since="2026-01-01T00:00:00+00:00",
        reasons=("better",),
        previous=previous,
    )


def tracked_model(home: Home, name: str, days: float) -> None:
    """A model as MLflow keeps it, made by the run `run-name`."""
    folder = home.mlartifacts / "kronos-demo" / "models" / f"m-{name}" / "artifacts"
    write(folder / "MLmodel", days, f"artifact_path: model\nrun_id: run-{name}\n")


def found(home: Home, policy: RetentionPolicy | None = None) -> set[tuple[str, str]]:
    chosen = expired(home, policy or RetentionPolicy(), now=lambda: NOW)
    return {(one.kind, str(one.path.relative_to(home.root))) for one in chosen}


def test_each_kind_goes_when_it_is_old_and_stays_while_it_is_young(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    for name, days in (("old", OLD), ("young", YOUNG)):
        job(home, f"tokenizer-{name}", days)
        job(home, f"predictor-{name}", days, finished=False, dataset="elsewhere")
        write(home.jobs / f"evaluate-{name}" / "scores.npz", days)
        dataset(home, name, days)
        model(home, name, days)
        tracked_model(home, name, days)
        write(home.forecasts / "um-DOGEUSDT-1h" / name / "summary.json", days)
        write(home.forecasts / "figures" / f"{name}.png", days)
        write(home.reports / f"{name}.json", days)
        write(home.datasets / f".{name}.1-ab.tmp" / "x", days)
    assert found(home) == {
        ("job", "jobs/tokenizer-old"),
        ("abandoned job", "jobs/predictor-old"),
        ("evaluation", "jobs/evaluate-old"),
        ("dataset", "datasets/old"),
        ("model", "models/demo/old"),
        ("tracked model", "mlartifacts/kronos-demo/models/m-old/artifacts"),
        ("forecast", "forecasts/um-DOGEUSDT-1h/old"),
        ("picture", "forecasts/figures/old.png"),
        ("picture", "reports/old.json"),
        ("draft", "datasets/.old.1-ab.tmp"),
    }


def test_the_champion_and_its_recorded_predecessors_lose_nothing_they_need(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    for name in ("first", "second", "third"):
        model(home, name, OLD)
        dataset(home, name, OLD)
        job(home, f"tokenizer-{name}", OLD)
        tracked_model(home, name, OLD)
        stages = [{"job": f"/before/the/home/moved/jobs/tokenizer-{name}"}]
        told = {"dataset": {"path": f"/before/datasets/{name}"}, "stages": stages}
        write_night(home, "demo", name, told)
    write_champion(home, "demo", champion("third", champion("second", champion("first"))))
    gone = found(home)
    assert {path for _, path in gone if "first" in path} == {
        "models/demo/first", "datasets/first", "jobs/tokenizer-first",
        "mlartifacts/kronos-demo/models/m-first/artifacts",
    }  # fmt: skip
    spared = {(kind, path) for kind, path in gone if "first" not in path}
    assert spared == {
        (kind, f"{path.format(name)}")
        for name in ("second", "third")
        for kind, path in (("tokens", "datasets/{}/tokens"), ("checkpoint", "jobs/tokenizer-{}/checkpoint"))
    }


def test_a_job_that_somebody_runs_and_the_dataset_of_one_that_waits_stay(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    running = job(home, "tokenizer-running", OLD, dataset="running", finished=False)
    write(running / ".lock", OLD)
    job(home, "tokenizer-waiting", YOUNG, dataset="waiting", finished=False)
    for name in ("running", "waiting", "unused"):
        dataset(home, name, OLD)
    with (running / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert found(home) == {("dataset", "datasets/unused")}
    assert ("abandoned job", "jobs/tokenizer-running") in found(home)


def test_what_starts_nights_is_no_former_champion(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    start = write(home.models / "scratch" / "tiny-0" / "predictor" / "model.safetensors", OLD)
    os.utime(start.parents[1], (NOW - OLD * 86_400,) * 2)
    model(home, "served", OLD)
    assert found(home) == {("model", "models/demo/served")}


def test_nothing_goes_where_a_champion_cannot_be_read(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    job(home, "tokenizer-old", OLD)
    write(home.models / "demo" / "champion.json", OLD, "{")
    with pytest.raises(StorageError, match="Expected a champion record"):
        found(home)


def test_a_checkpoint_and_tokens_go_before_what_holds_them(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    folder, data = job(home, "tokenizer-a", 5.0), dataset(home, "a", 5.0)
    chosen = expired(home, RetentionPolicy(), now=lambda: NOW)
    assert [(one.path, one.size) for one in chosen] == [
        (folder / "checkpoint", 100), (data / "tokens", 100)
    ]  # fmt: skip
    for one in chosen:
        discard(one)
    assert found(home) == set()
    assert (folder / "result.json").exists()
    assert (data / "manifest.json").exists()


@pytest.mark.parametrize("name", [one.name for one in fields(RetentionPolicy)])
def test_a_negative_age_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 0 days, found -1.0; raise it"):
        RetentionPolicy(**{name: -1.0})
