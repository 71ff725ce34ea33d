"""Whether a judge stands by what it wrote: a verdict may be denied, supposed, reported of others, conceded
or asked about. Read from the words around it, in English; in other languages every verdict is the judge's."""

from __future__ import annotations

import re

_SENTENCE_ENDS = re.compile(r"[.!?…][\"'”’)\]*_]*\s|[。！？]|\n")
_CLAUSE = r"(?:(?!\b(?:and|but|so|as|since|because|i|hence|therefore|thus)\b)[^.;,:\n])*"

_SUPPOSED = re.compile(
    rf"\b(?:if|whether|unless|suppose|supposing|assuming|in case)\b{_CLAUSE}$|\b(?:either|between)\W+$"
)
_SUPPOSED_AFTER = re.compile(
    r"\W{0,4}(?:(?:only |but only )?if\b|unless\b|in case\b|for (?:a )?ties?\b|means\b|stands for\b"
    r"|when (?:neither|both|they|the (?:first|second)|(?:\w+ )?\(?\w\)? (?:is|wins)))"
)
_NOT = r"(?: not|n['’]t|['’]t|not)"
_DENIED = re.compile(
    r"\b(?:not|never|nor|neither|rather than|instead of|over|against|wasn['’]t|isn['’]t)\s+(?:that\s+)?\W*$"
    rf"|\b(?:do|does|did|would|can|could|should|is|are|was|am|i['’]m){_NOT}\s+(?:\w+\s+){{0,3}}?"
    r"(?:think|believe|agree|say|conclude|find|feel|claim|mean|see|accept|consider|support|convinced|certain"
    rf"|sure|clear|true|case)\b{_CLAUSE}$"
    r"|\b(?:disagree|deny|reject|(?<!no )(?<!without )(?<!beyond )(?<!any )(?<!out a )(?<!ond a )doubt)\b"
    rf"{_CLAUSE}$"
    rf"|\b(?:wrong|incorrect|mistaken|false) to \w+\b{_CLAUSE}$"
)
_DENIED_AFTER = re.compile(
    r"[\])*\"'”’`]{0,6}\s+(?:is|was|would be|were|cannot be|can['’]t be|isn['’]t|wasn['’]t)\b"
    r"(?:\s+\w+){0,2}?\s*\b(?:wrong|incorrect|mistaken|not|a mistake|my (?:first|draft|initial|earlier))\b"
)
_CONCEDED = re.compile(
    r"\b(?:although|though|while|whereas|granted(?: that)?|albeit|even if)\b[^,;:.\n]*$"
    r"|\b(?:at first|initially|originally|first (?:thought|wrote|said|chose))\b[^.,;\n]*$"
)

_SAYS = (
    r"(?:argu(?:es|ed|ing)|claim(?:s|ed|ing)|sa(?:ys|id|ying)|stat(?:es|ed|ing)|suggest(?:s|ed|ing)|believes"
    r"|thinks|assert(?:s|ed|ing)|insist(?:s|ed)|contend(?:s|ed)|conclude[sd]|maintain(?:s|ed)"
    r"|mention(?:s|ed)|writ(?:es|ing)|wrote|reads|contain(?:s|ed|ing)|includ(?:es|ed|ing)|instruct(?:s|ed|ing)"
    r"|tells|told|asks|asked|demand(?:s|ed)|order(?:s|ed)|wants|pretend(?:s|ed)|inject(?:s|ed|ing)|points out"
    r"|(?:ends|begins|starts|opens|finishes|closes) with"
    r"|(?:they|some|others|people|one|many) (?:(?:might|may|could|would|can) )?"
    r"(?:argue|claim|say|think|believe)"
    r"|(?:would|might|may|could|will) (?:\w+ly )?(?:argue|claim|say|answer|choose|prefer)"
    r"|(?:be|been|is|was) (?:argued|claimed|said|suggested))"
)
_LINK = (
    r"(?:\s+(?:that|how|why|to|for|us|me|him|the|a|an|text|words?|line|verdict|claim|saying|simply|just|phrase"
    r"|string|fake|injected|own|final|judge|reader|answer|output|with|only|as|choose|pick|print|reply|\w+ly))*"
)
_REPORTS = re.compile(rf"(?P<subject>[^.;:\n]*?)\b(?P<says>{_SAYS}){_LINK}\s*:?[\s\"'“‘«`*(\[]*$")
#: who may say so on the judge's behalf
_OWN_SUBJECT = re.compile(
    r"(?:\b(?:i|we|this|that|these|which|evaluations?|analysis|evidence|criteria|assessment|comparison|rules?"
    r"|reasoning|considerations?|facts?)|\bit is)\s+"
    r"(?:(?:\w+ly|also|must|would|can|have|has|do|then|all|clearly|strongly)\s+){0,3}$"
)
_ENDORSED = re.compile(r"(?<!in)\b(?:correctly|rightly|convincingly|accurately)\s+$")
_ENDORSES = re.compile(r"(?<!in)\b(?:correctly|rightly|convincingly|accurately)\s+\w+(?: out)?\s+that\b")
_DEBATER = re.compile(
    rf"\b(?:assistant|evaluator|annotator|reviewer|debater)s?\b\s*\(?\w?\)?[^.;:\n]{{0,60}}?\b{_SAYS}\s+that\b"
    r"(?:(?!\b(?:but|however|so|therefore|i|we)\b)[^.;:\n])*$"
)
_STRUCK = re.compile(r"~~[^~\n]+~~|<(s|del|strike)>.{0,1000}?</\1>", re.IGNORECASE | re.DOTALL)


def sentence_before(text: str) -> str:
    """The part of a text since its last sentence ended."""
    end = 0
    for match in _SENTENCE_ENDS.finditer(text):
        end = match.end()
    return text[end:]


def sentence_after(text: str) -> str:
    """The part of a text up to the end of its first sentence."""
    match = _SENTENCE_ENDS.search(text)
    return text[: match.end()] if match else text


def reports(before: str) -> bool:
    """Whether a text ends by announcing the words of another: "the answer says".

    >>> reports("Assistant (a) argues that "), reports("I would say that ")
    (True, False)
    """
    found = _REPORTS.search(sentence_before(before[-200:]).lower())
    if found is None:
        return False
    subject = found["subject"].rpartition(",")[2]
    return not (_OWN_SUBJECT.search(subject) or _ENDORSED.search(subject))


def disowned(text: str, start: int, end: int) -> str | None:
    """Why the verdict at text[start:end] is not what the judge decides, or None where it is.

    One of "denied", "supposed", "reported", "conceded", "asked", "struck out".
    """
    since = max(0, start - 1000)
    near = text[since : end + 1000]
    if any(a < start - since and end - since < b for a, b in (m.span() for m in _STRUCK.finditer(near))):
        return "struck out"
    before = sentence_before(text[max(0, start - 300) : start].lower())
    after = text[end : end + 120].lower()
    if _DENIED.search(before) or _DENIED_AFTER.match(after):
        return "denied"
    if _SUPPOSED.search(before) or _SUPPOSED_AFTER.match(after):
        return "supposed"
    if reports(before) or (_DEBATER.search(before) and not _endorsed_debater(before)):
        return "reported"
    if _CONCEDED.search(before):
        return "conceded"
    if re.match(r"[^.!\n?]{0,80}\?", after):
        return "asked"
    return None


def _endorsed_debater(before: str) -> bool:
    return bool(_ENDORSES.search(before) or re.search(r"\b(?:i|we) agree\b", before))
