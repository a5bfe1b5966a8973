"""What the form of the Prefect UI is made of, so that it can refuse a wrong value before a run exists.

Settings are not described here: their fields, with meanings, choices and bounds, come from the frozen dataclasses
that define them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema, create_model
from pydantic.json_schema import JsonSchemaValue

from flows.config import RunConfig, field_docs
from kronos_model.settings import limits_of
from storage.retention import RetentionPolicy

__all__ = ["Count", "Duration", "Retention", "RunSettings", "SeriesName", "SettingsForm", "Unchanged"]

SeriesName = Annotated[str, Field(pattern=r"^(spot|um):\S+$", examples=["um:DOGEUSDT"])]
Duration = Annotated[str, Field(pattern=r"^\d+(\.\d+)?[smhd]?$", examples=["90s", "15m", "24h", "7d"])]
Count = Annotated[int, Field(ge=1, le=500)]

Unchanged = Annotated[None, WithJsonSchema({"type": "null", "title": "unchanged"})]


@dataclass(frozen=True, slots=True)
class SettingsForm:
    """Annotates a mapping of settings: a form then has one field for each setting of `example`, none of them required.

    A field that stays empty is not sent; a section that stays closed and a switch that nobody touches are sent as
    null. Either leaves it unchanged. Code gets the mapping as it was sent, for `flows.config.override` to check.
    """

    example: Any  # a frozen dataclass
    without: tuple[str, ...] = ()  # what the flow has parameters of its own for

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of a flow's parameter, as pydantic asks for it."""
        title = type(self.example).__name__
        return handler(_model(self.example, title, self.without).__pydantic_core_schema__)


@cache
def _model(example: Any, title: str, without: tuple[str, ...] = ()) -> type[BaseModel]:
    """The fields of a dataclass, in its order, as a model that is only ever asked for its schema."""
    cls: Any = type(example)
    meanings, kinds = field_docs(cls), get_type_hints(cls, include_extras=True)
    found: dict[str, Any] = {}
    for name in (one.name for one in fields(example) if one.name not in without):
        told: dict[str, Any] = {"title": name, "description": " ".join(meanings[name].split())}
        kind = kinds[name]
        if is_dataclass(kind):
            section = _model(getattr(example, name), name)
            found[name] = (section | Unchanged, Field(None, **told))
        elif kind is bool:  # a switch alone would be sent as off by whoever leaves it alone
            found[name] = (bool | Unchanged, Field(None, **told))
        else:
            found[name] = (kind, Field(None, **told, json_schema_extra=_without_default(kind)))
    return create_model(title, __config__=ConfigDict(extra="forbid"), **found)


def _without_default(kind: Any) -> Any:
    """The limits of a setting; a default would be filled in, and sent."""

    def change(schema: dict[str, Any]) -> None:
        del schema["default"]
        for limit in limits_of(kind):
            schema.update(limit.schema())

    return change


_ELSEWHERE = ("recipe", "series", "interval", "start", "end")
_ANY_RUN = RunConfig(recipe="any", series=("um:DOGEUSDT",))
RunSettings = Annotated[dict[str, Any] | None, SettingsForm(_ANY_RUN, without=_ELSEWHERE)]
Retention = Annotated[dict[str, Any] | None, SettingsForm(RetentionPolicy())]
