"""The tag `champion`: on both repositories or on neither, on the Hub and in the local hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kronos_model.errors import ModelError
from kronos_model.hub_repository import Remote
from kronos_model.local_hub import LocalRepository
from kronos_model.publish import CHAMPION, ChampionTags, champion_tags, publish_local, tag_champion
from tests.support.loopback_hub import Fault, LoopbackHub

NONE = ChampionTags(tokenizer=None, predictor=None)
NAMES = ("demo-kronos-tokenizer", "demo-kronos-predictor")
FAULTS: dict[str, dict[str, object]] = {
    "403": {"status": 403},
    "409": {"status": 409},
    "412": {"status": 412},
    "429": {"status": 429},
    "503": {"status": 503},
    "cut before": {"cut": True},
    "cut after": {"cut": True, "late": True},
}


@dataclass
class Pair:
    """Two repositories with two nights each."""

    tokenizer: Remote | LocalRepository
    predictor: Remote | LocalRepository
    old: ChampionTags
    new: ChampionTags

    @property
    def now(self) -> ChampionTags:
        return champion_tags(self.tokenizer, self.predictor)

    def tag(self, revisions: ChampionTags) -> None:
        tag_champion(self.tokenizer, self.predictor, revisions)


def on_the_hub(hub: LoopbackHub) -> Pair:
    revisions = [
        ChampionTags(
            **{
                part: hub.add_repository(f"tester/{name}", {"README.md": night}, private=True)
                for part, name in zip(("tokenizer", "predictor"), NAMES, strict=True)
            }
        )
        for night in (b"first night", b"second night")
    ]
    remotes = [
        Remote(f"tester/{name}", token=hub.token, endpoint=hub.url, sleep=lambda _: None) for name in NAMES
    ]
    return Pair(*remotes, *revisions)


def in_the_local_hub(root: Path) -> Pair:
    folder = root / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    revisions = []
    for night in ("first night", "second night"):
        (folder / "README.md").write_text(night)
        tokenizer, predictor = (
            publish_local(folder, root / "hub", name, tag=f"night-{night[0]}").revision for name in NAMES
        )
        revisions.append(ChampionTags(tokenizer=tokenizer, predictor=predictor))
    return Pair(*(LocalRepository(root / "hub", name) for name in NAMES), *revisions)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(params=["hub", "local hub"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, hub: LoopbackHub) -> Pair:
    return on_the_hub(hub) if request.param == "hub" else in_the_local_hub(tmp_path)


def test_a_new_pair_has_no_champion(pair: Pair) -> None:
    assert pair.now == NONE


def test_the_tag_goes_to_both_and_from_there_to_the_next_night_and_back(pair: Pair) -> None:
    for revisions in (pair.old, pair.new, pair.old):
        pair.tag(revisions)
        assert pair.now == revisions
        pair.tag(revisions)
        assert pair.now == revisions


def test_the_tag_can_be_taken_off_both(pair: Pair) -> None:
    pair.tag(pair.new)
    pair.tag(NONE)
    assert pair.now == NONE


def test_the_other_tags_stay(pair: Pair) -> None:
    pair.tokenizer.set_tag("night-1", pair.old.tokenizer)
    pair.tag(pair.old)
    pair.tag(pair.new)
    assert (
        pair.tokenizer.tags().items() >= {"night-1": pair.old.tokenizer, CHAMPION: pair.new.tokenizer}.items()
    )


@pytest.mark.parametrize("part", ["tokenizer", "predictor"])
def test_a_revision_that_is_not_there_is_refused_before_anything_moves(pair: Pair, part: str) -> None:
    pair.tag(pair.old)
    wrong = ChampionTags(**{"tokenizer": pair.new.tokenizer, "predictor": pair.new.predictor, part: "0" * 40})
    with pytest.raises(ModelError, match=NAMES[part == "predictor"]):
        pair.tag(wrong)
    assert pair.now == pair.old


def test_one_repository_alone_is_not_tagged(pair: Pair) -> None:
    with pytest.raises(ValueError, match="both repositories or for neither"):
        pair.tag(ChampionTags(tokenizer=pair.new.tokenizer, predictor=None))


@pytest.mark.parametrize(
    ("tokenizer", "predictor"),
    [("new", "old"), ("old", "new"), ("none", "old"), ("new", "none"), ("none",) * 2],
)
def test_what_a_crash_between_two_moves_left_is_found_and_mended_either_way(
    pair: Pair, tokenizer: str, predictor: str
) -> None:
    places = {"old": pair.old, "new": pair.new, "none": NONE}
    for wanted in (pair.old, pair.new, NONE):
        pair.tokenizer.set_tag(CHAMPION, places[tokenizer].tokenizer)
        pair.predictor.set_tag(CHAMPION, places[predictor].predictor)
        assert pair.now == ChampionTags(
            tokenizer=places[tokenizer].tokenizer, predictor=places[predictor].predictor
        )
        pair.tag(wanted)
        assert pair.now == wanted


def test_a_second_repository_that_fails_for_good_moves_the_first_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.tag(pair.old)
    real = pair.predictor.set_tag

    def refuse(tag: str, revision: str | None) -> None:
        if revision == pair.new.predictor:
            raise ModelError("no more of this")
        real(tag, revision)

    monkeypatch.setattr(pair.predictor, "set_tag", refuse)
    with pytest.raises(
        ModelError, match="no more of this; the tag champion stays where it was: tokenizer at"
    ):
        pair.tag(pair.new)
    assert pair.now == pair.old


def test_an_interrupted_move_is_taken_back(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.tag(pair.old)
    real = pair.predictor.set_tag

    def interrupt(tag: str, revision: str | None) -> None:
        if revision == pair.new.predictor:
            raise KeyboardInterrupt
        real(tag, revision)

    monkeypatch.setattr(pair.predictor, "set_tag", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pair.tag(pair.new)
    assert pair.now == pair.old


def put(hub: LoopbackHub, tags: ChampionTags) -> None:
    """Set the tags behind the client's back."""
    for name, revision in zip(NAMES, (tags.tokenizer, tags.predictor), strict=True):
        hub.repositories[f"tester/{name}"].tags = {CHAMPION: revision} if revision else {}


