"""An evaluation as a task: post-processed models in, scores and forecasts on disk, and what is refused or marked."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import tasks.evaluate as module
from kronos_model.errors import DataError
from kronos_model.evaluation.config import EvaluationConfig
from kronos_model.evaluation.gate import GatePolicy
from kronos_model.evaluation.leaderboard import leaderboard
from kronos_model.evaluation.scores import Scores
from kronos_model.hub import write_metadata
from kronos_model.normalise import Normaliser
from kronos_model.postprocess import PostProcess
from kronos_model.windows import WindowDataset
from storage.dataset import DatasetConfig
from storage.layout import Home
from tasks.refs import PairRef, ScoresRef, TrainedRef
from tests.support.datasets import build, make_candles
from tests.support.scores import planted_scores
from tests.support.training import Ground, make_ground

CONFIG = EvaluationConfig(
    origins=4, samples=4, postprocess_origins=10, sampling_origins=0, batch_origins=3, keep_paths=True
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.at(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def base(ground: Ground) -> PairRef:
    pair = ground.pair
    return PairRef(
        tokenizer=str(pair.tokenizer),
        tokenizer_digest=pair.tokenizer_digest,
        predictor=str(pair.predictor),
        predictor_digest=pair.predictor_digest,
        origin="scratch",
        lineage="scratch",
    )


@pytest.fixture(scope="module")
def challenger(ground: Ground, home: Home, base: PairRef) -> PairRef:
    return module.postprocess.fn(home, ground.dataset, base, CONFIG, role="base", seed=1)


def walk(home: Home, ground: Ground, models: dict[str, PairRef]) -> ScoresRef:
    return module.evaluate.fn(home, ground.dataset, models, CONFIG, seed=1)


@pytest.fixture(scope="module")
def scored(ground: Ground, home: Home, base: PairRef, challenger: PairRef) -> ScoresRef:
    return walk(home, ground, {"challenger": challenger, "base": base})


def test_a_post_processed_pair_is_the_same_weights_under_another_digest(ground, home, base, challenger):
    assert challenger.predictor_digest != base.predictor_digest
    assert challenger.tokenizer == base.tokenizer
    ours, theirs = (Path(one.predictor) / "model.safetensors" for one in (challenger, base))
    assert ours.read_bytes() == theirs.read_bytes()
    found = PostProcess.load(Path(challenger.predictor))
    assert (found.origins, found.lookback, found.horizon, found.interval) == (20, 16, 4, "1h")
    assert PostProcess.load(Path(base.predictor)) is None
    fit = partial(module.postprocess.fn, home, ground.dataset, role="base", seed=1)
    assert fit(challenger, CONFIG) == challenger
    assert fit(base, CONFIG) == challenger
    assert fit(base, replace(CONFIG, postprocess=False)) == base


def test_post_processing_for_other_windows_beside_the_weights_is_fitted_anew(
    ground, home, base, challenger, tmp_path
):
    shutil.copytree(challenger.predictor, tmp_path / "predictor")
    replace(PostProcess.load(tmp_path / "predictor"), lookback=99).save(tmp_path / "predictor")
    other = replace(base, predictor=str(tmp_path / "predictor"), predictor_digest="other")
    again = module.postprocess.fn(home, ground.dataset, other, CONFIG, role="base", seed=1)
    assert again.predictor != other.predictor
    assert PostProcess.load(Path(again.predictor)) == PostProcess.load(Path(challenger.predictor))


def test_few_validation_origins_leave_the_references_alone_and_the_verdict_says_so(ground, home, base):
    config = replace(CONFIG, postprocess_origins=4)
    alone = module.postprocess.fn(home, ground.dataset, base, config, role="challenger", seed=1)
    assert PostProcess.load(Path(alone.predictor)).pool["network"] == 0
    verdict = module.gate.fn(
        walk(home, ground, {"challenger": alone, "base": base}), GatePolicy(), champion=False
    )
    assert verdict.served == "references"
    told = (
        "note: post-processing of challenger, blend is left out: not tried: half of the validation range has "
        "4 origins, and 9 are needed"
    )
    assert told in verdict.reasons
    assert any("its weight in the blend is 0 %" in reason for reason in verdict.reasons)


def test_every_forecast_and_path_is_kept_and_the_leaderboard_follows_from_them(scored):
    table = pl.read_parquet(Path(scored.path) / "forecasts.parquet")
    rows = {row["model"]: row for row in scored.leaderboard if row["series"] == "all"}
    assert set(rows) >= {"challenger", "blend", "base", "last_value", "ewma", "bootstrap", "references"}
    assert len(table) == len(rows) * scored.origins * 4
    covered = table.group_by("model").agg(
        ((pl.col("q0.05") <= pl.col("realised")) & (pl.col("realised") <= pl.col("q0.95"))).mean()
    )
    for model, share in covered.iter_rows():
        assert share == pytest.approx(rows[model]["coverage_90"], abs=0.02)  # rounding at the ends
    paths = pl.read_parquet(Path(scored.path) / "paths.parquet")
    assert len(paths.filter(pl.col("model") == "challenger")) == scored.origins * 4
    assert [path.name for path in Path(scored.path).parent.iterdir() if path.suffix] == []


def test_a_finished_evaluation_is_recognised_and_an_interrupted_one_goes_on(ground, home, base, monkeypatch):
    models = {"base": base}
    seen: list[int] = []
    frame = module.forecast_frame

    def dying(*made: Any, **told: Any) -> pl.DataFrame:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return frame(*made, **told)

    monkeypatch.setattr(module, "forecast_frame", dying)
    with pytest.raises(KeyboardInterrupt):
        walk(home, ground, models)
    found = walk(home, ground, models)
    assert walk(home, ground, models) == found
    assert len(seen) == 4  # eight origins are three batches, the second of which is made twice
    assert (
        len(pl.read_parquet(Path(found.path) / "forecasts.parquet"))
        == len(Scores.load(Path(found.path)).models) * 32
    )


class Killed(BaseException):
    """A process that is killed: nothing of it changes a file any more."""


CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink", "link")


def killed_at(patch: pytest.MonkeyPatch, dies_at: int) -> None:
    """Once every batch is forecast, let the process die before it changes a name for the `dies_at`-th time."""
    left, walk_forward = count(1), module.walk_forward

    def mortal(change: Callable[..., object]) -> Callable[..., object]:
        def changed(*arguments: Any, **named: Any) -> object:
            if next(left) >= dies_at:
                raise Killed
            return change(*arguments, **named)

        return changed

    def walked(*arguments: Any, **named: Any) -> Scores:
        scores = walk_forward(*arguments, **named)
        for name in CHANGES:
            patch.setattr(os, name, mortal(getattr(os, name)))
        return scores

    patch.setattr(module, "walk_forward", walked)


def test_an_evaluation_that_is_killed_while_it_finishes_is_finished_as_if_it_had_not_been(
    ground, base, tmp_path, monkeypatch
):
    def finish(home: Home, dies_at: int) -> Path:
        with monkeypatch.context() as patch:
            killed_at(patch, dies_at)
            return Path(walk(home, ground, {"base": base}).path)

    begun = Home.at(tmp_path / "begun")
    with pytest.raises(Killed):
        finish(begun, 1)  # with all batches and nothing else
    undisturbed = _tables(finish(_copy(begun, tmp_path / "undisturbed"), 1_000_000))
    deaths = 0
    for dies_at in count(1):
        home = _copy(begun, tmp_path / str(dies_at))
        try:
            found = finish(home, dies_at)
        except Killed:
            deaths += 1
            found = finish(home, 1_000_000)
        for name, rows in _tables(found).items():
            assert rows.equals(undisturbed[name]), f"killed before change {dies_at}: other {name}"
        assert [path.name for path in home.jobs.glob("evaluate-*")] == [found.name]
        if deaths < dies_at:
            break
    assert deaths > 10


def _copy(home: Home, root: Path) -> Home:
    shutil.copytree(home.root, root)
    return Home(root)


def _tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("forecasts", "paths")}


def test_a_range_before_the_end_of_the_pre_training_is_marked_for_weights_that_saw_it(
    ground, home, base, scored
):
    models = {"base": replace(base, lineage="kronos"), "challenger": replace(base, lineage="unknown")}
    marked = walk(home, ground, models | {"champion": base}).notes
    assert "Kronos was pre-trained: what the weights of base score there is not out of sample" in marked[0]
    assert "whether the weights of challenger descend from Kronos's is not recorded" in marked[1]
    assert not any("champion" in note for note in marked[:2])
    assert (
        marked[2] == "challenger is not post-processed: it was judged before there was any, and as it draws"
    )
    assert not any("pre-trained" in note for note in scored.notes)


def test_the_verdict_tells_what_post_processing_did_and_every_note(scored):
    verdict = module.gate.fn(scored, GatePolicy(), champion=False)
    assert verdict.verdict == "keep"  # eight origins decide nothing
    assert any("post-processing moved the coverage of the 90 % band from" in one for one in verdict.reasons)
    for step in ("sampling", "location", "blend", "spread"):
        assert any(
            one.startswith(f"note: post-processing of challenger, {step} is") for one in verdict.reasons
        )
    assert "note: har was left out: it needs a lookback of 64 candles, found 16" in verdict.reasons


@pytest.mark.parametrize(("champion", "verdict"), [(False, "promote"), (True, "reject")])
def test_a_challenger_that_beats_the_base_and_not_the_champion_is_promoted_only_where_there_is_none(
    tmp_path, champion, verdict
):
    losses = np.random.default_rng(1).normal(0.01, 0.001, 120)
    scores = planted_scores(
        {"challenger": losses, "base": losses * 1.3, "champion": losses * 0.7, "last_value": losses * 2}
    )
    told = ScoresRef(
        path=str(scores.save(tmp_path / "scores")), origins=120, leaderboard=tuple(leaderboard(scores))
    )
    judged = module.gate.fn(told, GatePolicy(), champion=champion)
    assert judged.verdict == verdict
    assert judged.served == ("champion" if champion else "challenger")


@pytest.mark.parametrize(("better", "verdict"), [(1.3, "reject"), (1.0, "keep")])
def test_what_forbids_a_promotion_is_a_reason_and_takes_it_away(tmp_path, better, verdict):
    losses = np.random.default_rng(1).normal(0.01, 0.001, 120)
    scores = planted_scores({"challenger": losses, "base": losses * better, "last_value": losses * 2})
    told = ScoresRef(
        path=str(scores.save(tmp_path / "scores")), origins=120, leaderboard=tuple(leaderboard(scores))
    )
    reason = "um:AAAUSDT: 17.0 % of its prices in the test range lie beyond the clip"
    judged = module.gate.fn(told, GatePolicy(), champion=False, forbidden=[reason])
    assert judged.verdict == verdict
    assert judged.served == "references"
    assert reason in judged.reasons


@pytest.mark.parametrize(
    ("better", "words"),
    [
        (0.01, "challenger is better than the last value, CRPS skill +"),
        (0.0, "challenger cannot be told from the last value, CRPS skill +"),
        (-0.01, "challenger is worse than the last value, CRPS skill -"),
        (
            None,
            "challenger cannot be told from the last value: the market did not move, and there is no CRPS",
        ),
    ],
)
def test_the_verdict_says_of_the_last_value_what_the_interval_of_the_skill_says(tmp_path, better, words):
    rng = np.random.default_rng(3)
    last = np.zeros(60) if better is None else rng.uniform(0.04, 0.06, 60)
    ours = last - (better or 0.0) + rng.normal(-0.0002, 0.002, 60)
    crps = {"challenger": ours, "base": np.full(60, 0.05), "last_value": last}
    scores = planted_scores(crps)
    told = ScoresRef(
        path=str(scores.save(tmp_path / "scores")),
        origins=60,
        leaderboard=tuple(leaderboard(scores)),
        notes=(),
    )
    row = next(row for row in told.leaderboard if (row["model"], row["series"]) == ("challenger", "all"))
    (found,) = (
        one for one in module.gate.fn(told, GatePolicy(), champion=False).reasons if "last value" in one
    )
    assert found.startswith(f"for information: {words}")
    if better is not None:
        assert found.endswith(f"95 % interval {row['skill_low']:+.3f} to {row['skill_high']:+.3f}")


def test_a_skill_without_an_interval_proves_nothing(tmp_path):
    crps = {
        name: np.full(3, level) for name, level in (("challenger", 0.01), ("base", 0.1), ("last_value", 0.1))
    }
    scores = planted_scores(crps, stride_hours=1, horizon=12)
    path = str(scores.save(tmp_path / "scores"))
    told = ScoresRef(path=path, origins=3, leaderboard=tuple(leaderboard(scores)), notes=())
    assert (
        "for information: challenger cannot be told from the last value, CRPS skill +0.900: the origins are too few "
        "for an interval"
    ) in module.gate.fn(told, GatePolicy(), champion=False).reasons


def test_another_seed_is_another_evaluation_and_another_post_processing(ground, home, base, challenger):
    one, other = (
        module.evaluate.fn(home, ground.dataset, {"base": base}, CONFIG, seed=seed) for seed in (1, 2)
    )
    assert one.path != other.path
    crps = [Scores.load(Path(ref.path)).crps[0] for ref in (one, other)]
    assert not np.array_equal(*crps)
    again = module.postprocess.fn(home, ground.dataset, base, CONFIG, role="base", seed=2)
    assert again.predictor != challenger.predictor


def test_a_base_without_settings_of_its_own_is_judged_with_the_normaliser_of_the_dataset(
    tmp_path, base, challenger
):
    candles = {"um:DOGEUSDT": make_candles(300, seed=1)}
    dataset = build(
        candles, DatasetConfig(lookback=16, horizon=4, normaliser="global_robust"), tmp_path / "datasets"
    )
    expected = WindowDataset.open(dataset.path).normaliser
    assert expected != Normaliser()
    assert module.forecaster(base, dataset).normaliser == expected
    recorded = Path(base.predictor).with_name("recorded")
    shutil.copytree(base.predictor, recorded)
    write_metadata(recorded, {"normaliser": Normaliser(clip=3.0).to_dict(), "max_context": 20})
    assert module.forecaster(replace(base, predictor=str(recorded)), dataset).normaliser == Normaliser(
        clip=3.0
    )


def test_a_tokenizer_that_loses_codes_is_refused_unless_it_was_trained_from_scratch(tmp_path):
    uses = ((0, 0.9, 0.8), (9, 0.2, 0.5))
    lines = [
        {
            "phase": "validation",
            "step": step,
            "loss": loss,
            "coarse_codebook_use": use,
            "fine_codebook_use": use,
        }
        for step, loss, use in uses
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = TrainedRef(
        stage="tokenizer",
        job=str(tmp_path),
        best="",
        digest="",
        trained=True,
        steps=9,
        epochs=1,
        initial_loss=0.9,
        best_loss=0.2,
        best_step=9,
        stopped="finished",
    )
    refused = module.tokenizer_gate.fn(stage, GatePolicy(), scratch=False)
    assert not refused.use
    assert "codes in use fall from 80.0 % to 50.0 %" in refused.reason
    assert module.tokenizer_gate.fn(stage, GatePolicy(), scratch=True).use


def test_a_model_that_trained_on_the_test_range_is_refused(ground, home, challenger):
    told = {"training": {"until_ms": 4_000_000_000_000}, "max_context": 20}
    folder = Path(challenger.predictor)
    write_metadata(folder, told)
    try:
        with pytest.raises(DataError, match="found that champion reaches to 2096"):
            walk(home, ground, {"champion": challenger})
    finally:
        (folder / "kronos_nightly.json").unlink()
