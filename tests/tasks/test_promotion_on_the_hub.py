"""A rollback moves the Hub's tag of both repositories, on a loopback Hub and in the local one, or moves nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kronos_model.errors import ModelError
from kronos_model.local_hub import LocalRepository
from kronos_model.publish import publish_local, publish_to_hub
from tasks.promotion import mend, mismatches, promote_run, roll_back
from tasks.refs import PublishedRef
from tasks.tracking.registered import alias_version
from tests.support.champions import RECIPE, Nights, night_id
from tests.support.loopback_hub import Fault, LoopbackHub

NAMES = ("demo-kronos-tokenizer", "demo-kronos-predictor")


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        environment.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture(scope="module")
def finished(server: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Two nights, each promoted and published."""
    nights = Nights.at(tmp_path_factory.mktemp("published"))
    for number in (1, 2):
        nights.finish(number, published=_publish(nights, number, server))
    return nights


@pytest.fixture
def hub(server: LoopbackHub, finished: Nights) -> Iterator[LoopbackHub]:
    """The Hub with its tags as both nights left them, and so again after the test."""
    tags = {name: dict(repository.tags) for name, repository in server.repositories.items()}
    yield server
    for name, repository in server.repositories.items():
        repository.tags.clear()
        repository.tags.update(tags[name])
    server.faults.clear()


@pytest.fixture
def nights(finished: Nights, tmp_path: Path) -> Nights:
    """A copy of the two nights."""
    return finished.copy(tmp_path / "home")


def _publish(nights: Nights, number: int, hub: LoopbackHub) -> tuple[PublishedRef, ...]:
    """As a night does it, with a card of one line."""
    model, night = nights.train(number), night_id(number)
    found = []
    for name, folder in zip(NAMES, (model.tokenizer, model.predictor), strict=True):
        draft = nights.home.root / "draft" / name
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        (draft / "README.md").write_text(f"# Night {number}\n")
        local = publish_local(draft, nights.home.hub, name, tag=f"night-{night}")
        there = publish_to_hub(
            draft, f"tester/{name}", token=hub.token, private=True, tag=f"night-{night}",
            message=f"Night {night}", endpoint=hub.url, sleep=lambda seconds: None,
        )  # fmt: skip
        ref = PublishedRef(
            name=name, path=str(nights.home.hub / name), local_revision=local.revision, repo_id=there.repo_id,
            url=there.url, revision=there.revision, uploaded=True,
        )  # fmt: skip
        found.append(ref)
    return tuple(found)


def _tagged(nights: Nights, hub: LoopbackHub) -> set[str]:
    """The nights whose revisions bear the tag `champion`, of both repositories and in both places."""
    places = [hub.repositories[f"tester/{name}"].tags for name in NAMES]
    places += [LocalRepository(nights.home.hub, name).tags() for name in NAMES]
    return {
        next(
            (other for other, there in tags.items() if other != "champion" and there == tags["champion"]), "?"
        )
        for tags in places
    }


def _named(nights: Nights) -> str:
    version = alias_version(nights.home, RECIPE, "champion")
    assert version is not None
    return version.run_id


def test_a_rollback_moves_both_repositories_in_both_places_and_back_again(
    nights: Nights, hub: LoopbackHub
) -> None:
    assert _tagged(nights, hub) == {f"night-{night_id(2)}"}
    roll_back(nights.home, RECIPE, None, reason="worse")
    assert _tagged(nights, hub) == {f"night-{night_id(1)}"}
    assert _named(nights) == nights.run(1).run_id
    promote_run(nights.home, RECIPE, night_id(2), reason="better after all")
    assert _tagged(nights, hub) == {f"night-{night_id(2)}"}
    assert mismatches(nights.home, RECIPE) == ()


def test_a_hub_that_refuses_leaves_champion_alias_and_tags_where_they_were(
    nights: Nights, hub: LoopbackHub
) -> None:
    before = nights.champion()
    hub.faults.append(Fault(method="DELETE", path="demo-kronos-predictor/tag/champion", status=403))
    with pytest.raises(ModelError, match=r"the tag champion stays where it was"):
        roll_back(nights.home, RECIPE, None, reason="worse")
    assert nights.champion() == before
    assert _tagged(nights, hub) == {f"night-{night_id(2)}"}
    assert _named(nights) == nights.run(2).run_id
    assert roll_back(nights.home, RECIPE, None, reason="worse").night == night_id(1)
    assert _tagged(nights, hub) == {f"night-{night_id(1)}"}


def test_a_tag_that_shows_somebody_else_is_found_and_mended(nights: Nights, hub: LoopbackHub) -> None:
    repository = hub.repositories[f"tester/{NAMES[0]}"]
    repository.tags["champion"] = repository.tags[f"night-{night_id(1)}"]
    (found,) = mismatches(nights.home, RECIPE)
    assert "the tag champion is at" in found.found
    assert mend(nights.home, RECIPE) == (found,)
    assert _tagged(nights, hub) == {f"night-{night_id(2)}"}
    assert mend(nights.home, RECIPE) == ()


def test_without_a_token_a_mismatch_of_the_hub_is_unknown_and_stops_nothing(
    nights: Nights, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.publish.hub_token", lambda config: "")
    (found,) = mend(nights.home, RECIPE)
    assert not found.asked
    assert "needs a token" in found.found


def test_the_token_is_in_no_file_of_the_home(nights: Nights, hub: LoopbackHub) -> None:
    roll_back(nights.home, RECIPE, None, reason="worse")
    for path in nights.home.root.rglob("*"):
        if path.is_file():
            assert hub.token.encode() not in path.read_bytes(), path