def requests_of_a_move(hub: LoopbackHub, pair: Pair, was: ChampionTags) -> range:
    put(hub, was)
    before = len(hub.requests)
    pair.tag(pair.new)
    return range(len(hub.requests) - before)


@pytest.mark.parametrize(
    ("start", "fault"), [*(("old", fault) for fault in FAULTS), ("none", "403"), ("none", "cut after")]
)
def test_a_failure_at_any_request_leaves_the_tag_where_it_was_and_the_next_try_moves_it(
    hub: LoopbackHub, start: str, fault: str
) -> None:
    pair = on_the_hub(hub)
    was = pair.old if start == "old" else NONE
    requests = requests_of_a_move(hub, pair, was)
    assert len(requests) >= 8
    for struck in requests:
        put(hub, was)
        hub.faults[:] = [Fault(skip=struck, **FAULTS[fault])]
        failed = False
        try:
            pair.tag(pair.new)
        except ModelError:
            failed = True
        assert hub.faults[0].times == 0, "it was struck"
        assert pair.now == (was if failed else pair.new), struck
        pair.tag(pair.new)
        assert pair.now == pair.new


@pytest.mark.parametrize("fault", ["403", "503", "cut before"])
def test_a_hub_that_goes_away_at_any_request_is_put_right_when_it_is_back(
    hub: LoopbackHub, fault: str
) -> None:
    pair = on_the_hub(hub)
    for struck in requests_of_a_move(hub, pair, pair.old):
        put(hub, pair.old)
        hub.faults[:] = [Fault(skip=struck, times=999, **FAULTS[fault])]
        with pytest.raises(ModelError) as caught:
            pair.tag(pair.new)
        hub.faults.clear()
        if pair.now != pair.old:
            assert f"it was before: {pair.old}" in str(caught.value)
        wanted = pair.old if struck % 2 else pair.new
        pair.tag(wanted)
        assert pair.now == wanted


def test_a_local_revision_stays_as_it_was_when_a_newer_one_is_published(tmp_path: Path) -> None:
    pair = in_the_local_hub(tmp_path)
    predictor = LocalRepository(tmp_path / "hub", NAMES[1])
    assert (predictor.folder / "README.md").read_text() == "second night"
    assert pair.old.predictor is not None
    assert (predictor.revision_folder(pair.old.predictor) / "README.md").read_text() == "first night"
    assert (predictor.revision_folder(pair.old.predictor) / "model.safetensors").read_bytes() == b"weights"
