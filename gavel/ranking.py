"""From comparisons of two to strengths of all: the Bradley-Terry model with its uncertainty.

Item i beats item j with probability σ(θ_i − θ_j) (Bradley and Terry 1952; the Elo model in natural
units). The strengths θ have independent Gaussian priors, so that an item that won everything, or was
never compared, has a finite strength and says by its standard deviation how little is known of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: standard deviation of the prior of a strength, in log-odds; docs/ranking.md says what others do
PRIOR_SD = 2.0

#: strengths closer than this are the same: they differ by the rounding of sums, which follows the order
#: of the input, and nobody may win by that
SAME = 1e-9

_STEPS = 1000  # never reached but where rounding keeps the last steps from getting smaller

# the trapezoidal rule converges faster than any power on a Gaussian: to 1e-12 up to a deviation of 7;
# half of the nodes, since the other half is theirs with the sign turned
_NODES = np.linspace(0, 8, 81)
_WEIGHTS = np.exp(-(_NODES**2) / 2)
_WEIGHTS[0] /= 2
_WEIGHTS /= _WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class Strengths:
    """What comparisons say about k items.

    theta: (k,) strengths in log-odds, mean 0. covariance: (k, k) of their posterior, Laplace's
    approximation: the inverse of the negative log posterior's Hessian at its mode.
    """

    theta: Floats
    covariance: Floats

    def p(self, i: int, j: int) -> float:
        """Probability that i is found better than j when they are compared.

        E σ(d) over the Gaussian posterior of d = θ_i − θ_j, by quadrature: the less is known, the closer
        it is to 0.5.
        """
        mean, sd = self._difference(i, j)
        # both signs of a node in one sum, so that equal strengths give exactly 0.5
        both = np.tanh((mean + sd * _NODES) / 2) + np.tanh((mean - sd * _NODES) / 2)
        return 0.5 + 0.25 * float(_WEIGHTS @ both)

    def p_stronger(self, i: int, j: int) -> float:
        """Probability that θ_i > θ_j: how sure their order is, be the difference ever so small."""
        mean, sd = self._difference(i, j)
        return 0.5 if sd == 0 else 0.5 * math.erfc(-mean / (sd * math.sqrt(2)))

    def sd(self, i: int) -> float:
        """Standard deviation of θ_i; the prior's for an item that was never compared."""
        return math.sqrt(self.covariance[i, i])

    def _difference(self, i: int, j: int) -> tuple[float, float]:
        """Mean and standard deviation of θ_i − θ_j."""
        c = self.covariance
        return float(self.theta[i] - self.theta[j]), math.sqrt(max(c[i, i] + c[j, j] - 2 * c[i, j], 0.0))


def bradley_terry(
    k: int, outcomes: Sequence[tuple[int, int, float]], *, prior_sd: float = PRIOR_SD
) -> Strengths:
    """Fits the strengths of items 0 … k−1: posterior mode and covariance.

    Minimises −Σ [p log σ(d) + (1−p) log σ(−d)] + Σ θ²/(2·prior_sd²), d = θ_i − θ_j, by Newton's method
    with steps damped as Sun and Tran-Dinh (2019) do for self-concordant functions, ν = 2: it converges
    from anywhere without a line search. The mean of θ is 0 of itself, by the prior.

    Args:
        outcomes: (i, j, probability that i is better); 0.5 is a tie. Repeated ones count each.
        prior_sd: in log-odds, at most 100 (beyond, rounding is larger than what the prior adds).

    Raises:
        ValueError: an item out of range or compared with itself, a probability outside [0, 1], or a prior
            out of its range.
    """
    if k < 1 or not 0 < prior_sd <= 100:
        raise ValueError(f"needs an item and a prior of 0 to 100, not k={k}, prior_sd={prior_sd}")
    wins, games = _tally(k, outcomes)
    precision = prior_sd**-2
    theta = np.zeros(k)
    diagonal = np.diag_indices(k)
    for _ in range(_STEPS):
        p = _sigmoid(theta[:, None] - theta)  # (k, k)
        gradient = precision * theta - (wins - games * p).sum(axis=1)
        hessian = -games * p * (1 - p)
        hessian[diagonal] = precision - hessian.sum(axis=1)
        step = np.linalg.solve(hessian, gradient)
        size = float(np.ptp(step))  # the largest change of any difference
        theta = theta - step * (math.log1p(size) / size if size else 1.0)
        if size < SAME:  # the error left is of the order of its square
            break
    covariance = np.asarray(np.linalg.inv(hessian), dtype=np.float64)
    return Strengths(_same(theta - theta.mean()), covariance)


def _tally(k: int, outcomes: Sequence[tuple[int, int, float]]) -> tuple[Floats, Floats]:
    """Two (k, k) tables: how much i won of j, and how often the two were compared."""
    wins = np.zeros((k, k))
    games = np.zeros((k, k))
    for i, j, p in outcomes:
        if i == j or not (0 <= i < k and 0 <= j < k):
            raise ValueError(f"{i} against {j}: not two of {k} items")
        if not 0 <= p <= 1:
            raise ValueError(f"{i} against {j}: {p} is no probability")
        wins[i, j] += p
        wins[j, i] += 1 - p
        games[i, j] += 1
        games[j, i] += 1
    return wins, games


def _sigmoid(x: Floats) -> Floats:
    """1/(1 + e^−x), without overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _same(theta: Floats) -> Floats:
    """Strengths that differ by rounding only made equal."""
    order = np.argsort(theta)
    close = np.diff(theta[order]) < SAME
    if not close.any():
        return theta
    group = np.concatenate([[0], np.cumsum(~close)])
    means = np.bincount(group, weights=theta[order]) / np.bincount(group)
    levelled = np.empty_like(theta)
    levelled[order] = means[group]
    return levelled


def ranks(scores: Sequence[float] | Floats) -> Floats:
    """Places from 1, the highest score first; equal scores share the mean of theirs.

    >>> ranks([0.1, 0.7, 0.1]).tolist()
    [2.5, 1.0, 2.5]
    """
    values = np.asarray(scores, dtype=np.float64)
    higher = (values[:, None] < values).sum(axis=1)
    equal = (values[:, None] == values).sum(axis=1)
    places: Floats = higher + (equal + 1) / 2
    return places


def kendall_tau(one: Sequence[float] | Floats, other: Sequence[float] | Floats) -> float | None:
    """Kendall's τ-b between two scorings of the same items (Kendall 1945): 1 the same order, −1 the
    reverse; a tie agrees only with a tie. None where either is a single tie.

    >>> kendall_tau([1, 2, 3], [1, 3, 2])
    0.3333333333333333
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (one, other))
    if a.shape != b.shape:
        raise ValueError(f"{a.size} scores against {b.size}")
    signs_a, signs_b = (np.sign(values[:, None] - values) for values in (a, b))
    untied = float((signs_a**2).sum() * (signs_b**2).sum())
    return float((signs_a * signs_b).sum() / math.sqrt(untied)) if untied else None
