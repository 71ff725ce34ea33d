"""Recorded replies read again by gavel's parser, no engine: `gavel agreement --recorded FILE`.

A record is one reply of a judge about one labelled pair, `{id, evaluator, order: ab|ba, raw_output}`, or
one with `kind: rating`, each answer rated alone, `{id, evaluator, raw_output_a, raw_output_b}`. Of
several records of one pair and order the one marked `final` counts, else the one of the highest `stage`,
else the last.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gavel.errors import InputError, RowError
from gavel.rows import BadRows, Row
from gavel.sources import read_rows
from gavel.templates import tables
from judge.duels import Outcome
from judge.labelled import Labelled
from judge.replies import Reading, last_named, read_json, read_label, read_rating

_SHOWN = ("first", "second", "tie")


@dataclass(frozen=True, slots=True)
class Style:
    """A way of writing a verdict. labels: of the first, the second and, where it may be said, a tie.
    pattern: with a group label; None: the label alone."""

    name: str
    labels: tuple[str, ...]
    pattern: str | None


_FORMS = tables("pairwise", "forms")
_SENTENCE = Style("output", ("a", "b"), r"Output \((?P<label>a|b)\) is better")
#: tried in this order; the first that finds anything in a reply reads it
STYLES = (
    _SENTENCE,
    Style("brackets", ("A", "B", "C"), _FORMS["mt-bench"]["pattern"]),
    Style("result", ("A", "B"), _FORMS["prometheus"]["pattern"]),
    Style(
        "verdict",
        ("A", "B", "C"),
        r"(?im:\b(?:verdict|winner)\b[ \t]*(?:is)?[ \t]*[:=][^\w\n]{0,4})(?P<label>\w+)"
        r"(?m:(?=[*_\"`)\]]*(?:[.!;,]|\s*$)))",
    ),
    Style(
        "line",
        ("a", "b"),
        r"(?m)^[ \t*_\"]*(?i:output)\s*\((?P<label>[A-Za-z])\)[ \t*_\".]*$"
        r"|\A[\s*_\"]*(?i:output)\s*\((?P<label2>[A-Za-z])\)\s*\(",
    ),
    Style("letter", ("A", "B", "C"), None),
    Style("model", ("m", "M"), None),
)
#: replies that begin with the name of an output alone, as LLMBar asks for where it wants no reasons
_LINE_FIRST = Style("line first", ("a", "b"), r"(?:^|\n) ?Output \((?P<label>a|b)\)")
#: the last verdict of the style "output" may also be put so
_OUTPUT = r"\boutput\s*\((?P<label{}>[A-Za-z])\)"
_CONCLUDES = "|".join(
    (
        rf"(?i:{_OUTPUT.format(1)}\s+is\s+(?:(?:the|much|clearly|far|slightly|overall|still)\s+){{0,2}}better)",
        rf"(?i:\bbetter\s+(?:output|one|choice)\b[^.\n]{{0,80}}?\bis\s*:?\s*\**\s*{_OUTPUT.format(2)})",
        rf"(?i:\bI\s+(?:would\s+)?(?:choose|prefer|pick|select)\s+{_OUTPUT.format(3)})",
        rf"(?i:{_OUTPUT.format(4)}\s+wins\b)",
    )
)
_TIE = re.compile(r"(?i)\[\[\s*(?:tie|draw|both|equal)\s*\]\]")
_TIE_ALONE = re.compile(r"(?i)\W*(?:verdict\s*:\s*)?(?:it(?:'s| is) )?(?:a )?(?:tie|draw)\W*")
_FREE_RATING = r"(?i)(?:\brating\b|\bscore\b|\[\[)[^\w\n.+\-<>]{0,6}(?P<rating>[-+]?[\d.,]+)"


def own_style(pattern: str, labels: Sequence[str]) -> Style:
    """A user's own way of writing verdicts. Raises InputError for what cannot be used."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise InputError(f"is no regular expression: {error}", where="--pattern") from None
    if "label" not in groups:
        raise InputError("has no group named label", where="--pattern",
                         hint=r"For example '\[\[(?P<label>[ABC])\]\]'.")  # fmt: skip
    if len(labels) not in (2, 3) or len(set(labels)) != len(labels):
        raise InputError("needs the first's and the second's, and a tie's if there is one", where="--labels")
    return Style("own", tuple(labels), pattern)


@dataclass(frozen=True, slots=True)
class Difference:
    """A record in which the first and the last verdict differ: which answer as shown each chose, "first",
    "second", "tie" or None. last: the last that stands there, whoever's it is. read: what a careful
    reader takes, the last that the judge gives as its own; the rule "last" reads so. ends: the end of
    the reply."""

    id: str
    order: str
    first: str | None
    last: str | None
    read: str | None
    ends: str

    @property
    def careful(self) -> str:
        """Which of the two a careful reader sides with: "first", "last" or "neither"."""
        return "last" if self.read == self.last else "first" if self.read == self.first else "neither"


