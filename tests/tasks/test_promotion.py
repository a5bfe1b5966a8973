"""Who serves, and the mirrors of it, over a real MLflow store: promotion, rollback, crashes in between."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows.site.doctor import examine
from kronos_model.publish_config import PublishConfig
from storage import registry
from storage.errors import StorageError
from storage.registry import champions, read_champion, read_history
from tasks import promotion
from tasks.promotion import mend, mismatches, promote_run, roll_back
from tasks.refs import VerdictRef
from tasks.tracking.registered import alias_version, move_alias, registered_versions
from tests.support.champions import RECIPE, Nights, night_id


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Night 1 and 2 were promoted, night 3 was rejected."""
    nights = Nights.at(tmp_path_factory.mktemp("nights"))
    for number, promoted in ((1, True), (2, True), (3, False)):
        nights.finish(number, promoted=promoted)
    return nights


@pytest.fixture
def nights(three: Nights, tmp_path: Path) -> Nights:
    """A copy of the three nights."""
    return three.copy(tmp_path / "home")


def _aliases(nights: Nights) -> dict[str, str]:
    """Alias to the night whose model it names."""
    client = MlflowClient(nights.home.mlflow_uri)
    (model,) = client.search_registered_models(f"name = 'kronos-{RECIPE}'")
    return {
        alias: client.get_model_version(model.name, number).tags["kronos.night"]
        for alias, number in model.aliases.items()
    }


def test_every_night_registers_a_version_and_the_aliases_name_champion_and_challenger(nights: Nights) -> None:
    client = MlflowClient(nights.home.mlflow_uri)
    found = {
        one.tags["kronos.night"]: one for one in client.search_model_versions(f"name = 'kronos-{RECIPE}'")
    }
    assert sorted(found) == [night_id(number) for number in (1, 2, 3)]
    assert {one.tags["kronos.verdict"] for one in found.values()} == {"promote", "reject"}
    tags = found[night_id(2)].tags
    assert tags["kronos.dataset_digest"] == nights.dataset.digest
    assert tags["kronos.config_digest"] == "c" * 16
    assert tags["kronos.recipe"] == RECIPE
    assert found[night_id(2)].run_id == nights.run(2).run_id
    assert _aliases(nights) == {"champion": night_id(2), "challenger": night_id(3)}


def test_a_night_that_is_run_again_registers_no_second_version(nights: Nights) -> None:
    before = registered_versions(nights.home, RECIPE)
    number = nights.register(3, VerdictRef(verdict="keep", reasons=()))
    assert registered_versions(nights.home, RECIPE) == before
    version = MlflowClient(nights.home.mlflow_uri).get_model_version(f"kronos-{RECIPE}", number)
    assert version.tags["kronos.verdict"] == "keep"


def test_a_rollback_moves_champion_and_alias_to_the_one_before_and_records_why(nights: Nights) -> None:
    second = nights.champion()
    roll_back(nights.home, RECIPE, None, reason="spreads too narrow since Tuesday")
    champion = nights.champion()
    assert champion.night == night_id(1)
    assert (champion.by, champion.reasons) == ("kronos rollback", ("spreads too narrow since Tuesday",))
    assert (nights.home.root / champion.predictor / "model.safetensors").exists()
    assert _aliases(nights)["champion"] == night_id(1)
    last = read_history(nights.home, RECIPE)[-1]
    assert (last.champion, last.replaced) == (champion, second.digest)
    assert mismatches(nights.home, RECIPE) == ()


def test_rolling_back_twice_goes_two_champions_back_and_then_there_is_none(nights: Nights) -> None:
    nights.finish(4)
    assert [roll_back(nights.home, RECIPE, None, reason="worse").night for _ in range(2)] == [
        night_id(2),
        night_id(1),
    ]
    with pytest.raises(
        StorageError, match=r"before the present one, found that 1000000000000000 was the first"
    ):
        roll_back(nights.home, RECIPE, None, reason="worse")
    assert nights.champion().night == night_id(1)


