"""Duels: two completions of one prompt, and what a judge of any method says of them in each order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gavel.errors import InputError
from gavel.records import Completion, Judgment, Prompt, digest
from gavel.rundir import Index, RunDir
from gavel.scores import score_completions
from gavel.standing import by_order
from judge.judging import Judging


@dataclass(frozen=True, slots=True)
class Duel:
    """Two completions of one prompt. id: unique among the duels."""

    id: str
    prompt: Prompt
    a: Completion
    b: Completion


@dataclass(frozen=True, slots=True)
class Outcome:
    """Probability that a is better as judged with a shown first, and with b shown first; hard verdicts
    are 1, 0 and 0.5. None: no verdict. A method that never shows both gives the same number twice."""

    ab: float | None
    ba: float | None


def ask(
    duels: Iterable[Duel], judging: Judging, journal: RunDir, *, name: str
) -> tuple[dict[str, Outcome], dict[str, Any]]:
    """Judges all duels into the pass `name` of `journal`.

    Each duel is a prompt of its own to the judge, whatever its prompt's id: one completion may stand
    in many duels.

    Returns: duel id → outcome, and the summary of `Judging.judge`.

    Raises InputError for a method that asks in one order only.
    """
    if judging.one_order:
        raise InputError("both orders are needed to compare two answers", where="--orders",
                         hint="Leave it at both.")  # fmt: skip
    renamed = [_alone(duel) for duel in duels]

    def groups() -> Iterator[tuple[Prompt, list[Completion]]]:
        for duel in renamed:
            yield duel.prompt, [duel.a, duel.b]

    summary = judging.judge(journal, name, groups)
    with contextlib.closing(Index(journal.judgments_path(summary["pass"]))) as index:
        found = {duel.id: outcome(duel, index.read(duel.prompt.id, Judgment), judging) for duel in renamed}
    return found, summary


def _alone(duel: Duel) -> Duel:
    """The duel under a prompt id of its own. A completion's id is of its text, so that a judge that scores
    is not asked again about a text that stood on the other side before; equal texts have two ids even so."""
    name = digest("duel", duel.id, duel.prompt.id)
    equal = duel.a.text == duel.b.text
    prompt = Prompt(id=name, messages=duel.prompt.messages, references=duel.prompt.references)
    sides = [
        Completion(
            id=digest("duel", name, c.text, c.finish_reason, side if equal else ""),
            prompt_id=name,
            index=number,
            text=c.text,
            finish_reason=c.finish_reason,
        )
        for number, (side, c) in enumerate((("a", duel.a), ("b", duel.b)))
    ]
    return Duel(duel.id, prompt, *sides)


def outcome(duel: Duel, judgments: list[Judgment], judging: Judging) -> Outcome:
    """What the recorded judgments of one duel say."""
    if duel.a.text == duel.b.text:
        return Outcome(0.5, 0.5)
    mine = [j for j in judgments if {duel.a.id, duel.b.id}.issuperset(j.completion_ids)]
    if any(len(j.completion_ids) > 1 for j in mine):
        return _compared(duel, mine)
    a, b = score_completions([duel.a, duel.b], mine, judging.aspects)
    if a.score is None or b.score is None:
        return Outcome(None, None)
    hard = 0.5 if a.score == b.score else float(a.score > b.score)
    return Outcome(hard, hard)


def _compared(duel: Duel, judgments: list[Judgment]) -> Outcome:
    """A vote of a panel stands for both orders; an order that was not answered has no verdict."""
    orders = by_order(judgments)[min(duel.a.id, duel.b.id), max(duel.a.id, duel.b.id)]
    a_first = duel.a.id < duel.b.id

    def of(a_shown_first: bool) -> float | None:
        values = orders.get(a_shown_first is a_first)
        if not values or None in values:
            return None
        known = [v for v in values if v is not None]
        p = sum(known) / len(known)
        return p if a_first else 1 - p

    ab, ba = of(True), of(False)
    if all(judgment.method == "panel" for judgment in judgments):
        ab = ba = ab if ab is not None else ba
    return Outcome(ab, ba)
