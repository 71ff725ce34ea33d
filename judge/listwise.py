"""Listwise judging: all candidates of a prompt in one question, ranked by the judge.

A judge favours places in a list, so several orders are asked: half of them drawn by hash, each
followed by its reverse. What they say about each two candidates is put together in `gavel.standing`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gavel.errors import InputError, RowError
from gavel.protocols import Tokenizer
from gavel.records import Completion, Judgment, Prompt, digest
from gavel.standing import distinct, write_ranking
from judge import replies as readers
from judge.method import Call, Item, Reply, Request, Verdict
from judge.questions import Reads, answer_of, reasoned, request, sampled, shown
from judge.showing import Showing

LABELS = string.ascii_uppercase


@dataclass(frozen=True, kw_only=True)
class Listwise(Showing):
    """The method. Implements `judge.method.Method`.

    permutations: how many orders are asked about, of those there are. verdict: "text" or "json".
    seed: of what is drawn. The rest as in `judge.showing.Showing`.
    """

    permutations: int = 4
    seed: int = 0

    name: str = field(default="listwise", init=False)
    parser: str = field(default=f"listwise/1 {readers.PARSER}", init=False)
    call: Call = field(default=Call.SAMPLE, init=False)
    one_prompt: bool = field(default=False, init=False)
    adaptive: bool = field(default=False, init=False)

    _kind: ClassVar[str] = "listwise"

    def __post_init__(self) -> None:
        """Raises InputError for a preset, aspect, reading or number that cannot be used."""
        self._choose_aspects(tuple(self._rubrics))
        if self.permutations < 1:
            raise InputError(f"must be at least 1, not {self.permutations}", where="--permutations")
        if self._asked.reads not in (Reads.TEXT, Reads.JSON):
            raise InputError("a ranking is read from text or json", where="--verdict")
        self._try_template(2)

    @property
    def fingerprint(self) -> str:
        return (
            f"{self.preset} {self._asked.reads} reference={self.with_reference} plain={self.plain} "
            f"max_tokens={self._asked.max_tokens}"
        )

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        candidates = distinct(completions)
        if len(candidates) < 2:
            return
        for aspect in self.aspects:
            for order in orders(candidates, self.permutations, f"{self.seed} {prompt.id}"):
                yield Item(prompt, order, aspect)

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        if len(item.completions) > len(LABELS):
            raise RowError(f"{len(item.completions)} candidates, {len(LABELS)} fit into one question")
        prompt = self._prompt(item, tokenizer)
        return [request(self._asked, prompt, (), self._schema(len(item.completions)))]

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        reply, labels = sampled(replies), LABELS[: len(item.completions)]
        text = answer_of(reply)
        about = self._about(item, reply)
        if self._asked.reads is Reads.JSON:
            found = readers.read_json(text, **about)
            if found.value is None:
                return Verdict(reason=found.reason)
            listed = found.value.get("ranking")
            if not isinstance(listed, list) or sorted(map(str, listed)) != list(labels):
                return Verdict(reason="the ranking does not name each candidate once")
            groups: tuple[tuple[str, ...], ...] = tuple((str(label),) for label in listed)
        else:
            ranking = readers.read_ranking(text, tuple(labels), pattern=self._asked.pattern(), **about)
            if ranking.value is None:
                return Verdict(reason=ranking.reason)
            groups = ranking.value
        return Verdict(verdict=write_ranking([[labels.index(x) for x in group] for group in groups]))

    def _variables(self, item: Item, reference: str) -> dict[str, Any]:
        labelled = zip(LABELS, item.texts, strict=False)  # more candidates than letters are refused
        return {
            **shown(item, reference),
            "candidates": [{"label": label, "text": text} for label, text in labelled],
            "rubric": self._rubrics[item.aspect],
            "verdict": str(self._asked.reads),
        }

    def _schema(self, k: int) -> dict[str, Any]:
        label = {"type": "string", "enum": list(LABELS[:k])}
        return reasoned(ranking={"type": "array", "items": label, "minItems": k, "maxItems": k})


def orders(candidates: Sequence[Completion], count: int, key: str) -> list[tuple[Completion, ...]]:
    """`count` different orders, or all there are: one drawn by hash, its reverse, the next …

    What is drawn depends on the texts (all different), not on the order in which they are given.
    """
    found: dict[tuple[str, ...], tuple[Completion, ...]] = {}
    wanted = min(count, math.factorial(len(candidates)))
    draw = 0
    while len(found) < wanted:
        drawn = tuple(sorted(candidates, key=lambda c: digest("order", key, draw, c.text)))
        for order in (drawn, drawn[::-1]):
            if len(found) < wanted:
                found.setdefault(tuple(c.text for c in order), order)
        draw += 1
    return list(found.values())