@dataclass(frozen=True, slots=True)
class Replay:
    """What records say. unknown: ids that no labelled pair has. replaced: records that another one of the
    same pair and order took the place of."""

    outcomes: dict[str, Outcome]
    differences: tuple[Difference, ...]
    records: int
    unknown: int
    replaced: int
    reasons: Counter[str]


def replay(
    src: str,
    labelled: Sequence[Labelled],
    evaluator: str | None,
    rule: str,
    bad: BadRows,
    styles: Sequence[Style] = STYLES,
) -> Replay:
    """Reads the recorded replies about labelled pairs.

    styles: how verdicts may be written; see `own_style` for a user's own.
    rule: which verdict of several counts. "last": the last. "first": of the labels in their order the
    first that the reply gives a verdict for, as LLMBar's own code reads; of equal ratings it takes the
    answer that would be shown second, as that code does.

    Raises InputError for several evaluators and none chosen, an unknown one, or no records of the pairs.
    """
    records = _chosen(list(_records(src, bad)), evaluator, src)
    pairs = {one.id: one for one in labelled}
    mine = [r for r in records if str(r.data["id"]) in pairs]
    if not mine:
        raise InputError("none of its records is about a labelled pair (no id in common)", where=src)
    counting: dict[tuple[str, str], Row] = {}
    replaced = 0
    for record in mine:
        key = (str(record.data["id"]), str(record.data.get("order", "rating")))
        replaced += key in counting
        if key not in counting or _weight(record) >= _weight(counting[key]):
            counting[key] = record
    at_the_time = _styles_at_the_time(counting.values(), styles)
    three_way = any(pair.gold == 0.5 for pair in labelled)
    said: dict[str, dict[str, float | None]] = {}
    differences, reasons = [], Counter[str]()
    for (name, order), record in counting.items():
        texts = _texts(pairs[name])
        if order == "rating":
            said.setdefault(name, {}).update(_rated(record, rule, reasons, three_way))
            continue
        text, cut = str(record.data["raw_output"]), record.data.get("finish_reason")
        read = {
            "first": read_verdict(text, "first", texts, cut, at_the_time),
            "last": read_verdict(text, "last", texts, cut, styles),
        }
        first, own = read["first"].value, read["last"].value
        stands = _last_standing(text, styles) or own
        if len({first, own, stands}) > 1:
            ends = " ".join(text.strip()[-160:].split())
            differences.append(Difference(name, order, first, stands, own, ends))
        chosen = read[rule]
        if chosen.value is None:
            reasons[chosen.reason or "no verdict"] += 1
        said.setdefault(name, {})[order] = _as_probability(chosen.value, order)
    outcomes = {name: Outcome(by.get("ab"), by.get("ba")) for name, by in said.items()}
    missing = sum(order not in said.get(name, {}) for name in pairs for order in ("ab", "ba"))
    if missing:
        reasons["no record of this pair and order"] = missing
    return Replay(outcomes, tuple(differences), len(mine), len(records) - len(mine), replaced, reasons)


def _records(src: str, bad: BadRows) -> Iterator[Row]:
    for row in read_rows(src, bad):
        try:
            _check(row)
        except RowError as error:
            error.where = row.where
            bad.add(error)
            continue
        yield row
    bad.check()


def _check(row: Row) -> None:
    data = row.data
    if not isinstance(data.get("id"), str | int):
        raise RowError("no id: a record names its pair by id")
    if data.get("kind") == "rating" or ("raw_output_a" in data and "raw_output" not in data):
        wanted = ["raw_output_a", "raw_output_b"]
    else:
        wanted = ["raw_output"]
        if data.get("order") not in ("ab", "ba"):
            raise RowError(f"unknown order: {data.get('order')!r} is neither ab nor ba")
    for column in wanted:
        if not isinstance(data.get(column), str):
            raise RowError(f"no reply: {column!r} is no text")


def _chosen(records: Sequence[Row], evaluator: str | None, src: str) -> list[Row]:
    counts = Counter(str(r.data.get("evaluator", "")) for r in records)
    known = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items()))
    if evaluator is None:
        if len(counts) > 1:
            raise InputError("holds several evaluators", where=src,
                             hint=f"Choose one with --evaluator: {known}.")  # fmt: skip
        return list(records)
    if evaluator not in counts:
        raise InputError(f"no evaluator {evaluator!r} in {src}", where="--evaluator", hint=f"Known: {known}.")
    return [r for r in records if str(r.data.get("evaluator", "")) == evaluator]


def _weight(record: Row) -> tuple[bool, float]:
    stage = record.data.get("stage")
    return bool(record.data.get("final")), float(stage) if isinstance(stage, int | float) else 0.0


def _texts(pair: Labelled) -> tuple[str, ...]:
    return (pair.a.text, pair.b.text, *(m.content for m in pair.prompt.messages))


