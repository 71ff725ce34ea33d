"""Which column means what: well-known layouts and the user's own `--map`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gavel.errors import InputError, RowError
from gavel.formats import json_type

#: meaning → the columns that have it, the first that holds something counts
KNOWN: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "query", "messages", "conversations", "conversation"),
    "input": ("input",),
    "system": ("system", "system_prompt"),
    "reference": ("references", "reference", "reference_answer"),
    "id": ("prompt_id", "id"),
    "prompt_id": ("prompt_id",),
    "metadata": ("metadata",),
    "completions": ("completions", "responses", "outputs"),
    "completion": ("completion", "response", "output", "answer"),
    "text": ("text",),
    "model": ("model", "generator", "model_name"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "chosen_id": ("chosen_id",),
    "rejected_id": ("rejected_id",),
    "margin": ("margin",),
    "p_chosen": ("p_chosen",),
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
    "first": ("response_a", "output_1"),
    "second": ("response_b", "output_2"),
    "label": ("label", "winner", "preferred", "preference"),
}
_ALIASES = {"messages": "prompt", "references": "reference", "response": "completion", "output": "completion",
            "responses": "completions", "outputs": "completions", "instruction": "prompt",
            "response_a": "first", "response_b": "second", "preference": "label"}  # fmt: skip

ROLES = {
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response"), "tool"),
}
_TEXT = ("text", "content", "response", "completion", "output", "answer", "value")


class MissingColumn(RowError):
    """A row has no column with the meaning asked for."""

    meaning: str = ""


class Columns:
    """Finds values by meaning.

    Args:
        mapping: meaning → column, the user's own; dots lead into nested values.

    Raises:
        InputError: `mapping` names a meaning that does not exist.
    """

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.mapped: dict[str, str] = {}
        for name, column in mapping.items():
            meaning = _ALIASES.get(name, name)
            if meaning not in KNOWN:
                close = difflib.get_close_matches(name, [*KNOWN, *_ALIASES], n=1)
                hint = f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(KNOWN)}."
                raise InputError(f"nothing is called {name!r}", where=f"--map {name}={column}", hint=hint)
            self.mapped[meaning] = column

    def find(self, data: dict[str, Any], meaning: str) -> tuple[str, Any]:
        """The column and its value; ("", None) where the row has nothing of that meaning.

        Raises:
            MissingColumn: the user mapped it to a column that the row does not have.
        """
        column = self.mapped.get(meaning)
        if column is not None:
            return column, _inside(data, column)
        for column in KNOWN[meaning]:
            value = data.get(column)
            if value is not None:
                return column, value
        return "", None

    def need(self, data: dict[str, Any], meaning: str) -> tuple[str, Any]:
        """Like `find`, but the column must be there and hold something."""
        column, value = self.find(data, meaning)
        if value is not None:
            return column, value
        if column or any(name in data for name in KNOWN[meaning]):
            raise RowError(f"empty {meaning}: the column is null")
        error = MissingColumn(f"missing column: none for the {meaning}")
        error.meaning = meaning
        raise error

    def text(self, data: dict[str, Any], meaning: str) -> str | None:
        """A name or id, numbers as their digits; None where there is none."""
        column, value = self.find(data, meaning)
        if value is None or type(value) is str:
            return value or None
        if type(value) is int:
            return str(value)
        raise RowError(f"wrong type: column {column!r} is {json_type(value)}, not string")

    def number(self, data: dict[str, Any], meaning: str) -> float | None:
        """A finite number, also from a string; None where there is none."""
        column, value = self.find(data, meaning)
        if value is None or value == "" or value != value:
            return None
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            found = float(value)
            if found - found != 0:
                raise ValueError
        except (ValueError, OverflowError):
            raise RowError(f"wrong type: column {column!r} is no finite number") from None
        return found

    def unusable(self, src: str, columns: Iterable[str], needs: str, meaning: str) -> InputError:
        """The error for a source in which no row had the columns asked for.

        Args:
            columns: those that were found. needs: what is needed, in words. meaning: what was missed.
        """
        found = sorted(set(columns))
        listed = ", ".join(found) or "(none)"
        for mapped, column in self.mapped.items():
            if column not in found and column.partition(".")[0] not in found:
                close = difflib.get_close_matches(column, found, n=1)
                hint = f"Did you mean {close[0]!r}?" if close else "Map one of those."
                what = f"no column {column!r} (--map {mapped}={column}); found: {listed}"
                return InputError(what, where=src, hint=hint)
        if not meaning:
            return InputError(f"the mapped columns hold nothing of that kind; found: {listed}", where=src)
        known = ", ".join(KNOWN[meaning])
        return InputError(
            f"no usable columns: it needs {needs}; found: {listed}",
            where=src,
            hint=f"Say which holds the {meaning}: --map {meaning}=COLUMN (dots lead into nested values, as "
            f"in outputs.gpt4). Recognised by themselves: {known}.",
        )


def _inside(data: dict[str, Any], column: str) -> Any:
    if column in data:
        return data[column]
    value: Any = data
    for step in column.split("."):
        if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            raise MissingColumn(f"missing column: no {column!r}")
    return value


def turns(value: Any) -> Any:
    """A conversation as role and content, whatever it was written as; a string is a user's turn.

    Takes messages, ShareGPT's from/value, and contents in parts. What it does not know it leaves for
    the check to refuse.
    """
    if type(value) is str:
        return [{"role": "user", "content": value}]
    if type(value) is not list:
        return value
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> Any:
    if type(turn) is not dict:
        return turn
    role = turn.get("from") if turn.get("role") is None else turn["role"]
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if type(content) is list:
        content = _joined(content)
    return {"role": ROLES.get(role, role) if type(role) is str else role, "content": content}


def _joined(parts: list[Any]) -> Any:
    """The text of a content given in parts; images and such are left for the check to refuse."""
    found = [part.get("text") if type(part) is dict else part for part in parts]
    texts = [text for text in found if type(text) is str]
    return "".join(texts) if len(texts) == len(parts) else parts


def unpacked(value: Any) -> Any:
    """A list or object that a CSV cell or a text column holds as JSON."""
    if type(value) is str and value.lstrip()[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(value)
        except (ValueError, RecursionError):
            return value
    return value


def is_conversation(value: Any) -> bool:
    return (
        type(value) is list
        and bool(value)
        and type(value[0]) is dict
        and bool({"role", "from"} & value[0].keys())
    )


def outputs(value: Any, model: str | None) -> Any:
    """Outputs as a list of text, model and metadata: from one text, a list, a {model: text} object,
    a list of objects (UltraFeedback), or the assistant's turns of a conversation."""
    if type(value) is dict and not any(key in value for key in _TEXT):
        named = [(name, item) for name, item in value.items() if item is not None]
        return [{**_output(item, name), "model": name} for name, item in named]
    if type(value) is not list or is_conversation(value):
        return [_output(value, model)]
    return [_output(item, model) for item in value]


def _output(item: Any, model: str | None) -> dict[str, Any]:
    if is_conversation(item):
        item = turns(item)
        if len(item) != 1 or item[0]["role"] != "assistant":
            raise RowError("several turns: an output is one turn of the assistant")
        return {"text": item[0]["content"], "model": model}
    if type(item) is not dict:
        return {"text": item, "model": model}
    column = next((key for key in _TEXT if item.get(key) is not None), "text")
    own = next((item[key] for key in KNOWN["model"] if item.get(key) is not None), model)
    rest = {k: v for k, v in item.items() if k != column and k not in KNOWN["model"] and plain(v)}
    return {"text": item.get(column), "model": own, "metadata": rest}


def plain(value: Any) -> bool:
    """Whether a value is worth keeping as metadata: a number, a boolean or a short text."""
    kind = type(value)
    return (
        kind is int
        or kind is bool
        or (kind is float and value - value == 0)
        or (kind is str and len(value) <= 200)
    )
