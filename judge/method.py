"""What a judging method is: pure rendering and parsing; `judge.collect` does all the rest."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Protocol

from gavel.protocols import (
    Capability,
    Rewarded,
    RewardRequest,
    Sampled,
    SampleRequest,
    Scored,
    ScoreRequest,
    Tokenizer,
)
from gavel.records import Completion, Judgment, Prompt, digest

Request = SampleRequest | ScoreRequest | RewardRequest
Reply = Sampled | Scored | Rewarded


class Call(StrEnum):
    """Which of an engine's calls a method makes."""

    SAMPLE = "sample"
    SCORE = "score"
    REWARD = "reward"


@dataclass(frozen=True, slots=True)
class Item:
    """One question for a judge: completions of one prompt, in the order shown, and an aspect."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    aspect: str

    def swapped(self) -> Item:
        """The same question with the completions in the opposite order."""
        return Item(self.prompt, self.completions[::-1], self.aspect)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(completion.text for completion in self.completions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a reply says. Without `verdict` and `score` there is a `reason`: no verdict was found.

    The fields are those of `gavel.records.Judgment`; what came from the engine (raw reply, likeliest
    tokens) `judge.collect` adds itself.
    """

    verdict: str | None = None
    score: float | None = None
    measures: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    logprobs: Sequence[float] | None = None


class Method(Protocol):
    """A way of judging.

    fingerprint: all options that shape a judgment; it is part of the judgment's id. parser: version
    of `parse`. aspects: what it asks about. call: the engine call that its requests are for. needs:
    what the engine must do. one_prompt: whether one request asks about all aspects at once.
    adaptive: whether what is asked next depends on what was answered.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def parser(self) -> str: ...

    @property
    def aspects(self) -> tuple[str, ...]: ...

    @property
    def call(self) -> Call: ...

    @property
    def needs(self) -> frozenset[Capability]: ...

    @property
    def one_prompt(self) -> bool: ...

    @property
    def adaptive(self) -> bool: ...

    def template(self, aspect: str) -> str:
        """Hash of the template that asks about an aspect."""
        ...

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        """The questions to ask about the completions of one prompt.

        judged: what is recorded of this prompt; only an adaptive method reads it, and it asks the same
        again whatever part of it is there, so that a stopped pass goes on.
        """
        ...

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        """Requests of one item; their keys are set by the caller. tokenizer: None for an engine that
        takes messages. Raises RowError when it cannot be asked. No requests at all: `parse` decides
        without the judge."""
        ...

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        """Reads the replies, in the order of the requests. Raises RowError when they say nothing."""
        ...


def orders_of(method: Method) -> str | None:
    """ "both" or "one" for a method that compares two completions at a time, None for any other."""
    found = getattr(method, "orders", None)
    return found if isinstance(found, str) else None


def one_by_one(prompt: Prompt, completions: Sequence[Completion], aspects: Sequence[str]) -> Iterator[Item]:
    """Each completion by itself, aspect by aspect, so that requests that begin alike follow one another."""
    for aspect in aspects:
        for completion in completions:
            yield Item(prompt, (completion,), aspect)


@cache
def _source(kind: type) -> str:
    """The source of a class; its name where it was defined in no file."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return kind.__qualname__


class OwnMethod:
    """A base for methods of your own: write `score`, or `render` and `parse` to ask the engine.

    Settings are the fields of a frozen dataclass; they and the class's source are the fingerprint.
    """

    name: ClassVar[str] = "own"
    parser: ClassVar[str] = "1"
    aspects: tuple[str, ...] = ("score",)
    call: ClassVar[Call] = Call.SAMPLE
    needs: ClassVar[frozenset[Capability]] = frozenset()
    one_prompt: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False

    @property
    def fingerprint(self) -> str:
        return repr(self) if hasattr(self, "__dataclass_fields__") else type(self).__qualname__

    def template(self, aspect: str) -> str:
        kind: Any = type(self)
        return digest("own", _source(kind), aspect)

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        return one_by_one(prompt, completions, self.aspects)

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        return []

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        return Verdict(score=self.score(item.prompt, item.completions[0]))

    def score(self, prompt: Prompt, completion: Completion) -> float:
        """A number, higher is better. Raises RowError when there is none."""
        raise NotImplementedError
