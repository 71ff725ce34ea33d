"""Replies without a form: the label or number alone, or in a plain sentence ("I choose answer B")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from judge.reply_stance import disowned
from judge.reply_text import Doubt, Quotations
from judge.reply_verdicts import offered, short

_NOUN = (
    r"(?:answer|output|response|option|candidate|assistant|completion|reply|model|text|choice|one|version)"
)
_SO = r"(?:(?:so|therefore|thus|hence|overall|sure|okay|ok|clearly|definitely|certainly)\b[\s,:!.]*)?"
_LEAD = (
    rf"{_SO}(?:(?:(?:my|the|our)\s+)?(?:(?:final|overall|own)\s+)*(?:answer|verdict|choice|winner|decision"
    r"|preference|conclusion|result|vote|pick|judge?ment|rating|score|better|best)"
    rf"(?:\s+{_NOUN})?\s*(?:is|would be|goes to)?\s*(?:[*_]{{0,2}}[:=][*_]{{0,2}}|\s-\s)?\s*"
    r"|(?:i(?:['’](?:d|ll))?\s+)?(?:would\s+)?(?:choose|pick|prefer|select|vote for|go with)\s+)?"
)
_OPEN, _CLOSE = r"[\[(*_\"'`{<]{0,8}+", r"[\])*_\"'`}>]{0,8}+"
_BETTER = r"(?:better|best|superior|stronger|preferable|preferred|winner)"
_DIGITS = r"[-+]?\d+(?:[.,]\d+)?"
BARE_RATING = (
    rf"(?i)\A[^\w+-]*+{_LEAD}{_OPEN}(?P<rating>{_DIGITS}(?:\s*[-–]\s*\d+)?|nan|n/a)"
    rf"{_CLOSE}(?:\s*(?:/|out of|of)\s*\d+)?(?:\s*(?:points?|stars?))?[\s.!)\]*]*\Z"
)
_CUE = re.compile(
    r"(?i)\A\W{0,6}no[,:;]\s|\bi (?:retract|withdraw)\b"
    r"|\bno,?\s+wait\b|(?:^|[.!?…\n]\s*)wait\b|\b(?:scratch|strike) that\b"
    r"|\bt(?:ake|ook) (?:that|it|this) back\b|\bchang(?:e|ed) my (?:mind|verdict|answer|vote)\b"
    r"|\bi was wrong\b"
    r"|\bon (?:second|further|more)? ?(?:thou?ghts?|reflection|consideration)\b"
    r"|\bi (?:cannot|can't|can not) (?:decide|tell|say)\b"
    r"|(?:^|[.!?…\n]\s*)(?:(?:correction|sorry)\b|actually,? (?:no\b|it is\b|i\b))"
)


def taken_back(rest: str) -> bool:
    """Whether what follows a verdict takes it back ("no wait", "scratch that")."""
    return _CUE.search(rest) is not None


def later_label(rest: str, labels: Sequence[str]) -> str:
    """The one label that is named after a verdict was taken back. Raises Doubt for none or several."""
    cue = _CUE.search(rest)
    said = rest[cue.end() :] if cue else rest
    named = [m for m in _naming(labels).finditer(said) if disowned(said, *m.span()) is None]
    found = dict.fromkeys(_of(m, labels) for m in named)
    if len(found) != 1:
        raise Doubt("the verdict is taken back")
    return next(iter(found))


def bare_label(text: str, labels: Sequence[str], quotations: Quotations, whole: bool = False) -> str:
    """The label of a reply in no particular form.

    whole: the label alone, with nothing beside it but a lead and marks. Else also a line of its own
    ("A", "Answer: A") among reasons, or a sentence that says which is better.

    Raises Doubt where there is none, or several that differ.
    """
    if (exact := text.strip(" \t\r\n.!*`\"'()[]{}")) in labels:
        return exact
    alone = re.fullmatch(
        rf"\W*+(?i:{_LEAD})(?i:{_NOUN}\s*)?{_OPEN}(?P<label>\w+){_CLOSE}"
        rf"(?i:\s+is\s+(?:\w+ly\s+)?(?:the\s+)?{_BETTER}(?:\s+{_NOUN})?|\s+wins)?"
        r"(?i:\s*,?\s+(?:because|since|as)\b[^.\n]*)?[\s.!,:;)\]*]*",
        text,
    )
    if alone is not None:
        label = offered(alone["label"], labels)
        if label is None:
            raise Doubt(f"{short(alone['label'])} was not offered")
        return label
    if whole:
        raise Doubt("no verdict in the reply")
    found: list[tuple[int, str, bool]] = []
    for match in (*_line(labels).finditer(text), *_sentence(labels).finditer(text)):
        if quotations.hold(*match.span()) or disowned(text, *match.span()):
            continue
        found.append((match.end(), _of(match, labels), bool(match.groupdict().get("lead"))))
    if not found:
        raise Doubt("no verdict in the reply")
    found.sort()
    end, label, led = found[-1]
    if taken_back(text[end:]):
        return later_label(text[end:], labels)
    since = text[found[-2][0] : end] if len(found) > 1 else ""
    if len({one for _, one, _ in found}) > 1 and not led and not taken_back(since):
        raise Doubt("several verdicts in one reply")
    return label


def _either(labels: Sequence[str]) -> str:
    return "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))


def _named(labels: Sequence[str]) -> str:
    """A label in a sentence: a capital or a longer word as it is, anything else in brackets."""
    free = [x for x in labels if len(x) > 1 or x.isupper()]
    marked = rf"[(\[*\"`]{{1,4}}(?i:(?P<marked>{_either(labels)}))[)\]*\"`]{{1,4}}"
    return rf"(?:(?<![\w(]){_OPEN}(?P<free>{_either(free)})\b{_CLOSE}|{marked})" if free else marked


def _line(labels: Sequence[str]) -> re.Pattern[str]:
    one = rf"{_OPEN}(?P<label>{_either(labels)}){_CLOSE}"
    return re.compile(rf"(?m)^[ \t>#*_-]*+(?P<lead>(?i:{_LEAD}))(?i:{_NOUN}\s*)?{one}[ \t.!*]*$")


def _sentence(labels: Sequence[str]) -> re.Pattern[str]:
    one = _named(labels)
    other = one.replace("marked>", "marked2>").replace("free>", "free2>")
    return re.compile(
        rf"(?:\b(?i:{_NOUN})\s*)?{one}\s+(?i:is|remains)\s+(?i:(?:\w+ly\s+)?(?:the\s+)?{_BETTER})\b"
        rf"|\b(?i:(?:better|best|winning)\s+(?:{_NOUN}\s+)?is)\s*:?\s*(?i:{_NOUN}\s*)?{other}"
    )


def _naming(labels: Sequence[str]) -> re.Pattern[str]:
    return re.compile(_named(labels))


def _of(match: re.Match[str], labels: Sequence[str]) -> str:
    groups = match.groupdict()
    said = next(groups[g] for g in ("label", "free", "marked", "free2", "marked2") if groups.get(g))
    return offered(said, labels) or said
