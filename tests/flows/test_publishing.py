"""A promoted model on its way to a Hub, here a loopback one: one commit per repository, and no trace of the token."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client

from flows import nightly as nightly_module
from kronos_model.errors import ModelError
from kronos_model.local_hub import LocalRepository
from kronos_model.publish_config import PublishConfig
from storage.candle_files import write_candles
from storage.lake import Lake
from storage.schema import SeriesKey
from tasks.publish import check_publishing, misplaced_tags
from tests.support.loopback_hub import Fault, LoopbackHub
from tests.support.publishing import PublishedNight
from tests.support.terminal import ROOT, Terminal

REPOSITORIES = ("tester/demo-kronos-tokenizer", "tester/demo-kronos-predictor")
WRONG = "hf_mistyped_secret"


@pytest.fixture
def again(
    published: PublishedNight,
    hub: LoopbackHub,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    prefect_api: None,
) -> Terminal:
    """`kronos` over the home that has published, with the Hub and its token in the environment."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    terminal.home = published.home.root
    return terminal


def _writes(hub: LoopbackHub) -> int:
    return sum(
        hub.count(method, ".*(commit|_lfs|tag|create|preupload).*") for method in ("POST", "PUT", "DELETE")
    )


def test_each_repository_has_one_commit_with_the_local_files_tagged_with_the_night_and_as_champion(
    published: PublishedNight, hub: LoopbackHub
) -> None:
    assert sorted(hub.repositories) == sorted(REPOSITORIES)
    for name in REPOSITORIES:
        repository = hub.repositories[name]
        assert repository.private
        assert repository.messages == ["initial commit", f"Night {published.champion.night}"]
        night = f"night-{published.champion.night}"
        assert repository.tags == {night: repository.head, "champion": repository.head}
        local = published.home.hub / name.partition("/")[2]
        files = {path.name: path.read_bytes() for path in local.iterdir()}
        assert {"README.md", "config.json", "model.safetensors", "kronos_nightly.json"} < set(files)
        assert {path: hub.content(name, path) for path in repository.commits[repository.head]} == files


def test_the_local_hub_has_the_same_tags_on_its_own_revisions(published: PublishedNight) -> None:
    for one in published.champion.published:
        repository = LocalRepository(published.home.hub, one["name"])
        revision = one["local_revision"]
        assert repository.tags() == {f"night-{published.champion.night}": revision, "champion": revision}
        folder = repository.revision_folder(revision)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in repository.folder.iterdir()
        }


def test_tags_that_a_crash_left_elsewhere_are_told_and_the_next_night_puts_them_back(
    published: PublishedNight, hub: LoopbackHub, again: Terminal
) -> None:
    predictor = hub.repositories[REPOSITORIES[1]]
    head, first = predictor.tags["champion"], next(iter(predictor.commits))
    assert misplaced_tags(published.home, published.champion) == ()
    predictor.tags["champion"] = first
    LocalRepository(published.home.hub, "demo-kronos-tokenizer").set_tag("champion", None)
    on_the_hub, locally = misplaced_tags(published.home, published.champion)
    assert f"predictor at {first[:12]}" in on_the_hub
    assert "tokenizer without one" in locally
    outcome = again(*published.arguments)
    assert outcome.code == 0, outcome.err
    assert predictor.tags["champion"] == head
    assert misplaced_tags(published.home, published.champion) == ()


