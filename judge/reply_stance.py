"""Whether a judge stands by what it wrote: a verdict may be denied, supposed, reported of others, conceded
or asked about. Read from the words around it, in English; in other languages every verdict is the judge's."""

from __future__ import annotations

import re
from functools import lru_cache

NOUN = r"(?:answer|output|response|option|candidate|assistant|completion|reply|model|text|choice|one|version)"
_SENTENCE_ENDS = re.compile(r"[.!?…][\"'”’)\]*_]*\s|[。！？]|\n")
_CLAUSE = r"(?:(?!\b(?:and|but|so|as|since|because|i|hence|therefore|thus|my)\b|\s[-–—]\s)[^.;,:\n])*"

_SUPPOSED = re.compile(
    rf"\b(?:if|whether|unless|suppose|supposing|assuming|in case)\b{_CLAUSE}$|\b(?:either|between)\W+$"
    # "had it been right, [[A]]", "if brevity counts, [[A]]": what is thought of goes on over the comma
    r"|(?:\A|[,;(]\s*)had\b[^.;:\n]*\bbeen\b[^.;:\n]*$|\bwould(?:n['’]t)? have been\W{0,3}(?:an? )?\W*$"
    r"|\bif\b(?!\s+i\b)(?:(?!\b(?:but|however|so)\b)[^.;:\n])*\b(?:had|were|counts?|matters?|mattered)\b"
    r"(?:(?!\b(?:but|however|so)\b)[^.;\n])*$"
    r"|\b(?:tempted to|close to|near|nearly|almost|short of"
    r"|to (?:get|reach|earn|deserve|merit|achieve|score))"
    r"(?:\s+(?:\w+\s+)?(?:an?|the))?(?:\s+(?:give|say|choose|pick|rating|score))?(?:\s+(?:an?|of))?\W*$"
    r"|\b(?:higher|lower|better) (?:rating|score)\W*$"
)
_SUPPOSED_AFTER = re.compile(
    r"\W{0,4}(?:(?:only |but only )?if\b|unless\b|in case\b|for (?:a )?ties?\b|means\b|stands for\b"
    r"|indicates\b|denotes\b|would (?:need|require|take|demand)\b|was (?:also )?considered\b"
    r"|when (?:neither|both|they|the (?:first|second)|(?:\w+ )?\(?\w\)? (?:is|wins)))"
)
_NOT = r"(?: not|n['’]t|['’]t|not)"
_DENIED = re.compile(
    r"\b(?:not|never|nor|neither|rather than|instead of|over|against|wasn['’]t|isn['’]t|nicht|statt|pas"
    r"|(?<!worse )(?<!weaker )(?<!poorer )(?<!inferior )(?<!lower )than|beats|beat"
    rf"|outperforms|preferable to|superior to|ahead of)\s+(?:that\s+)?(?:the\s+)?(?:{NOUN}\s+)?\W*$"
    r"|(?:不是|而非)\W*$"
    rf"|\b(?:do|does|did|would|can|could|should|is|are|was|am|i['’]m){_NOT}\s+(?:\w+\s+){{0,3}}?"
    r"(?:think|believe|agree|say|conclude|find|feel|claim|mean|see|accept|consider|support|convinced|certain"
    rf"|sure|clear|true|case)\b{_CLAUSE}$"
    r"|\b(?:disagree|deny|reject|(?<!no )(?<!without )(?<!beyond )(?<!any )(?<!out a )(?<!ond a )doubt)\b"
    rf"{_CLAUSE}$"
    rf"|\b(?:wrong|incorrect|mistaken|false|unfair|a stretch|hard|difficult) to \w+\b{_CLAUSE}$"
    rf"|\b(?:never|not) (?:said|wrote|meant|chose|given)\b{_CLAUSE}$"
    rf"|\b(?:no way|fail to see|under no circumstances|(?:isn['’]t|not) (?:\w+ )?obvious)\b{_CLAUSE}$"
    r"|\blying if\b[^.;\n]*$|\A\W*to (?:argue|claim|say) that\W*$"
)
_DENIED_AFTER = re.compile(
    r"[\])*\"'”’`]{0,6}\s+(?:is|was|would be|were|cannot be|can['’]t be|isn['’]t|wasn['’]t)\b"
    r"(?:\s+\w+){0,2}?\s*\b(?:wrong|incorrect|mistaken|a mistake|my (?:first|draft|initial|earlier)"
    r"|what i wanted|worse|weaker|inferior"
    r"|not(?=\W*$|[.,;!]|\s+(?:right|correct|it|my|the|justified|fair|true|better|so)\b))\b"
    r"|[\])*\"'”’`]{0,6}\s+(?:loses|can be ruled out|(?:is|seems) out of the question)\b"
)
#: what may follow "better" where it is so in part only: "better formatted, but …"
_IN_PART = re.compile(
    r"\s+(?:formatted|written|structured|worded|phrased|organi[sz]ed|looking|only|in (?:no|just|only))\b"
)
_CONCEDED = re.compile(r"\b(?:although|though|while|whereas|granted(?: that)?|albeit|even if)\b[^,;:.\n]*$")
_AT_FIRST = re.compile(
    rf"\b(?:at first|initially|originally|first (?:thought|wrote|said|chose))\b{_CLAUSE}$"
    rf"|\bat first (?:glance|sight),?{_CLAUSE}$"
)

