"""What a judge said, read from its reply: the verdict that a careful person would read, or none.

The last verdict that the judge gives as its own counts. A label that was not offered is no verdict, nor
is one that is quoted from a candidate (`judge.reply_text`), denied, supposed or reported of others
(`judge.reply_stance`), nor anything inside a reasoning model's thinking. What is doubtful has no value
and a reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from judge.reply_bare import BARE_RATING, bare_label, later_label, taken_back
from judge.reply_json import last_object
from judge.reply_number import in_range, number
from judge.reply_stance import NOUN
from judge.reply_text import Doubt, Quotations, answer
from judge.reply_verdicts import (
    Said,
    check_alternatives,
    check_whole,
    divided,
    matches,
    offered,
    own_verdicts,
    set_apart,
    short,
)

T = TypeVar("T")

PARSER = "replies/3"


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What was read: a value, or the reason why there is none."""

    value: T | None = None
    reason: str | None = None


def _reading(read: Callable[[], T]) -> Reading[T]:
    try:
        return Reading(read())
    except Doubt as doubt:
        return Reading(reason=str(doubt))


def read_label(
    text: str,
    labels: Sequence[str],
    *,
    pattern: str | None = None,
    rule: str = "last",
    quoted: Sequence[str] = (),
    finish_reason: str | None = None,
) -> Reading[str]:
    """The label of a reply.

    pattern: a regular expression whose group ``label`` is the verdict (of alternatives also ``label2``
        and so on); None: the reply is the label alone, give or take a lead such as "Answer:", marks
        around it and reasons beside it.
    rule: which of several counts: "last", or "first": of the labels in their order the first that a
        verdict names, wherever it stands and whatever stands around it (as LLMBar's own code reads).
    quoted: texts that the judge was shown. finish_reason: "length" for a reply that was cut off.
    """

    def read() -> str:
        said = answer(text, quoted)
        if rule == "first":
            return _first_label(said, labels, pattern, quoted)
        quotations = Quotations(said, quoted)
        cut = finish_reason == "length"
        if pattern is not None:
            return _last_label(said, labels, pattern, quotations, cut)
        label = bare_label(said, labels, quotations)
        if cut and said.rstrip().endswith(label):
            check_whole(label, labels)
        return label

    return _reading(read)


def last_named(text: str, labels: Sequence[str], pattern: str) -> str | None:
    """The label of the last match of a pattern outside the thinking, whoever's verdict it is."""
    try:
        found = matches(answer(text), pattern, "label")
    except Doubt:
        return None
    return offered(found[-1].said, labels) if found else None


def read_rating(
    text: str,
    low: int,
    high: int,
    *,
    pattern: str | None = None,
    quoted: Sequence[str] = (),
    finish_reason: str | None = None,
) -> Reading[float]:
    """The rating of a reply, a number from `low` to `high`, whole or not. pattern: with a group
    ``rating``; None: the reply is the number alone. quoted, finish_reason: as in `read_label`."""

    def read() -> float:
        said = answer(text, quoted)
        quotations = Quotations(said, quoted)
        given = own_verdicts(said, pattern or BARE_RATING, "rating", quotations, bare=pattern is None)
        found = next(given)
        found = _apart(said, given, found, quotations) or found
        before, after = said[: found.start], said[found.end :]
        value = number(found.said, before, after, high)
        ends = found.said.rstrip()[-1:]
        if (
            finish_reason == "length"
            and not after.strip()
            and (ends == "." or (ends.isdigit() and value * 10 <= high))
        ):
            raise Doubt("the reply was cut off in its rating")
        if taken_back(after):
            raise Doubt("the rating is taken back")
        return in_range(value, low, high)

    return _reading(read)


def read_json(
    text: str, *, quoted: Sequence[str] = (), finish_reason: str | None = None
) -> Reading[dict[str, Any]]:
    """The JSON object of a reply: strict JSON, else what JSON5 takes (comments, trailing commas, single
    quotes), in a code fence or among other words. Of several objects side by side the last.

    An object that was cut off is none, and so is one with a key twice, or one quoted from a candidate.
    """
    return _reading(lambda: _object(text, None, quoted, finish_reason))


def read_json_rating(
    text: str,
    field: str,
    low: int,
    high: int,
    *,
    quoted: Sequence[str] = (),
    finish_reason: str | None = None,
) -> Reading[float]:
    """The rating in a field of a reply's JSON object."""

    def read() -> float:
        value = _object(text, field, quoted, finish_reason)[field]
        if isinstance(value, str):
            return _value(read_rating(value, low, high))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Doubt(f"{field} is no number")
        try:
            return in_range(float(value), low, high)
        except OverflowError:
            raise Doubt(f"{field} is no finite number") from None

    return _reading(read)


