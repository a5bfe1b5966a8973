"""One run's configuration: the owners' dataclasses composed once, and the single way to override them.

Each knob is defined where it is read (its owner's frozen dataclass, with the text under the field). `kronos
recipes` and the parsing and checking of every override, from the CLI or a form, are derived here from those.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, date, datetime
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from exchange.config import ArchiveConfig, ExchangeConfig
from kronos_model.evaluation.config import EvaluationConfig, GatePolicy
from kronos_model.jobs import StageConfig
from kronos_model.publish_config import PublishConfig, repository_names
from kronos_model.sampling_config import SamplingConfig
from kronos_model.settings import Count, Seed, settings, words_of
from storage.dataset import DatasetConfig
from storage.interval import Interval
from storage.schema import SeriesKey
from tasks.time_limits import TimeLimits

__all__ = [
    "ConfigError",
    "Knob",
    "ModelChoice",
    "RunConfig",
    "config_digest",
    "day_ms",
    "field_docs",
    "knobs",
    "override",
    "parse_assignments",
]

C = TypeVar("C")
_FAR = 0.1  # in likeness: what is so much less like a mistyped setting than the nearest one is no guess
_RENAMED = {
    "evaluation.calibrate": "evaluation.postprocess",
    "evaluation.calibration_origins": "evaluation.postprocess_origins",
}


class ConfigError(ValueError):
    """A setting that does not exist or cannot hold the value given; one sentence."""


@settings
class ModelChoice:
    """Which weights a night starts from."""

    preset: Literal["tiny", "mini", "small", "base"] = "small"
    """Architecture: tiny (under 100k parameters, for tests and the demo), mini, small or base."""
    weights: str = "pretrained"
    """pretrained (the Hub, pinned revision), scratch (seeded random), or a folder with tokenizer/ and predictor/."""
    threads: Count | None = None
    """CPU threads of a training process; empty leaves the choice to torch."""
    processes: Count | None = None
    """Processes of this machine that train together (torchrun) and share each batch; empty: one per CUDA device, else
    one. Never more than batch_size."""


@settings
class RunConfig:
    """Everything that decides what a night does."""

    recipe: str
    """Name under which models, champion and repositories of this configuration are kept."""
    series: tuple[str, ...]
    """Series to train on and forecast, each market:SYMBOL (spot or um), e.g. um:DOGEUSDT."""
    interval: str = "1h"
    """Candle interval: 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M (spot also 1s)."""
    start: date | None = None
    """First day to use, UTC, such as 2024-06-01; empty means since the listing."""
    end: date | None = None
    """First day not to use, UTC, such as 2024-06-01; empty means up to the latest closed candle."""
    seed: Seed = 0
    """Seed of initial weights, sampling order and forecasts."""
    replay: str = ""
    """Take candles from a loopback replay exchange instead of Binance: a folder of klines, or 'synthetic'."""
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    """Where Binance is."""
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    """Binance's bulk archive."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    """Windows, splits and normalisation."""
    model: ModelChoice = field(default_factory=ModelChoice)
    """Starting weights."""
    tokenizer: StageConfig = field(default_factory=StageConfig)
    """Stage 1: fine-tuning the tokenizer."""
    predictor: StageConfig = field(default_factory=StageConfig)
    """Stage 2: fine-tuning the predictor on the tokenizer's tokens."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Walk-forward over the test range."""
    gate: GatePolicy = field(default_factory=GatePolicy)
    """When a challenger replaces the champion."""
    publish: PublishConfig = field(default_factory=PublishConfig)
    """Where promoted models go."""
    forecast: SamplingConfig = field(default_factory=SamplingConfig)
    """How the live forecast is sampled."""
    limits: TimeLimits = field(default_factory=TimeLimits)
    """How long each step may take."""

    def __post_init__(self) -> None:
        if not self.series:
            raise ConfigError(
                "Expected at least one series such as um:DOGEUSDT, found none; set series=market:SYMBOL."
            )
        keys = self.keys()
        if len(set(keys)) < len(keys):
            raise ConfigError(
                f"Expected each series once, found {', '.join(self.series)}; remove the repeated one."
            )
        try:
            repository_names(self.publish, self.recipe, [key.symbol for key in keys])
        except ValueError as error:
            raise ConfigError(f"publish: {error}") from error
        if self.start and self.end and self.start >= self.end:
            raise ConfigError(
                f"Expected start before end, found start {self.start} and end {self.end}; swap or correct the dates."
            )

    def keys(self) -> list[SeriesKey]:
        """The series as storage keys. Raises StorageError for a malformed market, symbol or interval."""
        Interval(self.interval)
        return [SeriesKey.parse(name, self.interval) for name in self.series]

    def start_ms(self) -> int | None:
        """Start in ms since the epoch, UTC."""
        return day_ms(self.start)

    def end_ms(self) -> int | None:
        """End (exclusive) in ms since the epoch, UTC."""
        return day_ms(self.end)


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting as a user sees it."""

    path: str
    annotation: Any
    value: Any
    help: str

    @property
    def kind(self) -> str:
        """Type, bounds and choices in a few words, e.g. `int (at least 1) or empty` or `tiny|mini|small|base`."""
        return words_of(self.annotation)

    @property
    def may_be_empty(self) -> bool:
        """Whether None is a value of it."""
        return NoneType in get_args(self.annotation)


def knobs(config: Any, prefix: str = "") -> Iterator[Knob]:
    """Every setting of `config` in order of definition, nested ones with a dotted path."""
    cls: Any = type(config)
    helps, types = field_docs(cls), get_type_hints(cls, include_extras=True)
    for item in fields(config):
        value, path = getattr(config, item.name), prefix + item.name
        if is_dataclass(value):
            yield from knobs(value, path + ".")
        else:
            yield Knob(path, types[item.name], value, helps.get(item.name, ""))


def override(config: C, values: Mapping[str, Any]) -> C:
    """`config` with settings replaced, dotted or nested, e.g. {"dataset.lookback": "80"}; text is parsed by type.

    None, for what cannot be None (a section of a form that nobody opened, say), leaves it as it was. Raises
    ConfigError for an unknown setting or a value the setting cannot hold.
    """
    known = {knob.path: knob for knob in knobs(config)}
    flat = {
        path: value
        for path, value in _flatten(values)
        if value is not None or not _must_have_a_value(path, known)
    }
    for path in flat:
        if path not in known or path == "recipe":
            raise ConfigError(_unknown(path, [p for p in known if p != "recipe"]))
    parsed = {path: _parse(known[path], value) for path, value in flat.items()}
    return cast(C, _replace(config, parsed))


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, str]:
    """["dataset.lookback=80", ...] as a mapping. Raises ConfigError for one without `=`."""
    pairs = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"Expected key=value such as dataset.lookback=80, found {text!r}; add the missing part."
            )
        pairs[path.strip()] = value.strip()
    return pairs


def config_digest(config: RunConfig) -> str:
    """Sixteen hex digits over every setting that changes a night's result.

    Where candles come from, how long a step may take and how many processes share a batch do not.
    """
    aside = ("exchange", "archive", "replay", "limits")
    content = {k: v for k, v in asdict(config).items() if k not in aside}
    del content["model"]["processes"]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def day_ms(day: date | None) -> int | None:
    """Midnight of a day in ms since the epoch, UTC; None for None."""
    if day is None:
        return None
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested or dotted mappings as dotted pairs: a form sends {"dataset": {"lookback": 80}}, the CLI dotted keys."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _must_have_a_value(path: str, known: Mapping[str, Knob]) -> bool:
    if path in known:
        return not known[path].may_be_empty
    return any(other.startswith(f"{path}.") for other in known)


def _parse(knob: Knob, value: Any) -> Any:
    if isinstance(value, str):
        if str(knob.annotation).startswith("tuple"):
            value = [part for part in value.replace(",", " ").split() if part]
        elif value == "" and knob.may_be_empty:
            value = None
    try:
        return TypeAdapter(knob.annotation).validate_python(value)
    except ValidationError as error:
        remedy = "choose one" if "|" in knob.kind else f"it means: {knob.help}"
        raise ConfigError(f"{knob.path}: expected {knob.kind}, found {value!r}; {remedy}") from error


def _replace(config: Any, parsed: Mapping[str, Any], prefix: str = "") -> Any:
    changes: dict[str, Any] = {}
    for item in fields(config):
        path, value = prefix + item.name, getattr(config, item.name)
        if is_dataclass(value):
            changed = _replace(value, parsed, path + ".")
            if changed != value:
                changes[item.name] = changed
        elif path in parsed:
            changes[item.name] = parsed[path]
    try:
        return replace(config, **changes) if changes else config
    except ConfigError:
        raise
    except ValueError as error:
        sentence = str(error)
        raise ConfigError(sentence if prefix in sentence else prefix + sentence) from error


def _unknown(path: str, known: list[str]) -> str:
    if path in _RENAMED:
        return f"Expected a known setting, found {path!r}, which is called {_RENAMED[path]} now; rename it"
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    best = max((_likeness(path, one) for one in near), default=0.0)
    near = [one for one in near if _likeness(path, one) > best - _FAR]
    hint = f"did you mean {' or '.join(near)}?" if near else "`kronos recipes NAME` lists them."
    return f"Expected a known setting, found {path!r}; {hint}"


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(
        None, other, one
    ).ratio()  # in get_close_matches' order: it is not symmetric


@cache
def field_docs(cls: Any) -> dict[str, str]:
    """The string literal under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = inspect.cleandoc(str(following.value.value))
    return docs
