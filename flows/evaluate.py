"""How the serving model does on the newest test range, without training anything."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from prefect import flow
from prefect.client.schemas.objects import State

from flows.config import RunConfig
from flows.environment import open_home
from flows.finetune import build_dataset, postprocessed
from flows.forms import RunSettings, SeriesName, Unchanged
from flows.home_access import with_home
from flows.judge import champion_pair
from flows.recipes import IntervalName, RecipeName, configure
from flows.run_names import run_name
from kronos_model.evaluation.leaderboard import arranged
from kronos_model.evaluation.scores import BLENDS, REFERENCES_POOL
from storage.layout import Home
from storage.registry import read_champion
from tasks.evaluate import evaluate as walk
from tasks.policies import within
from tasks.refs import ScoresRef
from tasks.reports.prefect_artifacts import leaderboard_artifact
from tasks.train import base_model

__all__ = ["evaluate"]


@flow(name="evaluate", flow_run_name=run_name)
def evaluate(
    recipe: RecipeName = "demo",
    series: list[SeriesName] | Unchanged = None,
    interval: IntervalName | Unchanged = None,
    start: date | Unchanged = None,
    end: date | Unchanged = None,
    settings: RunSettings = None,
) -> ScoresRef | State:
    """Score the champion, the base and the last value on the test range of the candles in the lake.

    Args:
        recipe: Named configuration whose champion is scored; demo runs offline, `kronos recipes` describes all.
        series: Series to use instead of the recipe's, each market:SYMBOL (spot or um), such as um:DOGEUSDT.
        interval: Candle interval to use instead of the recipe's, such as 1h or 4h.
        start: First day to use, UTC. Unchanged: the recipe's, or else since the listing.
        end: First day not to use, UTC. Unchanged: the recipe's, or else up to the newest closed candle.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
    """
    config = configure(recipe, settings, series=series, interval=interval, start=start, end=end)
    home = open_home()
    return with_home(home, f"evaluate {recipe}", lambda: _score(home, config))


def _score(home: Home, config: RunConfig) -> ScoresRef:
    champion, choice = read_champion(home, config.recipe), config.model
    dataset = build_dataset(home, config)
    base = base_model(home, choice.preset, choice.weights, config.seed)
    models = {"base": postprocessed(home, config, dataset, base, "base")}
    if champion is not None:
        models["champion"] = champion_pair(home, champion)
    bounded = within(walk, config.limits, "evaluate_h")
    scores = bounded(home, dataset, models, config.evaluation, seed=config.seed)
    scores = replace(scores, leaderboard=tuple(arranged(scores.leaderboard, _serving(scores))))
    leaderboard_artifact(scores.leaderboard)
    return scores


def _serving(scores: ScoresRef) -> str:
    """What serves now: the champion's blend, a champion of old as it is, or the references alone."""
    scored = {row["model"] for row in scores.leaderboard}
    return next(name for name in (BLENDS["champion"], "champion", REFERENCES_POOL) if name in scored)
