"""How far the judges of a panel agree."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from gavel.scores import Candidate


class Agreement:
    """For each two members: the share of pairs of completions that they order alike (a tie alike too),
    and Cohen's kappa of it. 3 bytes a pair of completions and member."""

    def __init__(self, members: Sequence[str]) -> None:
        self._signs = {member: array("b") for member in members}

    def add(self, by_member: Mapping[str, Sequence[Candidate]]) -> None:
        """by_member: the same completions, in the same order, by each member."""
        count = len(next(iter(by_member.values())))
        for i, j in combinations(range(count), 2):
            pairs = {name: (c[i].score, c[j].score) for name, c in by_member.items()}
            if any(a is None or b is None for a, b in pairs.values()):
                continue
            for name, (a, b) in pairs.items():
                assert a is not None and b is not None
                self._signs[name].append((a > b) - (a < b))

    def summary(self) -> dict[str, Any]:
        """``{"one ~ other": {"pairs", "agree", "kappa"}}``; None where there is nothing to compare."""
        return {f"{a} ~ {b}": self._between(a, b) for a, b in combinations(self._signs, 2)}

    def _between(self, one: str, other: str) -> dict[str, Any]:
        from sklearn.metrics import cohen_kappa_score

        a, b = self._signs[one], self._signs[other]
        if not a:
            return {"pairs": 0, "agree": None, "kappa": None}
        alike = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
        kappa = float(cohen_kappa_score(a, b)) if len({*a, *b}) > 1 else None
        return {"pairs": len(a), "agree": alike, "kappa": kappa}