def read_verdict(
    text: str,
    rule: str,
    quoted: Sequence[str] = (),
    finish_reason: Any = None,
    styles: Sequence[Style] = STYLES,
) -> Reading[str]:
    """Which answer a reply prefers, "first", "second" or "tie" as shown, in the style that it is written
    in."""
    cut = finish_reason if isinstance(finish_reason, str) else None
    if not text.strip():
        return Reading(reason="the reply is empty")
    if _TIE_ALONE.fullmatch(text):
        return Reading("tie")
    text = _TIE.sub("[[C]]", text)
    if text.lstrip().startswith("{") and (stated := _stated(text, quoted)) is not None:
        return stated
    for style in styles:
        found = _in_style(text, style, rule, quoted, cut)
        if found.value is not None:
            return Reading(_SHOWN[style.labels.index(found.value)])
        said_something = found.reason is not None and not found.reason.startswith("no verdict")
        if said_something and style.pattern is not None:
            return found
    return Reading(reason="no verdict in the reply")


def _in_style(text: str, style: Style, rule: str, quoted: Sequence[str], cut: str | None) -> Reading[str]:
    if rule == "first":  # as it was read at the time: quotations count too
        return read_label(text, style.labels, pattern=style.pattern, rule=rule, finish_reason=cut)
    pattern = _CONCLUDES if style is _SENTENCE else style.pattern
    return read_label(text, style.labels, pattern=pattern, quoted=quoted, finish_reason=cut)


def _stated(text: str, quoted: Sequence[str]) -> Reading[str] | None:
    """The field "verdict" of a reply that is a JSON object; None where it has none."""
    found = read_json(text, quoted=quoted)
    if found.value is None:
        return Reading(reason=found.reason)
    said = found.value.get("verdict")
    if not isinstance(said, str):
        return None
    label = read_label(said, ("A", "B", "C"))
    if label.value is None:
        return Reading(reason=label.reason)
    return Reading(_SHOWN["ABC".index(label.value)])


def _styles_at_the_time(records: Iterable[Row], styles: Sequence[Style]) -> Sequence[Style]:
    """How an evaluator's replies were read by rule "first": where every one names an output at the
    beginning of a line and few say that one is better, the name was the verdict."""
    texts = [str(r.data["raw_output"]) for r in records if "raw_output" in r.data]
    texts = [text for text in texts if text.strip()]
    named = sum(re.search(_LINE_FIRST.pattern or "", text) is not None for text in texts)
    reasoned = sum(re.search(_SENTENCE.pattern or "", text) is not None for text in texts)
    if styles is STYLES and texts and named == len(texts) and reasoned < 0.2 * len(texts):
        return (_LINE_FIRST, *STYLES)
    return styles


def _last_standing(text: str, styles: Sequence[Style]) -> str | None:
    """Which answer the last verdict in a reply's form names, be it the judge's own or not."""
    for style in styles:
        label = last_named(text, style.labels, style.pattern) if style.pattern else None
        if label is not None:
            return _SHOWN[style.labels.index(label)]
    return None


def _as_probability(shown: str | None, order: str) -> float | None:
    """Probability that a is better. shown: which answer was preferred, in the order shown."""
    if shown is None:
        return None
    if shown == "tie":
        return 0.5
    return float((shown == "first") == (order == "ab"))


def _rated(record: Row, rule: str, reasons: Counter[str], three_way: bool) -> Mapping[str, float | None]:
    scores = []
    for column in ("raw_output_a", "raw_output_b"):
        found = _rating_alone(record.data[column])
        if found.value is None:
            reasons[found.reason or "no rating"] += 2  # it leaves both orders without a verdict
            return {"ab": None, "ba": None}
        scores.append(found.value)
    a, b = scores
    if a == b:
        at_the_time = rule == "first" and not three_way  # the one shown second
        return {"ab": 0.0, "ba": 1.0} if at_the_time else {"ab": 0.5, "ba": 0.5}
    return {"ab": float(a > b), "ba": float(a > b)}


def _rating_alone(text: str) -> Reading[float]:
    """The rating of a reply about one answer, on whatever scale up to 100: the number alone, "7/10", or
    after the word rating."""
    first = read_rating(text, 0, 100)
    for high, pattern in ((10, None), (5, None), (100, _FREE_RATING), (10, _FREE_RATING), (5, _FREE_RATING)):
        if first.value is not None:
            return first
        found = read_rating(text, 0, high, pattern=pattern)
        if found.value is not None:
            return found
    return first


def as_rows(differences: Iterable[Difference]) -> list[dict[str, Any]]:
    """The differences as a command prints them."""
    return [
        {"id": d.id, "order": d.order, "first": d.first, "last": d.last, "read": d.read,
         "careful": d.careful, "ends": d.ends}
        for d in differences
    ]  # fmt: skip
