"""Which comparisons of a prompt's k candidates are asked next.

- `all`: every pair.
- `random:N`: each candidate against N others, drawn: N rounds of a round-robin, in each of which every
  candidate meets one other (or, where k is odd, one of them sits out). N·⌊k/2⌋ pairs, which connect all.
- `tournament`: rounds that ask only what is undecided. Each ranks by what is answered so far and asks
  all neighbours whose order is not yet decided and who have not met; the end is when there are none.
- `best-worst`: only who is first and who is last. In each round those that may still be first meet by
  twos, the leader the runner-up and so on, and likewise those that may be last.

docs/ranking.md has what they cost and why these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from gavel.errors import InputError
from gavel.ranking import Strengths, bradley_terry
from gavel.records import digest

Pair = tuple[int, int]  # places of two candidates, the lower first
Answers = Mapping[Pair, float | None]  # probability that the first is better; None: no verdict

#: an order is decided when it is at least so probable that the one is stronger
DECIDED = 0.7

_DIGITS = 9  # of a probability: what differs beyond is rounding, and must not choose on another machine


def is_adaptive(plan: str) -> bool:
    """Whether what a plan asks next depends on what was answered."""
    return plan in _ADAPTIVE


def comparisons(k: int, plan: str, answered: Answers, *, seed_key: str) -> list[Pair]:
    """Pairs to ask next, sorted; none when the plan is finished.

    A pure function: it goes through the plan's rounds from the first, reading of `answered` what they
    ask, and stops at the first round that lacks an answer. Killed and called again in whatever state, a
    plan asks the same pairs in the end. Answers to pairs that no round asks are not looked at.

    Args:
        k: how many candidates.
        answered: all that was asked, both orders of a pair averaged.
        seed_key: of what is drawn; another key draws anew.

    Raises:
        InputError: an unknown plan, or one whose number is under 2, which would leave candidates without
            a chain of comparisons between them.
    """
    next_round = _ADAPTIVE.get(plan)
    if next_round is None:
        return [pair for pair in _fixed(k, plan, seed_key) if pair not in answered]
    draw = [digest("tournament", seed_key, i) for i in range(k)]
    known: dict[Pair, float | None] = {}
    while k > 1:
        games = [(i, j, p) for (i, j), p in sorted(known.items()) if p is not None]
        strengths = bradley_terry(k, games)
        order = sorted(range(k), key=lambda i: (-strengths.theta[i], draw[i]))
        asked = next_round(order, strengths, known)
        missing = sorted(pair for pair in asked if pair not in answered)
        if missing or not asked:
            return missing
        known.update((pair, answered[pair]) for pair in asked)
    return []


def _fixed(k: int, plan: str, seed_key: str) -> list[Pair]:
    """All pairs of a plan that does not depend on answers."""
    if plan == "all":
        return list(combinations(range(k), 2))
    name, _, number = plan.partition(":")
    if name != "random" or not (number.isascii() and number.isdigit() and int(number) >= 2):
        raise InputError(
            f"no plan {plan!r} of which pairs to ask",
            where="--pairs",
            hint="Known: all, random:N (N at least 2), tournament, best-worst.",
        )
    return _random(k, int(number), seed_key)


def _random(k: int, rounds: int, seed_key: str) -> list[Pair]:
    """The first of the k−1 rounds (k, where k is odd) of a round-robin in drawn order.

    The circle method: seats 0 … m−2 stand in a circle, in round r those meet whose seats sum to 2r
    modulo m−1, and seat r meets the one in the middle. Two rounds that follow one another make one
    cycle through all seats, so rounds 0 and 1 come first. More rounds only add pairs.
    """
    seats = sorted(range(k), key=lambda i: digest("seat", seed_key, i))
    circle = k - 1 + k % 2
    later = sorted(range(2, circle), key=lambda r: digest("round", seed_key, r))
    found = []
    for r in [*range(min(2, circle)), *later][:rounds]:
        meets = [((r + d) % circle, (r - d) % circle) for d in range(1, (circle + 1) // 2)]
        meets += [(r, k - 1)] if k % 2 == 0 else []  # nobody is in the middle of an odd number
        found += [_pair(seats[a], seats[b]) for a, b in meets]
    return sorted(found)


def _neighbours(order: Sequence[int], strengths: Strengths, known: Answers) -> list[Pair]:
    """Undecided neighbours in the ranking. A pair without a verdict says nothing: each of the two looks
    past the other to the next."""
    asked: set[Pair] = set()
    for place, i in enumerate(order):
        for side in (order[:place][::-1], order[place + 1 :]):
            j = next((j for j in side if known.get(_pair(i, j), 0.5) is not None), None)
            if j is not None and _pair(i, j) not in known and _undecided(strengths, i, j):
                asked.add(_pair(i, j))
    return sorted(asked)


def _contenders(order: Sequence[int], strengths: Strengths, known: Answers) -> list[Pair]:
    """Those that may be first against one another, then those that may be last; each meets one other."""
    asked: list[Pair] = []
    busy: set[int] = set()
    may_be_first = [i for i in order if i == order[0] or _undecided(strengths, i, order[0])]
    may_be_last = [i for i in order if i == order[-1] or _undecided(strengths, i, order[-1])]
    for group in (may_be_first, may_be_last[::-1]):
        for i, j in combinations(group, 2):
            if _pair(i, j) not in known and not busy & {i, j}:
                busy |= {i, j}
                asked.append(_pair(i, j))
    return asked


def _undecided(strengths: Strengths, i: int, j: int) -> bool:
    p = strengths.p_stronger(i, j)
    return round(max(p, 1 - p), _DIGITS) < DECIDED


def _pair(i: int, j: int) -> Pair:
    return (i, j) if i < j else (j, i)


_ADAPTIVE: dict[str, Callable[[Sequence[int], Strengths, Answers], list[Pair]]] = {
    "tournament": _neighbours,
    "best-worst": _contenders,
}