@pytest.mark.parametrize("named", ["night", "run"])
def test_a_rollback_goes_to_any_champion_by_the_beginning_of_its_night_or_run(
    named: str, nights: Nights
) -> None:
    nights.finish(4)
    run = night_id(1)[:6] if named == "night" else nights.run(1).run_id[:12]
    assert roll_back(nights.home, RECIPE, run, reason="the best so far").night == night_id(1)
    assert roll_back(nights.home, RECIPE, night_id(4), reason="no, this one").night == night_id(4)
    assert [one.champion.night[0] for one in read_history(nights.home, RECIPE)] == ["1", "2", "4", "1", "4"]
    assert [one.night[0] for one in champions(nights.home, RECIPE)] == ["1", "2", "4"]


def test_a_night_that_the_gate_rejected_serves_only_after_a_promotion_by_hand(nights: Nights) -> None:
    with pytest.raises(StorageError, match=r"none that begins with '3000'; champions of demo: 1000.*, 2000"):
        roll_back(nights.home, RECIPE, "3000", reason="try it")
    promote_run(nights.home, RECIPE, "3000", reason="a desk's decision")
    champion = nights.champion()
    assert (champion.night, champion.by, champion.reasons) == (
        night_id(3),
        "kronos promote",
        ("a desk's decision",),
    )
    assert _aliases(nights)["champion"] == night_id(3)
    shutil.rmtree(nights.home.jobs / "night-3")
    assert read_champion(nights.home, RECIPE) == champion, "its weights were kept"
    assert roll_back(nights.home, RECIPE, None, reason="that was wrong").night == night_id(2)


@pytest.mark.parametrize("run", ["", "100", "9999", "zzzz"])
def test_a_run_that_is_unknown_or_too_short_is_refused_with_those_there_are(run: str, nights: Nights) -> None:
    before = nights.champion()
    with pytest.raises(
        StorageError, match=r"found none that begins with .*finished nights of demo: 1000.*3000"
    ):
        promote_run(nights.home, RECIPE, run, reason="why not")
    assert nights.champion() == before


def test_a_champion_that_serves_already_is_not_installed_again(nights: Nights) -> None:
    with pytest.raises(StorageError, match=r"found that night 2000000000000000 serves already, since 20"):
        promote_run(nights.home, RECIPE, "2000", reason="again")
    assert len(read_history(nights.home, RECIPE)) == 2


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_run_whose_weights_are_gone_or_changed_is_refused_and_nothing_moves(
    damage: str, nights: Nights
) -> None:
    before, aliases = nights.champion(), _aliases(nights)
    weights = nights.home.root / champions(nights.home, RECIPE)[0].predictor / "model.safetensors"
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(
        StorageError, match=r"Expected the weights.* of night 1000000000000000 in .*restore that"
    ):
        roll_back(nights.home, RECIPE, None, reason="back")
    assert (nights.champion(), _aliases(nights)) == (before, aliases)


def test_a_rollback_works_when_the_weights_of_the_present_champion_are_gone(nights: Nights) -> None:
    shutil.rmtree(nights.home.root / nights.champion().predictor)
    with pytest.raises(StorageError, match=r"`kronos rollback --recipe demo` to an earlier champion"):
        read_champion(nights.home, RECIPE)
    roll_back(nights.home, RECIPE, None, reason="the disk lost it")
    assert nights.champion().night == night_id(1)


