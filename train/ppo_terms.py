"""The terms of proximal policy optimisation, each alone and pure.

Arrays are (B, T): B completions of up to T tokens, padded on the right. `mask` (bool) is True where there
is a token, from lengths and never from token ids; what stands elsewhere changes nothing. Log-probabilities
and KL are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def kl_k1(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """log π − log π_ref of each token: an unbiased estimate of KL(π ‖ π_ref), which can be negative
    (Schulman 2020, "Approximating KL divergence", k1)."""
    return logps - ref_logps


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """(r − 1) − log r with r = π_ref / π: unbiased, and never negative (Schulman 2020, k3)."""
    log_ratio = ref_logps - logps
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """−kl_coef · KL at every token, and at the last one the score as well (Ziegler et al. 2019, arXiv
    1909.08593, eq. 2, spread over the tokens as in Ouyang et al. 2022).

    Args:
        kl: (B, T). scores: (B,), of whole completions. mask: (B, T), at least one token a row.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last.clamp(min=0), torch.where(mask.any(dim=1), scores, 0.0)[:, None])


def gae(
    rewards: Tensor, values: Tensor, after: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Args:
        rewards: (B, T), for each token. values: (B, T), of the state before each token.
        after: (B,), value of the state after the last token: 0 where the completion ended.

    Returns: advantages and returns = advantages + values, each (B, T), 0 where there is no token.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    following = following.scatter(1, last.clamp(min=0), after[:, None].to(values.dtype))
    deltas = torch.where(mask, rewards + gamma * following - values, 0.0)
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Values divided by their standard deviation over the tokens (unbiased), less their mean where
    `shift_mean`; 0 where there is no token."""
    picked = values[mask]
    if picked.numel() < 2:
        return torch.where(mask, values, 0.0)
    mean, deviation = picked.mean(), picked.std()
    whitened = (values - mean) / (deviation + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def importance_weights(old_logps: Tensor, sampler_logps: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(π_old / π_sampler, cap) of each token, without a gradient: what the trainer computes for the
    policy that sampled and what the engine sampled from differ a little (truncated importance sampling,
    Ionides 2008; Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"). 1 where there is no token; cap 0 turns it off."""
    ratio = torch.exp(old_logps - sampler_logps).clamp(max=cap) if cap else torch.ones_like(old_logps)
    return torch.where(mask, ratio, 1.0).detach()


def effective_sample_size(old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> float:
    """(Σ w)² / (n · Σ w²) of the n tokens' untruncated weights w = π_old / π_sampler: 1 where sampler and
    trainer agree (Kong 1992)."""
    weights = torch.exp((old_logps - sampler_logps)[mask].double())
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum())) if len(weights) else 1.0


@dataclass(frozen=True)
class Clipped:
    """A loss with clipping. total: summed over the tokens. clipped: how many tokens took the clipped side."""

    total: Tensor
    clipped: Tensor


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, weights: Tensor, mask: Tensor, clip: float
) -> Clipped:
    """−Σ w · min(ρ A, clamp(ρ, 1 − clip, 1 + clip) A), ρ = π / π_old (Schulman et al. 2017, arXiv
    1707.06347, eq. 7, times the weights w of `importance_weights`)."""
    logps, old_logps, advantages, weights = _only(mask, logps, old_logps, advantages, weights)
    ratio = torch.exp(logps - old_logps)
    plain = -advantages * ratio
    limited = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return Clipped((weights * torch.maximum(plain, limited)).sum(), (limited > plain).sum())


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Clipped:
    """Σ ½ · max((V − R)², (clamp(V, V_old ± clip) − R)²) (Ouyang et al. 2022, arXiv 2203.02155, from the
    baselines' PPO; Huang et al. 2022, "The 37 implementation details", 9)."""
    values, old_values, returns = _only(mask, values, old_values, returns)
    near = torch.clamp(values, old_values - clip, old_values + clip)
    plain, limited = (values - returns) ** 2, (near - returns) ** 2
    return Clipped(0.5 * torch.maximum(plain, limited).sum(), (limited > plain).sum())


def _only(mask: Tensor, *arrays: Tensor) -> list[Tensor]:
    """0 where there is no token: there a NaN would reach the gradient even when multiplied by 0."""
    return [torch.where(mask, array, 0.0) for array in arrays]


def selected_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """log softmax(logits)[ids]. logits: (B, T, V), already divided by the temperature. ids: (B, T)."""
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(dim=-1)


def entropies(logits: Tensor) -> Tensor:
    """Entropy of each position's distribution. logits: (B, T, V)."""
    log_probs = logits.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


class AdaptiveKl:
    """The KL coefficient, fixed, or steered towards a target: after n completions with mean KL it is
    multiplied by 1 + clip(KL / target − 1, ±0.2) · n / horizon (Ziegler et al. 2019, section 2.2).

    Args:
        target: nats per completion; None: the coefficient stays. horizon: completions.
    """

    def __init__(self, coef: float, target: float | None, horizon: int) -> None:
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, completions: int) -> None:
        """kl: mean over the completions, in nats per completion."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * completions / self.horizon

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef = state["coef"]
