"""Policy and critic as one module, so that accelerate wraps, and an optimiser steps, both at once; beside
them the reference, which stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gavel.errors import InputError
from gavel.tokenizer import HfTokenizer
from train import adapter, models
from train.apart import base_of
from train.config_ppo import PpoConfig
from train.ppo_terms import entropies, selected_logps
from train.rollout import Rollout
from train.tokens import Tokens
from train.unique import try_forest

T = TypeVar("T")


class ActorCritic(nn.Module):  # type: ignore[misc]
    """policy: a causal language model. critic: a sequence-classification model with one label, read at every
    position, its values those of the scores that it begins from."""

    def __init__(self, policy: Any, critic: Any) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        parts = [base_of(model)._no_split_modules for model in (policy, critic)]
        self._no_split_modules = sorted({name for names in parts for name in names})  # FSDP's units

    def forward(self, asked: Callable[..., T], *given: Any) -> T:
        """What is asked of the two, e.g. `module(ActorCritic.said, tokens, 1.0)`. What wraps a module for
        several processes knows this method alone: weights in shards are whole inside it, not outside."""
        return asked(self, *given)

    def said(self, tokens: Tokens, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the completion tokens at `temperature`, (B, R); values of the states before
        each token and after the last, (B, R + 1). 0 where a completion has ended."""
        return logps_of(completion_logits(self.policy, tokens, temperature), tokens), self.values(tokens)

    def values(self, tokens: Tokens) -> Tensor:
        """(B, R + 1): see `said`."""
        critic = base_of(self.critic)
        body = getattr(critic, critic.base_model_prefix)
        hidden = body(**tokens.inputs, use_cache=False).last_hidden_state.flatten(0, 1)  # (N, d)
        return _spread(critic.score(hidden[tokens.kept])[:, 0].float(), tokens.states)

    def tie_weights(self) -> None:
        """Makes weights one again that a move between devices has parted; accelerate asks for it."""
        for model in (self.policy, self.critic):
            model.tie_weights()


def completion_logits(policy: Any, tokens: Tokens, temperature: float) -> Tensor:
    """Float32 logits of the completion tokens alone, divided by the temperature: (tokens, V)."""

    def keep(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[tokens.deciding][None]
        return output

    handle = base_of(policy).base_model.register_forward_hook(keep)
    try:
        logits: Tensor = policy(**tokens.inputs, use_cache=False).logits[0].float()
    finally:
        handle.remove()
    return logits if temperature == 1 else logits / temperature


def logps_of(logits: Tensor, tokens: Tokens) -> Tensor:
    """(B, R): log-probabilities of the completion tokens."""
    return _spread(selected_logps(logits, tokens.completion_ids[tokens.mask]), tokens.mask)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """One value for each True of `mask`, in its shape; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


@dataclass(frozen=True)
class Models:
    """What PPO computes with. policy, critic: as they came. reference: frozen, None where it is the policy
    without its adapter."""

    module: ActorCritic
    policy: models.Loaded
    critic: models.Loaded
    reference: Any

    def evaluated(self, module: ActorCritic, tokens: Tokens, temperature: float) -> tuple[Tensor, ...]:
        """To be asked by way of the module: log-probabilities of the completion tokens by policy and
        reference, (B, R); values, (B, R + 1); entropies of the policy, (B, R)."""
        logits = completion_logits(module.policy, tokens, temperature)
        logps, entropy = logps_of(logits, tokens), _spread(entropies(logits), tokens.mask)
        del logits
        return logps, self._ref_logps(module, tokens, temperature), module.values(tokens), entropy

    def try_sharing(self, rollouts: Sequence[Rollout], device: torch.device, tolerance: float) -> str | None:
        """Makes the models ready for one row without padding, if they say there what they say of a padded
        batch.

        Args:
            rollouts: to try it on. tolerance: mean |Δ| of a log-probability or value at which they agree.

        Returns: what stands in the way; nothing is changed then.
        """
        asked = [self.module.policy, self.module.critic]
        asked += [] if self.reference is None else [self.reference]

        def said(shared: bool) -> Tensor:
            tokens = Tokens.of(rollouts, device, shared)
            logps, ref_logps, values, _ = self.evaluated(self.module, tokens, 1.0)
            return torch.cat([logps[tokens.mask], ref_logps[tokens.mask], values[tokens.states]])

        found: str | None = self.module(
            lambda module: try_forest(asked, lambda: said(False), lambda: said(True), tolerance)
        )
        return found

    def _ref_logps(self, module: ActorCritic, tokens: Tokens, temperature: float) -> Tensor:
        if self.reference is not None:
            return logps_of(completion_logits(self.reference, tokens, temperature), tokens)
        with module.policy.disable_adapter():
            return logps_of(completion_logits(module.policy, tokens, temperature), tokens)


def load(config: PpoConfig, tokenizer: HfTokenizer, dtype: torch.dtype) -> Models:
    """Loads policy, reference and critic, all dropout off.

    Raises InputError where one cannot be loaded, or the critic's tokenizer is not the policy's.
    """
    if config.critic is not None and (why := misfit(config.critic, tokenizer, config.trust_remote_code)):
        raise InputError(
            why, where=f"--critic {config.critic}",
            hint="Give a reward model that was trained from the policy's own model, or --critic none for the "
                 "policy's own body.",
        )  # fmt: skip
    trust = config.trust_remote_code
    policy = models.load(config.model, dtype, trust)
    adapter.check_targets(policy.model, config.lora_targets, "which the critic does not have")
    critic = models.load_reward(config.critic or config.model, copy.deepcopy(tokenizer), dtype, trust,
                                ready=config.critic is not None)  # fmt: skip
    adapter.check_targets(critic.model, config.lora_targets, "which is trained whole", "critic")
    if config.critic is None:
        with torch.no_grad():
            critic.model.score.weight.zero_()
    reference = None
    if config.reference_model is not None:
        models.check_reference(config.model, config.reference_model, trust)
        reference = models.load(config.reference_model, dtype, trust, option="--reference-model").model
        reference = reference.requires_grad_(False).eval()
    elif not config.lora_r:
        reference = copy.deepcopy(policy.model).requires_grad_(False).eval()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # a new adapter is drawn
        trained = [
            _trained(config, loaded.model, task)
            for loaded, task in ((policy, "CAUSAL_LM"), (critic, "SEQ_CLS"))
        ]
    return Models(ActorCritic(trained[0], trained[1]), policy, critic, reference)


def _trained(config: PpoConfig, model: Any, task: str) -> Any:
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not config.lora_r:
        return model
    import peft

    adapted = peft.get_peft_model(model, adapter.lora(config, task))
    adapter.train_in_float32(adapted)
    return adapted


def misfit(critic: str, tokenizer: HfTokenizer, trust_remote_code: bool = False) -> str | None:
    """Why a critic cannot start from a reward model: it reads other tokens than the policy writes.

    Args:
        tokenizer: the policy's.
    """
    read = HfTokenizer.load(critic, trust_remote_code=trust_remote_code).hf.get_vocab()
    if tokenizer.hf.get_vocab().items() <= read.items():
        return None
    return "its tokenizer gives other token ids than the policy's"
