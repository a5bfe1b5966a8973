"""The model card: its metadata, its numbers, and the code it tells people to run."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from exchange.replay import synthetic_market
from kronos_model.config import PRESETS
from kronos_model.evaluation.leaderboard import arranged, leaderboard
from kronos_model.hub import scratch_pair
from kronos_model.postprocess import PostProcess
from kronos_model.spread import Spread
from storage.candle_files import write_candles
from storage.interval import Interval
from storage.schema import SeriesKey
from tasks.reports.model_card import CardFacts, model_card, postprocess_of
from tests.support.loopback_hub import LoopbackHub
from tests.support.scores import planted_scores


def day(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def facts(**changed: Any) -> CardFacts:
    rng = np.random.default_rng(0)
    scores = planted_scores(
        {name: rng.uniform(0.01, 0.02, 40) for name in ("challenger", "base", "last_value")}, series=2
    )
    values: dict[str, Any] = {
        "part": "predictor",
        "recipe": "doge_1h",
        "night": "20261120-abcdef",
        "series": scores.series,
        "interval": "1h",
        "first_ms": day("2020-07-10"),
        "last_ms": day("2026-11-20"),
        "test_from_ms": day("2025-12-01"),
        "dataset_digest": "0123456789abcdef",
        "lookback": 400,
        "horizon": 120,
        "max_context": 512,
        "normaliser": "global_robust",
        "base_models": {"NeoQuasar/Kronos-small": "901c26c1332695a2a8f243eb2f37243a37bea320"},
        "postprocess": "",
        "settings": {"learning_rate": 2e-6, "epochs": 15},
        "leaderboard": leaderboard(scores),
        "verdict": "promote",
        "reasons": ("challenger is better than base: CRPS difference -1.234 bps",),
        "tokenizer_repo": "tester/doge_1h-kronos-tokenizer",
        "predictor_repo": "tester/doge_1h-kronos-predictor",
    }
    return CardFacts(**{**values, **changed})


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def load(card: str, folder: Path) -> ModelCard:
    """As huggingface_hub reads and checks it."""
    (folder / "README.md").write_text(card, encoding="utf-8")
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def test_the_metadata_is_what_the_hub_reads(tmp_path: Path):
    data = load(model_card(facts()), tmp_path).data.to_dict()
    assert data["license"] == "mit"
    assert data["pipeline_tag"] == "time-series-forecasting"
    assert data["library_name"] == "kronos-nightly"
    assert data["base_model"] == ["NeoQuasar/Kronos-small"]
    assert data["base_model_relation"] == "finetune"
    assert {"kronos", "predictor", "1h", "coin0usdt"} <= set(data["tags"])
    assert data["kronos_nightly"] == {
        "recipe": "doge_1h",
        "night": "20261120-abcdef",
        "series": ["um:COIN0USDT", "um:COIN1USDT"],
        "interval": "1h",
        "data_from": "2020-07-10",
        "data_to": "2026-11-20",
        "test_from": "2025-12-01",
        "dataset_digest": "0123456789abcdef",
        "base_revisions": {"NeoQuasar/Kronos-small": "901c26c1332695a2a8f243eb2f37243a37bea320"},
        "postprocessed": False,
        "contaminated": False,
        "verdict": "promote",
    }


def test_the_metadata_passes_the_hubs_own_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        load(model_card(facts()), tmp_path).validate()
        assert hub.count("POST", "/api/validate-yaml") == 1


def test_the_scores_are_eval_results_that_name_their_data(tmp_path: Path):
    given = facts()
    results = load(model_card(given), tmp_path).data.eval_results
    rows = {row["model"]: row for row in given.leaderboard if row["series"] == "all"}
    ours, found = rows["challenger"], {one.metric_name: one.metric_value for one in results}
    assert found["CRPS of the log-return (bps)"] == pytest.approx(ours["crps_bps"], abs=1e-6)
    assert found["Coverage of the 90 % interval (%)"] == pytest.approx(100 * ours["coverage_90"], abs=1e-4)
    for model, name in (("base", "base"), ("last_value", "last value")):
        skill = 1 - ours["crps_bps"] / rows[model]["crps_bps"]
        assert found[f"CRPS skill against {name}"] == pytest.approx(skill, abs=1e-6)
    assert {one.dataset_revision for one in results} == {"0123456789abcdef"}
    assert {one.dataset_split for one in results} == {"2025-12-01 to 2026-11-20"}
    assert {one.task_name for one in results} == {f"Walk-forward, 120 steps of 1h, {ours['origins']} origins"}


def test_a_score_that_could_not_be_had_is_no_eval_result(tmp_path: Path):
    rows = [{**row, "direction": None} for row in facts().leaderboard]
    results = load(model_card(facts(leaderboard=rows)), tmp_path).data.eval_results
    assert "directional_accuracy" not in {one.metric_type for one in results}
    assert "crps" in {one.metric_type for one in results}


def test_a_model_from_scratch_names_no_base():
    card = model_card(facts(base_models={}))
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "trained from scratch" in card


def test_the_card_says_what_it_was_trained_and_judged_on():
    card = model_card(facts())
    for said in (
        "um:COIN0USDT, um:COIN1USDT",
        "2020-07-10 to 2026-11-20, UTC",
        "`0123456789abcdef`",
        "400 candles seen, 120 forecast, context 512",
        "| learning_rate | 2e-06 |",
        "**promote**",
        "- challenger is better than base: CRPS difference -1.234 bps",
        "belongs to the tokenizer `tester/doge_1h-kronos-tokenizer` of the same night",
        "fine-tuned from NeoQuasar/Kronos-small (revision `901c26c13326`)",
        "The tag `night-20261120-abcdef` names both",
        "| post-processing | none",
    ):
        assert said in card


def test_a_setting_stays_in_its_cell_and_no_control_character_reaches_the_card():
    card = model_card(facts(settings={"weights": "a|b\n| c\x1b[31m"}, reasons=("worse\x1b[2J",)))
    assert "| weights | a\\|b \\| c\\x1b[31m |\n" in card
    assert "- worse\\x1b[2J\n" in card
    assert "\x1b" not in card


def test_the_leaderboard_of_the_card_is_that_of_the_evaluation():
    given = facts()
    card = model_card(given)
    for series, heading in (("all", "### All series"), ("um:COIN1USDT", "### um:COIN1USDT")):
        table = card.split(heading)[1].split("\n\n")[1].splitlines()
        rows = [row for row in given.leaderboard if row["series"] == series]
        assert len(table) == 2 + len(rows)
        for line, row in zip(table[2:], rows, strict=True):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert cells[0] == row["model"]
            assert cells[2] == f"{row['crps_bps']:.2f}"
            assert cells[3] == f"{row['skill']:+.4f}"


def test_one_series_is_shown_once():
    rows = [row for row in facts().leaderboard if row["series"] != "um:COIN1USDT"]
    card = model_card(facts(leaderboard=rows))
    assert "### All series" in card
    assert "### um:COIN0USDT" not in card


def test_what_does_not_move_has_no_direction():
    rows = [{**row, "direction": None, "skill": None} for row in facts().leaderboard]
    assert "| n/a |" in model_card(facts(leaderboard=rows))


@pytest.mark.parametrize(
    ("start", "base", "of_kronos", "marked"),
    [
        ("2024-06-30", {"NeoQuasar/Kronos-small": "901c"}, True, True),
        ("2024-07-01", {"NeoQuasar/Kronos-small": "901c"}, True, False),
        ("2023-01-01", {}, False, False),
        ("2023-01-01", {}, True, True),  # from a folder whose weights were once Kronos's
    ],
)
def test_scores_that_overlap_the_pre_training_are_marked(start, base, of_kronos, marked):
    card = model_card(facts(test_from_ms=day(start), base_models=base, of_kronos=of_kronos))
    assert ("Contaminated" in card and "before 2024-07-01" in card) == marked
    assert ModelCard(card).data.to_dict()["kronos_nightly"]["contaminated"] == marked


def test_a_normaliser_that_upstream_does_not_have_is_pointed_out():
    assert "only our classes apply it" in model_card(facts(normaliser="global_robust"))
    assert "only our classes apply it" not in model_card(facts(normaliser="window_zscore"))


def test_post_processing_is_told():
    card = model_card(facts(postprocess="the spread is scaled by 0.9 to 1.3"))
    assert "| post-processing | the spread is scaled by 0.9 to 1.3 |" in card
    assert "the post-processing, too, is applied by ours alone" in card
    assert ModelCard(card).data.to_dict()["kronos_nightly"]["postprocessed"] is True


def test_the_post_processing_beside_the_weights_is_put_into_words(tmp_path: Path):
    assert postprocess_of(tmp_path) == ""
    PostProcess(
        horizon=3,
        lookback=24,
        interval="1h",
        temperature=1.0,
        top_k=0,
        top_p=0.9,
        location=(0.25, 0.0),
        members=("network", "ewma", "har"),
        weights=(0.4, 0.6, 0.0),
        spread=Spread(levels=(0.5, 0.9), factors=((1.1, 1.05, 0.98), (1.314, 1.2, 1.0))),
        spread_alone=None,
        origins=64,
        samples=20,
    ).save(tmp_path)
    assert postprocess_of(tmp_path) == (
        "0 to 25 % of the network's median move is kept; paths are pooled: network 40 %, ewma 60 %; the spread of the "
        "paths is scaled by 0.98 to 1.31, by step and distance from the median, so that bands up to 90 % cover what "
        "they say: fitted on 64 validation origins at temperature 1, top-k 0, top-p 0.9"
    )


def test_what_is_served_comes_first_in_the_table_and_is_called_so():
    rows = arranged(facts().leaderboard, "references")
    table = model_card(facts(leaderboard=rows)).split("| --- | --- | --- | --- | --- | --- |")[1]
    assert table.splitlines()[1].startswith("| served: references |")
    assert "served:" not in model_card(facts())


def test_pictures_are_shown_by_their_names_in_the_repository():
    assert "![" not in model_card(facts())
    card = model_card(facts(pictures=("losses.png", "fans.png")))
    assert re.findall(r"!\[.+\]\((.+)\)", card) == ["fans.png", "losses.png"]


@pytest.mark.parametrize("normaliser", ["window_zscore", "global_robust"])
def test_the_code_of_the_card_forecasts_with_upstream_and_with_ours(
    normaliser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    upstream = pytest.importorskip("model")
    pair = scratch_pair(PRESETS["tiny"], tmp_path, seed=1)
    key = SeriesKey.parse("um:COIN0USDT", "1h")
    candles = synthetic_market([key], start_ms=day("2024-07-01"), count=40, seed=7)[key]
    write_candles(candles, tmp_path / "candles.csv")
    monkeypatch.chdir(tmp_path)
    card = model_card(
        facts(
            tokenizer_repo=str(pair.tokenizer),
            predictor_repo=str(pair.predictor),
            normaliser=normaliser,
            lookback=32,
            horizon=4,
        )
    )
    theirs, ours = code_blocks(card)
    scope: dict[str, Any] = {}
    exec(theirs, scope)
    assert isinstance(scope["model"], upstream.KronosPredictor)
    assert scope["model"].max_context == 512
    assert scope["forecast"].shape == (4, 6)
    assert np.isfinite(scope["forecast"].to_numpy()).all()
    weights = scope["predictor"].state_dict()
    future = [int(one.timestamp() * 1000) for one in scope["future"]]
    last = int(candles["close_time"].to_numpy().astype("datetime64[ms]").astype("int64")[-1])
    assert future == [last + 1 + step * 3_600_000 for step in range(4)]
    scope = {}
    exec(ours, scope)
    assert scope["paths"].shape == (10, 4, 6)
    for name, tensor in scope["served"].forecaster.predictor.state_dict().items():
        assert tensor.equal(weights[name])


@pytest.mark.parametrize("text", ["1s", "1m", "3m", "15m", "30m", "1h", "4h", "12h", "1d", "3d", "1w", "1M"])
def test_the_times_that_the_code_makes_are_those_of_the_interval(text: str):
    code = code_blocks(model_card(facts(interval=text, horizon=3)))[1]
    frequency = re.search(r'freq="(\w+)"', code)
    assert frequency is not None
    first = day("2024-07-01")  # a Monday and the first of a month
    made = pd.date_range(pd.Timestamp(first, unit="ms", tz="UTC"), periods=4, freq=frequency[1])
    expected = [first]
    while len(expected) < 4:
        expected.append(Interval(text).next(expected[-1]))
    assert [int(one.timestamp() * 1000) for one in made] == expected


def test_the_card_of_a_hub_repository_downloads_it():
    ours = code_blocks(model_card(facts()))[1]
    assert 'Path(snapshot_download("tester/doge_1h-kronos-predictor"))' in ours
    compile(ours, "card", "exec")
