"""What a training run is told to do. Light: the command line imports it for its defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gavel.errors import InputError

#: The loss types of TRL 1.16's DPOTrainer.
LOSSES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
          "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")  # fmt: skip
#: Those that can be trained towards a probability (`train.soft`).
CONSERVATIVE = ("sigmoid", "sigmoid_norm")
#: Those that read the label smoothing.
SMOOTHED = (*CONSERVATIVE, "robust", "exo_pair", "aot", "aot_unpaired")
#: Those that compare pairs within a micro-batch, and so depend on its size and make-up.
WITHIN_MICRO_BATCH = ("aot", "aot_unpaired")
#: The divergences of TRL 1.16 (Wang et al. 2024, arXiv 2309.16240); the losses that know more than the first.
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
DIVERGING = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
#: Our name → transformers' name. Its "constant" would ignore the warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
PRECISIONS = ("auto", "fp32", "bf16")
REFERENCES = ("auto", "samples", "pass")
CHAT_TEMPLATES = ("chatml", "llama3", "plain")
DRAWS = ("prompts", "pairs")
#: What pairs of one micro-batch share, see `train.unique`.
SHARING = ("prompts", "completions", "off")
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
            _need(name, not isinstance(value, float) or math.isfinite(value), "must be a finite number")
        for name in ("learning_rate", "epochs"):
            _need(name, getattr(self, name) > 0, "must be above 0")
        _need("lora_alpha", self.lora_alpha is None or self.lora_alpha > 0, "must be above 0")
        for name in ("batch_size", "log_steps"):
            _need(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("warmup", "weight_decay", "max_grad_norm", "lora_r", "save_steps"):
            _need(name, getattr(self, name) >= 0, "must not be negative")
        micro = self.micro_batch
        _need("micro_batch", micro is None or (micro >= 1 and self.batch_size % micro == 0),
              f"must divide --batch-size {self.batch_size}")  # fmt: skip
        for name, known in (("scheduler", tuple(SCHEDULES)), ("precision", PRECISIONS)):
            _need(name, getattr(self, name) in known, f"must be one of {', '.join(known)}")

    @property
    def micro_batch_size(self) -> int:
        """Rows per forward pass."""
        return self.micro_batch_on(1)

    def micro_batch_on(self, processes: int) -> int:
        """Rows per forward pass on one of so many processes. Raises InputError where the batch cannot be
        divided among them."""
        _need("batch_size", self.batch_size % processes == 0,
              f"must be a multiple of --processes {processes}")  # fmt: skip
        share = self.batch_size // processes
        if self.micro_batch is None:
            return _divisor(share, _DEFAULT_MICRO)
        _need("micro_batch", share % self.micro_batch == 0,
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
        _need("max_length", self.max_length is None or self.max_length >= 2, "must be at least 2")

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
        _need("label_smoothing", 0 <= rate < 0.5,
              f"must be in [0, 0.5), not {rate:g}: labels wrong half of the time teach nothing")  # fmt: skip
        _need("draw", self.draw in DRAWS, f"must be one of {', '.join(DRAWS)}")

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
class DpoConfig(PairConfig):
    """Settings of `train.dpo.train_dpo`; its rows are pairs, and its model is the reference as well unless
    another is named. Produced by the command line or `rounds`.

    loss: TRL loss type → weight. "sft" is the negative log-likelihood of the chosen completions.
    label_smoothing: for the losses in SMOOTHED. soft_labels: for those in CONSERVATIVE.
    merge: save the merged model, with the adapter beside it. qlora: the weights under it have 4 bits.
    reference_model: the reference, where it is not the model that training starts from.
    reference: where the reference's log-probabilities come from. "auto": from the samples if an audit
        agrees, else a pass of the reference over the data. "samples": the same, but an audit that
        disagrees is an error. "pass": always a pass.
    audit_rows: pairs that the audit reads.
    sharing: how far pairs of one micro-batch share work; less is done for a model that does not allow it.
    divergence: what holds the policy to the reference, one of DIVERGENCES. divergence_alpha: of the last.
    discopop_tau: temperature of the loss discopop (Lu et al. 2024, arXiv 2406.08414, eq. 5).
    ld_alpha: weight of what the longer completion of a pair has beyond the shorter one's length (Liu et al.
        2024, arXiv 2409.06411); None: 1.
    wpo: weighs each pair by how likely the policy is to write it (Zhou et al. 2024, arXiv 2406.11827, eq. 2).
    router_aux: weight of a mixture-of-experts model's load balancing; None: as its configuration says.
    sync_steps: every so many optimiser steps the reference follows the policy, 0: never. sync_mixup: by what
        part of the way (Gorbatovski et al. 2024, arXiv 2404.09656, eq. 3).
    """

    beta: float = 0.1
    loss: Mapping[str, float] = field(default_factory=lambda: {"sigmoid": 1.0})
    merge: bool = False
    qlora: bool = False
    reference_model: str | None = None
    reference: str = "auto"
    audit_rows: int = 16
    sharing: str = "prompts"
    divergence: str = "reverse_kl"
    divergence_alpha: float = 0.5
    discopop_tau: float = 0.05
    ld_alpha: float | None = None
    wpo: bool = False
    router_aux: float | None = None
    sync_steps: int = 0
    sync_mixup: float = 0.6

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be used, naming the option."""
        unknown = [name for name in self.loss if name not in LOSSES]
        _need("loss", not unknown, f"unknown loss {', '.join(unknown)}; known: {', '.join(LOSSES)}")
        for name, weight in self.loss.items():
            _need("loss", math.isfinite(weight) and weight >= 0,
                  f"the weight of {name} is {weight:g}, it must be finite and not negative")  # fmt: skip
        _need("loss", any(self.loss.values()), "needs one loss with a weight that is not 0")
        super().__post_init__()
        _need("beta", self.beta > 0, "must be above 0")
        _need("audit_rows", self.audit_rows >= 1, "must be at least 1")
        for name, known in (("reference", REFERENCES), ("sharing", SHARING), ("divergence", DIVERGENCES)):
            _need(name, getattr(self, name) in known, f"must be one of {', '.join(known)}")
        self._check_labels()
        self._check_objective()
        for name in ("merge", "qlora"):
            _need(name, not getattr(self, name) or self.lora_r > 0, "needs --lora-r")
        _need(
            "merge", not (self.merge and self.qlora), "needs whole weights, and with --qlora they have 4 bits"
        )

    def _check_labels(self) -> None:
        """Refuses what a loss would not heed."""
        rate = self.label_smoothing
        _need("label_smoothing", "exo_pair" not in self.loss or rate > 0,
              "must be above 0 for exo_pair (1e-3 is usual)")  # fmt: skip
        for name, asked, known in (("soft_labels", self.soft_labels, CONSERVATIVE),
                                   ("label_smoothing", rate > 0, SMOOTHED)):  # fmt: skip
            paired = [loss for loss, weight in self.loss.items() if weight and loss != "sft"]
            deaf = [loss for loss in paired if loss not in known]
            _need(name, not asked or not deaf, f"the loss {', '.join(deaf)} does not read it; "
                  f"--loss may be {', '.join(known)}, each also beside sft")  # fmt: skip
            _need(name, not asked or bool(paired), f"needs a --loss that reads it: {', '.join(known)}")

    def _check_objective(self) -> None:
        """Refuses settings that do not go together."""
        rigid = [name for name in self.loss if name not in DIVERGING]
        _need("divergence", self.divergence == "reverse_kl" or not rigid,
              f"{', '.join(rigid)} knows reverse_kl alone; --loss may be {', '.join(DIVERGING)}")  # fmt: skip
        _need("discopop_tau", self.discopop_tau > 0, "must be above 0")
        _need("ld_alpha", self.ld_alpha is None or 0 <= self.ld_alpha <= 1, "must be in [0, 1]")
        _need("ld_alpha", self.ld_alpha is None or self.reference != "samples",
              "needs log-probabilities per token, samples have their sums: --reference pass")  # fmt: skip
        _need(
            "halve_micro_batch",
            not (self.halve_micro_batch and self.within_micro_batch),
            "aot and aot_unpaired compare pairs within a micro-batch, halved it is another objective",
        )
        _need("wpo", not self.wpo or not any(name in self.loss for name in WITHIN_MICRO_BATCH),
              "aot and aot_unpaired sort pairs, their weights would be others'")  # fmt: skip
        for name, value, plain in (("divergence", self.divergence, "reverse_kl"),
                                   ("ld_alpha", self.ld_alpha, None), ("wpo", self.wpo, False)):  # fmt: skip
            _need(name, value == plain or not self.softened,
                  "does not go with soft labels or a smoothed sigmoid, made for plain DPO")  # fmt: skip
        _need("router_aux", self.router_aux is None or self.router_aux >= 0, "must not be negative")
        _need("sync_steps", self.sync_steps >= 0, "must not be negative")
        _need("sync_mixup", 0 < self.sync_mixup <= 1, "must be above 0 and at most 1")
        _need("sync_steps", not (self.sync_steps and self.lora_r),
              "has no weights to move: with --lora-r the reference is the model without adapter")  # fmt: skip
        _need("sync_steps", not (self.sync_steps and self.reference_model),
              "makes a reference of the policy, and --reference-model names another")  # fmt: skip
        _need("sync_steps", not self.sync_steps or self.reference in ("auto", "pass"),
              "moves the reference, so that what the samples say of it soon is wrong")  # fmt: skip

    @property
    def reference_from(self) -> str:
        return self.reference_model or self.model

    @property
    def within_micro_batch(self) -> bool:
        return any(self.loss.get(name) for name in WITHIN_MICRO_BATCH)

    @property
    def softened(self) -> bool:
        return super().softened and any(self.loss.get(name) for name in CONSERVATIVE)

    def shaping(self) -> dict[str, Any]:
        shaped = super().shaping()
        for name in _LATER:  # plans from before these settings must still be met
            if shaped[name] == getattr(DpoConfig, name):
                del shaped[name]
        # plans from before soft labels must still be met, but not by what these settings once ignored
        if not self.soft_labels:
            del shaped["soft_labels"]
            if self.softened:
                shaped["label_smoothing_in"] = [name for name in CONSERVATIVE if self.loss.get(name)]
        return shaped


