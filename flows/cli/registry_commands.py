"""`kronos recipes`, `promote`, `rollback` and `scores`. They import what they need when they run."""

from __future__ import annotations

from typing import Any

import click

from flows.cli.terminal import start

__all__ = ["promote", "recipes", "rollback", "scores"]

_RECIPE = click.option("--recipe", "-r", required=True, help="Whose champion; `kronos recipes` lists them.")
_REASON = click.option("--reason", required=True, help="Why, kept in the history, e.g. 'spread too narrow'.")


@click.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or every setting of recipe NAME with its value and meaning."""
    from flows.cli.recipe_screen import show_recipe, show_recipes
    from flows.recipes import RECIPES, recipe

    if name is None:
        show_recipes(RECIPES)
    else:
        show_recipe(recipe(name))


@click.command()
@_RECIPE
@click.option("--to", "run", required=True, help="Night or MLflow run of that model, or how it begins.")
@_REASON
@click.pass_obj
def promote(obj: dict[str, Any], recipe: str, run: str, reason: str) -> None:
    """Make the model of any finished night serve, whatever the gate said."""
    from flows.recipes import recipe as known

    known(recipe)
    home = start(obj)
    from flows.cli.recipe_screen import show_history
    from tasks.promotion import promote_run

    promote_run(home, recipe, run, reason=reason)
    show_history(home, recipe)


@click.command()
@_RECIPE
@click.option("--to", "run", help="Night or MLflow run of an earlier champion [the one before this one].")
@_REASON
@click.pass_obj
def rollback(obj: dict[str, Any], recipe: str, run: str | None, reason: str) -> None:
    """Make an earlier champion serve again: champion.json, MLflow's alias and the Hub's tag in one step."""
    from flows.recipes import recipe as known

    known(recipe)
    home = start(obj)
    from flows.cli.recipe_screen import show_history
    from tasks.promotion import roll_back

    roll_back(home, recipe, run, reason=reason)
    show_history(home, recipe)


@click.command()
@click.option("--recipe", "-r", help="Whose champions [all recipes that have one].")
@click.option(
    "--no-update", is_flag=True, help="Only read: what has come due is scored for the screen alone."
)
@click.pass_obj
def scores(obj: dict[str, Any], recipe: str | None, no_update: bool) -> None:
    """Score the live forecasts whose truth has come, show them over time, and say whether the market has drifted."""
    from flows.recipes import recipe as known

    if recipe is not None:
        known(recipe)
    home = start(obj, reads=True)  # scores of what is due are written all the same, where there is a home
    from flows.cli.scores_screen import show_scores

    show_scores(home, recipe, update=not no_update)
