"""Pairwise judging: a judge is shown two candidates and says which is better.

Both orders are asked by default, since a judge may prefer a place. The verdict is weighed from the
probabilities of the first token, p(first) = p(A) / (p(A) + p(B)) (as AlpacaEval 2 does), a tie label
counting half; or it is read from a constrained choice, a JSON object or a free reply. Two candidates
with the same text are a tie without asking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from gavel.errors import InputError
from gavel.protocols import Tokenizer
from gavel.records import Completion, Judgment, Prompt, digest
from gavel.standing import by_order, distinct, settled
from judge import replies as readers
from judge.method import Call, Item, Reply, Request, Verdict
from judge.questions import Reads, answer_of, reasoned, request, sampled, shown, weigh
from judge.showing import Showing
from judge.tournament import comparisons, is_adaptive

FIRST, SECOND, TIE = "first", "second", "tie"


@dataclass(frozen=True, kw_only=True)
class Pairwise(Showing):
    """The method. Implements `judge.method.Method`.

    ties: whether a tie may be said; None: where the preset has a label for it.
    orders: "both" or "one" (by the hash of what is asked, so that no side has an advantage).
    pairs: which pairs of a prompt are asked about, see `judge.tournament.comparisons`.
    seed: of what is drawn. The rest as in `judge.showing.Showing`.
    """

    ties: bool | None = None
    orders: str = "both"
    pairs: str = "all"
    seed: int = 0

    name: str = field(default="pairwise", init=False)
    parser: str = field(default=f"pairwise/1 {readers.PARSER}", init=False)
    call: Call = field(default=Call.SAMPLE, init=False)
    one_prompt: bool = field(default=False, init=False)

    _kind: ClassVar[str] = "pairwise"

    def __post_init__(self) -> None:
        """Raises InputError for a preset, aspect, reading, plan or order that cannot be used."""
        self._choose_aspects(tuple(self._rubrics))
        if self.orders not in ("both", "one"):
            raise InputError(f"{self.orders!r} is neither both nor one", where="--orders")
        labels = self._asked.setting("labels", ["A", "B"])
        if len({*labels, self._tie}) != 3 or len(labels) != 2:
            raise InputError("needs two different labels, and another for a tie if any",
                             where=self._asked.template.where)  # fmt: skip
        if self.ties and self._tie is None:
            raise InputError(f"the preset {self.preset!r} has no label for a tie", where="--ties")
        comparisons(2, self.pairs, {}, seed_key="")  # an unknown plan is known before an engine starts
        self._try_template(2)

    @property
    def fingerprint(self) -> str:
        return (
            f"{self.preset} {self._asked.reads} ties={self._says_ties} reference={self.with_reference} "
            f"plain={self.plain} max_tokens={self._asked.max_tokens}"
        )

    @property
    def adaptive(self) -> bool:
        return is_adaptive(self.pairs)

    @property
    def _tie(self) -> str | None:
        return self._asked.template.texts.get("tie")

    @property
    def _says_ties(self) -> bool:
        return self._tie is not None if self.ties is None else self.ties

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        """Of the first, the second and, where it may be said, a tie."""
        labels = tuple(self._asked.setting("labels", ["A", "B"]))
        return (*labels, str(self._tie)) if self._says_ties else labels

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        """Sorted by what is shown first, so that requests that begin alike follow one another."""
        candidates = distinct(completions)
        answered = self._answered(prompt, candidates, judged) if self.adaptive else {}
        asked = comparisons(len(candidates), self.pairs, answered, seed_key=f"{self.seed} {prompt.id}")
        asked = sorted({*asked, *answered})
        shown_so = [(i, j) for pair in asked for i, j in self._orders(prompt, candidates, *pair)]
        for aspect in self.aspects:
            for i, j in sorted(shown_so):
                if aspect in self.asked_of(prompt, candidates[i], candidates[j]):
                    yield Item(prompt, (candidates[i], candidates[j]), aspect)

    def asked_of(self, prompt: Prompt, one: Completion, other: Completion) -> tuple[str, ...]:
        """The aspects that a pair is asked about."""
        return self.aspects

    def _answered(
        self, prompt: Prompt, candidates: Sequence[Completion], judged: Sequence[Judgment]
    ) -> dict[tuple[int, int], float | None]:
        """Pair of places → probability that the first is better, of pairs that were asked in full."""
        places = {c.id: place for place, c in enumerate(candidates)}
        found: dict[tuple[int, int], float | None] = {}
        mine = [j for j in judged if j.aspect in self.aspects]
        for (one, other), orders in by_order(mine).items():
            if one in places and other in places:
                i, j = places[one], places[other]
                aspects = self.asked_of(prompt, candidates[i], candidates[j])
                whole = len(aspects) * (2 if self.orders == "both" else 1)
                if sum(map(len, orders.values())) >= whole:
                    p = settled(orders, both_orders=self.orders == "both")
                    found[min(i, j), max(i, j)] = p if i < j or p is None else 1 - p
        return found

    def _orders(
        self, prompt: Prompt, candidates: Sequence[Completion], i: int, j: int
    ) -> tuple[tuple[int, int], ...]:
        if self.orders == "both":
            return (i, j), (j, i)
        texts = sorted((candidates[i].text, candidates[j].text))
        heads = int(digest("order", self.seed, prompt.id, texts), 16) % 2
        first_text = texts[heads]
        return ((i, j),) if candidates[i].text == first_text else ((j, i),)

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        if item.texts[0] == item.texts[1]:
            return []
        return [request(self._asked, self._prompt(item, tokenizer), self._labels, self._schema)]

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        if not replies:
            return Verdict(verdict=TIE, measures={"p_first": 0.5})
        reply = sampled(replies)
        if self._asked.reads is Reads.LOGPROBS:
            weights, mass = weigh(reply, self._labels)
            return weighed([weights[label] for label in self._labels], mass)
        about = self._about(item, reply)
        text = answer_of(reply)
        if self._asked.reads is Reads.JSON:
            found = readers.read_json_label(text, "verdict", self._labels, **about)
        else:
            found = readers.read_label(text, self._labels, pattern=self._asked.pattern(), **about)
        if found.value is None:
            return Verdict(reason=found.reason)
        place = self._labels.index(found.value)
        return Verdict(verdict=(FIRST, SECOND, TIE)[place], measures={"p_first": (1.0, 0.0, 0.5)[place]})

    def _variables(self, item: Item, reference: str) -> dict[str, Any]:
        labels = self._asked.setting("labels", ["A", "B"])
        return {
            **shown(item, reference),
            "candidate_a": item.completions[0].text,
            "candidate_b": item.completions[1].text,
            "rubric": self._rubrics[item.aspect],
            "label_a": labels[0],
            "label_b": labels[1],
            "label_tie": self._tie if self._says_ties else "",
            "verdict": str(self._asked.reads),
        }

    @cached_property
    def _schema(self) -> dict[str, Any]:
        return reasoned(verdict={"type": "string", "enum": list(self._labels)})


def weighed(weights: Sequence[float], mass: float) -> Verdict:
    """The verdict by the probabilities of (first, second[, tie]): the likeliest, and a tie where the
    first two are equal.

    >>> weighed([0.6, 0.2], 0.8).measures["p_first"]
    0.75
    """
    first, second, *tie = weights
    p_first = (first + 0.5 * sum(tie)) / (first + second + sum(tie))
    if first == second or any(t > max(first, second) for t in tie):
        verdict = TIE
    else:
        verdict = FIRST if first > second else SECOND
    return Verdict(verdict=verdict, measures={"p_first": p_first, "mass": mass})


@dataclass(frozen=True, kw_only=True)
class Principles(Pairwise):
    """Pairwise judging by a list of principles (RLAIF, arXiv 2309.00267; Constitutional AI, 2212.08073).

    rubric: the user's own principles; aspects: some of them by name, () for all.
    draw: "one" asks each pair about one principle, drawn by hash; "all" asks about every one, and
        their probabilities are averaged.
    """

    preset: str = "principle"
    aspects: tuple[str, ...] = ()
    draw: str = "one"

    name: str = field(default="principles", init=False)
    parser: str = field(default=f"pairwise/1 {readers.PARSER}", init=False)

    _rubric_place: ClassVar[tuple[str, str]] = ("principles", "principles")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draw not in ("one", "all"):
            raise InputError(f"{self.draw!r} is neither one nor all", where="--draw")

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint} draw={self.draw}"

    def asked_of(self, prompt: Prompt, one: Completion, other: Completion) -> tuple[str, ...]:
        if self.draw == "all":
            return self.aspects
        texts = sorted((one.text, other.text))
        return (self.aspects[int(digest("principle", self.seed, prompt.id, texts), 16) % len(self.aspects)],)
