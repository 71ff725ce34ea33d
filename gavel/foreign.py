"""Rows from elsewhere after their columns were recognised: checked, or refused with the reason.

The check of every row is msgspec's (a microsecond); the JSON Schemas of `prompts/schemas/` say the
same and explain a row that fails it. A test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import msgspec

from gavel import HOME
from gavel.errors import RowError
from gavel.formats import json_type

Role = Literal["system", "developer", "user", "assistant", "tool"]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class Turn(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str


class PromptForm(msgspec.Struct, frozen=True, tag_field=None):
    """What the columns say about a prompt."""

    messages: Annotated[tuple[Turn, ...], msgspec.Meta(min_length=1)]
    references: tuple[str, ...] = ()
    id: Name | None = None


class Output(msgspec.Struct, frozen=True):
    """One output; metadata: what else its item in the row says."""

    text: str
    model: str | None = None
    metadata: dict[str, Any] = {}


class OutputsForm(msgspec.Struct, frozen=True):
    """What the columns say about outputs."""

    completions: Annotated[tuple[Output, ...], msgspec.Meta(min_length=1)]


class PreferenceForm(msgspec.Struct, frozen=True):
    """What the columns say about a preference."""

    chosen: str
    rejected: str
    chosen_id: Name | None = None
    rejected_id: Name | None = None
    margin: float | None = None
    p_chosen: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


F = TypeVar("F", PromptForm, OutputsForm, PreferenceForm)
_SCHEMAS: dict[type, str] = {PromptForm: "prompt", OutputsForm: "outputs", PreferenceForm: "preference"}


def checked(fields: dict[str, Any], form: type[F], columns: Mapping[str, str]) -> F:
    """`fields` as a `form`.

    Args:
        columns: field → the column it came from, for the message.

    Raises:
        RowError: of a wrong type.
    """
    try:
        return msgspec.convert(fields, form)
    except msgspec.ValidationError as error:
        explain(fields, form, columns, str(error))


def explain(fields: dict[str, Any], form: type[F], columns: Mapping[str, str], otherwise: str) -> NoReturn:
    """Raises RowError that says what in `fields` breaks the schema, `otherwise` when nothing does."""
    from jsonschema.exceptions import best_match

    error = best_match(schema_of(form).iter_errors(fields))
    if error is None:
        raise RowError(f"wrong type: {otherwise}")
    path = list(error.absolute_path)
    column = columns.get(str(path[0]), str(path[0])) if path else ""
    inside = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path[1:])
    found, rule = error.instance, error.validator_value
    if error.validator == "type":
        wanted = " or ".join([rule] if isinstance(rule, str) else rule)
        what = f"is {json_type(found)}, not {wanted}"
    elif error.validator == "enum":
        what = f"is {str(found)[:40]!r}, not one of {', '.join(rule)}"
    elif error.validator in ("minItems", "minLength"):
        what = "is empty"
    elif error.validator == "required":
        what = "lacks " + ", ".join(key for key in rule if key not in found)
    else:
        what = f"is {str(found)[:40]} ({error.validator} {rule})"
    raise RowError(f"wrong type: column {column!r}{inside and ' at ' + inside} {what}")


@cache
def schema_of(form: type) -> Any:
    """The JSON Schema validator of a form."""
    from jsonschema import Draft202012Validator

    path = HOME / "prompts" / "schemas" / f"{_SCHEMAS[form]}.json"
    return Draft202012Validator(json.loads(path.read_text("utf-8")), format_checker=None)