#: Settings that plans name where they are not at their defaults.
_LATER = ("divergence", "divergence_alpha", "discopop_tau", "ld_alpha", "wpo", "router_aux", "sync_steps",
          "sync_mixup", "qlora")  # fmt: skip


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
            _need(name, getattr(self, name) >= 0, "must not be negative")
        _need("held_out", 0 <= self.held_out < 1, "must be a share below 1")
        _need("margin_scale", not (self.margin_scale and self.softened),
              "says how sure a label is, as --soft-labels and --label-smoothing do: give one")  # fmt: skip

    @property
    def reads_margins(self) -> bool:
        return self.margin_scale > 0


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
            _need(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("kl_coef", "value_coef", "missing_eos_penalty", "importance_cap"):
            _need(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("clip", "value_clip", "temperature"):
            _need(name, getattr(self, name) > 0, "must be above 0")
        for name in ("kl_target", "critic_learning_rate"):
            value = getattr(self, name)
            _need(name, value is None or value > 0, "must be above 0")
        _need("kl_horizon", self.kl_target is None or self.kl_horizon >= self.batch_size,
              f"must be at least --batch-size {self.batch_size}")  # fmt: skip
        for name in ("gamma", "lam"):
            _need(name, 0 <= getattr(self, name) <= 1, "must be in [0, 1]")
        for name in ("n", "mini_batches"):
            _need(name, self.batch_size % getattr(self, name) == 0,
                  f"must divide --batch-size {self.batch_size}")  # fmt: skip

    @property
    def reference_from(self) -> str:
        return self.reference_model or self.model

    @property
    def shorter(self) -> str:
        return "--max-tokens for shorter completions"

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps."""
        return self.ppo_epochs * self.mini_batches

    def shaping(self) -> dict[str, Any]:
        return super().shaping() | {
            "max_length": None
        }  # as plans from before have it, which must still be met


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
        _need("merge", not self.merge or self.lora_r > 0, "needs --lora-r")

    def shaping(self) -> dict[str, Any]:
        shaped = super().shaping()
        del shaped["chat_template"]  # what it says belongs to the data, not where it says it
        return shaped


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number up to `most`, which is at least 1."""
    return max(n for n in range(1, most + 1) if number % n == 0)


def _need(name: str, holds: bool, problem: str) -> None:
    if not holds:
        raise InputError(problem, where=f"--{name.replace('_', '-')}")
