"""Rows of a preference file for an audit: ties, order and scores kept, nothing left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from gavel.columns import MissingColumn, outputs, unpacked
from gavel.errors import InputError, RowError, RunDirError
from gavel.foreign import OutputsForm, PromptForm, Turn, checked
from gavel.layouts import Layout, PreferenceLayout
from gavel.records import Completion, PreferencePair, decode
from gavel.rows import BadRows, Row
from gavel.rundir import Index, RunDir, is_run, read_lines
from gavel.scores import distinct_prompts
from gavel.sources import LOOKS, read_rows

#: how an item of `completions` calls its score, the first that is a number counts
SCORES = ("overall_score", "score", "rating", "fine-grained_score")


class Verdict(NamedTuple):
    """Two texts of a row by their places, and which is better. tie: neither; then better < worse."""

    better: int
    worse: int
    tie: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. Produced here, consumed by `judge.audit_tally`.

    turns: the prompt. texts: the answers in the order of the row.
    ordered: that order says nothing of which is better, as it does with chosen and rejected.
    scores: one for each text, None where the row gives none.
    margin, p_chosen: of the one verdict of a row that states them.
    """

    where: str
    layout: str
    turns: tuple[Turn, ...]
    texts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    ordered: bool
    scores: tuple[float | None, ...]
    margin: float | None = None
    p_chosen: float | None = None


class ScoredLayout(Layout):
    """Rows with several completions, each with a score (UltraFeedback): every two of them compared."""

    needs = "a prompt and scored completions"

    def form(self, data: dict[str, Any]) -> tuple[PromptForm, list[str], list[float]]:
        """Prompt, texts and scores of the completions that have a score. Raises RowError."""
        column, value = self.columns.need(data, "completions")
        items = outputs(unpacked(value), None)
        answered = checked({"completions": items}, OutputsForm, {"completions": column})
        texts, scores = [], []
        for output in answered.completions:
            score = next(
                (output.metadata[key] for key in SCORES if _is_number(output.metadata.get(key))), None
            )
            if score is not None:
                texts.append(output.text)
                scores.append(float(score))
        if len(texts) < 2:
            raise RowError(
                f"no two scores: fewer than two of {column!r} have {' or '.join(SCORES)}",
                hint="An audit needs labels: scores, chosen and rejected, or two outputs and a label.",
            )
        return self.prompt(data, "prompt_id"), texts, scores


def read_entries(src: str, mapping: Mapping[str, str], bad: BadRows) -> Iterator[Entry]:
    """The rows of a preference file, or the newest set of pairs of a run directory; streams.

    Args:
        mapping: meaning → column (`--map`). bad: is told of rows that cannot be used.

    Raises:
        InputError: as `gavel.sources.read_rows`; none of the first rows has the columns needed.
        RunDirError: a run without pairs, or one that cannot be read.
    """
    if is_run(src):
        return _run_entries(RunDir(src), bad)
    return _file_entries(src, mapping, bad)


def _file_entries(src: str, mapping: Mapping[str, str], bad: BadRows) -> Iterator[Entry]:
    pairs, scored = PreferenceLayout(mapping), ScoredLayout(mapping)
    looked: list[Row] = []
    usable, missed = False, ""
    for row in read_rows(src, bad):
        try:
            entry = _entry(row, pairs, scored)
            usable = True
            yield entry
        except RowError as error:
            error.where = error.where or row.where
            bad.add(error)
            missed = missed or getattr(error, "meaning", "")
            usable = usable or not isinstance(error, MissingColumn)
        if not usable and len(looked) < LOOKS:
            looked.append(row)
        if not usable and len(looked) == LOOKS:
            break
    if not usable and missed:
        columns = dict.fromkeys(column for row in looked for column in row.data)
        raise pairs.columns.unusable(src, columns, pairs.needs, missed)


def _entry(row: Row, pairs: PreferenceLayout, scored: ScoredLayout) -> Entry:
    """Raises RowError."""
    data, find = row.data, pairs.columns.find
    several = find(data, "completions")[1]
    if several is not None and find(data, "chosen")[1] is None and find(data, "first")[1] is None:
        prompt, texts, numbers = scored.form(data)
        return Entry(row.where, "scored completions", prompt.messages, tuple(texts), tuple(
            Verdict(*((i, j) if numbers[i] >= numbers[j] else (j, i)), tie=numbers[i] == numbers[j])
            for i, j in combinations(range(len(texts)), 2)
        ), ordered=True, scores=tuple(numbers))  # fmt: skip
    found = pairs.compared(data)
    layout = "chosen and rejected" if found.named else "two outputs and a label"
    if found.better is None:
        return Entry(row.where, layout, found.prompt.messages, found.texts, (Verdict(0, 1, tie=True),),
                     not found.named, (None, None))  # fmt: skip
    form = pairs.preference(data, found)
    scores = pairs.columns.number(data, "chosen_score"), pairs.columns.number(data, "rejected_score")
    return Entry(row.where, layout, found.prompt.messages, found.texts,
                 (Verdict(found.better, 1 - found.better, tie=False),), not found.named,
                 scores if found.better == 0 else scores[::-1], form.margin, form.p_chosen)  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _run_entries(run: RunDir, bad: BadRows) -> Iterator[Entry]:
    """The newest set of pairs, in the order of the prompts."""
    sets = run.pair_sets()
    if not sets:
        raise RunDirError(
            "holds no pairs",
            where=str(run.path),
            hint=f"Run first: gavel pairs {run.path}. The rounds of a loop are runs of their own.",
        )
    path = run.pairs_path(sets[-1])
    lines = {decode(line, PreferencePair, f"{path}:{n}").id: n for n, _, line in read_lines(path)}
    with (
        contextlib.closing(Index(path)) as pairs,
        contextlib.closing(Index(run.completions_path)) as completions,
    ):
        for prompt in distinct_prompts(run):
            found = pairs.read(prompt.id, PreferencePair)
            texts = {c.id: c.text for c in completions.read(prompt.id, Completion)} if found else {}
            turns = tuple(Turn(m.role, m.content) for m in prompt.messages)  # type: ignore[arg-type]
            for pair in found:
                where = f"{path}:{lines.pop(pair.id, 0)}"
                bad.total += 1
                if pair.chosen_id not in texts or pair.rejected_id not in texts:
                    bad.add(RowError("missing completion: it is not in completions.jsonl", where=where))
                    continue
                yield Entry(where, "gavel's pairs", turns, (texts[pair.chosen_id], texts[pair.rejected_id]),
                            (Verdict(0, 1, tie=False),), False, (pair.chosen_score, pair.rejected_score),
                            pair.margin, pair.p_chosen)  # fmt: skip
    for number in lines.values():
        bad.total += 1
        bad.add(RowError("missing prompt: it is not in prompts.jsonl", where=f"{path}:{number}"))
    if not bad.total:
        raise InputError("holds no pairs", where=str(path))
