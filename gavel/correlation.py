"""Rank correlation, with an answer where there is none."""

from __future__ import annotations

from collections.abc import Collection


def rank_correlation(one: Collection[float], other: Collection[float]) -> float | None:
    """Spearman's rho, None where either side does not vary."""
    if len(one) < 2 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)