@pytest.mark.parametrize("step", ["move_alias", "write_champion"])
def test_a_crash_between_the_steps_leaves_the_old_champion_and_is_mended(
    step: str, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nights.champion()
    with monkeypatch.context() as patch:

        def crash(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(promotion, step, crash)
        with pytest.raises(KeyboardInterrupt):
            roll_back(nights.home, RECIPE, None, reason="back")
    assert nights.champion() == before
    moved = step == "write_champion"
    assert bool(mismatches(nights.home, RECIPE)) == moved
    assert [finding.state for finding in examine(nights.home) if "champion" in finding.what] == ["ok"] + [
        "bad"
    ] * moved
    mend(nights.home, RECIPE)
    assert mismatches(nights.home, RECIPE) == ()
    assert _aliases(nights)["champion"] == night_id(2)
    assert roll_back(nights.home, RECIPE, None, reason="back").night == night_id(1)


def test_a_crash_before_the_history_was_written_is_noted_by_the_next_mending(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = registry.settle_history, iter(range(9))

    def crash(*arguments: object) -> None:
        if next(calls) == 1:  # after champion.json
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(registry, "settle_history", crash)
    with pytest.raises(KeyboardInterrupt):
        roll_back(nights.home, RECIPE, None, reason="back")
    assert nights.champion().night == night_id(1)
    assert len(read_history(nights.home, RECIPE)) == 2
    mend(nights.home, RECIPE)
    last = read_history(nights.home, RECIPE)[-1]
    assert (last.champion.night, last.champion.reasons) == (night_id(1), ("back",))
    mend(nights.home, RECIPE)
    assert len(read_history(nights.home, RECIPE)) == 3


def test_an_alias_that_was_moved_or_removed_by_hand_is_moved_back(nights: Nights) -> None:
    for number in ("1", None):
        move_alias(nights.home, RECIPE, "champion", number)
        (found,) = mend(nights.home, RECIPE)
        shown = "version 1" if number else "no version"
        assert found.found == f"MLflow's alias champion of kronos-demo is {shown}, should be version 2"
        version = alias_version(nights.home, RECIPE, "champion")
        assert version is not None
        assert version.number == "2"


def test_a_night_does_not_promote_over_a_rollback_that_came_in_between(nights: Nights) -> None:
    judged_with = nights.champion()
    roll_back(nights.home, RECIPE, None, reason="back")
    with pytest.raises(
        StorageError, match=r"found that kronos rollback changed it meanwhile; run the night again"
    ):
        promotion.promote.fn(
            nights.home,
            RECIPE,
            nights.train(3),
            night=night_id(3),
            mlflow_run=nights.run(3).run_id,
            verdict=VerdictRef(verdict="promote", reasons=("better",)),
            published=(),
            judged_against=judged_with,
            serving=judged_with,
            config=PublishConfig(policy="never"),
        )
    assert nights.champion().night == night_id(1)


def test_a_night_that_promotes_again_after_it_was_cut_off_keeps_since_when_by_whom_and_why(
    nights: Nights,
) -> None:
    promote_run(nights.home, RECIPE, night_id(3), reason="a desk's decision")
    before, history = nights.champion(), read_history(nights.home, RECIPE)
    again = promotion.promote.fn(
        nights.home,
        RECIPE,
        nights.train(3),
        night=night_id(3),
        mlflow_run=nights.run(3).run_id,
        verdict=VerdictRef(verdict="promote", reasons=("better than the champion",)),
        published=(),
        judged_against=before.previous,
        serving=before,
        config=PublishConfig(policy="never"),
    )
    told = (before.since, "kronos promote", ("a desk's decision",))
    assert (again.since, again.by, again.reasons) == told
    assert (nights.champion().since, nights.champion().by, nights.champion().reasons) == told
    assert read_history(nights.home, RECIPE) == history


def test_a_home_from_before_there_was_a_history_gets_one_with_the_champion_before(nights: Nights) -> None:
    folder = nights.home.models / RECIPE
    (folder / "history.jsonl").unlink()
    record = json.loads((folder / "champion.json").read_text())
    del record["by"], record["previous"]["by"]
    (folder / "champion.json").write_text(json.dumps(record))
    assert roll_back(nights.home, RECIPE, None, reason="back").night == night_id(1)
    assert [one.champion.night[0] for one in read_history(nights.home, RECIPE)] == ["1", "2", "1"]


def test_a_torn_history_is_named_with_its_line_and_remedy(nights: Nights) -> None:
    path = nights.home.models / RECIPE / "history.jsonl"
    path.write_text(path.read_text() + '{"replaced": null, "champ')
    with pytest.raises(
        StorageError, match=r"Expected a champion in line 3 of .*history.jsonl, found something else"
    ):
        roll_back(nights.home, RECIPE, None, reason="back")


def test_an_mlflow_that_is_away_leaves_the_champion_where_it_was(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    before = nights.champion()
    with pytest.raises(MlflowException):
        roll_back(nights.home, RECIPE, None, reason="back")
    assert nights.champion() == before
