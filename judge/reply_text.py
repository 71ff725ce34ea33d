"""What of a reply are the judge's own words: without its thinking, without characters that cannot be seen,
and where it quotes the texts that it was shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from judge.reply_stance import reports, sentence_after, sentence_before

_TAGS = re.compile(r"(?i)<(?P<a>/?)(?:think|thinking|thought|reasoning)>|\[(?P<b>/?)think\]|◁(?P<c>/?)think▷")
_CHANNEL = re.compile(r"<\|channel\|>(\w+)[^<>\n]{0,40}<\|message\|>")
_BRACKETS = str.maketrans({"⟦": "[[", "⟧": "]]", "〚": "[[", "〛": "]]", "【": "[", "】": "]"})
#: letters and digits in another width or font are the same letters and digits; ² and ½ are not
_SAME = ("<wide>", "<narrow>", "<font>")
_FILLERS = frozenset("\u034f\u115f\u1160\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}

_QUOTATIONS = re.compile(
    r"\"[^\"\n]*\"|“[^”]{0,4000}”|«[^»]{0,4000}»|„[^“”]{0,4000}[“”]|「[^」]{0,4000}」|『[^』]{0,4000}』|`[^`\n]+`"
    r"|```.*?(?:```|\Z)|(?m:^[ \t]*>[^\n]*$)|(?<!\w)'[^'\n]*'(?!\w)|(?<!\w)‘[^’\n]*’(?!\w)",
    re.DOTALL,
)
_OPENS, _CLOSES = "\"“«„「『`'‘", "\"”»“」』`'’"
_REACH = 400  # characters on each side in which a copy is looked for
_BEYOND = 16  # a copy of more than the verdict's own sentence has at least so many characters outside it
_LONG = 200  # nobody says so many characters by chance
_COPIES = 200  # places in the sources that are compared with one place of a reply
_TAGS_READ = 40  # more are no reply but a loop
_SPACE = re.compile(r"\s{33,}")


class Doubt(Exception):
    """Nothing can be read; says why."""


def plain(text: str) -> str:
    """A text without characters that cannot be seen, its letters, digits and brackets in one form."""
    if text.isascii():
        return text
    return "".join(map(_plain, text.translate(_BRACKETS)))


def _plain(letter: str) -> str:
    if letter.isascii():
        return letter
    kind = unicodedata.category(letter)
    if kind == "Cf" or letter in _FILLERS:
        return ""
    if kind == "Nd":
        return str(unicodedata.decimal(letter))
    if unicodedata.decomposition(letter).startswith(_SAME):
        return unicodedata.normalize("NFKC", letter)
    return letter


def answer(text: str, quoted: Sequence[str] = ()) -> str:
    """What a reply says outside its thinking. A closing tag without an opening one ends a thinking that
    the prompt began; a tag that is quoted from a candidate is none.

    Raises Doubt where there is nothing, or the thinking never ended.
    """
    text = _SPACE.sub(lambda run: "\n\n" if "\n" in run[0] else " ", plain(text))
    if not text.strip():
        raise Doubt("the reply is empty")
    kept: list[str] = []
    since, inside = 0, False
    text = _final_channel(text, quoted)
    tags = list(_TAGS.finditer(text))
    if len(tags) > _TAGS_READ:
        raise Doubt(f"{len(tags):,} thinking tags in one reply")
    quotations = Quotations(text, quoted) if tags else None
    for tag in tags:
        if quotations and quotations.hold(*tag.span()):
            continue
        if "/" in (tag["a"], tag["b"], tag["c"]):
            if not inside:
                kept.clear()
            inside, since = False, tag.end()
        elif not inside:
            kept.append(text[since : tag.start()])
            inside = True
    if inside:
        raise Doubt("the thinking never ended")
    said = "\n".join([*kept, text[since:]])
    if not said.strip():
        raise Doubt("the reply is empty after its thinking")
    return said


def _final_channel(text: str, quoted: Sequence[str]) -> str:
    """Of a reply in channels (gpt-oss) what is said in the final one."""
    if not _CHANNEL.search(text):
        return text
    quotations = Quotations(text, quoted)
    own = [m for m in list(_CHANNEL.finditer(text))[-_TAGS_READ:] if not quotations.hold(*m.span())]
    if own and own[-1][1] != "final":
        raise Doubt("the thinking never ended")
    return text[own[-1].end() :] if own else text


def squeeze(text: str) -> str:
    """Runs of white space as one space, or one line break where they hold one; case folded."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text).casefold()


class Quotations:
    """Where a reply quotes the texts that the judge was shown.

    A quotation stands in quotation marks, code or a block quote; or follows a word such as "says"; or
    it is a copy that reaches beyond the sentence it is asked about. A judge may say of itself what a
    candidate says too: one sentence that both hold is no quotation.
    """

    def __init__(self, text: str, sources: Sequence[str]) -> None:
        self._text = text
        self._sources = [squeeze(plain(source)).replace("\n", " ") for source in sources if source.strip()]
        self._unspaced = [source.replace(" ", "") for source in self._sources]
        self._marked = [m.span() for m in _QUOTATIONS.finditer(text)] if self._sources else []

    def hold(self, start: int, end: int) -> bool:
        """Whether the text from start to end is quoted."""
        said = squeeze(self._text[start:end]).replace("\n", " ").strip()
        if not said or not any(said in source for source in self._sources):
            return False
        if any(a < start and end <= b for a, b in self._marked):
            return True
        before = squeeze(self._text[max(0, start - _REACH) : start])
        after = squeeze(self._text[end : end + _REACH])
        return any(_is_copied(said, before, after, source) for source in self._sources)

    def held(self, start: int, end: int) -> bool:
        """Whether a candidate says the same but for white space, be it quoted or not."""
        said = "".join(self._text[start:end].casefold().split())
        return any(said in source for source in self._unspaced)


def _is_copied(said: str, before: str, after: str, source: str) -> bool:
    own_before, own_after = len(sentence_before(before)), len(sentence_after(after))
    one_line = before.replace("\n", " "), after.replace("\n", " ")
    if reports(before):
        return True
    at, looked = source.find(said), 0
    while at >= 0:
        if (looked := looked + 1) > _COPIES:
            return True  # a text made of nothing but verdicts
        left = _common(one_line[0][::-1], source[max(0, at - _REACH) : at][::-1])
        right = _common(one_line[1], source[at + len(said) : at + len(said) + _REACH])
        if left - own_before >= _BEYOND or right - own_after >= _BEYOND or max(left, right) >= _LONG:
            return True
        outside = before[: len(before) - left].rstrip(), after[right:].lstrip(" .,!\n")
        if outside[0][-1:] and outside[1][:1] and outside[1][0] in _CLOSES and outside[0][-1] in _OPENS:
            return True
        if left and reports(outside[0] + " "):
            return True
        at = source.find(said, at + 1)
    return False


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
