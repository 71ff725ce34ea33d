"""What comparisons say about the completions of one prompt: verdicts in, strengths out.

A pair asked in both orders counts by its mean; a pair of which any question stayed without a verdict
counts not at all, since the order that was answered alone would speak for its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from gavel.ranking import Strengths, bradley_terry
from gavel.records import Completion, Judgment

Pair = tuple[str, str]  # two completion ids, sorted

#: (shown earlier, shown later, probability that the earlier is better; None: no verdict)
Outcome = tuple[str, str, float | None]


def distinct(completions: Iterable[Completion]) -> list[Completion]:
    """The completions worth comparing: of one text that of the lowest index, blank ones left out."""
    seen: dict[str, Completion] = {}
    for completion in sorted(completions, key=lambda c: (c.index, c.id)):
        if completion.text.strip():
            seen.setdefault(completion.text, completion)
    return list(seen.values())


def write_ranking(groups: Sequence[Sequence[int]]) -> str:
    """A ranking as a verdict: places in the order shown, from 1, best first.

    >>> write_ranking([[1], [0, 2]])
    '2 > 1 = 3'
    """
    return " > ".join(" = ".join(str(place + 1) for place in group) for group in groups)


def read_ranking(verdict: str) -> list[list[int]]:
    """The groups of `write_ranking`. Raises ValueError on a string that it did not make."""
    return [[int(place) - 1 for place in group.split(" = ")] for group in verdict.split(" > ")]


def outcomes(judgment: Judgment) -> list[Outcome]:
    """What one judgment says about each two of its completions."""
    ids = judgment.completion_ids
    if judgment.verdict is None or judgment.reason is not None:
        return [(a, b, None) for a, b in combinations(ids, 2)]
    if len(ids) == 2 and judgment.verdict == "tie":
        return [(ids[0], ids[1], 0.5)]
    if len(ids) == 2 and "p_first" in judgment.measures:
        return [(ids[0], ids[1], judgment.measures["p_first"])]
    rank = {place: r for r, group in enumerate(read_ranking(judgment.verdict)) for place in group}
    return [
        (ids[i], ids[j], 0.5 if rank[i] == rank[j] else float(rank[i] < rank[j]))
        for i, j in combinations(range(len(ids)), 2)
    ]


def by_order(judgments: Iterable[Judgment]) -> dict[Pair, dict[bool, list[float | None]]]:
    """Pair → whether its first id was shown earlier → the probabilities that the first id is better."""
    found: dict[Pair, dict[bool, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for judgment in _counting(judgments):
        for earlier, later, p in outcomes(judgment):
            if earlier < later:
                found[earlier, later][True].append(p)
            else:
                found[later, earlier][False].append(None if p is None else 1 - p)
    return found


def _counting(judgments: Iterable[Judgment]) -> list[Judgment]:
    """The judgments that count: of one question the answered ones, if it was ever answered (a refusal
    for want of room is answered with more of it); of rankings that cannot be read neither they nor
    those of the reverse order, which would speak for places."""
    by_question: dict[tuple[tuple[str, ...], str], list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        by_question[judgment.completion_ids, judgment.aspect].append(judgment)
    kept = {q: [j for j in found if _answered(j)] or found for q, found in by_question.items()}
    silent = {q for q, found in kept.items() if len(q[0]) > 2 and not _answered(found[0])}
    silent |= {(ids[::-1], aspect) for ids, aspect in silent}
    return [j for q, found in kept.items() if q not in silent for j in found]


def _answered(judgment: Judgment) -> bool:
    return judgment.verdict is not None and judgment.reason is None


def settled(orders: Mapping[bool, Sequence[float | None]], *, both_orders: bool = False) -> float | None:
    """The mean over the orders of the mean in each; None where any question has no verdict, or where
    both orders were to be asked and one is missing."""
    if both_orders and len(orders) < 2:
        return None
    means = [_mean(values) for values in orders.values()]
    return None if None in means else _mean(means)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(sorted(known)) / len(known) if known and len(known) == len(values) else None


def disagree(orders: Mapping[bool, Sequence[float | None]]) -> bool | None:
    """Whether the two orders prefer different completions; None where they were not both answered.

    A tie in one order and a preference in the other is a disagreement too.
    """
    if len(orders) < 2:
        return None
    one, other = _mean(orders[True]), _mean(orders[False])
    if one is None or other is None:
        return None
    return _sign(one) != _sign(other)


def _opposed(orders: Mapping[bool, Sequence[float | None]]) -> bool:
    one, other = _mean(orders[True]), _mean(orders[False])
    return one is not None and other is not None and _sign(one) * _sign(other) < 0


def _sign(p: float) -> int:
    return (p > 0.5) - (p < 0.5)


@dataclass(frozen=True)
class Standing:
    """Completions of one prompt after all their comparisons.

    places: completion id → its place in `strengths`. direct: pairs that were asked about.
    disputed: pairs whose orders disagree. judgment_ids: completion id → the judgments it stood in.
    asked_both: how many pairs were answered in both orders; opposed: in how many of those each order
    prefers another (a tie in one is no opposite).
    """

    places: Mapping[str, int]
    strengths: Strengths
    direct: Mapping[Pair, float | None]
    disputed: frozenset[Pair]
    judgment_ids: Mapping[str, tuple[str, ...]]
    asked_both: int
    opposed: int

    def score(self, completion_id: str) -> float:
        return float(self.strengths.theta[self.places[completion_id]])

    def p(self, one: str, other: str) -> float:
        """Probability that `one` is better: of two the judge's own, of more the Bradley-Terry model's,
        which all comparisons together support."""
        pair = (min(one, other), max(one, other))
        asked = self.direct.get(pair)
        if len(self.places) == 2 and asked is not None:
            return asked if one == pair[0] else 1 - asked
        return self.strengths.p(self.places[one], self.places[other])


def standing(judgments: Sequence[Judgment], *, both_orders: bool = False) -> Standing | None:
    """Bradley-Terry strengths from comparisons; None where no pair has a verdict.

    Only completions that stand in a pair with a verdict have a place.

    both_orders: whether every pair was to be asked in both; one that was asked in one then has none.
    """
    orders = by_order(judgments)
    direct = {pair: settled(found, both_orders=both_orders) for pair, found in orders.items()}
    ids = sorted({one for pair, p in direct.items() if p is not None for one in pair})
    if not ids:
        return None
    places = {one: place for place, one in enumerate(ids)}
    games = [
        (places[a], places[b], p)
        for (a, b), found in sorted(orders.items())
        if direct[a, b] is not None
        for values in found.values()
        for p in values
        if p is not None
    ]
    asked: dict[str, list[str]] = defaultdict(list)
    for judgment in judgments:
        for one in judgment.completion_ids:
            asked[one].append(judgment.id)
    verdicts = {pair: disagree(found) for pair, found in orders.items()}
    return Standing(
        places,
        bradley_terry(len(ids), games),
        direct,
        frozenset(pair for pair, differs in verdicts.items() if differs),
        {one: tuple(sorted(found)) for one, found in asked.items()},
        sum(differs is not None for differs in verdicts.values()),
        sum(_opposed(orders[pair]) for pair, differs in verdicts.items() if differs),
    )
