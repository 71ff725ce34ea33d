"""Rows that show a model what to write: raw text, an instruction with its answer, or a conversation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gavel.columns import is_conversation
from gavel.errors import InputError, RowError
from gavel.foreign import PromptForm, Turn, checked
from gavel.layouts import OutputsLayout, is_answered
from gavel.records import Message
from gavel.rows import BadRows, Row
from gavel.sources import LOOKS, read_rows


class Kind(StrEnum):
    """What the rows of a source are."""

    TEXT = "text"
    INSTRUCTION = "instruction"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One row, or one of several answers in it. Consumed by `train`.

    text: raw text, None for the other kinds. messages: a conversation whose last turn is the assistant's.
    """

    row: Row
    text: str | None = None
    messages: tuple[Message, ...] = ()


class DemonstrationLayout(OutputsLayout):
    """Reads rows as demonstrations."""

    needs = "a text, or a prompt and a completion, or a conversation"

    def fits(self, data: dict[str, Any]) -> dict[Kind, str]:
        """The kinds that a row has the columns of, each with those columns in words."""
        found: dict[Kind, str] = {}
        column, text = self.columns.find(data, "text")
        if type(text) is str:
            found[Kind.TEXT] = f"column {column!r}"
        asked, prompt = self.columns.find(data, "prompt")
        answer, value = self.outputs(data)
        if prompt is not None and value is not None:
            found[Kind.INSTRUCTION] = f"columns {asked!r} and {answer!r}"
        if prompt is not None:
            column, value, turns = self.conversation(data)
            if is_conversation(value) and (
                is_answered(turns) or (Kind.INSTRUCTION not in found and _has_answer(turns))
            ):
                found[Kind.CHAT] = f"column {column!r}"
        return found

    def read(self, row: Row, kind: Kind) -> Iterator[Demonstration]:
        """Raises RowError."""
        data = row.data
        if kind is Kind.TEXT:
            column, text = self.columns.need(data, "text")
            if type(text) is not str:
                raise RowError(f"wrong type: column {column!r} is no string")
            yield Demonstration(row, text=text)
        elif kind is Kind.INSTRUCTION:
            if self.outputs(data)[1] is None:
                self.columns.need(data, "completion")
            asked, answered = self.form(data)
            for output in answered.completions:
                turns = [*asked.messages, Turn("assistant", output.text)]
                yield Demonstration(row, messages=_messages(turns))
        else:
            column, _, conversation = self.conversation(data)
            fields = {"messages": self.led(data, conversation)}
            form = checked(fields, PromptForm, {"messages": column})
            end = next((i for i in range(len(form.messages), 0, -1) if _is_answer(form.messages[i - 1])), 0)
            if not end:
                raise RowError(f"no answer: no turn of {column!r} is the assistant's")
            yield Demonstration(row, messages=_messages(form.messages[:end]))


def read_demonstrations(
    src: str, mapping: Mapping[str, str], bad: BadRows, kind: Kind | None = None
) -> tuple[Kind, str, Iterator[Demonstration]]:
    """Opens a source, and finds out what its rows are where `kind` does not say it.

    Returns:
        The kind, why it is that one in words ("" where it was given), and the demonstrations.

    Raises:
        InputError: as `gavel.sources.read_rows`; no kind fits the first rows, or several do.
    """
    layout, rows = DemonstrationLayout(mapping), read_rows(src, bad)
    looked = list(itertools.islice(rows, LOOKS))
    why = ""
    if kind is None:
        kind, why = _detected(src, looked, layout)
    return kind, why, _read(itertools.chain(looked, rows), layout, kind, bad)


def _detected(src: str, looked: Sequence[Row], layout: DemonstrationLayout) -> tuple[Kind, str]:
    found: dict[Kind, str] = {}
    for row in looked:
        try:
            found = layout.fits(row.data) | found
        except RowError:  # reading it again counts it
            continue
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        could = " or ".join(f"{kind} ({found[kind]})" for kind in Kind if kind in found)
        ways = " or ".join(f"--kind {kind}" for kind in Kind if kind in found)
        raise InputError(f"its rows could be {could}", where=src, hint=f"Say which they are: {ways}.")
    columns = dict.fromkeys(column for row in looked for column in row.data)
    asked = "prompt" not in layout.columns.mapped and any(
        layout.columns.find(row.data, "prompt")[1] is not None for row in looked
    )
    raise layout.columns.unusable(src, columns, layout.needs, "completion" if asked else "text")


def _read(
    rows: Iterable[Row], layout: DemonstrationLayout, kind: Kind, bad: BadRows
) -> Iterator[Demonstration]:
    for row in rows:
        try:
            yield from list(layout.read(row, kind))
        except RowError as error:
            bad.add(RowError(error.what, where=error.where or row.where, hint=error.hint))


def _has_answer(turns: Any) -> bool:
    """Whether any turn is the assistant's."""
    return any(type(turn) is dict and turn.get("role") == "assistant" for turn in turns)


def _is_answer(turn: Turn) -> bool:
    return turn.role == "assistant"


def _messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    return tuple(Message(turn.role, turn.content) for turn in turns)
