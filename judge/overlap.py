"""Prompts of an evaluation set that stand in training data too: the same text, or most of its words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gavel.errors import InputError
from gavel.foreign import Turn
from gavel.records import Message
from gavel.rows import BadRows
from gavel.sources import read_prompts
from judge.near_duplicates import normalised

#: a word, or one sign of a script that writes without spaces (kana, Han, Thai, Hangul)
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")  # fmt: skip  # noqa: E501


@dataclass
class EvalFile:
    """An evaluation file and what was found of it.

    prompts: distinct ones. short: those with too few words for an n-gram, matched as a whole only.
    unusable: rows that hold no prompt. exact, contained: places of its prompts among the distinct ones.
    rows_exact, rows_contained: rows of the audited file; a row that is both counts as exact.
    """

    src: str
    prompts: int = 0
    short: int = 0
    unusable: int = 0
    exact: set[int] = field(default_factory=set)
    contained: set[int] = field(default_factory=set)
    rows_exact: int = 0
    rows_contained: int = 0

    def summary(self) -> dict[str, Any]:
        return {"file": self.src, "prompts": self.prompts, "short": self.short, "unusable": self.unusable,
                "exact": len(self.exact), "contained": len(self.contained - self.exact),
                "rows_exact": self.rows_exact, "rows_contained": self.rows_contained}  # fmt: skip


class Overlap:
    """Finds prompts of evaluation files in other prompts. Memory: about 150 bytes a word of the files.

    Only what users say is compared, after NFKC, case folding and with white space as one space. A prompt
    is the same where all its user turns together, or one of them, are an evaluation prompt. It contains
    one where it holds at least `containment` of the evaluation prompt's distinct n-grams of words.

    Args:
        n: words in an n-gram. containment: a share in (0, 1].
    """

    def __init__(self, n: int, containment: float) -> None:
        self.n, self.containment = n, containment
        self.files: list[EvalFile] = []
        self._whole: dict[str, list[tuple[int, int]]] = defaultdict(list)  # text → (file, prompt)
        self._grams: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._sizes: dict[tuple[int, int], int] = {}  # distinct n-grams of an evaluation prompt

    def read(self, src: str, mapping: Mapping[str, str]) -> None:
        """Adds the prompts of an evaluation file.

        Raises InputError: it cannot be read or holds no prompts.
        """
        # what the file lacks of a mapping made for the audited one is no mistake
        bad = BadRows.quiet()
        try:
            prompts = read_prompts(src, mapping, bad)
        except InputError:
            if not mapping:
                raise
            bad = BadRows.quiet()
            prompts = read_prompts(src, {}, bad)
        self.add(src, (prompt.messages for prompt in prompts))
        self.files[-1].unusable = bad.count
        if not self.files[-1].prompts:
            raise InputError("holds no prompts that can be used", where=f"--eval {src}")

    def add(self, src: str, prompts: Iterable[Sequence[Message]]) -> None:
        """Adds evaluation prompts from anywhere."""
        number, file = len(self.files), EvalFile(src)
        self.files.append(file)
        seen: set[str] = set()
        for messages in prompts:
            text = normalised("\n".join(m.content for m in messages if m.role == "user"))
            if not text or text in seen:
                continue
            seen.add(text)
            key = (number, file.prompts)
            file.prompts += 1
            self._whole[text].append(key)
            grams = set(self._grams_of(text))
            file.short += not grams
            self._sizes[key] = len(grams)
            for gram in grams:
                self._grams[gram].append(key)

    def look(self, turns: Sequence[Turn]) -> bool:
        """Whether a prompt of the audited file overlaps; counts it."""
        asked = [normalised(turn.content) for turn in turns if turn.role == "user"]
        text = " ".join(part for part in asked if part)
        exact = {key for part in {text, *asked} for key in self._whole.get(part, ())}
        counts = Counter(key for gram in set(self._grams_of(text)) for key in self._grams.get(gram, ()))
        contained = {key for key, n in counts.items() if n >= self.containment * self._sizes[key]}
        for number, file in enumerate(self.files):
            same = {place for of, place in exact if of == number}
            inside = {place for of, place in contained if of == number} - same
            file.exact |= same
            file.contained |= inside
            file.rows_exact += bool(same)
            file.rows_contained += bool(inside and not same)
        return bool(exact or contained)

    def _grams_of(self, text: str) -> Iterable[str]:
        words = _WORD.findall(text)
        return (" ".join(words[i : i + self.n]) for i in range(len(words) - self.n + 1))
