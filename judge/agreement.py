"""A judge against gold labels.

An answer is a probability that a is better: above 1/2 the judge says a, below it b, at 1/2 a tie. Where
the gold labels know ties, accuracy is three-way: a tie is right where gold says so and nowhere else.
Where they know none, a tie is half right (as LLMBar counts its ratings). No verdict is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from judge.duels import Outcome
from judge.intervals import wilson
from judge.labelled import Labelled

MATCHED = 1.2  # pairs whose longer text has at most so many times the characters are of matched length
RESAMPLES = 2000
_SIDES = ("a", "b", "tie")


@dataclass(frozen=True, slots=True)
class Compared:
    """One gold pair and what the judge said of it, see `judge.duels.Outcome`. Lengths in characters."""

    id: str
    gold: float
    ab: float | None
    ba: float | None
    length_a: int
    length_b: int


def compare(labelled: Iterable[Labelled], outcomes: Mapping[str, Outcome]) -> list[Compared]:
    """Gold pairs beside what a judge said of them; one that it said nothing of has no verdict."""
    silent = Outcome(None, None)
    found = []
    for one in labelled:
        said = outcomes.get(one.id, silent)
        lengths = len(one.a.text), len(one.b.text)
        found.append(Compared(one.id, one.gold, said.ab, said.ba, *lengths))
    return found


def agreement(compared: Sequence[Compared]) -> dict[str, Any]:
    """How far a judge agrees with gold labels, as fractions, with 95 % intervals.

    Returns:
        n: pairs. accuracy_ab, accuracy_ba: in each order; accuracy: their mean. both_correct: right in
        both orders. order_agreement: the same verdict in both (two missing ones are the same, as LLMBar
        counts). p_first: share of verdicts for the answer shown first, a tie counting half. unparsed:
        answers without a verdict, of 2n. kappa: Cohen's, between gold and the verdicts of both orders,
        those missing left out. baselines: longer_wins and first_wins, what a judge would get that always
        says the longer (of equal lengths nothing), or a. length_matched: n and accuracy where the longer
        text has at most MATCHED times the characters. intervals: by name; Wilson's for shares of pairs,
        else percentiles of a bootstrap over pairs (2,000 draws, seed 0).
    """
    n = len(compared)
    if not n:
        return {"n": 0, **dict.fromkeys(_RATES), "unparsed": 0, "kappa": None, "intervals": {},
                "baselines": {}, "length_matched": {"n": 0, "accuracy": None}}  # fmt: skip
    three_way = any(one.gold == 0.5 for one in compared)
    table = _Table.of(compared, three_way)
    longer = _mean([_right(_longer(one), one.gold, three_way) for one in compared])
    first = _mean([_right(1.0, one.gold, three_way) for one in compared])
    alike = [one for one in compared if _is_matched(one)]
    result: dict[str, Any] = {"n": n, **table.rates(), "unparsed": int(table.missing.sum())}
    result["kappa"] = kappa(table.confusion.sum(axis=0))
    result["intervals"] = _intervals(table, result)
    result["baselines"] = {
        "longer_wins": longer,
        "first_wins": first,
        "intervals": {"longer_wins": wilson(longer, n), "first_wins": wilson(first, n)},
    }
    matched = _Table.of(alike, three_way).rates()["accuracy"] if alike else None
    result["length_matched"] = {
        "n": len(alike),
        "accuracy": matched,
        "interval": None if matched is None else wilson(matched, len(alike)),
    }
    return result


def flip_rate(compared: Iterable[Compared], disputed: str) -> float | None:
    """The share of wrong labels among those that `gavel pairs` would make of a judge's answers: ties and
    answers without a verdict make none, and with disputed "drop" neither do two orders that differ."""
    right = wrong = 0
    for one in compared:
        if one.ab is None or one.ba is None or (disputed == "drop" and _side(one.ab) != _side(one.ba)):
            continue
        said, gold = _side((one.ab + one.ba) / 2), _side(one.gold)
        if 2 not in (said, gold):
            right += said == gold
            wrong += said != gold
    return wrong / (right + wrong) if right + wrong else None


_RATES = ("accuracy_ab", "accuracy_ba", "accuracy", "both_correct", "order_agreement", "p_first")


@dataclass(frozen=True, slots=True)
class _Table:
    """One row a pair, so that a bootstrap draws rows. ab, ba, both, same: (n,) credits; first: (n, 2) for
    the first shown, NaN without a verdict; missing: (n,) counts; confusion: (n, 3, 3) gold × verdict."""

    ab: Any
    ba: Any
    both: Any
    same: Any
    first: Any
    missing: Any
    confusion: Any

    @classmethod
    def of(cls, compared: Sequence[Compared], three_way: bool) -> _Table:
        ab = np.array([_right(one.ab, one.gold, three_way) for one in compared])
        ba = np.array([_right(one.ba, one.gold, three_way) for one in compared])
        first = np.array(
            [[_sided(one.ab), _sided(None if one.ba is None else 1 - one.ba)] for one in compared]
        )
        confusion = np.zeros((len(compared), 3, 3))
        for row, one in enumerate(compared):
            for said in (one.ab, one.ba):
                if said is not None:
                    confusion[row, _side(one.gold), _side(said)] += 1
        return cls(
            ab,
            ba,
            np.minimum(ab, ba),
            np.array([_verdict(one.ab) == _verdict(one.ba) for one in compared], dtype=float),
            first,
            np.isnan(first).sum(axis=1),
            confusion,
        )

    def rates(self) -> dict[str, float | None]:
        said = self.first[~np.isnan(self.first)]
        return {
            "accuracy_ab": float(self.ab.mean()),
            "accuracy_ba": float(self.ba.mean()),
            "accuracy": float((self.ab.mean() + self.ba.mean()) / 2),
            "both_correct": float(self.both.mean()),
            "order_agreement": float(self.same.mean()),
            "p_first": float(said.mean()) if said.size else None,
        }


def _right(said: float | None, gold: float, three_way: bool) -> float:
    """The credit for one answer."""
    if said is None:
        return 0.0
    if _side(said) == _side(gold):
        return 1.0
    return 0.5 if said == 0.5 and not three_way else 0.0


def _side(p: float) -> int:
    """0 for a, 1 for b, 2 for a tie."""
    return 2 if p == 0.5 else int(p < 0.5)


def _sided(p: float | None) -> float:
    return float("nan") if p is None else 0.5 if p == 0.5 else float(p > 0.5)


def _verdict(p: float | None) -> str:
    return "none" if p is None else _SIDES[_side(p)]


def _longer(one: Compared) -> float | None:
    """What a judge says that prefers the longer text; of equal lengths nothing."""
    return None if one.length_a == one.length_b else float(one.length_a > one.length_b)


def _is_matched(one: Compared) -> bool:
    shorter, longer = sorted((one.length_a, one.length_b))
    return longer <= MATCHED * shorter


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def kappa(confusion: Any) -> float | None:
    """Cohen's kappa of a (3, 3) table gold × verdict: (p_o − p_e) / (1 − p_e); None where it is not
    defined (nothing compared, or chance alone agrees fully)."""
    found = float(kappas(confusion[None])[0])
    return None if np.isnan(found) else found


def kappas(tables: Any) -> Any:
    """`kappa` of (draws, 3, 3) tables, NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = tables.sum(axis=(1, 2))
        observed = np.trace(tables, axis1=1, axis2=2) / total
        expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / total**2
        return np.where(expected == 1, np.nan, (observed - expected) / (1 - expected))


def _intervals(table: _Table, result: Mapping[str, Any]) -> dict[str, Sequence[float] | None]:
    n = len(table.ab)
    shares = ("accuracy_ab", "accuracy_ba", "both_correct", "order_agreement")
    found: dict[str, Sequence[float] | None] = {name: wilson(result[name], n) for name in shares}
    found["unparsed"] = [2 * n * end for end in wilson(result["unparsed"] / (2 * n), 2 * n)]
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)  # (draws, n)
    said = ~np.isnan(table.first)
    with np.errstate(invalid="ignore", divide="ignore"):
        first = drawn @ np.where(said, table.first, 0).sum(axis=1) / (drawn @ said.sum(axis=1))
    draws = {
        "accuracy": drawn @ (table.ab + table.ba) / (2 * n),
        "p_first": first,
        "kappa": kappas((drawn @ table.confusion.reshape(n, 9)).reshape(-1, 3, 3)),
    }
    for name, values in draws.items():
        known = values[~np.isnan(values)]
        ends = (
            np.quantile(known, (0.025, 0.975)).tolist() if known.size and result[name] is not None else None
        )
        found[name] = ends
    return found
