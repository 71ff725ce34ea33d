"""Listwise judging: all candidates of a prompt in one question, ranked by the judge.

A judge favours places in a list, so several orders are asked: half of them drawn by hash, each
followed by its reverse. What they say about each two candidates is put together in `judge.standing`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gavel.errors import InputError, RowError
from gavel.protocols import Capability, Tokenizer
from gavel.records import Completion, Judgment, Message, Prompt, digest
from judge import replies as readers
from judge.method import Call, Item, Reply, Request, Verdict
from judge.pairwise import quoted
from judge.questions import Preset, Reads, answer_of, preset, reference_of, rendered, request, sampled, shown
from judge.rubrics import chosen, rubrics
from judge.standing import distinct, write_ranking

LABELS = string.ascii_uppercase


@dataclass(frozen=True, kw_only=True)
class Listwise:
    """The method. Implements `judge.method.Method`.

    preset: a table of prompts/listwise/forms.toml. permutations: how many orders are asked about, of
        those there are. verdict: "text" or "json". The rest as in `judge.pairwise.Pairwise`.
    """

    preset: str = "default"
    aspects: tuple[str, ...] = ("overall",)
    rubric: str | None = None
    permutations: int = 4
    verdict: str | None = None
    with_reference: bool | None = None
    plain: bool | None = None
    max_tokens: int | None = None
    seed: int = 0
    forms_file: str | None = None

    name: str = field(default="listwise", init=False)
    parser: str = field(default=f"listwise/1 {readers.PARSER}", init=False)
    call: Call = field(default=Call.SAMPLE, init=False)
    one_prompt: bool = field(default=False, init=False)
    adaptive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Raises InputError for a preset, aspect, reading or number that cannot be used."""
        object.__setattr__(self, "aspects", chosen(self.aspects or tuple(self._rubrics), self._rubrics))
        if self.permutations < 1:
            raise InputError(f"must be at least 1, not {self.permutations}", where="--permutations")
        if self._asked.reads not in (Reads.TEXT, Reads.JSON):
            raise InputError("a ranking is read from text or json", where="--verdict")
        for aspect in self.aspects:
            one = Completion(id="", prompt_id="", index=0, text="text")
            trial = Item(Prompt(id="", messages=(Message("user", "text"),)), (one, one), aspect)
            self._asked.template.render(**self._variables(trial, "text"))

    @property
    def fingerprint(self) -> str:
        return (
            f"{self.preset} {self._asked.reads} reference={self.with_reference} plain={self.plain} "
            f"max_tokens={self._asked.max_tokens}"
        )

    @property
    def needs(self) -> frozenset[Capability]:
        return self._asked.needs

    @cached_property
    def _asked(self) -> Preset:
        return preset("listwise", self.preset, verdict=self.verdict, max_tokens=self.max_tokens,
                      forms_file=self.forms_file)  # fmt: skip

    @cached_property
    def _rubrics(self) -> dict[str, dict[str, Any]]:
        return rubrics(self.rubric)

    def template(self, aspect: str) -> str:
        return digest(self._asked.template.hash, self._rubrics[aspect])

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
        variables = self._variables(item, reference_of(item.prompt, self.with_reference))
        prompt = rendered(self._asked.template, variables, tokenizer, self.plain)
        return [request(self._asked, prompt, (), self._schema(len(item.completions)))]

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        reply, labels = sampled(replies), LABELS[: len(item.completions)]
        text = answer_of(reply)
        about: dict[str, Any] = {"quoted": quoted(item), "finish_reason": reply.finish_reason}
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
        ranking = {"type": "array", "items": label, "minItems": k, "maxItems": k}
        return {
            "type": "object",
            "properties": {"rationale": {"type": "string"}, "ranking": ranking},
            "required": ["rationale", "ranking"],
            "additionalProperties": False,
        }


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
