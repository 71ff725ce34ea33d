"""What an audit remembers of the rows of a preference file: hashes, lengths and numbers, no texts."""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable

from gavel.special_tokens import special_tokens
from judge.audit_rows import Entry, Verdict
from judge.near_duplicates import Sketches

_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)


class Places:
    """Where rows stand, in 8 bytes each: the text before the number is kept once."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}
        self._head, self._number = array("I"), array("q")

    def add(self, where: str) -> None:
        found = _NUMBERED.fullmatch(where)
        # digits that would not come back the same are part of the text
        whole = not found or str(int(found[2])) != found[2] or len(found[2]) > 18
        head, number = (where, -1) if whole or not found else (found[1], int(found[2]))
        self._head.append(self._heads.setdefault(head, len(self._heads)))
        self._number.append(number)

    def __len__(self) -> int:
        return len(self._head)

    def name(self) -> Callable[[int], str]:
        """A function from a row's number, from 0, to its place."""
        heads = list(self._heads)
        return lambda row: heads[self._head[row]] + (str(self._number[row]) if self._number[row] >= 0 else "")


class Numbers:
    """Numbers distinct things from 0 by a hash of their parts: about 130 bytes each."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def of(self, *parts: str) -> tuple[int, bool]:
        """The number, and whether it is a new one."""
        count = len(self._known)
        number = self._known.setdefault(_hash(*parts), count)
        return number, number == count

    def __len__(self) -> int:
        return len(self._known)


class Tally:
    """Counts while a file is read: about 1.5 kB a row of two texts, half of it the sketches.

    Arrays with one item a row, a distinct prompt, a distinct content, a text of a row or a comparison;
    the name says which. Prompts, texts and contents have numbers from 0; a content is a prompt with its
    texts in any order and no label.
    """

    def __init__(self) -> None:
        self.layouts: Counter[str] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.token_rows: Counter[tuple[str, str]] = Counter()

        self.places = Places()
        self.row_label = array("Q")  # a hash of content and label
        self.row_prompt = array("q")
        self.row_end = array("q")  # in the arrays of texts
        self.row_special: list[int] = []

        self.prompts = Numbers()
        self.prompt_row = array("q")  # where it came first, as `content_row`
        self.prompt_chars = array("d")
        self.prompt_sketches = Sketches()
        self.contents = Numbers()
        self.content_row = array("q")

        self.texts = Numbers()
        self.text_sketches = Sketches()
        self.text_chars, self.text_blank = array("q"), array("b")
        self.offered = array("q")  # the number of each text of a row
        self.scores = array("d")  # of all texts of rows that have one

        self.pair_row = array("q")
        self.better, self.worse = array("q"), array("q")
        self.better_score, self.worse_score = array("d"), array("d")  # NaN where there is none
        self.pair_gap = array("d")  # score of the better minus that of the worse, else the stated margin
        self.pair_tie = array("b")
        self.pair_first = array("b")  # the better stands first 1, second 0; -1 where there is no order
        self.p_chosen = array("d")

    def add(self, entry: Entry) -> None:
        """Takes one row."""
        row = len(self.places)
        self.places.add(entry.where)
        self.layouts[entry.layout] += 1
        prompt = self._prompt(entry, row)
        numbers = [self._text(text) for text in entry.texts]
        self.row_prompt.append(prompt)
        self.offered.extend(numbers)
        self.row_end.append(len(self.offered))
        self.scores.extend(score for score in entry.scores if score is not None)
        content, fresh = self.contents.of(str(prompt), *map(str, sorted(numbers)))
        if fresh:
            self.content_row.append(row)
        label = sorted(
            (min(b, w), max(b, w), True) if tie else (b, w, False)
            for b, w, tie in ((numbers[v.better], numbers[v.worse], v.tie) for v in entry.verdicts)
        )
        self.row_label.append(_hash(str(content), str(label)))
        self._special(entry, row)
        for verdict in entry.verdicts:
            self._pair(entry, row, numbers, verdict)
        if entry.p_chosen is not None:
            self.p_chosen.append(entry.p_chosen)

    def _prompt(self, entry: Entry, row: int) -> int:
        number, fresh = self.prompts.of(*(part for turn in entry.turns for part in (turn.role, turn.content)))
        if fresh:
            asked = "\n".join(turn.content for turn in entry.turns)
            self.prompt_row.append(row)
            self.prompt_chars.append(len(asked))
            self.prompt_sketches.add(asked)
        return number

    def _text(self, text: str) -> int:
        number, fresh = self.texts.of(text)
        if fresh:
            self.text_sketches.add(text)
            self.text_chars.append(len(text))
            self.text_blank.append(not text.strip())
        return number

    def _special(self, entry: Entry, row: int) -> None:
        found: Counter[tuple[str, str]] = Counter()
        for text in entry.texts:
            found += special_tokens(text)
        if found:
            self.row_special.append(row)
            self.tokens += found
            self.token_rows.update(found.keys())

    def _pair(self, entry: Entry, row: int, numbers: list[int], verdict: Verdict) -> None:
        scores = [
            math.nan if (score := entry.scores[side]) is None else score
            for side in (verdict.better, verdict.worse)
        ]
        gap = scores[0] - scores[1]
        if math.isnan(gap) and entry.margin is not None:
            gap = entry.margin
        self.pair_row.append(row)
        self.better.append(numbers[verdict.better])
        self.worse.append(numbers[verdict.worse])
        self.better_score.append(scores[0])
        self.worse_score.append(scores[1])
        self.pair_gap.append(gap)
        self.pair_tie.append(verdict.tie)
        self.pair_first.append(verdict.better < verdict.worse if entry.ordered else -1)


def _hash(*parts: str) -> int:
    """64 bits: among a million texts two share one with a probability of 3e-8."""
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        blob = part.encode("utf-8", "surrogatepass")
        made.update(len(blob).to_bytes(8, "little") + blob)
    return int.from_bytes(made.digest(), "little")
