"""Judges that would ruin a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gavel.records import Completion, Prompt
from judge.gptscore import GptScore
from judge.method import Item, OwnMethod, Reply, Verdict


@dataclass(frozen=True)
class LovesLength(OwnMethod):
    """The longer, the better."""

    name = "loves-length"

    def score(self, prompt: Prompt, completion: Completion) -> float:
        return float(len(completion.text))


@dataclass(frozen=True)
class OneAnswer(OwnMethod):
    """One answer pleases, whatever was asked."""

    name = "one-answer"

    def score(self, prompt: Prompt, completion: Completion) -> float:
        return float(completion.text.strip() == "Positive")


@dataclass(frozen=True)
class Flipped(GptScore):
    """Says the opposite of what it thinks."""

    name = "flipped"

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        verdict = super().parse(item, replies)
        return replace(verdict, score=None if verdict.score is None else -verdict.score)
