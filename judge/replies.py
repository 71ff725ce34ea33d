"""What a judge said, read from its reply: the verdict that a careful person would read, or none.

The last verdict counts. A label that was not offered is no verdict, nor is one that stands in a
quotation from a candidate, nor anything inside a reasoning model's thinking. What is doubtful has no
value and a reason.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PARSER = "replies/1"

_INVISIBLE = dict.fromkeys([*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF])
#: what is copied: with so many characters around it a verdict is part of a candidate's text
_AROUND = 24
_QUOTES = re.compile(
    r"\"[^\"\n]*\"|“[^”]*”|«[^»]*»|„[^“”]*[“”]|「[^」]*」|`[^`\n]+`|```.*?(?:```|\Z)|(?m:^[ \t]*>.*$)"
    r"|(?<!\w)'[^'\n]*'(?!\w)|(?<!\w)‘[^’\n]*’(?!\w)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What was read: a value, or the reason why there is none."""

    value: T | None = None
    reason: str | None = None


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
        and so on); None: the reply is the label alone, give or take a lead such as "Answer:" and marks
        around it.
    rule: which of several counts: "last", or "first": of the labels in their order the first that a
        verdict names, wherever it stands (as LLMBar's own code reads).
    quoted: texts that the judge was shown. finish_reason: "length" for a reply that was cut off.
    """
    cleaned = _clean(text)
    if isinstance(cleaned, Reading):
        return Reading(reason=cleaned.reason)
    bare = pattern is None
    found = list(_own(cleaned, pattern or _BARE_LABEL, "label", quoted, careful=rule == "last"))
    if not found:
        return Reading(reason="no verdict in the reply")
    if rule == "first":
        offered = {label: end for said, end in reversed(found) if (label := _offered(said, labels))}
        found = [(label, offered[label]) for label in labels if label in offered][:1] or found[:1]
    said, end = found[-1]
    if rule == "last" and _TAKEN_BACK.search(cleaned, end):
        return Reading(reason="the verdict was taken back")
    label = _offered(said, labels)
    if label is None:
        return Reading(reason=f"{_short(said)} was not offered")
    if bare and len({said for said, _ in found}) > 1:
        return Reading(reason="several verdicts in one reply")
    if (
        finish_reason == "length"
        and end == len(cleaned.rstrip())
        and any(other != label and other.startswith(label) for other in labels)
    ):
        return Reading(reason="the reply was cut off in its verdict")
    return Reading(label)


def read_rating(
    text: str,
    low: int,
    high: int,
    *,
    pattern: str | None = None,
    rule: str = "last",
    quoted: Sequence[str] = (),
    finish_reason: str | None = None,
) -> Reading[float]:
    """The rating of a reply, a number from `low` to `high`. pattern: with a group ``rating``; the rest as
    in `read_label`."""
    cleaned = _clean(text)
    if isinstance(cleaned, Reading):
        return Reading(reason=cleaned.reason)
    found = list(_own(cleaned, pattern or _BARE_RATING, "rating", quoted))
    if not found:
        return Reading(reason="no rating in the reply")
    said, end = found[0] if rule == "first" else found[-1]
    after = cleaned[end:]
    if _TAKEN_BACK.search(after):
        return Reading(reason="the rating was taken back")
    number = _number(said, after, high)
    if isinstance(number, Reading):
        return Reading(reason=number.reason)
    if (
        finish_reason == "length"
        and not after.strip()
        and number * 10 <= high
        and said.strip()[-1:].isdigit()
    ):
        return Reading(reason="the reply was cut off in its rating")
    return _in_range(number, low, high)


def read_json(
    text: str, *, quoted: Sequence[str] = (), finish_reason: str | None = None
) -> Reading[dict[str, Any]]:
    """The JSON object of a reply: strict JSON, else what JSON5 takes (comments, trailing commas, single
    quotes), in a code fence or among other words. Of several objects side by side the last.

    An object that was cut off is none, and so is one with a key twice, or one that stands in a text that
    the judge was shown.
    """
    cleaned = _clean(text)
    if isinstance(cleaned, Reading):
        return Reading(reason=cleaned.reason)
    if not cleaned.strip():
        return Reading(reason="the reply is empty")
    reason = "no JSON object in the reply"
    found: dict[str, Any] | None = None
    sources = [_squeezed(source) for source in quoted]
    for piece in _objects(cleaned):
        if any(_squeezed(piece) in source for source in sources):
            reason = "the JSON is copied from a candidate"
            continue
        try:
            value = _loads(piece)
        except _Twice as twice:
            reason, found = f"the key {twice} stands there twice", None
            continue
        except (ValueError, RecursionError):
            reason, found = "the JSON cannot be read", None
            continue
        if isinstance(value, dict):
            found = value
    if found is not None and _begins_another(cleaned):
        return Reading(reason="another JSON object was begun and cut off")
    if found is not None and _TAKEN_BACK.search(cleaned[cleaned.rfind("}") :]):
        return Reading(reason="the verdict was taken back")
    if found is not None:
        return Reading(found)
    cut = finish_reason == "length" or cleaned.count("{") > cleaned.count("}")
    return Reading(reason="the JSON was cut off" if "{" in cleaned and cut else reason)


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
    entry = _field(text, field, quoted, finish_reason)
    if entry.value is None:
        return Reading(reason=entry.reason)
    (value,) = entry.value
    if isinstance(value, str):
        return read_rating(value, low, high)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Reading(reason=f"{field} is no number")
    return _in_range(float(value), low, high)


def read_json_label(
    text: str,
    field: str,
    labels: Sequence[str],
    *,
    quoted: Sequence[str] = (),
    finish_reason: str | None = None,
) -> Reading[str]:
    """The label in a field of a reply's JSON object."""
    entry = _field(text, field, quoted, finish_reason)
    if entry.value is None:
        return Reading(reason=entry.reason)
    (value,) = entry.value
    if not isinstance(value, str):
        return Reading(reason=f"{field} is no text")
    return read_label(value, labels)


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
    cleaned = _clean(text)
    if isinstance(cleaned, Reading):
        return Reading(reason=cleaned.reason)
    one = r"[\[(*]*(?:{})[\])*]*".format("|".join(map(re.escape, sorted(labels, key=len, reverse=True))))
    run = rf"(?i)(?<![\w>=])(?P<ranking>{one}(?:\s*[>=≻]\s*[\[(*]*\w+[\])*]*)+)(?!\w|\s*[>=])"
    if len(labels) == 1:
        run = rf"(?i)(?P<ranking>{one})"
    found = list(_own(cleaned, pattern or run, "ranking", quoted))
    if not found:
        return Reading(reason="no ranking in the reply")
    said, _ = found[-1]
    groups = tuple(
        tuple(_offered(part, labels) or part for part in group.split("="))
        for group in re.split(r"[>≻]", said)
    )
    if sorted(label for group in groups for label in group) != sorted(labels):
        return Reading(reason="the ranking does not name each candidate once")
    return Reading(groups)


# finding
_LEAD = (
    r"(?:i\s+(?:choose|prefer|pick|select)\s+)?"
    r"(?:(?:my |the |final |overall )*(?:answer|verdict|choice|winner|rating|score|better|best|decision)"
    r"(?: one)?(?: is)?\s*[:=]?\s*)?(?:(?:response|assistant|answer|option|output|model)\s+)?"
)
_BEFORE = r"\A[^\w<>.+\-]*?"
_BARE_RATING = (
    rf"(?i){_BEFORE}{_LEAD}[\[(*_\"'`]*(?P<rating>[-+]?[\d٠-٩۰-۹०-९]+(?:[.,]\d+)?(?:\s*[-–]\s*\d+)?|nan|n/a)"
    r"[\])*_\"'`]*(?:\s*(?:/|out of|of)\s*\d+)?[\s.!)\]*]*\Z"
)
#: any word is found, so that one that was not offered is said to be so
_BARE_LABEL = (
    rf"\A\W*?(?i:{_LEAD})[\[(*_\"'`]*(?P<label>\w+)[\])*_\"'`]*"
    r"(?i:\s+is\s+better|\s*,\s*(?:because|since|as)\b.*)?[\s.!,:;)\]*]*\Z"
)
_TAKEN_BACK = re.compile(
    r"(?i)\b(?:t(?:ake|ook) (?:it|that|this) back|retract|withdraw|scratch that|I was wrong"
    r"|(?:cannot|can't|can not) decide|chang(?:e|ed) my mind"
    r"|on (?:further |second )?(?:reflection|thoughts?))\b"
)
#: before a verdict in its own clause these make it none
_UNLESS = re.compile(r"(?i)\b(?:not|neither|nor|if|whether|unless|cannot|never)\b|n't\b")
_CLAUSE = re.compile(r"(?i)[.,;:!?\n]|\b(?:but|so|therefore|thus|hence|and|because|since|while)\b")


def _clean(text: str) -> str | Reading[Any]:
    """The reply without its thinking and without characters that cannot be seen."""
    text = text.translate(_INVISIBLE)
    _, closed, tail = text.rpartition("</think>")
    if closed:
        text = tail
    elif "<think>" in text:
        return Reading(reason="the thinking never ended")
    if not text.strip():
        return Reading(reason="the reply is empty")
    text = re.sub(r"[\u2212\u2013\ufe63\uff0d](?=\d)", "-", text)  # a minus is a minus
    return unicodedata.normalize("NFKC", text)


def _own(
    text: str, pattern: str, group: str, quoted: Sequence[str], *, careful: bool = True
) -> Iterator[tuple[str, int]]:
    """The matches that are the judge's own words: (what the group holds, where it ends).

    careful: not those that are denied, put on a condition, or asked.
    """
    sources = [unicodedata.normalize("NFKC", source.translate(_INVISIBLE)) for source in quoted if source]
    quotations = [m.span() for m in _QUOTES.finditer(text)] if sources else []
    compiled = re.compile(pattern)
    names = [name for name in compiled.groupindex if name.startswith(group)]
    for match in compiled.finditer(text):
        said = match.group()
        inside = any(a < match.start() and match.end() < b for a, b in quotations)
        held = [source for source in sources if said.strip() in source]
        if inside and held:
            continue
        if any(_copied(text, match.start(), match.end(), source) for source in held):
            continue
        if careful and not _is_meant(text, match.start(), match.end()):
            continue
        name = next(name for name in names if match.group(name) is not None)
        yield match.group(name), match.end(name)


def _is_meant(text: str, start: int, end: int) -> bool:
    """Whether a verdict is said as one: not "if …", not "it is not true that …", no question."""
    clause = _CLAUSE.split(text[max(0, start - 80) : start])[-1]
    sentence = re.match(r"[^.!\n]*", text[end : end + 80])
    return not _UNLESS.search(clause) and "?" not in (sentence.group() if sentence else "")


def _copied(text: str, start: int, end: int, source: str) -> bool:
    """Whether a match stands in a longer stretch that is copied from a source."""
    before, after = text[max(0, start - _AROUND) : end], text[start : end + _AROUND]
    long_before = start >= _AROUND and before in source
    long_after = end + _AROUND <= len(text) and after in source
    whole = text.strip() in source and len(text.strip()) > end - start + _AROUND
    return long_before or long_after or whole


def _offered(said: str, labels: Sequence[str]) -> str | None:
    """The label that was said; in another case only where no two labels differ by case alone."""
    said = said.strip().strip("*_`\"'()[]{}.:").strip()
    if said in labels:
        return said
    folded = {label.casefold(): label for label in labels}
    return folded.get(said.casefold()) if len(folded) == len(labels) else None


def _number(said: str, after: str, high: int) -> float | Reading[Any]:
    said = said.strip().strip("*_`\"'()[]").strip()
    out_of = re.fullmatch(r"(.+?)\s*(?:/|out of|of)\s*(\d+)", said) or re.match(
        r"\s*(?:/|out of)\s*(\d+)", after
    )
    if out_of:
        if int(out_of.groups()[-1]) != high:
            return Reading(reason=f"out of {out_of.groups()[-1]}, the scale ends at {high}")
        said = out_of.group(1) if out_of.re.groups == 2 else said
    if not out_of and re.match(r"[\w%⁄]|\s+\d", after):
        return Reading(reason="what follows the number is part of it")
    if re.match(r"\s*(?:[-–]|to\b|or\b)\s*\d", after) or re.fullmatch(r"\d+\s*(?:[-–]|to|or)\s*\d+", said):
        return Reading(reason="a range is no rating")
    said = re.sub(r"\.$", "", said)
    if re.fullmatch(r"[-+]?\d+,\d", said):
        said = said.replace(",", ".")
    if not re.fullmatch(r"[-+]?\d+(?:\.\d+)?", said):
        return Reading(reason=f"{_short(said)} is no number")
    return float(said)


def _in_range(number: float, low: int, high: int) -> Reading[float]:
    if not math.isfinite(number):
        return Reading(reason="the rating is no finite number")
    if not low <= number <= high:
        return Reading(reason=f"{number:g} is not from {low} to {high}")
    return Reading(number)


def _field(text: str, field: str, quoted: Sequence[str], finish_reason: str | None) -> Reading[tuple[Any]]:
    """The value of a field, in a tuple, since null is a value too."""
    found = read_json(text, quoted=quoted, finish_reason=finish_reason)
    if found.value is None:
        return Reading(reason=found.reason)
    if field not in found.value:
        return Reading(reason=f"the JSON has no {field!r}")
    return Reading((found.value[field],))


class _Twice(Exception):
    """A key that stands twice in one object."""


def _loads(piece: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise _Twice(next(key for key, _ in pairs if sum(k == key for k, _ in pairs) > 1))
        return made

    try:
        return json.loads(piece, object_pairs_hook=once, strict=False)
    except ValueError:
        import json5

        return json5.loads(piece, object_pairs_hook=once)


def _objects(text: str) -> Iterator[str]:
    """The outermost {…} of a text; braces inside strings do not count."""
    start, depth, quote, escaped = -1, 0, "", False
    for place, letter in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = True
            elif letter == quote:
                quote = ""
        elif letter in "\"'" and depth and (letter == '"' or not text[place - 1].isalnum()):
            quote = letter
        elif letter == "{":
            if not depth:
                start = place
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
            if not depth:
                yield text[start : place + 1]


def _begins_another(text: str) -> bool:
    """Whether an object is begun after the last whole one and never closed."""
    rest = text
    for piece in _objects(text):
        rest = rest.partition(piece)[2]
    return re.search(r"\{\s*[\"'\w]", rest) is not None


def _squeezed(text: str) -> str:
    """A text as it is compared with what it may be copied from: without white space."""
    return "".join(unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).split())


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
