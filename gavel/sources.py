"""Reads prompts, outputs and preferences from elsewhere, as streams of rows with their place.

SRC is a path (.jsonl, .json, .csv, .parquet, .txt, each also .gz; a `datasets` directory or one of
Parquet or text files) or ``hub:owner/name[:split]``. Every reader opens its source and looks for its
columns when it is called, before the first row is asked for; the rows then come as they are read. A row
that cannot be used goes to `BadRows`, whose `check` the caller calls at the end. One `BadRows` per source.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from gavel.columns import MissingColumn
from gavel.errors import InputError, RowError
from gavel.foreign import PreferenceForm, PromptForm
from gavel.formats import READS, file_rows
from gavel.layouts import Layout, OutputsLayout, PreferenceLayout, metadata_of
from gavel.records import Completion, Message, Prompt, digest, prompt_id
from gavel.rows import BadRows, Row

__all__ = ["BadRows", "OutputReader", "OutputRow", "PreferenceReader", "PreferenceRow", "PromptReader", "Row",
           "read_outputs", "read_preferences", "read_prompts", "read_rows"]  # fmt: skip

LOOKS = 100  # rows looked at before a source without usable columns is refused
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OutputRow:
    """Outputs that exist already: one or several for a prompt. Consumed by `judge`.

    row: with its own columns. completions: without token ids, never empty.
    """

    row: Row
    prompt: Prompt
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One output preferred to another, from elsewhere. Consumed by `judge` and `train`.

    chosen_id, rejected_id: the ids of gavel's own completions in an export, else None.
    margin: score of chosen minus score of rejected where the row says so.
    p_chosen: probability that chosen is better, in [0, 1], where the row says so.
    """

    row: Row
    prompt: Prompt
    chosen: str
    rejected: str
    chosen_id: str | None = None
    rejected_id: str | None = None
    margin: float | None = None
    p_chosen: float | None = None


def read_rows(src: str, bad: BadRows) -> Iterator[Row]:
    """The rows of a source as they stand.

    Raises:
        InputError: missing, empty, of an unknown format, damaged; at once where the start shows it,
            else when the place is reached.
    """
    rows = _open(src, bad)
    first = next(rows, None)
    if first is None:
        bad.check()
        raise InputError("holds no rows", where=src)
    return itertools.chain([first], rows)


def _open(src: str, bad: BadRows) -> Iterator[Row]:
    if src.startswith("hub:"):
        from gavel.tables import hub_rows

        name, _, split = src.removeprefix("hub:").partition(":")
        if not name:
            raise InputError(
                "names no dataset", where=src, hint="Write hub:owner/name or hub:owner/name:split."
            )
        return hub_rows(name, split or None, src, bad)
    path = Path(src).expanduser()
    try:
        there = path.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError(f"cannot be read: {error.strerror}", where=src[:100]) from None
    if not there:
        hint = (
            f"A dataset of the hub is written hub:{src}." if src.count("/") == 1 and not path.suffix else None
        )
        raise InputError("there is no such file", where=src, hint=hint or f"gavel reads {READS}.")
    if path.is_dir():
        from gavel.tables import directory_rows

        return directory_rows(path, src, bad)
    return file_rows(path, src, bad)


class _Reader(Generic[T]):
    """Turns rows into what they mean; remembers what must be unique across rows."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.where = ""  # of the row read last
        self._given: dict[str, str] = {}  # given prompt id → content hash: about 200 bytes per id

    def __call__(self, row: Row) -> T | None:
        """None for a row that says nothing new.

        Raises:
            RowError: the row cannot be used; it names the row.
            InputError: the source cannot be used.
        """
        self.where = row.where
        try:
            return self._read(row)
        except RowError as error:
            error.where = error.where or row.where
            raise

    def _read(self, row: Row) -> T | None:
        raise NotImplementedError

    def _prompt(self, form: PromptForm, where: str, metadata: dict[str, Any] | None = None) -> Prompt:
        messages = tuple([Message(turn.role, turn.content) for turn in form.messages])
        content = prompt_id(messages, form.references)
        if form.id is not None and self._given.setdefault(form.id, content) != content:
            raise _Fatal(f"the prompt id {form.id!r} came before with different content", where=where,
                         hint="Give every prompt its own id, or leave the ids out.")  # fmt: skip
        return Prompt(
            id=form.id or content, messages=messages, references=form.references, metadata=metadata or {}
        )


class _Fatal(InputError):
    """Ends the reading of a source."""


class PromptReader(_Reader[Prompt]):
    """Rows as prompts. None for a prompt that came before; `repeated` counts them."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        super().__init__(Layout(mapping))
        self.repeated = 0
        self._seen: set[str] = set()

    def _read(self, row: Row) -> Prompt | None:
        form = self.layout.form(row.data)
        prompt = self._prompt(form, row.where, metadata_of(row.data, self.layout.columns))
        if prompt.id in self._seen:
            self.repeated += 1
            return None
        self._seen.add(prompt.id)
        return prompt


