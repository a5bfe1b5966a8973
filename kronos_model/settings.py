"""What a setting may be, told in its annotation, and the one check of it.

    epochs: Annotated[int, Bounds(ge=1)] = 5

Needs the standard library alone: exchange and storage use it too, and know nothing else of this package.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = [
    "Bounds",
    "Count",
    "Counted",
    "NotNegative",
    "Positive",
    "Seconds",
    "Seed",
    "Share",
    "TopP",
    "Written",
    "checked",
    "limits_of",
    "settings",
    "words_of",
]

T = TypeVar("T")
_INFINITY = float("inf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a number lies within, named as annotated_types does."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    unit: str = ""

    def __str__(self) -> str:
        told = {"at least": self.ge, "above": self.gt, "at most": self.le, "below": self.lt}
        parts = " and ".join(f"{word} {bound}" for word, bound in told.items() if bound is not None)
        both = self.ge is not None and self.le is not None
        return f"{f'from {self.ge} to {self.le}' if both else parts} {self.unit}".rstrip()

    def schema(self) -> dict[str, Any]:
        """The same in JSON Schema's words."""
        told = {
            "minimum": self.ge,
            "exclusiveMinimum": self.gt,
            "maximum": self.le,
            "exclusiveMaximum": self.lt,
        }
        return {word: bound for word, bound in told.items() if bound is not None}

    def remedy(self, value: Any) -> str:
        """What to do about a value that is outside; empty for one inside."""
        if (self.ge is not None and value < self.ge) or (self.gt is not None and value <= self.gt):
            return "raise it"
        if (self.le is not None and value > self.le) or (self.lt is not None and value >= self.lt):
            return "lower it"
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """How a text is written."""

    pattern: str
    """Regular expression of the whole text."""
    words: str
    """The same in words, with an example."""

    def __str__(self) -> str:
        return self.words

    def schema(self) -> dict[str, Any]:
        """The same in JSON Schema's words."""
        return {"pattern": f"^({self.pattern})$"}

    def remedy(self, value: Any) -> str:
        """What to do about a text that is written otherwise; empty for a good one."""
        return "" if re.fullmatch(self.pattern, value) else "write it like that"


Limit = Bounds | Written

Count = Annotated[int, Bounds(ge=1)]
Counted = Annotated[int, Bounds(ge=0)]
Seed = Annotated[int, Bounds(ge=0, le=2**32 - 1)]  # what every generator of random numbers takes
NotNegative = Annotated[float, Bounds(ge=0)]
Positive = Annotated[float, Bounds(gt=0)]
Seconds = Annotated[float, Bounds(gt=0, unit="seconds")]
Share = Annotated[float, Bounds(ge=0, le=1)]
TopP = Annotated[float, Bounds(gt=0, le=1)]


def checked(cls: type[T]) -> type[T]:
    """Under a dataclass decorator: every field must be what its annotation says; else ValueError, in one sentence.

    What relates two fields to each other is for its own `__post_init__`, which comes after that.
    """
    relate = cls.__dict__.get("__post_init__")

    def check(self: Any) -> None:
        kind: Any = type(self)
        for name, options in _options_of(kind).items():
            if fault := _fault(getattr(self, name), options):
                raise ValueError(f"{name}: {fault}")
        if relate:
            relate(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return cls


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass of keywords, checked."""
    return dataclass(frozen=True, kw_only=True, slots=True)(checked(cls))


def words_of(annotation: Any) -> str:
    """What a setting may be, e.g. `int (at least 1) or empty`, or `tiny|mini`."""
    return _words(_options(annotation))


def limits_of(annotation: Any) -> list[Limit]:
    """The limits in an annotation."""
    return [limit for _, limit in _options(annotation) if limit]


@cache
def _options_of(cls: Any) -> dict[str, list[tuple[Any, Limit | None]]]:
    hints = get_type_hints(cls, include_extras=True)
    return {one.name: list(_options(hints[one.name])) for one in fields(cls)}


def _options(hint: Any) -> Iterator[tuple[Any, Limit | None]]:
    """Each type that an annotation allows, with its limit."""
    if get_origin(hint) is Annotated:
        kind, *told = get_args(hint)
        yield kind, next((one for one in told if isinstance(one, Limit)), None)
    elif get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from _options(one)
    else:
        yield hint, None


def _fault(value: Any, options: list[tuple[Any, Limit | None]]) -> str:
    """What is wrong with a value; empty where nothing is."""
    fitting = [limit for kind, limit in options if _fits(value, kind)]
    if not fitting:
        return f"expected {_words(options)}, found {value!r}; correct it"
    remedy = fitting[0].remedy(value) if fitting[0] else ""
    empty = " or empty" if any(kind is NoneType for kind, _ in options) else ""
    return f"expected {fitting[0]}{empty}, found {value!r}; {remedy}" if remedy else ""


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; true is no number, and a number is finite. Other types are not looked into."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and -_INFINITY < value < _INFINITY
        )
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(one, get_args(kind)[0]) for one in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind not in (bool, str, NoneType) or isinstance(value, kind)


def _words(options: Iterable[tuple[Any, Limit | None]]) -> str:
    return " or ".join(f"{_name(kind)} ({limit})" if limit else _name(kind) for kind, limit in options)


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        return f"any of {_name(get_args(kind)[0])}"
    return "empty" if kind is NoneType else kind.__name__ if type(kind) is type else str(kind)
