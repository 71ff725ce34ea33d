"""Comparisons that were judged elsewhere, as AlpacaEval writes them down, and what its length-controlled
win rate needs beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gavel.columns import unpacked
from gavel.errors import InputError, RowError
from gavel.records import digest
from gavel.rows import BadRows, Row
from gavel.sources import LOOKS, read_rows
from judge.winrate import Anchor, Comparison

FIRST, SECOND = "m", "M"  # what AlpacaEval's judge answers for the output shown first and second
MODEL = "model"  # the name of a model that a file does not name
_VERDICTS = ("preference", "top_logprobs", "judge_token")
_TEXTS = ("output_1", "output_2")
_ANCHOR_WEIGHT = 0.1  # of AlpacaEval's anchor rows


@dataclass(frozen=True, slots=True)
class Annotation:
    """One row: a model's output against a baseline's.

    index: the instruction's place in its set, where the row says it; instruction: a hash of its text.
    reason: why there is no verdict. contradicted: preference and log-probabilities say different things.
    """

    where: str
    model: str
    baseline: str | None
    index: str | None
    instruction: str | None
    comparison: Comparison
    reason: str | None = None
    contradicted: bool = False


def read_annotations(src: str, mapping: Mapping[str, str], bad: BadRows) -> list[Annotation]:
    """The annotations of a source: `preference` from 1 (baseline) to 2 (model), or `top_logprobs`,
    `judge_token` and `baseline_shown_as`; lengths from `len_baseline` and `len_model` or the outputs.

    Args:
        mapping: name above → column (`--map`).

    Raises:
        InputError: no such file, columns that hold no verdicts, or too many rows that cannot be used.
    """
    if unknown := mapping.keys() - _NAMES:
        raise InputError(f"nothing is called {min(unknown)!r} in annotations", where="--map",
                         hint=f"Known: {', '.join(sorted(_NAMES))}.")  # fmt: skip
    found = []
    for row in _with_columns(src, [mapping.get(name, name) for name in _VERDICTS], bad):
        try:
            found.append(_annotation(row, row.data | {k: row.data.get(v) for k, v in mapping.items()}))
        except RowError as error:
            bad.add(RowError(error.what, where=row.where, hint=error.hint))
    bad.check()
    return found


_NAMES = {*_VERDICTS, *_TEXTS, "baseline_shown_as", "len_baseline", "len_model", "model", "generator_1",
          "generator_2", "index", "instruction"}  # fmt: skip


def _with_columns(src: str, columns: Sequence[str], bad: BadRows) -> Iterator[Row]:
    """The rows of a source, one of the first of which has one of the columns."""
    rows = read_rows(src, bad)
    looked = list(itertools.islice(rows, LOOKS))
    found = dict.fromkeys(column for row in looked for column in row.data)
    if not found.keys() & set(columns):
        raise InputError(
            f"no usable columns: it needs {', or '.join(columns)}; found: {', '.join(sorted(found))}",
            where=src,
        )
    return itertools.chain(looked, rows)


def _annotation(row: Row, data: dict[str, Any]) -> Annotation:
    texts = [data.get(name) for name in _TEXTS]
    p, reason, contradicted = _verdict(data)
    if p is None and type(texts[0]) is str and texts[0] == texts[1]:
        p, reason = 0.5, None  # equal texts need no judge
    lengths = [
        _number(data, name) if data.get(name) is not None else len(text) if type(text) is str else None
        for name, text in zip(("len_baseline", "len_model"), texts, strict=True)
    ]
    instruction = data.get("instruction")
    index = data.get("index")
    return Annotation(
        row.where,
        model=str(data.get("model") or data.get("generator_2") or MODEL),
        baseline=str(data["generator_1"]) if data.get("generator_1") else None,
        index=None if index is None else str(index),
        instruction=digest(instruction) if type(instruction) is str else None,
        comparison=Comparison(p, *lengths),
        reason=reason,
        contradicted=contradicted,
    )


def _verdict(data: dict[str, Any]) -> tuple[float | None, str | None, bool]:
    """The probability that the model's output is better, or None with a reason; and whether the row
    contradicts itself."""
    preference = _number(data, "preference")
    read, reason = _from_judge(data)
    if preference is None:
        return read, reason, False
    if not 1 <= preference <= 2:
        return None, "the preference is not between 1 and 2", False
    p = preference - 1
    return p, None, read is not None and abs(read - p) > 0.01


def _from_judge(data: dict[str, Any]) -> tuple[float | None, str | None]:
    """The verdict of the judge's own token: q = P(m) / (P(m) + P(M)) for the output shown first."""
    shown = data.get("baseline_shown_as")
    if shown not in (FIRST, SECOND, None):
        raise RowError(f"unknown order: baseline_shown_as is {str(shown)[:20]!r}, neither m nor M")
    likeliest = _logprobs(unpacked(data.get("top_logprobs")))
    if likeliest is None:
        token = data.get("judge_token")
        if token is None:
            return None, "neither a preference nor a judge's reply"
        likeliest = {token: 0.0}
    first, second = (likeliest.get(label, -math.inf) for label in (FIRST, SECOND))
    top = max(first, second)
    if top == -math.inf:
        return None, "neither m nor M is among the judge's tokens"
    weights = math.exp(first - top), math.exp(second - top)
    q = weights[0] / sum(weights)
    if shown is None and q != 0.5:
        return None, "the order shown is not known"
    return (1 - q if shown == FIRST else q), None


