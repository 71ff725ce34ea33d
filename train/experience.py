"""From scored completions to what PPO learns from: rewards by token, advantages, returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gavel.errors import CheckFailed
from train import ppo_terms as terms
from train.config_ppo import PpoConfig
from train.rollout import Rollout, padded


@dataclass(frozen=True)
class Evaluated:
    """What policy, reference and critic of the start of an iteration say: (B, T) each, T the longest
    completion. values: of the state before each token; after: (B,), of the one after the last."""

    logps: Tensor
    ref_logps: Tensor
    values: Tensor
    after: Tensor
    entropies: Tensor


@dataclass(frozen=True)
class Experience:
    """An iteration's completions, (B, T) each but `scored` and `scores`, (B,).

    mask: where there is a token, of the completions that have a score. kl: k1, of policy to reference.
    kl_coef: of its penalty. rewards: of tokens, before whitening. weights: as
        `ppo_terms.importance_weights` has them.
    """

    said: Evaluated
    scored: Tensor
    scores: Tensor
    mask: Tensor
    sampler_logps: Tensor
    kl: Tensor
    kl_coef: float
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor

    @property
    def mismatch(self) -> Tensor:
        """|log π − log π_sampler| of each token, (tokens,)."""
        return (self.said.logps - self.sampler_logps)[self.mask].abs()

    def mean(self, values: Tensor) -> float:
        """Mean over the scored completions of the sum over a completion's tokens."""
        return float(torch.where(self.mask, values, 0.0).sum() / self.scored.sum())


def experience(
    config: PpoConfig, rollouts: Sequence[Rollout], scores: Sequence[float | None], said: Evaluated,
    kl_coef: float,
) -> Experience:  # fmt: skip
    """Rewards, advantages and returns of an iteration's completions.

    A completion without a score has no token that counts. One that the length limit ended is marked down
    by `missing_eos_penalty`, and with `bootstrap` the critic's value of where it stopped stands for the rest.

    Raises CheckFailed where no completion has a score.
    """
    device, width = said.logps.device, said.logps.shape[1]
    scored = torch.tensor([score is not None for score in scores], device=device)
    if not scored.any():
        raise CheckFailed(
            "the judge gave no completion of an iteration a usable score", where="--judge",
            hint="Its replies and the reasons are in the run directory of the iteration, below OUT/rollouts.",
        )  # fmt: skip
    for rollout, score in zip(rollouts, scores, strict=True):
        if score is not None and not math.isfinite(score):
            raise CheckFailed(f"the score of completion {rollout.completion.id} is {score}",
                              hint="A scorer says None where there is no score.")  # fmt: skip
    given = torch.tensor([score or 0.0 for score in scores], device=device)
    lengths = torch.tensor([len(r.completion_ids) for r in rollouts], device=device)
    mask = (torch.arange(width, device=device) < lengths[:, None]) & scored[:, None]
    cut_off = torch.tensor([r.cut_off for r in rollouts], device=device)

    # what each token is rewarded
    kl = torch.where(mask, terms.kl_k1(said.logps, said.ref_logps), 0.0)
    rewards = terms.token_rewards(kl, given - config.missing_eos_penalty * cut_off, mask, kl_coef)
    spread = terms.whiten(rewards, mask, shift_mean=False) if config.whiten_rewards else rewards

    # advantages; returns come before they are whitened
    after = torch.where(cut_off & config.bootstrap, said.after, 0.0)
    advantages, returns = terms.gae(spread, said.values, after, mask, config.gamma, config.lam)
    sampler_logps = padded((r.sampler_logps for r in rollouts), width, device)
    return Experience(
        said=said, scored=scored, scores=given, mask=mask, sampler_logps=sampler_logps, kl=kl,
        kl_coef=kl_coef, rewards=rewards, advantages=terms.whiten(advantages, mask), returns=returns,
        weights=terms.importance_weights(said.logps, sampler_logps, mask, config.importance_cap),
    )  # fmt: skip
