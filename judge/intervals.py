"""Intervals of shares."""

from __future__ import annotations


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n; half credits are taken as they are."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