class OutputReader(_Reader[OutputRow]):
    """Rows as outputs. Rows with the same prompt are further outputs of it."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        super().__init__(OutputsLayout(mapping))
        self._counts: Counter[str] = Counter()  # outputs so far by prompt, and by prompt and model

    def _read(self, row: Row) -> OutputRow:
        asked, answered = self.layout.form(row.data)
        prompt = self._prompt(asked, row.where)
        shared = metadata_of(row.data, self.layout.columns)
        made = []
        for output in answered.completions:
            key = f"{prompt.id}\0{output.model or ''}"
            index, nth = self._counts[prompt.id], self._counts[key]
            self._counts[prompt.id] += 1
            self._counts[key] += 1
            made.append(Completion(
                id=digest("output", prompt.id, output.model or "", nth, output.text),
                prompt_id=prompt.id, index=index, text=output.text, model=output.model,
                metadata={**shared, **output.metadata},
            ))  # fmt: skip
        return OutputRow(row, prompt, tuple(made))


class PreferenceReader(_Reader[PreferenceRow]):
    """Rows as preferences. None for a tie; `ties` counts them."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        super().__init__(PreferenceLayout(mapping))
        self.ties = 0

    def _read(self, row: Row) -> PreferenceRow | None:
        found: tuple[PromptForm, PreferenceForm] | None = self.layout.form(row.data)
        if found is None:
            self.ties += 1
            return None
        asked, form = found
        prompt = self._prompt(asked, row.where)
        return PreferenceRow(row, prompt, form.chosen, form.rejected, form.chosen_id, form.rejected_id,
                             form.margin, form.p_chosen)  # fmt: skip


def read_prompts(
    src: str, mapping: Mapping[str, str], bad: BadRows, places: dict[str, str] | None = None
) -> Iterator[Prompt]:
    """The prompts of a source, each once; `bad.repeated` counts those that came again.

    Args:
        mapping: meaning → column (`--map`).
        places: is told where each prompt stands, by its id.

    Raises:
        InputError: as `read_rows`; no usable columns; a given id twice with different content.
    """
    reader = PromptReader(mapping)
    rows = _usable(src, reader, bad)

    def prompts() -> Iterator[Prompt]:
        for found in _results(rows, reader, bad):
            if places is not None:
                places[found.id] = reader.where
            yield found
            bad.repeated = reader.repeated
        bad.repeated = reader.repeated

    return prompts()


def read_outputs(src: str, mapping: Mapping[str, str], bad: BadRows) -> Iterator[OutputRow]:
    """The outputs of a source, row by row. Arguments and errors as `read_prompts`."""
    reader = OutputReader(mapping)
    return _results(_usable(src, reader, bad), reader, bad)


def read_preferences(src: str, mapping: Mapping[str, str], bad: BadRows) -> Iterator[PreferenceRow]:
    """The preferences of a source; `bad.ties` counts rows that prefer neither, which are left out.
    Arguments and errors as `read_prompts`."""
    reader = PreferenceReader(mapping)
    rows = _usable(src, reader, bad)

    def preferences() -> Iterator[PreferenceRow]:
        yield from _results(rows, reader, bad)
        bad.ties = reader.ties

    return preferences()


def _results(rows: Iterator[Row], reader: _Reader[T], bad: BadRows) -> Iterator[T]:
    for row in rows:
        try:
            found = reader(row)
        except RowError as error:
            bad.add(error)
            continue
        if found is not None:
            yield found


def _usable(src: str, reader: _Reader[Any], bad: BadRows) -> Iterator[Row]:
    """The rows of a source in which at least one of the first has the columns that `reader` needs."""
    rows = read_rows(src, bad)
    looked: list[Row] = []
    meaning = ""
    for row in itertools.islice(rows, LOOKS):
        looked.append(row)
        try:
            reader.layout.form(row.data)
        except MissingColumn as error:
            meaning = meaning or error.meaning
            continue
        except RowError:
            pass
        return itertools.chain(looked, rows)
    columns = dict.fromkeys(column for row in looked for column in row.data)
    raise reader.layout.columns.unusable(src, columns, reader.layout.needs, meaning)
