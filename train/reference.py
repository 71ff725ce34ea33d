"""The reference: its log-probabilities from the samples where an audit agrees, else by a pass; or a model
that follows the policy (`Moving`).

DPO compares the policy with the model that it started from. When that model is the sampler, its
log-probabilities came with the samples. They serve if the engine that sampled and the trainer compute
the same numbers, which an audit of a few pairs shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from trl.trainer.callbacks import SyncRefModelCallback

from gavel.command import say, warn
from gavel.errors import CheckFailed
from train.data import PairRow
from train.unique import TOLERANCE

_MOVED = "reference.safetensors"  # of a checkpoint

#: Rows → (chosen, rejected) summed log-probabilities, each of shape (rows,).
Pass = Callable[[Sequence[PairRow]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Audit:
    """What comparing sums over completions gave, each divided by its number of tokens."""

    rows: int
    mean_delta_per_token: float
    max_delta_per_token: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.mean_delta_per_token < self.tolerance


@dataclass(frozen=True)
class Reference:
    """chosen, rejected: summed log-probabilities of the reference, one per row.
    source: "samples" or "pass"."""

    chosen: list[float]
    rejected: list[float]
    source: str
    audit: Audit | None

    def summary(self) -> dict[str, Any]:
        return {"reference": self.source, "reference_audit": asdict(self.audit) if self.audit else None}


def reference_logps(
    rows: Sequence[PairRow], run: Pass, policy: str, precision: str, audit_rows: int
) -> Reference:
    """The reference's log-probabilities of every row.

    Args:
        run: computes them with the starting model.
        policy: "auto", "samples" or "pass", as in `DpoConfig.reference`.

    Raises:
        CheckFailed: policy is "samples" and they are missing or the audit disagrees.
    """
    if policy == "pass":
        return _by_pass(rows, run, None)
    missing = sum(row.ref_chosen_logp is None or row.ref_rejected_logp is None for row in rows)
    if missing:
        why = f"{missing:,} of {len(rows):,} pairs have no log-probabilities of the starting model"
        audit = None
    else:
        audit = _audit(rows, run, precision, audit_rows)
        if audit.agrees:
            return Reference([float(r.ref_chosen_logp or 0) for r in rows],
                             [float(r.ref_rejected_logp or 0) for r in rows], "samples", audit)  # fmt: skip
        why = (f"engine and trainer differ by {audit.mean_delta_per_token:.2g} per token on "
               f"{audit.rows} pairs (tolerance {audit.tolerance:g})")  # fmt: skip
    if policy == "samples":
        raise CheckFailed(why, where="--reference samples", hint="Use --reference auto or pass.")
    (warn if audit else say)(f"{why}: computing the reference's by a pass over the data")
    return _by_pass(rows, run, audit)


def _audit(rows: Sequence[PairRow], run: Pass, precision: str, count: int) -> Audit:
    """Compares on `count` rows, evenly spread over the data."""
    count = min(count, len(rows))
    picked = [rows[i * len(rows) // count] for i in range(count)]
    chosen, rejected = run(picked)
    deltas = []
    for row, c, r in zip(picked, chosen.tolist(), rejected.tolist(), strict=True):
        deltas.append(abs(c - float(row.ref_chosen_logp or 0)) / len(row.chosen_ids))
        deltas.append(abs(r - float(row.ref_rejected_logp or 0)) / len(row.rejected_ids))
    return Audit(count, sum(deltas) / len(deltas), max(deltas), TOLERANCE[precision])


def _by_pass(rows: Sequence[PairRow], run: Pass, audit: Audit | None) -> Reference:
    chosen, rejected = run(rows)
    return Reference(chosen.tolist(), rejected.tolist(), "pass", audit)


@dataclass(frozen=True)
class Moving:
    """A reference that follows the policy: every `ref_model_sync_steps` optimiser steps its weights become
    α · policy + (1 − α) · their own (Gorbatovski et al. 2024, arXiv 2404.09656, eq. 3)."""

    model: Any

    @classmethod
    def behind(cls, trainer: Any) -> Moving:
        """A copy of the model that training starts from, moved by TRL's callback."""
        model = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model)).requires_grad_(False)
        trainer.add_callback(SyncRefModelCallback(ref_model=model, accelerator=trainer.accelerator))
        return cls(model)

    def save(self, checkpoint: Path) -> None:
        save_model(self.model, str(checkpoint / _MOVED))

    def load(self, checkpoint: Path) -> None:
        load_model(self.model, str(checkpoint / _MOVED))