_SAYS = (
    r"(?:argu(?:es|ed|ing)|claim(?:s|ed|ing)|sa(?:ys|id|ying)|stat(?:es|ed|ing)|suggest(?:s|ed|ing)|believes"
    r"|thinks|assert(?:s|ed|ing)|insist(?:s|ed)|contend(?:s|ed)|conclude[sd]|maintain(?:s|ed)"
    r"|mention(?:s|ed)|writ(?:es|ing)|wrote|reads|contain(?:s|ed|ing)|includ(?:es|ed|ing)|instruct(?:s|ed|ing)"
    r"|tells|told|asks|asked|demand(?:s|ed)|order(?:s|ed)|wants|pretend(?:s|ed)|inject(?:s|ed|ing)|points out"
    r"|(?:tr(?:ies|ied|ying)|attempt(?:s|ed|ing)?|seeks|sought) to "
    r"(?:\w+ly )?(?:get|make|trick|fool|persuade|push|force)"
    r"|(?:ends|begins|starts|opens|finishes|closes) with"
    r"|(?:they|some|others|people|one|many) (?:(?:might|may|could|would|can) )?"
    r"(?:argue|claim|say|think|believe)"
    r"|(?:would|might|may|could|will) (?:\w+ly )?(?:argue|claim|say|answer|choose|prefer)"
    r"|(?:be|been|is|was) (?:argued|claimed|said|suggested))"
)
_LINK = (
    r"(?:\s+(?:that|how|why|to|for|us|me|him|the|a|an|text|words?|line|verdict|claim|saying|simply|just|phrase"
    r"|string|fake|injected|own|final|judge|reader|answer|output|with|only|as|choose|choosing|pick|print|reply"
    r"|instruction|into|evaluator|give|\w+ly))*"
)
_REPORTS = re.compile(rf"(?P<subject>[^.;:\n]*?)\b(?P<says>{_SAYS}){_LINK}\s*:?[\s\"'“‘«`*(\[]*$")
#: whose words are not the judge's: what it was shown, and whoever else may say something
_THIRD_PARTY = re.compile(
    r"\b(?:(?:assistant|answer|response|output|candidate|completion|repl(?:y|ie)|text|model|user|prompt"
    r"|instruction|question|one|other|version|author|writer|critic|evaluator|annotator|reviewer|debater|sentence|line|paragraph)"
    r"(?:s|['’]s)?|first|second|some|someone|somebody|many|people|they|it|he|she|there|[ab12m])\b|\(\w\)"
)
#: who may say so on the judge's behalf
_OWN_SUBJECT = re.compile(
    r"\b(?:i|we|this|that|these|which|evaluations?|analysis|evidence|criteria|assessment|comparison|rules?"
    r"|reasoning|considerations?|facts?)\s+"
    r"(?:(?:\w+ly|also|must|would|can|have|has|do|then|all|clearly|strongly)\s+){0,3}$"
    r"|\b(?:comparison|analysis|evaluation|assessment|judge)\b[^,]*$|\bit (?:is|can|can be)\s+(?:\w+ly\s+)?$"
)
_ENDORSED = re.compile(r"(?<!in)\b(?:correctly|rightly|convincingly|accurately)\s+$")
_ENDORSES = re.compile(r"(?<!in)\b(?:correctly|rightly|convincingly|accurately)\s+\w+(?: out)?\s+that\b")
_DEBATER = re.compile(
    rf"\b(?:assistant|evaluator|annotator|reviewer|debater)s?\b\s*\(?\w?\)?[^.;:\n]{{0,60}}?\b{_SAYS}\s+that\b"
    r"(?:(?!\b(?:but|however|so|therefore|i|we|my)\b|,\s+(?:which|making|leaving)\b)[^.;:\n])*$"
)
#: not where a sentence of its own asks: "[[A]] Would you like to know more?"
_ASKED = re.compile(r"(?![\])*\"'`]{0,4}\s+[\"(]?(?:[A-HJ-Z]|I\w))(?:(?!\s\((?!\w\)))[^.!\n?]){0,80}\?")
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


@lru_cache(maxsize=4096)  # asked again for every copy of one text
def reports(before: str) -> bool:
    """Whether a text ends by announcing the words of another: "the answer says".

    >>> reports("Assistant (a) argues that "), reports("I would say that ")
    (True, False)
    """
    found = _REPORTS.search(sentence_before(before[-200:]).lower())
    if found is None:
        return False
    subject = found["subject"].rpartition(",")[2]
    if _OWN_SUBJECT.search(subject) or _ENDORSED.search(subject):
        return False
    return _THIRD_PARTY.search(subject + found["says"]) is not None


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
    if text.endswith(("better", "best"), 0, end) and _IN_PART.match(after):
        return "so in part only"
    legend = text.endswith("]", 0, end) and re.match(r"\s*=\s", after)
    if legend or _SUPPOSED.search(before) or _SUPPOSED_AFTER.match(after):
        return "supposed"
    if reports(before) or (_DEBATER.search(before) and not _endorsed_debater(before)):
        return "reported"
    if _AT_FIRST.search(before) or _conceded(before, after):
        return "conceded"
    if _ASKED.match(text[end : end + 120]):
        return "asked"
    return None


def _conceded(before: str, after: str) -> bool:
    """Whether a verdict stands in a subordinate clause: one that follows the main clause, or that ends in
    a comma. "While both are good I choose [[A]]" is none."""
    found = _CONCEDED.search(before)
    if found is None:
        return False
    main_first = re.sub(r"\b(?:and|but|so|even|also|still)\b|\W", "", before[: found.start()])
    return bool(main_first) or re.match(r"[^.;:\n]*,", after) is not None


def _endorsed_debater(before: str) -> bool:
    return bool(_ENDORSES.search(before) or re.search(r"\b(?:i|we) agree\b", before))
