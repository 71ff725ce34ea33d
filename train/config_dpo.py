"""What direct preference optimisation is told to do. Light: the command line imports it for its defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.config import PairConfig, need

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
REFERENCES = ("auto", "samples", "pass")
#: What pairs of one micro-batch share, see `train.unique`.
SHARING = ("prompts", "completions", "off")


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
        need("loss", not unknown, f"unknown loss {', '.join(unknown)}; known: {', '.join(LOSSES)}")
        for name, weight in self.loss.items():
            need("loss", math.isfinite(weight) and weight >= 0,
                  f"the weight of {name} is {weight:g}, it must be finite and not negative")  # fmt: skip
        need("loss", any(self.loss.values()), "needs one loss with a weight that is not 0")
        super().__post_init__()
        need("beta", self.beta > 0, "must be above 0")
        need("audit_rows", self.audit_rows >= 1, "must be at least 1")
        for name, known in (("reference", REFERENCES), ("sharing", SHARING), ("divergence", DIVERGENCES)):
            need(name, getattr(self, name) in known, f"must be one of {', '.join(known)}")
        self._check_labels()
        self._check_objective()
        for name in ("merge", "qlora"):
            need(name, not getattr(self, name) or self.lora_r > 0, "needs --lora-r")
        need(
            "merge", not (self.merge and self.qlora), "needs whole weights, and with --qlora they have 4 bits"
        )

    def _check_labels(self) -> None:
        """Refuses what a loss would not heed."""
        rate = self.label_smoothing
        need("label_smoothing", "exo_pair" not in self.loss or rate > 0,
              "must be above 0 for exo_pair (1e-3 is usual)")  # fmt: skip
        for name, asked, known in (("soft_labels", self.soft_labels, CONSERVATIVE),
                                   ("label_smoothing", rate > 0, SMOOTHED)):  # fmt: skip
            paired = [loss for loss, weight in self.loss.items() if weight and loss != "sft"]
            deaf = [loss for loss in paired if loss not in known]
            need(name, not asked or not deaf, f"the loss {', '.join(deaf)} does not read it; "
                  f"--loss may be {', '.join(known)}, each also beside sft")  # fmt: skip
            need(name, not asked or bool(paired), f"needs a --loss that reads it: {', '.join(known)}")

    def _check_objective(self) -> None:
        """Refuses settings that do not go together."""
        rigid = [name for name in self.loss if name not in DIVERGING]
        need("divergence", self.divergence == "reverse_kl" or not rigid,
              f"{', '.join(rigid)} knows reverse_kl alone; --loss may be {', '.join(DIVERGING)}")  # fmt: skip
        need("discopop_tau", self.discopop_tau > 0, "must be above 0")
        need("ld_alpha", self.ld_alpha is None or 0 <= self.ld_alpha <= 1, "must be in [0, 1]")
        need("ld_alpha", self.ld_alpha is None or self.reference != "samples",
              "needs log-probabilities per token, samples have their sums: --reference pass")  # fmt: skip
        need(
            "halve_micro_batch",
            not (self.halve_micro_batch and self.within_micro_batch),
            "aot and aot_unpaired compare pairs within a micro-batch, halved it is another objective",
        )
        need("wpo", not self.wpo or not any(name in self.loss for name in WITHIN_MICRO_BATCH),
              "aot and aot_unpaired sort pairs, their weights would be others'")  # fmt: skip
        for name, value, plain in (("divergence", self.divergence, "reverse_kl"),
                                   ("ld_alpha", self.ld_alpha, None), ("wpo", self.wpo, False)):  # fmt: skip
            need(name, value == plain or not self.softened,
                  "does not go with soft labels or a smoothed sigmoid, made for plain DPO")  # fmt: skip
        need("router_aux", self.router_aux is None or self.router_aux >= 0, "must not be negative")
        need("sync_steps", self.sync_steps >= 0, "must not be negative")
        need("sync_mixup", 0 < self.sync_mixup <= 1, "must be above 0 and at most 1")
        need("sync_steps", not (self.sync_steps and self.lora_r),
              "has no weights to move: with --lora-r the reference is the model without adapter")  # fmt: skip
        need("sync_steps", not (self.sync_steps and self.reference_model),
              "makes a reference of the policy, and --reference-model names another")  # fmt: skip
        need("sync_steps", not self.sync_steps or self.reference in ("auto", "pass"),
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