def read_json_label(
    text: str,
    field: str,
    labels: Sequence[str],
    *,
    quoted: Sequence[str] = (),
    finish_reason: str | None = None,
) -> Reading[str]:
    """The label in a field of a reply's JSON object."""

    def read() -> str:
        value = _object(text, field, quoted, finish_reason)[field]
        if not isinstance(value, str):
            raise Doubt(f"{field} is no text")
        return _value(read_label(value, labels))

    return _reading(read)


def read_ranking(
    text: str,
    labels: Sequence[str],
    *,
    pattern: str | None = None,
    quoted: Sequence[str] = (),
    finish_reason: str | None = None,
) -> Reading[tuple[tuple[str, ...], ...]]:
    """A ranking such as "B > A = C": groups of labels, best first; each label once, else none.

    pattern: with a group ``ranking``; None: a run of labels with > or = between them.
    """
    either = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
    noun = rf"(?:{NOUN}\s+)?"
    one = rf"{noun}[\[(*]{{0,4}}+(?:{either})[\])*]{{0,4}}"
    run = (
        rf"(?i)(?<![\w>=\[(*])(?P<ranking>{one}(?:\s*[>=≻]\s*{noun}[\[(*]{{0,4}}\w+[\])*]{{0,4}}){{1,64}}+)"
        r"(?!\w|\s*[>=])"
    )
    if len(labels) == 1:
        run = rf"(?i)(?P<ranking>{one})"

    def read() -> tuple[tuple[str, ...], ...]:
        said = answer(text, quoted)
        found = next(own_verdicts(said, pattern or run, "ranking", Quotations(said, quoted)))
        if re.match(r"\W{0,3}\bor\b", said[found.end :]) or re.search(
            r"[>=≻].*\bor\W*$", said[max(0, found.start - 200) : found.start]
        ):
            raise Doubt("several rankings at once")
        if taken_back(said[found.end :]):
            raise Doubt("the ranking is taken back")
        ranking = re.sub(rf"(?i)\b{NOUN}\s+", "", found.said)
        groups = tuple(
            tuple(offered(part, labels) or part for part in group.split("="))
            for group in re.split(r"[>≻]", ranking)
        )
        if sorted(label for group in groups for label in group) != sorted(labels):
            raise Doubt("the ranking does not name each candidate once")
        return groups

    return _reading(read)


def _last_label(text: str, labels: Sequence[str], pattern: str, quotations: Quotations, cut: bool) -> str:
    given = own_verdicts(text, pattern, "label", quotations)
    last = next(given)
    label = offered(last.said, labels)
    if label is None:
        raise Doubt(f"{short(last.said)} was not offered")
    check_alternatives(text, last, label, labels)
    before = next(given, None)
    if before is not None and offered(before.said, labels) != label:
        if divided(text, before, last):
            raise Doubt("two verdicts, each in part")
        apart = _apart(text, [before, *given], last, quotations)
        if apart is not None and (kept := offered(apart.said, labels)) is not None:
            return kept
    rest = text[last.closes :]
    if taken_back(rest):
        return later_label(rest, labels)
    if cut and last.end == len(text.rstrip()):
        check_whole(label, labels)
    return label


def _apart(text: str, earlier: Iterable[Said], last: Said, quotations: Quotations) -> Said | None:
    """The verdict before the last that stands by itself, where the last is only named in what is said about
    it: "[[B]]. Answer A had asked for [[A]]". None where the last one counts.

    Raises Doubt where the last one is said in passing and nothing shows that it is another's.
    """
    if set_apart(text, last):
        return None
    before = next((found for found in earlier if set_apart(text, found)), None)
    if before is None or before.said == last.said or taken_back(text[before.closes : last.closes]):
        return None
    if quotations.held(last.opens, last.closes):
        return before
    raise Doubt("a verdict, and another in passing")


def _first_label(text: str, labels: Sequence[str], pattern: str | None, quoted: Sequence[str]) -> str:
    quotations = Quotations(text, quoted)
    if pattern is None:
        return bare_label(text, labels, quotations, whole=True)
    found = [f for f in matches(text, pattern, "label") if not quotations.hold(f.opens, f.closes)]
    if not found:
        raise Doubt("no verdict in the reply")
    named = {offered(f.said, labels) for f in found}
    for label in labels:
        if label in named:
            return label
    raise Doubt(f"{short(found[0].said)} was not offered")


def _object(text: str, field: str | None, quoted: Sequence[str], finish_reason: str | None) -> dict[str, Any]:
    said = answer(text, quoted)
    quotations = Quotations(said, quoted)
    if quotations.held(0, len(said)):
        raise Doubt("the reply is copied from a candidate")
    found = last_object(said, quotations, field, finish_reason == "length")
    if field is not None and field not in found:
        raise Doubt(f"the JSON has no {field!r}")
    return found


def _value(reading: Reading[T]) -> T:
    if reading.value is None:
        raise Doubt(reading.reason or "")
    return reading.value
