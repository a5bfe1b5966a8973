"""The form of a flow, as the Prefect UI gets it."""

from typing import Any

from prefect.utilities.callables import parameter_schema

__all__ = ["form_fields", "form_schema"]


def form_schema(flow: Any) -> dict[str, Any]:
    return dict(parameter_schema(flow).model_dump(mode="json"))


def form_fields(flow: Any) -> dict[str, dict[str, Any]]:
    """Every setting of the form by its dotted name, in its order."""
    schema, found = form_schema(flow), {}
    for name, one in schema["properties"]["settings"]["properties"].items():
        reference = one.get("anyOf", [{}])[0].get("$ref")
        if reference is None:
            found[name] = one
        else:
            section = schema["definitions"][reference.removeprefix("#/definitions/")]
            found |= {f"{name}.{inner}": each for inner, each in section["properties"].items()}
    return found
