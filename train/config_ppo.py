"""What PPO is told to do. Light: the command line imports it for its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.config import TrainConfig, need


@dataclass(frozen=True, kw_only=True)
class PpoConfig(TrainConfig):
    """Settings of `train.ppo.train_ppo`. Its rows are completions; `epochs` counts passes over the prompts.

    reference_model: what the KL penalty is measured from, where it is not the model that training starts
    from.
    critic: reward model that the critic starts from; None: the policy's own body with a head that says 0.
    critic_learning_rate: None: the policy's.
    n: completions of each prompt in an iteration; `batch_size` completions make one iteration.
    ppo_epochs: passes over an iteration's completions. mini_batches: optimiser steps of a pass.
    kl_coef: weight of the KL penalty. kl_target: nats per completion that it is steered towards, None: it
        stays. kl_horizon: in completions, how slowly.
    clip: of the probability ratio. value_clip: of the value's change. value_coef: weight of the value loss.
    gamma: discount. lam: of the advantage estimates.
    temperature, max_tokens: of sampling.
    importance_cap: of the weights that correct for the sampler's mismatch, see
        `train.ppo_terms.importance_weights`; 0: no weights.
    missing_eos_penalty: subtracted from the score of a completion that the length limit ended.
    bootstrap: the value after the last token of such a completion is the critic's, not 0.
    whiten_rewards: brings the token rewards of an iteration to variance 1 around their mean.
    """

    learning_rate: float = 3e-6
    batch_size: int = 64
    log_steps: int = 1
    reference_model: str | None = None
    critic: str | None = None
    critic_learning_rate: float | None = None
    n: int = 1
    ppo_epochs: int = 4
    mini_batches: int = 1
    kl_coef: float = 0.05
    kl_target: float | None = None
    kl_horizon: int = 10_000
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0
    max_tokens: int = 512
    importance_cap: float = 2.0
    missing_eos_penalty: float = 1.0
    bootstrap: bool = False
    whiten_rewards: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be used, naming the option."""
        super().__post_init__()
        for name in ("n", "ppo_epochs", "mini_batches", "kl_horizon", "max_tokens"):
            need(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("kl_coef", "value_coef", "missing_eos_penalty", "importance_cap"):
            need(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("clip", "value_clip", "temperature"):
            need(name, getattr(self, name) > 0, "must be above 0")
        for name in ("kl_target", "critic_learning_rate"):
            value = getattr(self, name)
            need(name, value is None or value > 0, "must be above 0")
        need("kl_horizon", self.kl_target is None or self.kl_horizon >= self.batch_size,
              f"must be at least --batch-size {self.batch_size}")  # fmt: skip
        for name in ("gamma", "lam"):
            need(name, 0 <= getattr(self, name) <= 1, "must be in [0, 1]")
        for name in ("n", "mini_batches"):
            need(name, self.batch_size % getattr(self, name) == 0,
                  f"must divide --batch-size {self.batch_size}")  # fmt: skip

    @property
    def reference_from(self) -> str:
        return self.reference_model or self.model

    @property
    def shorter(self) -> str:
        return "--max-tokens for shorter completions"

    def micro_batch_on(self, processes: int) -> int:
        """Raises InputError where the completions of an optimiser step cannot be divided among them."""
        step = self.batch_size // self.mini_batches
        need("batch_size", step % processes == 0, f"each of {processes} processes must have as many of the "
              f"{step} completions of an optimiser step")  # fmt: skip
        return min(super().micro_batch_on(1), self.batch_size // processes)

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps."""
        return self.ppo_epochs * self.mini_batches

    def shaping(self) -> dict[str, Any]:
        return super().shaping() | {
            "max_length": None
        }  # as plans from before have it, which must still be met
