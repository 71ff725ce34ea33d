"""Pairs with a gold label, from any preference layout; ties are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gavel.columns import MissingColumn
from gavel.errors import RowError
from gavel.layouts import PreferenceLayout
from gavel.records import Completion, Message, Prompt, digest, prompt_id
from gavel.rows import BadRows, Row
from gavel.sources import LOOKS, read_rows
from judge.duels import Duel


@dataclass(frozen=True, slots=True)
class Labelled:
    """Two answers to a prompt. gold: 1.0 where a is better, 0.0 where b is, 0.5 for a tie."""

    id: str
    prompt: Prompt
    a: Completion
    b: Completion
    gold: float


def read_labelled(
    src: str, mapping: Mapping[str, str], bad: BadRows, *, draw_sides: bool = True
) -> Iterator[Labelled]:
    """The labelled pairs of a source: response_a, response_b and label, or chosen and rejected.

    draw_sides: which of chosen and rejected is a is drawn by a hash of the texts, so that no place is
        always right; otherwise chosen is a, as who recorded replies will have had it.

    A row without an id is named by its number from 0; of two with one id the later is a bad row.

    Raises InputError for a source that cannot be read or has no such columns.
    """
    layout = PreferenceLayout(mapping)
    seen: set[str] = set()
    looked: list[Row] = []
    missing: MissingColumn | None = None
    usable = False
    for row in read_rows(src, bad):
        try:
            found = _labelled(row, layout, draw_sides)
            if found.id in seen:
                raise RowError(f"the id {found.id!r} came before")
        except RowError as error:
            if isinstance(error, MissingColumn):
                missing = missing or error
            error.where = error.where or row.where
            looked.append(row)
            if not usable and missing is not None and len(looked) >= LOOKS:
                break
            bad.add(error)
            continue
        usable = True
        seen.add(found.id)
        yield found
    if not usable and missing is not None:
        columns = dict.fromkeys(column for row in looked for column in row.data)
        raise layout.columns.unusable(src, columns, layout.needs, missing.meaning)


def _labelled(row: Row, layout: PreferenceLayout, draw_sides: bool) -> Labelled:
    found = layout.compared(row.data)
    messages = tuple(Message(turn.role, turn.content) for turn in found.prompt.messages)
    references = found.prompt.references
    prompt = Prompt(id=prompt_id(messages, references), messages=messages, references=references)
    texts = found.texts
    gold = 0.5 if found.better is None else float(found.better == 0)
    if (
        draw_sides
        and found.named
        and int(digest("side", messages, sorted(texts)), 16) % 2 != (texts[0] > texts[1])
    ):
        texts, gold = texts[::-1], 1 - gold
    given = row.data.get("id")
    name = str(given) if isinstance(given, str | int) and not isinstance(given, bool) else str(row.number - 1)
    a, b = (
        Completion(id=digest("labelled", name, side, text), prompt_id=prompt.id, index=index, text=text)
        for index, (side, text) in enumerate(zip("ab", texts, strict=True))
    )
    return Labelled(name, prompt, a, b, gold)


def duels_of(labelled: Iterable[Labelled]) -> list[Duel]:
    """The pairs as a judge is asked about them, without their labels."""
    return [Duel(one.id, one.prompt, one.a, one.b) for one in labelled]
