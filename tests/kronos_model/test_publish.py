"""Publishing, against a loopback Hub and an unmodified huggingface_hub."""

import hashlib
import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from kronos_model.errors import ModelError
from kronos_model.publish import (
    Published,
    assemble_repository,
    check_token,
    publish_local,
    publish_to_hub,
)
from kronos_model.publish_config import PublishConfig, repository_names
from tests.support.loopback_hub import Fault, LoopbackHub

REPO = "tester/demo-kronos-predictor"
CARD = "---\nlicense: mit\n---\n# Demo\n"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return repository(tmp_path, weights=b"weights")


def repository(root: Path, *, weights: bytes) -> Path:
    model = root / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"d_model": 8}')
    (model / "model.safetensors").write_bytes(weights)
    (model / "kronos_nightly.json").write_text('{"version": 1}')
    (root / "fan.png").write_bytes(b"\x89PNG")
    return assemble_repository(
        model, root / "repository", card=CARD, pictures={"forecast.png": root / "fan.png"}
    )


class Clock:
    """Records the waits instead of sleeping."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


def publish(hub: LoopbackHub, folder: Path, **changed: object) -> Published:
    options: dict = {
        "token": hub.token,
        "private": True,
        "tag": "night",
        "message": "A night's model",
        "endpoint": hub.url,
        "sleep": Clock(),
    }
    return publish_to_hub(folder, REPO, **{**options, **changed})


def test_an_assembled_repository_holds_model_card_and_pictures(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "forecast.png",
        "kronos_nightly.json",
        "model.safetensors",
    ]
    assert (folder / "README.md").read_text() == CARD


def test_a_config_can_be_read_without_torch():
    code = "import sys, kronos_model.publish, kronos_model.evaluation.gate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_calibration_travels_with_the_model(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "kronos_nightly.json", "calibration.json"):
        (model / name).write_text(name)
    repository = assemble_repository(model, tmp_path / "repository", card=CARD, pictures={})
    assert (repository / "calibration.json").read_text() == "calibration.json"


def test_a_folder_without_weights_is_not_assembled_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"config\.json is missing, so nothing can be published"):
        assemble_repository(tmp_path / "model", tmp_path / "repository", card=CARD, pictures={})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "../fan.png"])
def test_a_picture_cannot_replace_the_model(tmp_path, name):
    with pytest.raises(ValueError, match="picture"):
        assemble_repository(tmp_path, tmp_path / "repository", card=CARD, pictures={name: tmp_path})


def test_publishing_makes_one_commit_with_all_files_and_a_tag(hub, folder):
    published = publish(hub, folder)
    stored = hub.repositories[REPO]
    assert published == Published(
        repo_id=REPO,
        revision=stored.head,
        url=f"{hub.url}/{REPO}/tree/{stored.head}",
        uploaded=True,
    )
    assert stored.messages == ["initial commit", "A night's model"]
    assert stored.private
    assert stored.tags == {"night": published.revision}
    for path in folder.iterdir():
        assert hub.content(REPO, path.name, published.revision) == path.read_bytes()


def test_what_was_published_can_be_downloaded_by_an_unmodified_client(hub, folder, tmp_path):
    revision = publish(hub, folder).revision
    api = HfApi(endpoint=hub.url, token=hub.token)
    found = Path(api.snapshot_download(REPO, revision=revision, cache_dir=tmp_path / "cache"))
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_publishing_the_same_folder_again_uploads_and_downloads_nothing(hub, folder):
    first = publish(hub, folder)
    before = len(hub.requests)
    again = publish(hub, folder)
    assert again == Published(repo_id=REPO, revision=first.revision, url=first.url, uploaded=False)
    seen = [(one.method, one.path) for one in hub.requests[before:]]
    assert not [path for _, path in seen if "commit" in path or "preupload" in path or "resolve" in path]
    assert len(hub.repositories[REPO].messages) == 2


def test_a_new_model_becomes_a_second_commit_and_moves_the_tag(hub, folder, tmp_path):
    first = publish(hub, folder)
    second = publish(hub, repository(tmp_path, weights=b"better weights"))
    assert second.uploaded
    assert second.revision != first.revision
    assert hub.repositories[REPO].tags == {"night": second.revision}
    assert hub.content(REPO, "model.safetensors", first.revision) == b"weights"


def test_a_changed_card_alone_is_published_without_sending_the_weights_again(hub, folder):
    publish(hub, folder)
    (folder / "README.md").write_text(CARD + "More.\n")
    assert publish(hub, folder).uploaded
    assert hub.count("PUT", "_lfs") == 2  # weights and picture, once


def test_files_of_others_in_the_repository_stay(hub, folder):
    hub.add_repository(REPO, {"NOTES.md": b"mine"}, private=True)
    publish(hub, folder)
    assert hub.content(REPO, "NOTES.md") == b"mine"


def test_a_commit_of_somebody_else_in_between_is_never_overwritten(hub, folder):
    publish(hub, folder)
    (folder / "README.md").write_text("changed")
    hub.faults.append(
        Fault(
            method="POST",
            path="/commit/main$",
            meanwhile=lambda: hub.add_repository(REPO, {"README.md": b"theirs"}),
        )
    )
    with pytest.raises(ModelError, match="was changed by somebody else in the meantime") as caught:
        publish(hub, folder)
    assert hub.content(REPO, "README.md") == b"theirs"
    assert "publish again" in str(caught.value)


def test_a_commit_whose_answer_was_lost_is_found_and_not_repeated(hub, folder):
    clock = Clock()
    hub.faults.append(Fault(method="POST", path="/commit/main$", cut=True, late=True))
    published = publish(hub, folder, sleep=clock)
    assert published.uploaded
    assert len(hub.repositories[REPO].messages) == 2
    assert clock.waits == [1.0]


def test_a_lost_answer_followed_by_a_foreign_commit_is_a_concurrent_change(hub, folder):
    hub.faults.append(Fault(method="POST", path="/commit/main$", cut=True))

    def foreign_commit(_: float) -> None:
        hub.add_repository(REPO, {"README.md": b"theirs"})

    with pytest.raises(ModelError, match="somebody else"):
        publish(hub, folder, sleep=foreign_commit)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("path", ["repos/create", f"models/{REPO}$", "paths-info", "/commit/main$", "/tag/"])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub, folder, status, path):
    clock = Clock()
    method = "GET" if path.endswith("predictor$") else "POST"
    hub.faults.append(Fault(method=method, path=path, status=status, times=2))
    assert publish(hub, folder, sleep=clock).uploaded
    assert clock.waits == [1.0, 4.0]
    assert len(hub.repositories[REPO].messages) == 2


def test_retry_after_is_obeyed(hub, folder):
    clock = Clock()
    hub.faults += [
        Fault(method="POST", path="/commit/", status=429, headers={"Retry-After": "33"}),
        Fault(method="POST", path="/commit/", status=429, headers={"RateLimit": '"api";r=0;t=55'}),
    ]
    publish(hub, folder, sleep=clock)
    assert clock.waits == [33.0, 55.0]


def test_a_hub_that_stays_busy_ends_in_a_sentence(hub, folder):
    hub.faults.append(Fault(method="POST", path="/commit/", status=503, times=99))
    with pytest.raises(ModelError, match=r"HTTP 503 .*stayed busy over 4 attempts; publish again later"):
        publish(hub, folder)
    assert hub.repositories[REPO].tags == {}


def test_a_hub_that_answers_no_json_is_asked_again(hub, folder):
    hub.faults.append(Fault(method="GET", path=f"models/{REPO}$", garbage=True))
    assert publish(hub, folder).uploaded


def test_an_upload_that_breaks_off_leaves_the_repository_as_it_was(hub, folder):
    hub.faults.append(Fault(method="PUT", path="_lfs", status=403, times=99))
    with pytest.raises(ModelError, match="403"):
        publish(hub, folder)
    assert len(hub.repositories[REPO].messages) == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the token is not accepted; create one with write access"),
        (403, "the token may not do this; give it write access there"),
        (404, "it was not found"),
        (409, "changed by somebody else"),
        (412, "changed by somebody else"),
        (400, "the request was refused"),
    ],
)
def test_a_refused_commit_is_not_repeated_and_says_what_to_do(hub, folder, status, said):
    hub.faults.append(Fault(method="POST", path="/commit/", status=status, times=99))
    with pytest.raises(ModelError, match=said) as caught:
        publish(hub, folder)
    assert hub.count("POST", "/commit/") == 1
    assert REPO in str(caught.value)


def test_an_unreachable_hub_ends_in_a_sentence_that_names_it(folder):
    with LoopbackHub() as closed:
        pass
    clock = Clock()
    with pytest.raises(ModelError, match=r"cannot be reached; check the network and HF_ENDPOINT") as caught:
        publish(closed, folder, sleep=clock)
    assert closed.url in str(caught.value)
    assert clock.waits == [1.0, 4.0, 15.0]


def test_a_public_repository_does_not_pass_for_a_private_one(hub, folder):
    hub.add_repository(REPO, {}, private=False)
    with pytest.raises(ModelError, match="is public, but a private one was asked for"):
        publish(hub, folder)
    assert publish(hub, folder, private=False).uploaded


def test_what_the_hub_does_not_hold_after_all_is_an_error(hub, folder):
    def forget() -> None:
        head = hub.repositories[REPO].commits[hub.repositories[REPO].head]
        head["config.json"] = hub.store("config.json", b"other")

    publish(hub, folder)
    (folder / "README.md").write_text("changed")
    hub.faults.append(Fault(method="HEAD", path=r"/resolve/[0-9a-f]{40}/config\.json", meanwhile=forget))
    with pytest.raises(ModelError, match="does not hold what was uploaded at revision"):
        publish(hub, folder)


def test_the_token_never_appears_in_messages_logs_or_tracebacks(hub, folder, caplog):
    caplog.set_level(logging.DEBUG)
    for status in (400, 401, 403, 404, 412, 500):
        hub.faults.append(
            Fault(method="POST", path="repos/create", status=status, message=f"no: {hub.token}", times=4)
        )
        with pytest.raises(ModelError) as caught:
            publish(hub, folder)
        told = "".join(traceback.format_exception(caught.value))
        assert f"HTTP {status}" in told or status == 412
        assert hub.token not in told
        hub.faults.clear()
    # An HTTP library at debug level repeats what the server sent; this server sends the token back.
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.INFO or record.name.startswith("kronos_model")
    ]
    assert any("HTTP 500" in line for line in lines)
    assert hub.token not in "".join(lines)


def test_a_token_is_checked_before_the_work_starts(hub):
    assert check_token(hub.token, hub.url) == "tester"
    with pytest.raises(ModelError, match="the token is not accepted"):
        check_token("hf_wrong", hub.url)
    with pytest.raises(ModelError, match="needs a token, found none"):
        check_token("", hub.url)
    hub.role = "read"
    with pytest.raises(ModelError, match="can only read"):
        check_token(hub.token, hub.url)


def test_a_token_must_belong_to_the_namespace():
    with LoopbackHub(organisations=("desk",)) as hub:
        assert check_token(hub.token, hub.url, namespace="desk") == "desk"
        with pytest.raises(ModelError, match="belongs to tester, which is not a member of other"):
            check_token(hub.token, hub.url, namespace="other")


def test_a_local_hub_is_a_folder_that_is_written_once(folder, tmp_path):
    published = publish_local(folder, tmp_path / "hub", "demo-kronos-predictor", tag="night")
    target = tmp_path / "hub" / "demo-kronos-predictor"
    assert not published.uploaded
    assert published.url == target.as_uri()
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    inode = (target / "model.safetensors").stat().st_ino
    assert publish_local(folder, tmp_path / "hub", "demo-kronos-predictor", tag="night") == published
    assert (target / "model.safetensors").stat().st_ino == inode
    (folder / "README.md").write_text("changed")
    assert (
        publish_local(folder, tmp_path / "hub", "demo-kronos-predictor", tag="night").revision
        != published.revision
    )
    assert (target / "README.md").read_text() == "changed"


def test_a_model_folder_that_is_no_repository_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="is not a repository"):
        publish_local(tmp_path / "model", tmp_path / "hub", "x", tag="night")


def test_repositories_are_named_after_the_recipe():
    assert repository_names(PublishConfig(), "doge_1h", ["DOGEUSDT", "BTCUSDT"]) == (
        "doge_1h-kronos-tokenizer",
        "doge_1h-kronos-predictor",
    )


def test_the_repositories_of_a_single_series_can_be_named_after_its_symbol():
    config = PublishConfig(
        tokenizer_name="{symbol}-kronos-tokenizer", predictor_name="{recipe}-{symbol}-predictor"
    )
    assert repository_names(config, "doge_1h", ["DOGEUSDT"]) == (
        "DOGEUSDT-kronos-tokenizer",
        "doge_1h-DOGEUSDT-predictor",
    )
    with pytest.raises(ValueError, match=r"needs exactly one series, found 2; use \{recipe\} instead"):
        repository_names(config, "doge_1h", ["DOGEUSDT", "BTCUSDT"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"namespace": "a/b"}, "namespace"),
        ({"tokenizer_name": "{coin}"}, "placeholder"),
        ({"predictor_name": "{recipe"}, "predictor_name"),
        ({"predictor_name": "a b"}, "predictor_name"),
        ({"predictor_name": "{recipe.__class__}"}, "predictor_name"),
        ({"tokenizer_name": "x", "predictor_name": "x"}, "must differ"),
    ],
)
def test_a_publish_config_that_makes_no_names_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        PublishConfig(**wrong)


def test_a_child_process_uploads_to_the_loopback_hub_by_its_environment(hub, folder, tmp_path):
    code = (
        "import os, sys, pathlib; from kronos_model.publish import publish_to_hub; "
        f"print(publish_to_hub(pathlib.Path(sys.argv[1]), {REPO!r}, token=os.environ['HF_TOKEN'], "
        "private=True, tag='night', message='m').revision)"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ".", **hub.environment(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == hub.repositories[REPO].head
    digest = hashlib.sha256(b"weights").hexdigest()
    assert hub.repositories[REPO].commits[hub.repositories[REPO].head]["model.safetensors"].sha256 == digest
