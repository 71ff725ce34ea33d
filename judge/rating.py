"""Ratings: a judge reads one candidate and gives it a number by a rubric.

The number is the expectation over the rating tokens, Σ_s s·p(s) / Σ_s p(s) (G-Eval, arXiv 2303.16634,
eq. 1), with the probability on anything else reported as 1 − mass; or it is read from a reply: a
constrained choice, a JSON object with a rationale, or free text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from gavel.errors import InputError, RowError
from gavel.protocols import Capability, Scored, ScoreRequest, Tokenizer
from gavel.records import Completion, Judgment, Prompt, digest
from judge import replies as readers
from judge.method import Call, Item, Reply, Request, Verdict, one_by_one
from judge.questions import Reads, answer_of, reasoned, request, sampled, shown, weigh
from judge.showing import Showing


@dataclass(frozen=True, kw_only=True)
class Rating(Showing):
    """The method. Implements `judge.method.Method`.

    aspects: () takes the preset's, or all of the user's own `rubric` file.
    scale: lowest and highest rating; None: the preset's.
    one_prompt: with verdict "json", asks about all aspects in one request.
    The rest as in `judge.showing.Showing`.
    """

    preset: str = "single"
    aspects: tuple[str, ...] = ()
    scale: tuple[int, int] | None = None
    one_prompt: bool = False

    name: str = field(default="rating", init=False)
    parser: str = field(default=f"rating/1 {readers.PARSER}", init=False)
    adaptive: bool = field(default=False, init=False)

    _kind: ClassVar[str] = "rating"

    def __post_init__(self) -> None:
        """Raises InputError for a preset, rubric, aspect, scale or reading that cannot be used."""
        own = tuple(self._rubrics) if self.rubric else tuple(self._asked.setting("aspects", ()))
        self._choose_aspects(own)
        low, high = self._scale
        if not 0 <= low < high <= 100:
            raise InputError(f"{low} to {high} is no scale", where="--scale", hint="For example 1-5.")
        for aspect in self.aspects:
            levels = self._rubrics[aspect].get("levels", [])
            if levels and len(levels) != high - low + 1:
                raise InputError(
                    f"the aspect {aspect!r} describes {len(levels)} levels, the scale has {high - low + 1}",
                    where=self.rubric or "--scale",
                )
        if self.one_prompt and self._asked.reads is not Reads.JSON:
            raise InputError("asks for all aspects in one JSON reply", where="--one-prompt",
                             hint="Add --verdict json.")  # fmt: skip
        self._try_template(1)

    @property
    def fingerprint(self) -> str:
        low, high = self._scale
        return (
            f"{self.preset} {self._asked.reads} {low}-{high} one_prompt={self.one_prompt} "
            f"reference={self.with_reference} plain={self.plain} max_tokens={self._asked.max_tokens}"
        )

    @cached_property
    def _scale(self) -> tuple[int, int]:
        low, high = self.scale or self._asked.setting("scale", (1, 5))
        return int(low), int(high)

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        low, high = self._scale
        return tuple(str(n) for n in range(low, high + 1))

    @property
    def _by_span(self) -> bool:
        """Whether a rating is longer than a character: then each is scored as a whole reply, since
        the first token of "10" may be that of "1"."""
        return self._asked.reads is Reads.LOGPROBS and any(len(label) > 1 for label in self._labels)

    @property
    def call(self) -> Call:
        return Call.SCORE if self._by_span else Call.SAMPLE

    @property
    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.SCORE, Capability.TOKENS}) if self._by_span else self._asked.needs

    def _hash(self, aspect: str) -> str:
        about = self.aspects if self.one_prompt else (aspect,)
        return digest(self._asked.template.hash, {a: self._rubrics[a] for a in about}, aspect)

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        """Aspect by aspect, so that requests that begin alike follow one another."""
        return one_by_one(prompt, completions, self.aspects)

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        if not item.completions[0].text.strip():
            raise RowError("the text is empty")
        prompt = self._prompt(item, tokenizer)
        if self._by_span:
            assert tokenizer is not None, "needs TOKENS"
            return [self._span(prompt, label, tokenizer) for label in self._labels]
        return [request(self._asked, prompt, self._labels, self._schema)]

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        if self._by_span:
            logprobs = [math.fsum(r.logprobs) for r in replies if isinstance(r, Scored)]
            weights = {label: math.exp(lp) for label, lp in zip(self._labels, logprobs, strict=True)}
            return replace(expectation(weights), logprobs=logprobs)
        reply = sampled(replies)
        if self._asked.reads is Reads.LOGPROBS:
            return expectation(weigh(reply, self._labels)[0])
        (low, high), text = self._scale, answer_of(reply)
        about = self._about(item, reply)
        if self._asked.reads is Reads.JSON:
            name = item.aspect if self.one_prompt else "rating"
            found = readers.read_json_rating(text, name, low, high, **about)
        else:
            found = readers.read_rating(text, low, high, pattern=self._asked.pattern(), **about)
        return Verdict(score=found.value, reason=found.reason)

    def _variables(self, item: Item, reference: str) -> dict[str, Any]:
        low, high = self._scale
        return {
            **shown(item, reference),
            "candidate": item.completions[0].text,
            "rubric": self._rubrics[item.aspect],
            "rubrics": [self._rubrics[a] | {"key": a} for a in self.aspects] if self.one_prompt else [],
            "low": low,
            "high": high,
            "verdict": str(self._asked.reads),
        }

    @cached_property
    def _schema(self) -> dict[str, Any]:
        low, high = self._scale
        rating = {"type": "integer", "enum": list(range(low, high + 1))}
        return reasoned(**dict.fromkeys(self.aspects if self.one_prompt else ("rating",), rating))

    def _span(self, prompt: Any, label: str, tokenizer: Tokenizer) -> ScoreRequest:
        ids = [*prompt, *tokenizer.text_ids(label), tokenizer.eos_id]
        return ScoreRequest(key="", token_ids=ids, start=len(prompt))


def expectation(weights: Mapping[str, float]) -> Verdict:
    """The mean of the ratings under their probabilities, with standard deviation and mass.

    >>> expectation({"1": 0.1, "5": 0.3}).score
    4.0

    Raises RowError when all probabilities are 0.
    """
    mass = math.fsum(weights.values())
    if mass <= 0:
        raise RowError("no rating has any probability")
    mean = math.fsum(int(s) * p for s, p in weights.items()) / mass
    variance = math.fsum((int(s) - mean) ** 2 * p for s, p in weights.items()) / mass
    return Verdict(score=mean, measures={"sd": math.sqrt(variance), "mass": mass})
