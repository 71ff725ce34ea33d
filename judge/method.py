"""What a judging method is: pure rendering and parsing; `judge.collect` does all the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

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
from gavel.records import Completion, Prompt

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a reply says. Without `verdict` and `score` there is a `reason`: no verdict was found."""

    verdict: str | None = None
    score: float | None = None
    measures: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    raw: str | None = None
    logprobs: Sequence[float] | None = None


class Method(Protocol):
    """A way of judging.

    fingerprint: all options that shape a judgment; it is part of the judgment's id. parser: version
    of `parse`. aspects: what it asks about. call: the engine call that its requests are for. needs: what
    the engine must do.
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

    def template(self, aspect: str) -> str:
        """Hash of the template that asks about an aspect."""
        ...

    def items(self, prompt: Prompt, completions: Sequence[Completion]) -> Iterator[Item]:
        """The questions to ask about the completions of one prompt."""
        ...

    def render(self, item: Item, tokenizer: Tokenizer) -> list[Request]:
        """Requests of one item; their keys are set by the caller. Raises RowError when it cannot be
        asked. No requests at all: `parse` decides without the judge."""
        ...

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        """Reads the replies, in the order of the requests. Raises RowError when they say nothing."""
        ...
