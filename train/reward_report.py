"""What a reward model is worth: its rewards of pairs that it has not seen, against their labels.

Pure arithmetic on arrays; nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gavel.correlation import rank_correlation
from train.data import PairRow

Array = npt.NDArray[np.float64]
_BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose confidence lies in a bin: how many, how sure the model is, how often it is right."""

    n: int
    confidence: float
    accuracy: float


def report(rows: Sequence[PairRow], chosen: Array, rejected: Array) -> dict[str, Any]:
    """Figures of the rewards of pairs.

    Args:
        chosen, rejected: rewards, each of shape (rows,).

    Returns:
        n; accuracy, equal rewards half right, and its standard error, for which the pairs of a prompt are one
        draw and not many (None with a single prompt); log_loss, the mean of −log σ(r_chosen − r_rejected);
        calibration_error (expected, over ten bins of confidence) and the bins;
        margin, the mean difference; length_correlation, Spearman's ρ of the differences in reward and in
        tokens; longer_wins, the share of pairs whose chosen is longer, equal lengths half: what the labels
        themselves say of length.
    """
    difference = chosen - rejected
    lengths = np.array([len(r.chosen_ids) - len(r.rejected_ids) for r in rows], dtype=np.float64)
    right = np.heaviside(difference, 0.5)
    bins = calibration(difference)
    return {
        "n": len(rows),
        "accuracy": float(right.mean()),
        "accuracy_standard_error": _standard_error(right, rows),
        "log_loss": float(np.logaddexp(0, -difference).mean()),
        "calibration_error": sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / len(rows),
        "calibration": [asdict(b) for b in bins],
        "margin": float(difference.mean()),
        "length_correlation": rank_correlation(difference, lengths),
        "longer_wins": float(np.heaviside(lengths, 0.5).mean()),
    }


def _standard_error(values: Array, rows: Sequence[PairRow]) -> float | None:
    """Of their mean, clustered by prompt (Liang and Zeger 1986), with G / (G - 1) for G prompts:
    with one pair a prompt that of independent values."""
    prompts: dict[tuple[int, ...], float] = {}
    mean = values.mean()
    for row, value in zip(rows, values, strict=True):
        prompt = tuple(row.prompt_ids)
        prompts[prompt] = prompts.get(prompt, 0.0) + float(value - mean)
    count = len(prompts)
    if count < 2:
        return None
    return float((count / (count - 1) * sum(total**2 for total in prompts.values())) ** 0.5 / len(rows))


def calibration(difference: Array) -> list[Bin]:
    """Bins of confidence σ(|Δ|) from 1/2 to 1 that hold any pair (Guo et al. 2017, arXiv 1706.04599).

    Args:
        difference: reward of chosen minus reward of rejected, shape (N,).
    """
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    place = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    right = np.heaviside(difference, 0.5)
    return [
        Bin(int(held.sum()), float(confidence[held].mean()), float(right[held].mean()))
        for held in (place == b for b in range(_BINS))
        if held.any()
    ]
