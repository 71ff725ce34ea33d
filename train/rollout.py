"""What PPO is handed: completions by a `Sampler`, their scores by a `Scorer`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gavel.errors import InputError
from gavel.packed import unpack_ids, unpack_logprobs
from gavel.records import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion. Produced by a `Sampler`, scored by a `Scorer`, consumed by `train.ppo`.

    prompt_ids, completion_ids: as they were sampled, EOS included when it was sampled.
    sampler_logps: of each completion token, under the distribution that was sampled from (temperature
        applied), in nats.
    """

    prompt: Prompt
    completion: Completion
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    sampler_logps: Sequence[float]

    @classmethod
    def of(cls, prompt: Prompt, prompt_ids: Sequence[int], completion: Completion) -> Rollout:
        """From a record with token ids and processed log-probabilities."""
        assert completion.token_ids is not None and completion.logprobs is not None, "sampled with ids"
        return cls(prompt=prompt, completion=completion, prompt_ids=prompt_ids,
                   completion_ids=unpack_ids(completion.token_ids),
                   sampler_logps=unpack_logprobs(completion.logprobs))  # fmt: skip

    @property
    def cut_off(self) -> bool:
        """Whether the length limit ended it."""
        return self.completion.finish_reason == "length"

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


class OutOfMemory(InputError):
    """Memory ran out: the trainer's, or that of a sampler's or scorer's engine, and no smaller batch may be
    tried."""


class Sampler(Protocol):
    """Samples from the policy of the moment. May raise OutOfMemory."""

    def sample(self, iteration: int, prompts: Sequence[Prompt]) -> list[Rollout]:
        """n completions of each prompt, n as in the configuration; the same call samples the same again, as
        far as the engine is deterministic."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Takes the weights of a model directory."""
        ...

    def logps(self, rollouts: Sequence[Rollout]) -> list[Sequence[float]]:
        """The raw log-probabilities (temperature 1) of completion tokens under the present weights."""
        ...

    @property
    def identity(self) -> str:
        """What shapes its completions, weights aside: a resumed run must have it in common."""
        ...


class Scorer(Protocol):
    """Judges completions. May raise OutOfMemory."""

    def score(self, iteration: int, rollouts: Sequence[Rollout]) -> list[float | None]:
        """One number each, higher is better; None where the judge had nothing usable to say: such a
        completion is left out of the update."""
        ...

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def identity(self) -> str:
        """A hash of what shapes its scores: a resumed run must have it in common."""
        ...


def padded(rows: Iterable[Sequence[float]], width: int, device: torch.device) -> Tensor:
    """Rows of numbers as (B, width), 0 where a row has ended."""
    given = list(rows)
    found = torch.zeros(len(given), width)
    for place, row in enumerate(given):
        found[place, : len(row)] = torch.tensor(row)
    return found.to(device)