def _logprobs(value: Any) -> dict[Any, float] | None:
    """Token → logprob; also from a list of {token, logprob}. None where nothing was recorded."""
    if type(value) is list and all(type(entry) is dict for entry in value):
        value = {entry.get("token"): entry.get("logprob") for entry in value}
    if value is None or value == "":
        return None
    if type(value) is not dict:
        raise RowError("wrong type: top_logprobs is no object of token and log-probability")
    found = {token: logprob for token, logprob in value.items() if logprob is not None}
    if not all(type(v) in (int, float) and v == v and v < math.inf for v in found.values()):
        raise RowError("wrong type: a log-probability in top_logprobs is no number")
    return found


def _number(data: dict[str, Any], name: str) -> float | None:
    """A number, also from a string; None where there is none."""
    value = data.get(name)
    if value is None or value == "" or value != value:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RowError(f"wrong type: {name} is {str(value)[:20]!r}, no number") from None
    return None if found != found else found


def read_anchors(src: str) -> list[Anchor]:
    """The anchor rows of AlpacaEval's fit: `tanh_std_delta_len`, `preference_equivalent` in [0, 1], and
    where they are there `instruction_difficulty` and `sample_weight`.

    Raises InputError for a file or a row that cannot be used.
    """
    bad = BadRows(0, option="--anchors")
    found = []
    for row in _with_columns(src, ["preference_equivalent"], bad):
        try:
            length, p = _need(row, "tanh_std_delta_len"), _need(row, "preference_equivalent")
            weight = _number(row.data, "sample_weight")
            weight = _ANCHOR_WEIGHT if weight is None else weight
            difficulty = _number(row.data, "instruction_difficulty")
            if not (abs(length) <= 1 and 0 <= p <= 1 and 0 <= weight < math.inf):
                raise RowError("out of range: a length difference, a preference or a weight")
            found.append(Anchor(length, difficulty, weight, p))
        except RowError as error:
            bad.add(RowError(error.what, where=row.where))
    bad.check()
    return found


def _need(row: Row, name: str) -> float:
    value = _number(row.data, name)
    if value is None or not math.isfinite(value):
        raise RowError(f"missing number: {name}")
    return value


def with_difficulty(annotations: Sequence[Annotation], src: str) -> list[Annotation]:
    """The annotations with the `instruction_difficulty` of each.

    Rows are joined by `index`, or by `instruction`; annotations that have neither in common with the
    file by their order for each model, if every baseline's length (`len_baseline`) agrees.

    Raises InputError where they cannot be joined.
    """
    bad = BadRows(0, option="--difficulty")
    rows = list(_with_columns(src, ["instruction_difficulty"], bad))
    values = []
    for row in rows:
        try:
            values.append(_need(row, "instruction_difficulty"))
        except RowError as error:
            bad.add(RowError(error.what, where=row.where))
    bad.check()
    table: dict[str, float] = {}
    for row, value in zip(rows, values, strict=True):
        index, instruction = row.data.get("index"), row.data.get("instruction")
        if index is not None:
            table[str(index)] = value
        if type(instruction) is str:
            table[digest(instruction)] = value
    joined = [_given(a, _first(table, a.index, a.instruction)) for a in annotations]
    if any(a.comparison.difficulty is not None for a in joined):
        return joined
    return list(_in_order(annotations, rows, values, src))


def _first(table: Mapping[str, float], *keys: str | None) -> float | None:
    return next((table[key] for key in keys if key is not None and key in table), None)


def _given(annotation: Annotation, difficulty: float | None) -> Annotation:
    return replace(annotation, comparison=replace(annotation.comparison, difficulty=difficulty))


def _in_order(
    annotations: Iterable[Annotation], rows: Sequence[Row], values: Sequence[float], src: str
) -> Iterator[Annotation]:
    places: dict[str, int] = {}
    for annotation in annotations:
        place = places[annotation.model] = places.get(annotation.model, -1) + 1
        length = annotation.comparison.len_baseline
        if annotation.index is not None or place >= len(rows) or length is None:
            same = False
        else:
            same = _number(rows[place].data, "len_baseline") == length
        if not same:
            raise InputError(
                f"its rows cannot be joined to the annotations: at {annotation.where} neither index nor "
                "instruction nor the order with the baseline's length agrees",
                where=f"--difficulty {src}",
                hint="Give both files a column index.",
            )
        yield _given(annotation, values[place])


def by_model(annotations: Sequence[Annotation], wanted: str | None) -> dict[str, list[Annotation]]:
    """The annotations of each model, or of the one wanted; of each baseline where one model has several.

    Raises InputError for a model that has none.
    """
    baselines: dict[str, set[str | None]] = {}
    for annotation in annotations:
        baselines.setdefault(annotation.model, set()).add(annotation.baseline)
    if wanted is not None and wanted not in baselines:
        raise InputError(f"no annotations of {wanted!r}", where="--model",
                         hint=f"Of: {', '.join(sorted(baselines))}.")  # fmt: skip
    found: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        model = annotation.model
        if wanted in (None, model):
            name = model if len(baselines[model]) == 1 else f"{model} against {annotation.baseline}"
            found.setdefault(name, []).append(annotation)
    return found
