"""Replies without a form: the label or number alone, or in a plain sentence ("I choose answer B")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from judge.reply_stance import NOUN, disowned
from judge.reply_text import Doubt, Quotations
from judge.reply_verdicts import LOOKS, offered, short

_SO = r"(?:(?:so|therefore|thus|hence|overall|sure|okay|ok|clearly|definitely|certainly)\b[\s,:!.]*)?"
_LEAD = (
    rf"{_SO}(?:(?:(?:my|the|our)\s+)?(?:(?:final|overall|own)\s+)*(?:answer|verdict|choice|winner|decision"
    r"|preference|conclusion|result|vote|pick|judge?ment|rating|score|better|best)"
    rf"(?:\s+{NOUN})?\s*(?:is|would be|goes to)?\s*(?:[*_]{{0,2}}[:=][*_]{{0,2}}|\s-\s)?\s*"
    r"|(?:i(?:['’](?:d|ll))?\s+)?(?:would\s+)?(?:choose|pick|prefer|select|vote for|go with)\s+)?"
)
_OPEN, _CLOSE = r"[\[(*_\"'`{<]{0,8}+", r"[\])*_\"'`}>]{0,8}+"
_BETTER = r"(?:better|best|superior|stronger|preferable|preferred|winner)"
_DIGITS = r"[-+]?\d+(?:[.,]\d+)?"
BARE_RATING = (
    rf"(?i)\A[^\w+-]*+{_LEAD}{_OPEN}(?P<rating>{_DIGITS}(?:\s*[-–]\s*\d+)?|nan|n/a)"
    rf"{_CLOSE}(?:\s*(?:/|out of|of)\s*\d+)?(?:\s*(?:points?|stars?))?[\s.!)\]*]*\Z"
)
_BEGINS = r"(?:\A[\s\])*\"'`.]*|[.!?…\n]\s*)"
_CUE = re.compile(
    r"(?i)\A\W{0,6}no[,:;]\s|\bi (?:retract|withdraw)\b"
    rf"|\bno,?\s+wait\b|{_BEGINS}(?:hm+,?\s+)?(?:wait(?=\W*[,.:—!…-]|\s+(?:no|i)\b)|hold on|oops|edit\s*:)"
    r"|\b(?:scratch|strike|(?:let me )?correct) that\b"
    r"|\bt(?:ake|ook) (?:(?:that|it|this) back|back my)\b"
    r"|\bi\b(?:\s+\w+){0,2}\s+chang(?:e|ed) my (?:mind|verdict|answer|vote)\b"
    r"|(?<![\"'“‘])\bi was wrong\b"
    r"|\bon (?:(?:second|further|more)? ?(?:thou?ghts?|reflection|consideration)|re-?reading)\b"
    r"|\bi (?:cannot|can't|can’t|can not) (?:decide|tell|say)(?=\W*$|\s*[.!,;]|\s+(?:which|who|between)\b)"
    r"|\brevised (?:verdict|answer|rating|score|choice)\b|\bthat (?:is|was) too (?:high|low|generous|harsh)\b"
    rf"|{_BEGINS}(?:correction\b|(?:sorry|my (?:apologies|mistake|bad))\b"
    r"(?=[^.\n]*\b(?:meant|mistake|wrong|should|not)\b|[^\w\n]*\w{1,2}\W*$)"
    r"|actually,? (?:no\b|it is\b|i\b|\w{1,2}\b))"
)
_GIVES_BEFORE = re.compile(
    rf"(?i)(?:\A|[.!?…:;,\n—-]|\b(?:meant|it|is|be|was|choose|pick|prefer|to|with|for|so|that|think|and))"
    rf"\s*(?:(?:the|say|to|is|be|it|verdict)\s+)*(?:{NOUN}\s*)?\W*$"
)
_GIVES_AFTER = re.compile(
    r"(?i)\W*(?:$|[.!,;\n]|(?:is|was|wins?|would be|seems|has the)\b(?:\s+\w+ly)?(?:\s+the)?"
    rf"(?:\s+{_BETTER}|\s+(?:right|correct|winner))?"
    r"(?:\s+\w+)?\W*(?:$|[.!,;\n]|\bafter\b|\bbecause\b|\bas\b|\bsince\b))"
)


def taken_back(rest: str) -> bool:
    """Whether what follows a verdict takes it back ("no wait", "scratch that")."""
    return _CUE.search(rest) is not None


def later_label(rest: str, labels: Sequence[str]) -> str:
    """The one label that is given after a verdict was taken back: "I meant B", "B is better", or alone.

    Raises Doubt for none, several, or one that is only mentioned."""
    cue = _CUE.search(rest)
    said = rest[cue.end() :] if cue else rest
    named = [m for m in _naming(labels).finditer(said) if disowned(said, *m.span()) is None]
    found = dict.fromkeys(_of(m, labels) for m in named)
    given = any(
        _GIVES_BEFORE.search(said[: m.start()]) and _GIVES_AFTER.match(said[m.end() :]) for m in named
    )
    if len(found) != 1 or not given:
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
        rf"\W*+(?i:{_LEAD})(?i:{NOUN}\s*)?{_OPEN}(?P<label>\w+){_CLOSE}"
        rf"(?i:\s+is\s+(?:\w+ly\s+)?(?:the\s+)?{_BETTER}(?:\s+{NOUN})?|\s+wins)?"
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
    lines, sentences = (list(found.finditer(text))[-LOOKS:] for found in (_line(labels), _sentence(labels)))
    for match in (*lines, *sentences):
        if quotations.hold(*match.span()) or disowned(text, *match.span()):
            continue
        found.append((match.end(), _of(match, labels), bool(match.groupdict().get("lead"))))
    if not found:
        raise Doubt("no verdict in the reply")
    found.sort()
    end, label, led = found[-1]
    if taken_back(text[end:]):
        return later_label(text[end:], labels)
    if re.match(rf"[^.\n]*,\s*(?:(?:and|but|while)\s+)?(?:{_either(labels)})\s+the\b", text[end:]):
        raise Doubt("two verdicts, each in part")
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
    return re.compile(rf"(?m)^[ \t>#*_-]*+(?P<lead>(?i:{_LEAD}))(?i:{NOUN}\s*)?{one}[ \t.!*]*$")


def _sentence(labels: Sequence[str]) -> re.Pattern[str]:
    one = _named(labels)
    other = one.replace("marked>", "marked2>").replace("free>", "free2>")
    return re.compile(
        rf"(?:\b(?i:{NOUN})\s*)?{one}\s+(?i:is|remains)\s+(?i:(?:\w+ly\s+)?(?:the\s+)?{_BETTER})\b"
        rf"|\b(?i:(?:better|best|winning)\s+(?:{NOUN}\s+)?is)\s*:?\s*(?i:{NOUN}\s*)?{other}"
    )


def _naming(labels: Sequence[str]) -> re.Pattern[str]:
    return re.compile(_named(labels))


def _of(match: re.Match[str], labels: Sequence[str]) -> str:
    groups = match.groupdict()
    said = next(groups[g] for g in ("label", "free", "marked", "free2", "marked2") if groups.get(g))
    return offered(said, labels) or said
