"""A site that is stopped, or killed, in the middle of a night, and started again: minutes each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.support.nights import quick_settings, write_klines
from tests.support.prefect_site import Site, prefect_site, restart, wait_for
from tests.support.webhook import Webhook, webhook

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

LONG = {"tokenizer.epochs": 5_000}


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as hook:
        yield hook


@pytest.fixture
def site(tmp_path: Path, hook: Webhook) -> Iterator[Site]:
    write_klines(tmp_path / "klines")
    with prefect_site(tmp_path, notify=hook.url) as site:
        yield site


def _night(site: Site, **settings: Any) -> str:
    return site.run(
        "nightly", {"recipe": "demo", "settings": quick_settings(site.folder / "klines", **settings)}
    )


def _statuses(site: Site) -> list[str]:
    """Of all MLflow runs, by their age."""
    client = MlflowClient(site.mlflow)
    experiment = client.get_experiment_by_name("kronos-demo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run.info.status for run in runs]


def test_a_site_stopped_in_the_middle_of_a_night_leaves_no_run_running_and_goes_on(
    site: Site, hook: Webhook
) -> None:
    run = _night(site, **LONG)
    job = wait_for(site.training, within_s=300, what="the training to begin")
    assert site.up is not None
    site.up.terminate()
    assert site.up.wait(180) == 0
    assert site.training() is None
    restart(site)
    (ended,) = site.finished(run, within_s=30)
    assert ended["state_type"] == "CRASHED", ended["state"]
    assert site.slots() == 0
    assert (job / "checkpoint").is_dir()
    next_run = _night(site)
    (done,) = site.finished(next_run, within_s=300)
    assert done["state_type"] == "COMPLETED", done["state"]
    assert _statuses(site) == ["KILLED", "FINISHED"]
    wait_for(lambda: hook.told, within_s=60, what="the webhook to be told")
    assert " crashed: " in hook.told[0]["text"]


def test_a_site_killed_in_the_middle_of_a_night_is_written_off_and_the_next_night_runs(site: Site) -> None:
    run = _night(site, **LONG)
    wait_for(site.training, within_s=300, what="the training to begin")
    site.kill()
    restart(site)
    (ended,) = site.finished(run, within_s=600)  # 120 s after its last heartbeat, by the automation
    assert ended["state_type"] == "CRASHED", ended["state"]
    assert "was not heard of for 120 s" in ended["state"]["message"]
    wait_for(lambda: site.slots() == 0, within_s=60, what="its concurrency slot to be free")
    (done,) = site.finished(_night(site), within_s=300)
    assert done["state_type"] == "COMPLETED", done["state"]
    assert _statuses(site) == ["KILLED", "FINISHED"]
