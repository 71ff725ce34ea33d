"""What a training run is told to do; of DPO and PPO in config_dpo.py and config_ppo.py. Light: the command
line imports them for their defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gavel.errors import InputError

#: Our name → transformers' name. Its "constant" would ignore the warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
PRECISIONS = ("auto", "fp32", "bf16")
CHAT_TEMPLATES = ("chatml", "llama3", "plain")
DRAWS = ("prompts", "pairs")
_DEFAULT_MICRO = 8  # pairs


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings that every trainer has.

    model: directory or hub id that training starts from.
    batch_size: rows per optimiser step. micro_batch: rows per forward pass, a divisor of it; None takes
        the largest divisor up to 8. What is optimised does not depend on it.
    warmup: optimiser steps, or below 1 a fraction of all.
    precision: "fp32", "bf16" (autocast over float32 weights; saved as bfloat16), or "auto": bf16 on a
        GPU that has it, fp32 elsewhere.
    gradient_checkpointing: less memory, about 25 % more time.
    halve_micro_batch: when memory runs out, goes on from the last whole step with half the micro-batch.
    lora_r: rank of the adapter, 0 for full training. lora_targets: module names; () means every
        linear layer but the head.
    save_steps: optimiser steps between checkpoints; 0: one every five minutes.
    log_steps: optimiser steps between lines of metrics.jsonl.
    report_to: trackers that transformers knows ("wandb", "tensorboard", ...).
    """

    model: str
    learning_rate: float = 1e-6
    epochs: float = 1.0
    batch_size: int = 16
    micro_batch: int | None = None
    warmup: float = 0.0
    scheduler: str = "linear"
    weight_decay: float = 0.0
    optim: str = "adamw_torch_fused"
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    halve_micro_batch: bool = False
    lora_r: int = 0
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()
    save_steps: int = 0
    log_steps: int = 10
    report_to: tuple[str, ...] = ()
    trust_remote_code: bool = False
    template_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be used, naming the option."""
        for name, value in vars(self).items():
            need(name, not isinstance(value, float) or math.isfinite(value), "must be a finite number")
        for name in ("learning_rate", "epochs"):
            need(name, getattr(self, name) > 0, "must be above 0")
        need("lora_alpha", self.lora_alpha is None or self.lora_alpha > 0, "must be above 0")
        for name in ("batch_size", "log_steps"):
            need(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("warmup", "weight_decay", "max_grad_norm", "lora_r", "save_steps"):
            need(name, getattr(self, name) >= 0, "must not be negative")
        need("seed", 0 <= self.seed < 2**32, "must be in [0, 2^32)")  # as NumPy's, which Trainer sets
        for name, given in (("lora_target", self.lora_targets), ("lora_alpha", self.lora_alpha)):
            need(name, not given or self.lora_r > 0, "needs --lora-r")
        micro = self.micro_batch
        need("micro_batch", micro is None or (micro >= 1 and self.batch_size % micro == 0),
              f"must divide --batch-size {self.batch_size}")  # fmt: skip
        for name, known in (("scheduler", tuple(SCHEDULES)), ("precision", PRECISIONS)):
            need(name, getattr(self, name) in known, f"must be one of {', '.join(known)}")

    @property
    def micro_batch_size(self) -> int:
        """Rows per forward pass."""
        return self.micro_batch_on(1)

    def micro_batch_on(self, processes: int) -> int:
        """Rows per forward pass on one of so many processes. Raises InputError where the batch cannot be
        divided among them."""
        need("batch_size", self.batch_size % processes == 0,
              f"must be a multiple of --processes {processes}")  # fmt: skip
        share = self.batch_size // processes
        if self.micro_batch is None:
            return _divisor(share, _DEFAULT_MICRO)
        need("micro_batch", share % self.micro_batch == 0,
              f"must divide the {share} rows that each of {processes} processes has of a batch")  # fmt: skip
        return self.micro_batch

    def halved_micro_batch_on(self, processes: int) -> int | None:
        """The next micro-batch that is at most half as large, None where there is none, or where it would
        change what is learned."""
        micro, share = self.micro_batch_on(processes), self.batch_size // processes
        return None if micro == 1 or self.within_micro_batch else _divisor(share, micro // 2)

    @property
    def within_micro_batch(self) -> bool:
        """Whether what is optimised depends on the micro-batch."""
        return False

    @property
    def shorter(self) -> str:
        """The option that shortens what goes through the model."""
        raise NotImplementedError

    @property
    def reference_from(self) -> str:
        """The model that training is compared with."""
        return self.model

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the trained weights: what a resumed run must have in common."""
        aside = {"model", "reference_model", "micro_batch", "gradient_checkpointing", "halve_micro_batch",
                 "save_steps", "log_steps", "report_to", "audit_rows", "trust_remote_code",
                 "sharing"}  # fmt: skip
        return {k: v for k, v in asdict(self).items() if k not in aside}


