"""Completions as the tensors of one forward pass: where it can be, one row without padding in which every
prompt stands once (`train.forest`), else a padded batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from train import forest
from train.rollout import Rollout
from train.unique import key_of


@dataclass(frozen=True)
class Tokens:
    """B completions of up to R tokens, of a forward pass over N places.

    inputs: what a model is called with. kept: which of the hidden states say something of a completion, their
        places among all N (after `forest.install` among those of leaves): the prompt's last token and the
        completion's own, one completion after another, (B + tokens of completions,).
    completion_ids: (B, R), 0 where a completion has ended. mask: (B, R), True where it has a token.
    """

    inputs: dict[str, Any]
    kept: Tensor
    completion_ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], device: torch.device, shared: bool) -> Tokens:
        """shared: one row, for models with `forest.install`."""
        inputs, kept = (_one_row if shared else _padded)(rollouts, device)
        lengths = torch.tensor([len(r.completion_ids) for r in rollouts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([token for r in rollouts for token in r.completion_ids])
        return cls(inputs, kept.to(device), ids.to(device), mask.to(device))

    @property
    def states(self) -> Tensor:
        """(B, R + 1): where there is a state, before each token and after the last."""
        return pad(self.mask, (1, 0), value=True)

    @property
    def deciding(self) -> Tensor:
        """Which of the hidden states are read for a completion's tokens: `kept` less the last of each."""
        return self.kept[pad(self.mask, (0, 1), value=False)[self.states]]


def _one_row(rollouts: Sequence[Rollout], device: torch.device) -> tuple[dict[str, Any], Tensor]:
    prompts: dict[bytes, int] = {}
    followed = [prompts.setdefault(key_of(r.prompt_ids), len(prompts)) for r in rollouts]
    # a shared prompt's last token decides the first of each completion: it stands with each of them
    alone = len(prompts) == len(rollouts)
    own = [len(r.prompt_ids) if alone else 1 for r in rollouts]
    stems = {
        at: r.prompt_ids[: len(r.prompt_ids) - n] for at, r, n in zip(followed, rollouts, own, strict=True)
    }
    leaves = [[*r.prompt_ids[-n:], *r.completion_ids] for r, n in zip(rollouts, own, strict=True)]
    grown = forest.plant([stems[at] for at in range(len(prompts))], list(zip(followed, leaves, strict=True)))
    grown = grown.to(device)
    inputs = {"input_ids": grown.input_ids, "position_ids": grown.position_ids, "forest": grown}
    starts = torch.tensor([0, *map(len, leaves)]).cumsum(0).tolist()
    kept = [torch.arange(a + n - 1, b) for (a, b), n in zip(itertools.pairwise(starts), own, strict=True)]
    return inputs, torch.cat(kept)


def _padded(rollouts: Sequence[Rollout], device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Padded on the right, so that positions are those of columns."""
    width = max(r.length for r in rollouts)
    ids, real = torch.zeros(2, len(rollouts), width, dtype=torch.long)
    kept = []
    for row, r in enumerate(rollouts):
        ids[row, : r.length] = torch.tensor([*r.prompt_ids, *r.completion_ids])
        real[row, : r.length] = 1
        kept.append(row * width + torch.arange(len(r.prompt_ids) - 1, r.length))
    return {"input_ids": ids.to(device), "attention_mask": real.to(device)}, torch.cat(kept)


def by_kin(rollouts: Sequence[Rollout], rows: Sequence[int]) -> Iterator[int]:
    """Some of the completions in the order in which they share most and pad least: prompts by their longest
    completion, the longest first, and a prompt's completions together, by length too."""
    first: dict[bytes, int] = {}
    ordered = sorted(rows, key=lambda row: (-rollouts[row].length, row))
    for place, row in enumerate(ordered):
        first.setdefault(key_of(rollouts[row].prompt_ids), place)
    yield from sorted(ordered, key=lambda row: first[key_of(rollouts[row].prompt_ids)])