def test_a_hub_that_does_not_tell_its_tags_does_not_stop_a_night(
    published: PublishedNight, hub: LoopbackHub, again: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(Fault(method="GET", path="/refs$", status=403))
    outcome = again(*published.arguments)
    assert outcome.code == 0, outcome.err
    assert "Nothing new" in outcome.out
    assert "The tag of the published champion could not be checked" in caplog.text


def test_a_night_that_is_published_though_it_was_not_promoted_gets_no_champion_tag(
    published: PublishedNight, hub: LoopbackHub, again: Terminal
) -> None:
    before = {name: dict(hub.repositories[name].tags) for name in REPOSITORIES}
    outcome = again(
        *published.arguments,
        "--set=publish.namespace=quants",
        "--set=publish.policy=always",
        "--set=publish.tokenizer_name=any-tokenizer",
        "--set=publish.predictor_name=any-predictor",
        "--set=gate.min_origins=10000",
    )
    assert outcome.code == 0, outcome.err
    assert "Gate: keep" in outcome.out
    for name in ("any-tokenizer", "any-predictor"):
        (tag,) = hub.repositories[f"quants/{name}"].tags
        assert tag.startswith("night-")
        assert list(LocalRepository(published.home.hub, name).tags()) == [tag]
        assert "verdict: **keep**" in hub.content(f"quants/{name}", "README.md").decode()
    assert {name: hub.repositories[name].tags for name in REPOSITORIES} == before


def test_the_champions_forecast_is_shown_and_exported(
    published: PublishedNight, again: Terminal, tmp_path: Path
) -> None:
    target = tmp_path / "forecasts.json"
    outcome = again("forecast", *published.options(), f"--export={target}")
    assert outcome.code == 0, outcome.err
    assert f"8 rows written to {target}" in outcome.out
    assert {one["model_digest"] for one in json.loads(target.read_text())} == {
        published.champion.predictor_digest
    }


def test_the_token_may_come_from_a_prefect_secret_block(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, prefect_api: None
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    config = PublishConfig(namespace="tester", token_block="hub-of-this-test")
    with pytest.raises(ModelError, match="needs a token, found none"):
        check_publishing.fn(config)
    Secret(value=hub.token).save("hub-of-this-test")
    check_publishing.fn(config)
    monkeypatch.setenv("HF_TOKEN", WRONG)
    with pytest.raises(ModelError, match="not accepted"):  # the environment wins
        check_publishing.fn(config)


def test_the_terminal_shows_the_whole_night(published: PublishedNight) -> None:
    for shown in (
        "Candles",
        "Windows:",
        "Validation loss",
        "Leaderboard",
        "Gate: promote",
        "Forecast",
        "Run time",
    ):
        assert shown in published.outcome.out


def test_the_champion_and_the_terminal_name_the_revisions(
    published: PublishedNight, hub: LoopbackHub
) -> None:
    for name, one in zip(REPOSITORIES, published.champion.published, strict=True):
        head = hub.repositories[name].head
        assert (one["revision"], one["uploaded"]) == (head, True)
        assert f"{hub.url}/{name}/tree/{head}" in published.outcome.out


def test_the_cards_name_each_other_on_the_hub(hub: LoopbackHub) -> None:
    for name in REPOSITORIES:
        card = hub.content(name, "README.md").decode()
        assert all(repository in card for repository in REPOSITORIES)


def test_the_code_of_the_card_downloads_the_pair_and_forecasts_with_upstream_and_with_ours(
    published: PublishedNight, hub: LoopbackHub, tmp_path: Path
) -> None:
    pytest.importorskip("model")
    key = SeriesKey.parse("spot:BTCUSDT", "1h")
    write_candles(Lake(published.home.lake).read(key), tmp_path / "candles.csv")
    card = hub.content(REPOSITORIES[1], "README.md", "champion").decode()
    theirs, ours = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    code = f"{theirs}\nassert forecast.shape == (4, 6)\n{ours}\nassert paths.shape == (10, 4, 6)"
    environment = hub.environment(tmp_path / "hub") | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | environment, check=True)
    assert hub.count("GET", f"/{REPOSITORIES[1]}/resolve/.*model.safetensors") >= 1


def test_the_card_shows_pictures_that_are_in_the_repository(hub: LoopbackHub) -> None:
    for name in REPOSITORIES:
        shown = re.findall(r"!\[.+\]\((.+)\)", hub.content(name, "README.md").decode())
        assert shown == ["fans.png", "skill.png", "losses.png"]
        assert all(hub.content(name, one).startswith(b"\x89PNG") for one in shown)


def test_the_same_night_again_uploads_nothing(
    published: PublishedNight, hub: LoopbackHub, again: Terminal
) -> None:
    before = _writes(hub)
    outcome = again(*published.arguments)
    assert outcome.code == 0, outcome.err
    assert "Nothing new" in outcome.out
    assert _writes(hub) == before


def test_a_night_cut_off_after_publishing_publishes_the_same_without_a_commit(
    published: PublishedNight, hub: LoopbackHub, again: Terminal
) -> None:
    shutil.rmtree(published.home.models / "demo" / "nights")
    heads = {name: hub.repositories[name].head for name in REPOSITORIES}
    uploads = hub.count("PUT", "/_lfs/")
    outcome = again(*published.arguments)
    assert outcome.code == 0, outcome.err
    assert "Nothing new" not in outcome.out
    assert {name: hub.repositories[name].head for name in REPOSITORIES} == heads
    assert [len(hub.repositories[name].messages) for name in REPOSITORIES] == [2, 2]
    assert hub.count("PUT", "/_lfs/") == uploads
    assert [hub.repositories[name].tags for name in REPOSITORIES] == [
        {f"night-{published.champion.night}": head, "champion": head} for head in heads.values()
    ]


@pytest.mark.parametrize(
    ("token", "namespace", "role", "words"),
    [
        (WRONG, "tester", "write", ["HTTP 401", "the token is not accepted", "set HF_TOKEN"]),
        ("", "tester", "write", ["needs a token", "found none", "set HF_TOKEN"]),
        (
            "right",
            "strangers",
            "write",
            ["belongs to tester", "not a member of strangers", "namespace=tester"],
        ),
        ("right", "quants", "read", ["can only read", "create one with write access"]),
    ],
    ids=["wrong", "none", "not a member", "read only"],
)
def test_a_token_that_cannot_publish_ends_the_night_before_anything_is_fetched_or_trained(
    token: str,
    namespace: str,
    role: str,
    words: list[str],
    published: PublishedNight,
    hub: LoopbackHub,
    again: Terminal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again.home = tmp_path / "fresh"
    secret = hub.token if token == "right" else token
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setattr(hub, "role", role)
    complaint = again.refused(*published.arguments, f"--set=publish.namespace={namespace}")
    for word in words:
        assert word in complaint
    assert not secret or secret not in complaint
    assert {path.name for path in again.home.iterdir()} <= {".lock", ".lock.json"}, "nothing was begun"


def test_a_wrong_token_does_not_matter_where_nothing_is_to_be_published(
    published: PublishedNight, again: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRONG)
    monkeypatch.setattr(nightly_module, "base_model", _reached)
    with pytest.raises(AssertionError, match="the check has passed"):
        again(*published.arguments, "--set=publish.policy=never")


def _reached(*_: object, **__: object) -> None:
    raise AssertionError("the check has passed")


def test_the_token_is_in_no_file_of_the_home_nor_in_what_was_said(
    published: PublishedNight, hub: LoopbackHub
) -> None:
    token = hub.token.encode()
    files = [path for path in published.home.root.rglob("*") if path.is_file()]
    database = b"".join(path.read_bytes() for path in published.home.prefect.glob("prefect.db*"))
    assert b'"publish.namespace"' in database, "the parameters of the flow run are in there"
    assert b"published tester/demo-kronos-predictor at" in database, "its log is in there, too"
    assert published.home.root / "mlflow.db" in files
    assert [path for path in files if token in path.read_bytes()] == []
    assert hub.token not in published.outcome.out + published.outcome.err


def test_the_token_is_in_no_parameter_log_or_artifact_of_prefect(
    published: PublishedNight,
    hub: LoopbackHub,
    again: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes = [again(*published.arguments)]
    monkeypatch.setenv("HF_TOKEN", WRONG)
    outcomes.append(again(*published.arguments))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        artifacts = client.read_artifacts()
    assert runs
    kept = "".join(one.model_dump_json() for one in [*runs, *artifacts])
    assert "publish.namespace" in kept
    said = kept + caplog.text + "".join(one.out + one.err for one in outcomes)
    assert [secret for secret in (hub.token, WRONG) if secret in said] == []


@pytest.mark.parametrize(
    "setting", ["dataset.horizon=2", "dataset.lookback=12", "dataset.horizon=48", "interval=4h"]
)
def test_what_the_champion_was_not_made_for_is_refused_before_anything_is_fetched(
    published: PublishedNight, terminal: Terminal, setting: str
) -> None:
    terminal.home = published.home.root
    complaint = terminal.refused("forecast", *published.options(), "--set", setting)
    made = "interval 1h, dataset.lookback 24 and dataset.horizon 4, which the champion of demo was made for"
    assert f"Expected {made}, found " in complaint
    assert "train a champion for it with `kronos run --recipe demo`" in complaint
