"""Settings are what their annotations say, and nothing else."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Annotated, Any, Literal

import pytest

from kronos_model.settings import Bounds, Written, limits_of, settings, words_of

INFINITY = float("inf")


@settings
class Pump:
    """One setting of each kind."""

    share: Annotated[float, Bounds(gt=0, lt=1)] = 0.5
    strokes: Annotated[int, Bounds(ge=2, le=9, unit="strokes")] = 4
    rest: Annotated[float, Bounds(ge=0)] | None = None
    offset: float = 0.0
    mode: Literal["slow", "fast"] = "slow"
    marks: tuple[Literal["a", "b"], ...] = ()
    quiet: bool = False
    name: Annotated[str, Written(pattern="[a-z]+", words="small letters such as abc")] = "abc"

    def __post_init__(self) -> None:
        if self.mode == "fast" and self.quiet:
            raise ValueError("mode and quiet: expected one of the two, found both; choose one")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"share": 0}, "share: expected above 0 and below 1, found 0; raise it"),
        ({"share": 1.0}, "share: expected above 0 and below 1, found 1.0; lower it"),
        ({"share": "0.5"}, "share: expected float (above 0 and below 1), found '0.5'; correct it"),
        ({"share": True}, "share: expected float (above 0 and below 1), found True; correct it"),
        ({"strokes": 1}, "strokes: expected from 2 to 9 strokes, found 1; raise it"),
        ({"strokes": 10}, "strokes: expected from 2 to 9 strokes, found 10; lower it"),
        ({"strokes": 4.0}, "strokes: expected int (from 2 to 9 strokes), found 4.0; correct it"),
        (
            {"strokes": True},
            "strokes: expected int (from 2 to 9 strokes), found True; correct it",
        ),
        (
            {"strokes": None},
            "strokes: expected int (from 2 to 9 strokes), found None; correct it",
        ),
        ({"rest": -0.1}, "rest: expected at least 0 or empty, found -0.1; raise it"),
        ({"rest": INFINITY}, "rest: expected float (at least 0) or empty, found inf; correct it"),
        ({"offset": float("nan")}, "offset: expected float, found nan; correct it"),
        ({"offset": -INFINITY}, "offset: expected float, found -inf; correct it"),
        ({"mode": "medium"}, "mode: expected slow|fast, found 'medium'; correct it"),
        ({"marks": ("a", "c")}, "marks: expected any of a|b, found ('a', 'c'); correct it"),
        ({"quiet": 1}, "quiet: expected bool, found 1; correct it"),
        ({"name": "A"}, "name: expected small letters such as abc, found 'A'; write it like that"),
        ({"name": 3}, "name: expected str (small letters such as abc), found 3; correct it"),
        ({"mode": "fast", "quiet": True}, "mode and quiet: expected one of the two, found both; choose one"),
    ],
)
def test_what_a_setting_cannot_be_is_refused_in_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the whole sentence is compared)
        Pump(**wrong)
    assert str(caught.value) == sentence


def test_what_is_within_its_bounds_is_taken_as_it_is() -> None:
    pump = Pump(share=0.999, strokes=9, rest=0, offset=-3, mode="fast", marks=("b", "a"), name="z")
    assert (pump.strokes, pump.rest, pump.offset, pump.marks) == (9, 0, -3, ("b", "a"))
    assert Pump(rest=None, strokes=2) == Pump(strokes=2)
    with pytest.raises(FrozenInstanceError):
        pump.strokes = 1  # type: ignore[misc]


def test_an_annotation_is_told_in_words_and_in_json_schema() -> None:
    assert (
        words_of(Annotated[int, Bounds(ge=2, unit="candles")] | None) == "int (at least 2 candles) or empty"
    )
    assert words_of(Literal["a", "b"]) == "a|b"
    assert words_of(tuple[str, ...]) == "tuple[str, ...]"
    (bounds,) = limits_of(Annotated[float, Bounds(gt=0, le=1)] | None)
    assert bounds.schema() == {"exclusiveMinimum": 0, "maximum": 1}
    assert limits_of(float | None) == []


def test_the_check_needs_the_standard_library_alone() -> None:
    """exchange and storage import it, which may not load torch."""
    code = "import sys; import kronos_model.settings; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
