"""The verdicts in a reply that the judge gives as its own, the last first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from judge.reply_stance import NOUN, disowned, sentence_before
from judge.reply_text import Doubt, Quotations

LOOKS = 100  # verdicts looked at, from the end


@dataclass(frozen=True, slots=True)
class Said:
    """What a verdict's group holds, text[start:end], in a match text[opens:closes]."""

    said: str
    start: int
    end: int
    opens: int
    closes: int


def matches(text: str, pattern: str, group: str) -> list[Said]:
    """All matches of a pattern of which a group so named (or ``label2``, ``label3``) holds something."""
    compiled = re.compile(pattern)
    names = [name for name in compiled.groupindex if name.startswith(group)]
    found = []
    for match in compiled.finditer(text):
        name = next((name for name in names if match[name] is not None), None)
        if name is not None:
            found.append(Said(match[name], *match.span(name), *match.span()))
    return found


def own_verdicts(
    text: str, pattern: str, group: str, quotations: Quotations, *, bare: bool = False
) -> Iterator[Said]:
    """The judge's own verdicts, the last first. bare: the reply is nothing but its verdict.

    Raises Doubt instead of the first where there is none, or where it is denied after it was given.
    """
    reason: str | None = None
    denied = set()
    any_yet = False
    everything = matches(text, pattern, group)[-LOOKS:]
    for place, found in reversed(list(enumerate(everything))):
        if quotations.hold(found.opens, found.closes) and not bare:
            why: str | None = "quoted from a candidate"
        else:
            why = None if bare else disowned(text, found.opens, found.closes)
        if why is None and place:
            why = _shared(text, everything[place - 1], found)
        if why is None and not bare and _is_name(text, found):
            why = "a name, and no verdict"
        if why is None and _across_sentences(text, found):
            continue
        if why is None:
            if found.said in denied:
                raise Doubt("the verdict is taken back")
            any_yet = True
            yield found
            continue
        if why in ("denied", "struck out"):
            denied.add(found.said)
        reason = reason or f"the last verdict is {why}"
    if not any_yet:
        kind = "verdict" if group == "label" else group
        raise Doubt(reason or f"no {kind} in the reply")


_NAMES = re.compile(rf"(?i)\b{NOUN}\s*\W{{0,3}}$")
_DOES = re.compile(
    r"[\])*\"'`]{0,4}(?:['’]s)?\s+(?!is\b|was\b|wins\b|would\b|deserves\b|gets\b|because\b|since\b|as\b|for\b|,)[a-z]"
)
_JUDGED = re.compile(
    r"[\])*\"'`]{0,4}\s+(?:is|was)\s+(?!(?:\w+ly\s+)?(?:the\s+)?(?:better|best|superior|winner|preferred|my|stronger))\w"
)


def _is_name(text: str, found: Said) -> bool:
    """Whether a label in brackets only names a candidate that the sentence goes on about: "Assistant [[B]]
    has more errors"."""
    if not _NAMES.search(text[max(0, found.opens - 40) : found.opens]):
        return False
    after = text[found.closes : found.closes + 80]
    return bool(_DOES.match(after) or _JUDGED.match(after))


def _shared(text: str, before: Said, found: Said) -> str | None:
    """Why the verdict before in the same sentence is not the judge's, where both are said in one breath:
    "the answer asks for [[A]] here, [[B]] there"."""
    between = text[before.closes : found.opens]
    if len(between) > 100 or len(sentence_before(text[: found.opens][-400:])) <= len(between):
        return None
    if re.search(r"(?i)[;—]|\b(?:but|however|no|yet|still|i|so|therefore|me)\b", between):
        return None
    why = disowned(text, before.opens, before.closes)
    return why if why in ("reported", "supposed") else None


def _across_sentences(text: str, found: Said) -> bool:
    """Whether a label only begins what follows its cue: "… is better. A good answer", "better, A is"."""
    cue = text[found.opens : found.start]
    line = text[found.end :].partition("\n")[0]
    if re.search(r"\w[.!?][\"')\]*]*\s+\W*$", cue) and re.search(r"\w", line):
        return True
    following = re.match(r"\s+([a-z]+)", text[found.end :])
    gap = re.search(r"\W*$", cue)
    if following and gap and re.fullmatch(r"\s*[,;–—-]+\s*", gap[0]):
        return following[1] not in ("because", "since", "as", "for", "by", "due", "with")
    return bool(found.said == "A" and following and not _AFTER_A_LABEL.fullmatch(following[1]))


