"""PPO's terms against hand-worked numbers, slow references and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from train import ppo_terms as terms

GARBAGE = float("nan")


def mask_of(*lengths: int, width: int) -> Tensor:
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def spoiled(array: Tensor, mask: Tensor) -> Tensor:
    """The same where there are tokens, NaN elsewhere."""
    return torch.where(mask, array, GARBAGE)


# KL


def test_kl_estimators_meet_the_exact_kl() -> None:
    """Their means under π are KL(π ‖ π_ref), to 1e-6, by going through the whole vocabulary."""
    torch.manual_seed(0)
    log_p, log_q = (torch.randn(1, 50, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    exact = float((log_p.exp() * (log_p - log_q)).sum())
    assert float((log_p.exp() * terms.kl_k1(log_p, log_q)).sum()) == pytest.approx(exact, abs=1e-12)
    assert float((log_p.exp() * terms.kl_k3(log_p, log_q)).sum()) == pytest.approx(exact, abs=1e-12)
    assert float(terms.kl_k3(log_p, log_q).min()) >= 0 > float(terms.kl_k1(log_p, log_q).min())
    assert not terms.kl_k1(log_p, log_p).any() and not terms.kl_k3(log_p, log_p).any()


# rewards


def test_the_score_stands_at_the_last_token_only() -> None:
    mask = mask_of(3, 1, 0, width=4)
    kl = spoiled(torch.tensor([[0.5, -1.0, 2.0, 9.0], [1.0, 9.0, 9.0, 9.0], [9.0] * 4]), mask)
    rewards = terms.token_rewards(kl, torch.tensor([10.0, -3.0, 7.0]), mask, 0.1)
    expected = torch.tensor([[-0.05, 0.1, -0.2 + 10, 0.0], [-0.1 - 3, 0.0, 0.0, 0.0], [0.0] * 4])
    assert torch.allclose(rewards, expected)
    # Σ reward = score − β Σ kl
    assert torch.allclose(rewards.sum(1)[:2], torch.tensor([10 - 0.1 * 1.5, -3 - 0.1 * 1.0]))


# advantages


def slow_gae(
    rewards: Tensor, values: Tensor, after: Tensor, mask: Tensor, gamma: float, lam: float
) -> Tensor:
    """Σ_l (γλ)^l δ_{t+l}, term by term."""
    found = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        length = int(mask[row].sum())
        v = [*values[row, :length].tolist(), float(after[row])]
        delta = [float(rewards[row, t]) + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            found[row, t] = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length))
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_gae_is_the_sum_of_its_terms(gamma: float, lam: float) -> None:
    torch.manual_seed(1)
    mask = mask_of(6, 1, 4, 3, width=6)
    rewards, values = torch.randn(4, 6), torch.randn(4, 6)
    after = torch.tensor([0.0, 0.0, 1.5, 0.0])
    advantages, returns = terms.gae(spoiled(rewards, mask), spoiled(values, mask), after, mask, gamma, lam)
    slow = slow_gae(rewards, values, after, mask, gamma, lam)
    assert torch.allclose(advantages, slow, atol=1e-6)
    assert torch.allclose(returns, torch.where(mask, slow + values, 0.0), atol=1e-6)


def test_closed_forms_of_gae() -> None:
    """λ = 1: what is still to come less the value; λ = 0: one step."""
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, -1.0]])
    mask, none = mask_of(3, width=3), torch.zeros(1)
    ahead, _ = terms.gae(rewards, values, none, mask, 1.0, 1.0)
    assert ahead.tolist() == [[7 - 0.5, 6 - 0.25, 4 + 1.0]]
    step, returns = terms.gae(rewards, values, none, mask, 0.5, 0.0)
    assert step.tolist() == [[1 + 0.125 - 0.5, 2 - 0.5 - 0.25, 4 + 1.0]]
    assert returns.tolist() == [[1.125, 1.5, 4.0]]


def test_the_value_after_an_end_is_nothing_and_after_a_cut_what_it_is() -> None:
    rewards, values, mask = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]), mask_of(1, width=2)
    ended, _ = terms.gae(rewards, values, torch.tensor([0.0]), mask, 1.0, 0.95)
    cut, _ = terms.gae(rewards, values, torch.tensor([3.0]), mask, 1.0, 0.95)
    assert ended.tolist() == [[1.0, 0.0]] and cut.tolist() == [[4.0, 0.0]]


# whitening


@pytest.mark.parametrize("shift", [True, False])
def test_whitening_is_numpys_on_the_tokens(shift: bool) -> None:
    torch.manual_seed(2)
    mask, values = mask_of(5, 2, 0, width=5), torch.randn(3, 5) * 3 + 1
    found = terms.whiten(spoiled(values, mask), mask, shift_mean=shift)
    picked = values[mask].numpy().astype(np.float64)
    expected = (picked - picked.mean()) / picked.std(ddof=1) + (0 if shift else picked.mean())
    assert np.allclose(found[mask].numpy(), expected, atol=1e-5)
    assert not found[~mask].any()


def test_a_single_token_is_left_as_it_is() -> None:
    assert terms.whiten(torch.tensor([[3.0, 9.0]]), mask_of(1, width=2)).tolist() == [[3.0, 0.0]]


# importance weights


def test_weights_are_the_capped_ratio_and_carry_no_gradient() -> None:
    old = torch.tensor([[math.log(0.5), math.log(0.9), math.log(0.2)]], requires_grad=True)
    sampler = torch.tensor([[math.log(0.4), math.log(0.1), GARBAGE]])
    weights = terms.importance_weights(old, sampler, mask_of(2, width=3), 2.0)
    assert torch.allclose(weights, torch.tensor([[1.25, 2.0, 1.0]]))
    assert not weights.requires_grad
    assert terms.importance_weights(old, sampler, mask_of(2, width=3), 0.0).tolist() == [[1.0, 1.0, 1.0]]


def test_effective_sample_size() -> None:
    old, mask = torch.log(torch.tensor([[0.3, 0.1, 0.7]])), mask_of(2, width=3)
    assert terms.effective_sample_size(old, old, mask) == pytest.approx(1.0)
    sampler = torch.log(torch.tensor([[0.1, 0.1, 0.1]]))  # weights 3 and 1: 16 / (2 · 10)
    assert terms.effective_sample_size(old, sampler, mask) == pytest.approx(0.8)


# losses


def test_policy_loss_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.1, 2 with advantages 1, 1, −2, −1, clip 0.2, weights 1, 2, 1, 1."""
    logps = torch.log(torch.tensor([[1.5, 0.5, 1.1, 2.0, 1.0]])).requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -2.0, -1.0, GARBAGE]])
    mask, weights = mask_of(4, width=5), torch.tensor([[1.0, 2.0, 1.0, 1.0, GARBAGE]])
    old = spoiled(torch.zeros(1, 5), mask)
    loss = terms.policy_loss(logps, old, advantages, weights, mask, 0.2)
    # clipped at 1.2; 0.5 is the worse; 2.2; the unclipped 2 is the worse
    assert float(loss.total) == pytest.approx(-1.2 + 2 * -0.5 + 2.2 + 2.0)
    assert int(loss.clipped) == 1
    loss.total.backward()
    assert logps.grad is not None
    # clipped: none; −w A ρ elsewhere; nothing where there is no token
    assert torch.allclose(logps.grad, torch.tensor([[0.0, -2 * 0.5, 2.2, 2.0, 0.0]]))


