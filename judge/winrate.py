"""Win rates: how often a model's output is preferred to a baseline's, and how often it would be if both
were equally long."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gavel.errors import CheckFailed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# AlpacaEval chooses it among 10^(-4 … 4) by cross-validation and mostly ends here; docs/winrate.md has
# what other values do
C = 21.5
# liblinear visits its coordinates at random: at its own tolerance (1e-4) the seed moves the result by 0.01
# points, at this one by 1e-8
TOLERANCE = 1e-10
MAX_STEPS = 10_000
Z95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a judge said of one prompt's two outputs.

    p: probability in [0, 1] that the model's is better; None: no verdict.
    len_baseline, len_model: in characters, None where not known.
    difficulty: of the instruction, γ of the length-controlled fit; None where not known.
    """

    p: float | None
    len_baseline: float | None = None
    len_model: float | None = None
    difficulty: float | None = None


@dataclass(frozen=True, slots=True)
class WinRate:
    """Rates in percent; NaN where there is too little to compute them from.

    standard_error: 100 · sample standard deviation / √n. interval: of 95 %. n: comparisons with a
    verdict. wins, losses, draws: p above, below and at 1/2. unparsed: comparisons without a verdict.
    """

    win_rate: float
    standard_error: float
    interval: tuple[float, float]
    n: int
    wins: int
    losses: int
    draws: int
    unparsed: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """A row of another model that steadies the length-controlled fit; it has no intercept.

    length: tanh of its standardised length difference. p: its label in [0, 1].
    """

    length: float
    difficulty: float | None
    weight: float
    p: float


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate with what it rests on.

    rate: in percent. n: comparisons with a verdict and both lengths (and a difficulty where that is
    used). anchors: further rows. length, difficulty, intercept: the weights φ, ψ, θ; φ above 0 says
    that shorter than the baseline wins. difficulty is None where the term was left out.
    """

    rate: float
    n: int
    anchors: int
    length: float
    difficulty: float | None
    intercept: float


def win_rate(comparisons: Iterable[Comparison]) -> WinRate:
    """The mean probability that the model's output is better, in percent, with its error.

    >>> rate = win_rate([Comparison(1.0), Comparison(0.0), Comparison(0.75), Comparison(None)])
    >>> round(rate.win_rate, 2), rate.n, rate.wins, rate.losses, rate.unparsed
    (58.33, 3, 2, 1, 1)
    """
    found = [c.p for c in comparisons]
    ps = [p for p in found if p is not None]
    n = len(ps)
    mean = math.fsum(ps) / n if n else math.nan
    error = statistics.stdev(ps) / math.sqrt(n) if n > 1 else math.nan
    low, high = _interval(ps)
    return WinRate(
        win_rate=100 * mean,
        standard_error=100 * error,
        interval=(100 * low, 100 * high),
        n=n,
        wins=sum(p > 0.5 for p in ps),
        losses=sum(p < 0.5 for p in ps),
        draws=sum(p == 0.5 for p in ps),
        unparsed=len(found) - n,
    )


def _interval(ps: Sequence[float]) -> tuple[float, float]:
    """Agresti and Coull's interval of 95 %, for outcomes anywhere in [0, 1]: two wins and two losses are
    added, then it is mean ± z · sd / √(n + 4).

    The added four keep a few outcomes that happen to be alike (or verdicts near 0 and 1) from looking
    certain; among hundreds they do not show, and the interval follows the standard error.
    """
    if not ps:
        return math.nan, math.nan
    more = [*ps, 0.0, 0.0, 1.0, 1.0]
    mean = math.fsum(more) / len(more)
    half = Z95 * statistics.pstdev(more) / math.sqrt(len(more))
    return max(0.0, mean - half), min(1.0, mean + half)


def length_controlled(
    comparisons: Iterable[Comparison], anchors: Sequence[Anchor] = ()
) -> LengthControlled | None:
    """The win rate at equal lengths (AlpacaEval 2, arXiv 2404.04475).

    logit P = φ·tanh(Δ / sd Δ) + ψ·γ + θ, Δ = length of the baseline's output minus the model's, is fitted
    by log loss plus ‖(φ, ψ, θ)‖₁ / C; the rate is 100 · mean of σ(ψ·γ + θ). The term with γ is there when
    a comparison has a difficulty; those without one are then left out.

    Returns: None where no comparison has what the fit needs.

    Raises:
        CheckFailed: the fit did not converge.
    """
    import numpy as np

    rows = [
        (c.p, c.len_baseline - c.len_model, c.difficulty)
        for c in comparisons
        if c.p is not None and c.len_baseline is not None and c.len_model is not None
    ]
    difficult = any(gamma is not None for _, _, gamma in rows)
    if difficult:
        rows = [row for row in rows if row[2] is not None]
    if not rows:
        return None
    p = np.array([row[0] for row in rows])
    gamma = np.array([row[2] or 0.0 for row in rows])
    x = np.column_stack([_length_terms([row[1] for row in rows]), gamma, np.ones(len(rows))])
    if anchors:
        x = np.vstack([x, [(a.length, a.difficulty or 0.0, 0.0) for a in anchors]])
    labels = np.concatenate([p, [a.p for a in anchors]])
    weights = np.concatenate([np.ones(len(rows)), [a.weight for a in anchors]])
    phi, psi, theta = _fit(x if difficult else x[:, [0, 2]], labels, weights, difficult)
    rate = float(100 * np.mean(_sigmoid(psi * gamma + theta)))  # θ is infinite where one side always won
    return LengthControlled(rate, len(rows), len(anchors), phi, psi if difficult else None, theta)


def length_controlled_interval(
    comparisons: Iterable[Comparison], found: LengthControlled
) -> tuple[float, float] | None:
    """The 95 % interval of a length-controlled win rate that was fitted without difficulties and anchors.

    The intercept is θ ± z · its robust standard error: the root of the entry of A⁻¹ B A⁻¹ (White 1982,
    theorem 3.2), A = Σ σ(1 − σ) x xᵀ and B = Σ (p − σ)² x xᵀ with x = (tanh(Δ / sd Δ), 1); the small penalty
    is left out of it. None where it is not defined: one side always won, or the lengths say it all.
    """
    import numpy as np

    assert found.difficulty is None and not found.anchors, "only lengths explain"
    rows = [
        (c.p, c.len_baseline - c.len_model)
        for c in comparisons
        if c.p is not None and c.len_baseline is not None and c.len_model is not None
    ]
    terms = np.array(_length_terms([difference for _, difference in rows]))
    # where no lengths differ, their weight is 0 and the intercept stands alone
    x = np.column_stack([terms, np.ones(len(rows))]) if terms.any() else np.ones((len(rows), 1))
    if math.isinf(found.intercept) or len(rows) < 3:
        return None
    fitted = _sigmoid(found.length * terms + found.intercept)
    a = (x.T * (fitted * (1 - fitted))) @ x
    b = (x.T * (np.array([p for p, _ in rows]) - fitted) ** 2) @ x
    if np.linalg.cond(a) > 1e12:
        return None
    inverse = np.linalg.inv(a)
    half = Z95 * math.sqrt(max(0.0, (inverse @ b @ inverse)[-1, -1]))  # rounding may leave less than nothing
    low, high = (100 * float(_sigmoid(found.intercept + end)) for end in (-half, half))
    return low, high


def _sigmoid(x: ArrayLike) -> Any:
    """1 / (1 + e⁻ˣ) of a number or an array; written so that no x is too large for it."""
    import numpy as np

    return (1 + np.tanh(np.asarray(x) / 2)) / 2


def _length_terms(differences: Sequence[float]) -> list[float]:
    """tanh of each difference in sample standard deviations; 0 where the differences do not differ."""
    sd = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return [math.tanh(d / sd) if sd > 0 else 0.0 for d in differences]


def _fit(x: object, labels: object, weights: object, difficult: bool) -> tuple[float, float, float]:
    """The weights φ, ψ, θ (ψ = 0 where the term is left out) of the L1-penalised logistic fit.

    A label between 0 and 1 is two rows, one of each class, that share the row's weight. The intercept is
    a column of x, since it is penalised like the rest and the anchors have none.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    x, labels, weights = np.asarray(x), np.asarray(labels), np.asarray(weights)
    twice = np.vstack([x, x])
    classes = np.repeat([1, 0], len(x))
    shares = np.concatenate([labels * weights, (1 - labels) * weights])
    used = shares > 0
    if len(set(classes[used])) < 2:
        return 0.0, 0.0, math.inf if classes[used].all() else -math.inf
    model = LogisticRegression(
        C=C, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=TOLERANCE, max_iter=MAX_STEPS,
        random_state=0,
    ).fit(twice[used], classes[used], sample_weight=shares[used])  # fmt: skip
    if max(model.n_iter_) >= MAX_STEPS:
        raise CheckFailed("the length-controlled fit did not converge", hint="Leave --length-control out.")
    phi, *psi, theta = (float(w) for w in model.coef_[0])
    return phi, psi[0] if difficult else 0.0, theta


@dataclass(frozen=True, slots=True)
class Orders:
    """What showing two outputs in both orders says of a judge, in percent.

    order_agreement: pairs on which both orders prefer the same output, or both neither.
    p_first: how often the output shown first was preferred, a tie counting half.
    """

    order_agreement: float
    p_first: float


def orders(pairs: Iterable[tuple[float | None, float | None]]) -> Orders | None:
    """Of pairs (p with a shown first, p with b shown first), p the probability that a is better; pairs
    that were not answered in both orders are left out. None where no pair was.

    >>> orders([(1.0, 1.0), (0.9, 0.2), (0.5, None)])
    Orders(order_agreement=50.0, p_first=75.0)
    """
    both = [(_pick(ab), _pick(ba)) for ab, ba in pairs if ab is not None and ba is not None]
    if not both:
        return None
    agreed = sum(ab == ba for ab, ba in both)
    first = sum(ab + (1 - ba) for ab, ba in both) / 2
    return Orders(100 * agreed / len(both), 100 * first / len(both))


def _pick(p: float) -> float:
    return 0.5 if p == 0.5 else float(p > 0.5)
