"""What the text of an option may be, where click has no type for it: told in one sentence before anything starts."""

from __future__ import annotations

import math
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click

__all__ = ["Number", "WholeNumber", "klines_folder", "typed_day"]


class WholeNumber(click.IntRange):
    """A number without a fraction, in words of people."""

    name = "whole number"


class Number(click.FloatRange):
    """A finite number, in words of people."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; BadParameter for none, for one out of range, and for what is not finite."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return found


def typed_day(text: str) -> date:
    """`2024-06-01` as a date; BadParameter for anything else."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()  # a day has no zone
    except ValueError as error:
        raise click.BadParameter(f"expected a day such as 2024-06-01, UTC, found {text!r}") from error


def klines_folder(text: str) -> str:
    """A folder of klines by its whole path, or the word synthetic; BadParameter for anything else."""
    if text == "synthetic":
        return text
    folder = Path(text).expanduser().resolve()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "none"
        raise click.BadParameter(
            f"expected a folder of klines, or the word synthetic, found {found} at {folder}"
        )
    return str(folder)
