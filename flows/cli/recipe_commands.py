"""`kronos recipes`. It imports what it needs when it runs."""

from __future__ import annotations

import click

__all__ = ["recipes"]


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