#: what may follow "A" where it is a label and no article
_AFTER_A_LABEL = re.compile(
    r"\w+s|because|since|as|for|by|due|over|and|or|but|than|though|although|while|with|given|if|when|in|at|on|to"
    r"|would|should|could|can|clearly|slightly|simply|it|the|both|not|better|wins|has|did|had|made|gave|after|from"
)


def offered(said: str, labels: Sequence[str]) -> str | None:
    """The label that was said; in another case only where no two labels differ by case alone."""
    said = said.strip().strip("*_`\"'()[]{}.:").strip()
    if said in labels:
        return said
    folded = {label.casefold(): label for label in labels}
    return folded.get(said.casefold()) if len(folded) == len(labels) else None


def check_alternatives(text: str, last: Said, label: str, labels: Sequence[str]) -> None:
    """Raises Doubt where another label stands beside the verdict: "A or B", "[[A]], [[B]]"."""
    others = "|".join(re.escape(other) for other in labels if other != label)
    if not others:
        return
    mark = r"[^\w.!?;\n]{0,6}"
    # a comma joins only what has the same form: "[[A]], [[B]]", and not "[[B]], A was too short"
    bracketed = text[last.start - 1 : last.start] in ("[", "(")
    comma = r"[\])*]+\s*,\s*[\[(*]+" if bracketed else rf"{mark},{mark}"
    joins = rf"(?:{mark}(?:\b(?:or|and|nor|versus|vs)\b\.?|/|&|\s>\s){mark}|{comma})"
    noun = r"(?:(?:\b(?:or|and|nor)\b)\W+\w+\s*\W{0,3})"
    beside = re.match(rf"{joins}(?:{others})\b", text[last.end :]) or re.search(
        rf"\b(?:{others})(?:{joins}|{mark}{noun})$", text[max(0, last.start - 200) : last.start]
    )
    if beside:
        raise Doubt("two verdicts at once")


_CONCLUDES = re.compile(
    r"(?i)\W*(?:therefore|thus|hence|so|overall|ultimately|finally"
    r"|in (?:conclusion|summary|short|sum|the end))\b"
)


def set_apart(text: str, found: Said) -> bool:
    """Whether a verdict stands by itself, as a reply's last word does, and not among others: at most a lead
    such as "Verdict:" before it in its sentence and the end of the line or sentence after it; or whether
    its sentence begins as a conclusion does ("Therefore, …")."""
    since = sentence_before(text[max(0, found.opens - 400) : found.opens])
    if _CONCLUDES.match(since):
        return True
    after = text[found.closes :]
    lead = re.fullmatch(r"(?:[^\[\]]{0,60}[:=])?[\W_]*", since) is not None
    return lead and re.match(r"[\s\])*_\"'`}$.!,;(]*(?:\n|\Z)|[\])*_\"'`]*[.!](?:\s|\Z)", after) is not None


def divided(text: str, before: Said, last: Said) -> bool:
    """Whether two verdicts each hold in part: "A is better in style and B … in content"."""
    between = text[before.closes : last.opens]
    if len(between) > 200:
        return False
    in_part = r"\s*(?:in|at|for|on|with|regarding|as to|when it comes to)\b"
    if re.match(in_part, between) and re.match(in_part, text[last.closes :]):
        return True
    one_sentence = len(sentence_before(text[: last.opens][-1000:])) > len(between)
    return one_sentence and bool(re.fullmatch(r"\W*\s(?:and|or|but also|while|whereas)\s\W*", between))


def check_whole(label: str, labels: Sequence[str]) -> None:
    """Raises Doubt where a label at the end of a reply that was cut off may be the beginning of another."""
    if any(other != label and other.startswith(label) for other in labels):
        raise Doubt("the reply was cut off in its verdict")


def short(text: str) -> str:
    """The beginning of a text, in quotation marks."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