def test_value_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 0.1, 3.0]], requires_grad=True)
    old, returns = torch.tensor([[0.0, 0.0, GARBAGE]]), torch.tensor([[2.0, 1.0, GARBAGE]])
    loss = terms.value_loss(values, old, returns, mask_of(2, width=3), 0.2)
    # the first is clipped to 0.2: max(1, 1.8²) / 2; the second is within: 0.9² / 2
    assert float(loss.total) == pytest.approx((1.8**2 + 0.9**2) / 2)
    assert int(loss.clipped) == 1
    loss.total.backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, torch.tensor([[0.0, -0.9, 0.0]]))


def test_an_unmoved_policy_has_ratio_one() -> None:
    logps = torch.randn(2, 3)
    loss = terms.policy_loss(logps, logps, torch.ones(2, 3), torch.ones(2, 3), mask_of(3, 3, width=3), 0.2)
    assert float(loss.total) == -6 and int(loss.clipped) == 0


# log-probabilities


def test_selected_logps_and_entropies() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, 5.0]]])
    found = terms.selected_logps(logits, torch.tensor([[1, 0]]))
    assert torch.allclose(found, torch.log(torch.tensor([[0.75, 0.5]])))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert torch.allclose(terms.entropies(logits), torch.tensor([[entropy, math.log(2)]]))


# the KL coefficient


def test_the_controller() -> None:
    kl = terms.AdaptiveKl(0.1, target=6.0, horizon=10_000)
    kl.update(6.0, 64)
    assert kl.coef == 0.1
    kl.update(6.6, 100)  # error 0.1
    assert kl.coef == pytest.approx(0.1 * (1 + 0.1 * 0.01))
    kl.update(1000.0, 100)  # clipped to 0.2
    assert kl.coef == pytest.approx(0.1 * (1 + 0.1 * 0.01) * (1 + 0.2 * 0.01))
    before = kl.coef
    kl.update(0.0, 100)
    assert kl.coef == pytest.approx(before * (1 - 0.2 * 0.01))
    other = terms.AdaptiveKl(0.5, 6.0, 10_000)
    other.load_state_dict(kl.state_dict())
    assert other.coef == kl.coef


def test_without_a_target_it_stays() -> None:
    kl = terms.AdaptiveKl(0.1, None, 10_000)
    kl.update(1000.0, 64)
    assert kl.coef == 0.1
