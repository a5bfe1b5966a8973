"""The model card: its metadata, its numbers, and the code it tells people to run."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from kronos_model.card import CardFacts, model_card
from kronos_model.config import PRESETS
from kronos_model.evaluation.leaderboard import leaderboard
from kronos_model.hub import scratch_pair
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
        "base_models": ("NeoQuasar/Kronos-small", "NeoQuasar/Kronos-Tokenizer-base"),
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


def test_the_metadata_is_what_the_hub_reads():
    data = ModelCard(model_card(facts())).data.to_dict()
    assert data["license"] == "mit"
    assert data["pipeline_tag"] == "time-series-forecasting"
    assert data["library_name"] == "kronos-nightly"
    assert data["base_model"] == ["NeoQuasar/Kronos-small", "NeoQuasar/Kronos-Tokenizer-base"]
    assert data["base_model_relation"] == "finetune"
    assert {"kronos", "predictor", "1h", "coin0usdt"} <= set(data["tags"])


def test_a_model_from_scratch_names_no_base():
    card = model_card(facts(base_models=()))
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
        "belongs to the tokenizer `tester/doge_1h-kronos-tokenizer`",
    ):
        assert said in card


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
    ("start", "base", "marked"),
    [
        ("2024-06-30", ("NeoQuasar/Kronos-small",), True),
        ("2024-07-01", ("NeoQuasar/Kronos-small",), False),
        ("2023-01-01", (), False),
    ],
)
def test_scores_that_overlap_the_pre_training_are_marked(start, base, marked):
    card = model_card(facts(test_from_ms=day(start), base_models=base))
    assert ("Contaminated" in card and "before 2024-07-01" in card) == marked


def test_a_normaliser_that_upstream_does_not_have_is_pointed_out():
    assert "only our classes apply it" in model_card(facts(normaliser="global_robust"))
    assert "only our classes apply it" not in model_card(facts(normaliser="window_zscore"))


def test_a_picture_is_shown_by_its_name_in_the_repository():
    assert "](forecast.png)" in model_card(facts(picture="forecast.png"))
    assert "![" not in model_card(facts())


def test_the_code_of_the_card_loads_the_model_with_upstream_and_with_ours(tmp_path: Path):
    upstream = pytest.importorskip("model")
    pair = scratch_pair(PRESETS["tiny"], tmp_path, seed=1)
    blocks = code_blocks(
        model_card(facts(tokenizer_repo=str(pair.tokenizer), predictor_repo=str(pair.predictor)))
    )
    assert len(blocks) == 2
    theirs: dict[str, Any] = {}
    exec(blocks[0], theirs)
    assert isinstance(theirs["model"], upstream.KronosPredictor)
    assert theirs["model"].max_context == 512
    ours: dict[str, Any] = {}
    exec(blocks[1], ours)
    weights = theirs["predictor"].state_dict()
    for name, tensor in ours["forecaster"].predictor.state_dict().items():
        assert tensor.equal(weights[name])


def test_the_card_of_a_hub_repository_downloads_it():
    ours = code_blocks(model_card(facts()))[1]
    assert 'Path(snapshot_download("tester/doge_1h-kronos-predictor"))' in ours
    compile(ours, "card", "exec")