@dataclass(frozen=True, kw_only=True)
class RowConfig(TrainConfig):
    """The settings of trainers whose rows are read, and not sampled.

    max_length: rows with more tokens (prompt and completion) are left out; None: the model's context.
    """

    max_length: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be used, naming the option."""
        super().__post_init__()
        need("max_length", self.max_length is None or self.max_length >= 2, "must be at least 2")

    @property
    def shorter(self) -> str:
        below = "" if self.max_length is None else f" below {self.max_length}"
        return f"--max-length{below} to leave out the longest rows"


@dataclass(frozen=True, kw_only=True)
class PairConfig(RowConfig):
    """The settings of trainers whose rows are pairs.

    label_smoothing: the flip rate, how often a label is wrong, in [0, 0.5).
    soft_labels: trains towards each pair's own probability that chosen is better, and towards
        1 − label_smoothing where it has none.
    draw: what is put in random order. "prompts": a prompt's pairs follow one another, so that they meet in a
        batch and share work; "pairs": each pair by itself.
    """

    label_smoothing: float = 0.0
    soft_labels: bool = False
    draw: str = "prompts"

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be used, naming the option."""
        super().__post_init__()
        rate = self.label_smoothing
        need("label_smoothing", 0 <= rate < 0.5,
              f"must be in [0, 0.5), not {rate:g}: labels wrong half of the time teach nothing")  # fmt: skip
        need("draw", self.draw in DRAWS, f"must be one of {', '.join(DRAWS)}")

    @property
    def softened(self) -> bool:
        """Whether training aims at probabilities instead of certain labels."""
        return self.soft_labels or self.label_smoothing > 0

    @property
    def reads_margins(self) -> bool:
        """Whether the pairs' own margins shape what is learned."""
        return False

    def shaping(self) -> dict[str, Any]:
        shaped = super().shaping()
        if self.draw == "pairs":  # as all were drawn once: those plans must still be met
            del shaped["draw"]
        return shaped


@dataclass(frozen=True, kw_only=True)
class RewardConfig(PairConfig):
    """Settings of `train.reward.train_reward`; its rows are pairs.

    margin_scale: how much of a pair's own margin the rewards' difference must exceed (Touvron et al. 2023,
        arXiv 2307.09288, eq. 2); 0: none.
    center: weight of the squared sum of both rewards, which keeps their mean near 0 (Eisenstein et al. 2023,
        arXiv 2312.09244, eq. 2); 0: none.
    held_out: share of the prompts whose pairs are left out of training and measured afterwards.
    """

    learning_rate: float = 1e-5
    margin_scale: float = 0.0
    center: float = 0.0
    held_out: float = 0.1

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be used, naming the option."""
        super().__post_init__()
        for name in ("margin_scale", "center"):
            need(name, getattr(self, name) >= 0, "must not be negative")
        need("held_out", 0 <= self.held_out < 1, "must be a share below 1")
        need("margin_scale", not (self.margin_scale and self.softened),
              "says how sure a label is, as --soft-labels and --label-smoothing do: give one")  # fmt: skip

    @property
    def reads_margins(self) -> bool:
        return self.margin_scale > 0


@dataclass(frozen=True, kw_only=True)
class SftConfig(RowConfig):
    """Settings of `train.sft.train_sft`.

    chat_template: one of CHAT_TEMPLATES or a file; None: the model's own.
    merge: save the merged model, with the adapter beside it.
    """

    learning_rate: float = 1e-5
    chat_template: str | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be used, naming the option."""
        super().__post_init__()
        need("merge", not self.merge or self.lora_r > 0, "needs --lora-r")

    def shaping(self) -> dict[str, Any]:
        shaped = super().shaping()
        del shaped["chat_template"]  # what it says belongs to the data, not where it says it
        return shaped


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number up to `most`, which is at least 1."""
    return max(n for n in range(1, most + 1) if number % n == 0)


def need(name: str, holds: bool, problem: str) -> None:
    """Raises InputError with the problem of a setting, under the name of its option, unless it `holds`."""
    if not holds:
        raise InputError(problem, where=f"--{name.replace('_', '-')}")
