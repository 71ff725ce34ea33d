"""Soft labels: DPO towards a probability that chosen is better, where TRL knows only certain labels.

Conservative DPO (E. Mitchell 2023, "A note on DPO with noisy preferences"), with a target p for every pair
and z = β·h, h being the difference of log-ratios of Rafailov et al. 2023, eq. 7:

    loss(z, p) = −p · log σ(z) − (1 − p) · log σ(−z),    d loss / dz = σ(z) − p.

It is least where σ(z) = p, so a pair that is a coin toss holds the policy where the reference is. As
log σ(−z) = log σ(z) − z, the loss is TRL's own, −log σ(z), plus (1 − p) · z: `flip_term` is all that is
added, and with p = 1 nothing is.

Left out: targets per pair for "robust" (Chowdhury et al. 2024, arXiv 2403.00409), whose one flip rate TRL
takes as label_smoothing, and for the other losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gavel.errors import InputError
from train.config import PairConfig
from train.data import PairRow


@dataclass(frozen=True)
class Targets:
    """What the labels of a data set are worth. p: one a row. own: rows whose p is their own; the others
    have 1 − label smoothing."""

    p: list[float]
    own: int

    def summary(self) -> dict[str, Any]:
        return {"own": self.own, "smoothed": len(self.p) - self.own,
                "mean_p_chosen": math.fsum(self.p) / len(self.p)}  # fmt: skip


def targets(config: PairConfig, rows: Sequence[PairRow]) -> Targets | None:
    """The target of every row, None where the labels are taken as certain.

    Raises InputError for a row without a probability, unless there is label smoothing, and for one whose
    probability is none.
    """
    if not config.softened:
        return None
    smooth = 1.0 - config.label_smoothing
    if not config.soft_labels:
        return Targets([smooth] * len(rows), own=0)
    for row in rows:
        if row.p_chosen is not None and not 0 <= row.p_chosen <= 1:  # NaN as well
            raise InputError(f"p_chosen is {row.p_chosen}, not a probability",
                             where=row.place)  # fmt: skip
    missing = [row for row in rows if row.p_chosen is None]
    if missing and not config.label_smoothing:
        first = missing[0].place
        raise InputError(
            f"{len(missing):,} of {len(rows):,} pairs have no probability that chosen is better, "
            f"the first is {first}",
            where="--soft-labels",
            hint="Judge by a method that gives one (pairwise, reward, a rating from log-probabilities) and "
            "make the pairs again, or say how often such a label is wrong: --label-smoothing X.",
        )
    p = [smooth if row.p_chosen is None else row.p_chosen for row in rows]
    return Targets(p, own=len(rows) - len(missing))


def flip_term(logits: torch.Tensor, p_chosen: torch.Tensor) -> torch.Tensor:
    """What a target adds to −log σ(z) (see above).

    Args:
        logits: z, shape (B,). p_chosen: probability that chosen is better, shape (B,).

    Returns: (1 − p) · z, shape (B,).
    """
    return (1 - p_chosen) * logits


def logits_of(
    loss: str, log_probs: torch.Tensor, batch: Mapping[str, torch.Tensor], beta: float
) -> torch.Tensor:
    """z of each pair, the argument of the sigmoid in the losses of `train.config_dpo.CONSERVATIVE`.

    Args:
        loss: "sigmoid", or "sigmoid_norm", whose log-ratios are means over the completion's tokens.
        log_probs: of each next token, 0 outside the completions, chosen rows first, shape (2B, ≥ T − 1).
        batch: collated by TRL: completion_mask (2B, T), ref_chosen_logps and ref_rejected_logps (B,).

    Returns: shape (B,).
    """
    mask = batch["completion_mask"]
    reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])  # (2B,)
    ratios = log_probs[:, -(mask.size(1) - 1) :].sum(dim=1) - reference  # (2B,)
    if loss == "sigmoid_norm":
        ratios = ratios / mask.sum(dim=1).clamp(min=1)
    chosen, rejected = ratios.chunk(2)
    return beta * (chosen - rejected)
