"""A night's publication struck at each of its requests: the champion's tag stays, and the next try finishes."""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.utils._http as hub_http
import pytest

from kronos_model.errors import ModelError
from kronos_model.hub_repository import Remote
from kronos_model.publish import ChampionTags, assemble_repository, publish_to_hub, tag_champion
from tests.support.loopback_hub import Fault, LoopbackHub

NAMES = ("tester/demo-kronos-tokenizer", "tester/demo-kronos-predictor")
STRIKES: dict[str, dict[str, object]] = {
    "403": {"status": 403},
    "cut after the Hub acted": {"cut": True, "late": True},
    "409": {"status": 409},
    "412": {"status": 412},
    "429": {"status": 429},
    "500": {"status": 500},
    "503 after the Hub acted": {"status": 503, "late": True},
    "cut before the Hub acted": {"cut": True},
    "no JSON": {"garbage": True},
}
QUICK = ("403", "412", "cut after the Hub acted")


class Site:
    """A Hub with one published night, and the drafts of the next."""

    def __init__(self, root: Path, hub: LoopbackHub) -> None:
        self.hub = hub
        self._drafts = {night: self._draft(root, night) for night in ("first", "second")}
        self.publish("first")
        self._before = copy.deepcopy((hub.repositories, hub.blobs))

    def _draft(self, root: Path, night: str) -> Path:
        model = root / night
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(night.encode())
        (model / "kronos_nightly.json").write_text("{}")
        return assemble_repository(model, root / f"{night}-draft", card=f"# {night}\n", pictures={})

    def publish(self, night: str) -> None:
        """As a promoted night does: both repositories, then the tag of the champion."""
        client = {"token": self.hub.token, "endpoint": self.hub.url, "sleep": lambda _: None}
        tokenizer, predictor = (
            publish_to_hub(
                self._drafts[night], name, private=True, tag=f"night-{night}", message=night, **client
            ).revision
            for name in NAMES
        )
        remotes = [Remote(name, **client) for name in NAMES]
        tag_champion(*remotes, ChampionTags(tokenizer=tokenizer, predictor=predictor))

    def rewind(self) -> None:
        """Back to after the first night."""
        self.hub.repositories, self.hub.blobs = copy.deepcopy(self._before)
        self.hub.faults.clear()

    @property
    def champion(self) -> list[bytes]:
        """The weights that the tag leads to."""
        return [self.hub.content(name, "model.safetensors", "champion") for name in NAMES]

    @property
    def commits(self) -> list[list[str]]:
        return [self.hub.repositories[name].messages for name in NAMES]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    no_waiting = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr(hub_http, "time", no_waiting)  # huggingface_hub's own retries
    with LoopbackHub() as hub:
        yield Site(tmp_path, hub)


def count_requests(site: Site) -> int:
    site.rewind()
    before = len(site.hub.requests)
    site.publish("second")
    return len(site.hub.requests) - before


def test_nothing_is_uploaded_twice_and_a_rollback_needs_no_upload(site: Site) -> None:
    uploads = lambda: [site.hub.count(*what) for what in (("PUT", "_lfs"), ("POST", "/commit/"))]  # noqa: E731
    once = uploads()
    site.publish("first")
    assert uploads() == once
    site.publish("second")
    assert uploads() == [once[0] + 1, once[1] + 2]  # one content for two repositories
    assert site.champion == [b"second"] * 2
    client = {"token": site.hub.token, "endpoint": site.hub.url}
    remotes = [Remote(name, **client) for name in NAMES]
    first = [remote.tags()["night-first"] for remote in remotes]
    tag_champion(*remotes, ChampionTags(tokenizer=first[0], predictor=first[1]))
    assert site.champion == [b"first"] * 2
    assert site.hub.content(NAMES[0], "model.safetensors") == b"second"
    assert uploads() == [once[0] + 1, once[1] + 2]


@pytest.mark.parametrize(
    "strike",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in STRIKES],
)
def test_a_failure_at_any_request_leaves_the_champion_and_the_next_try_finishes(
    site: Site, strike: str
) -> None:
    count = count_requests(site)
    assert count >= 40
    failed = 0
    for struck in range(count):
        site.rewind()
        site.hub.faults.append(Fault(skip=struck, **STRIKES[strike]))
        try:
            site.publish("second")
        except ModelError as error:
            failed += 1
            told = str(error)
        else:
            told = ""
        where = site.hub.requests[-1]
        assert site.hub.faults[0].times == 0, f"request {struck} was struck"
        assert site.champion == [b"first" if told else b"second"] * 2, (struck, where)
        assert site.hub.token not in told
        site.publish("second")
        assert site.champion == [b"second"] * 2
        assert site.commits == [["initial commit", "first", "second"]] * 2, (
            "one commit each, whatever happened"
        )
        tags = [site.hub.repositories[name].tags for name in NAMES]
        assert [sorted(one) for one in tags] == [["champion", "night-first", "night-second"]] * 2
    if strike != "no JSON":  # which may also be a download that differs
        assert (failed > 0) == (strike in ("403", "409", "412"))
