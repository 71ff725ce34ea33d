"""Which pairs a person should look at: a stratified sample, weighted to the doubtful ones."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gavel.records import PreferencePair
from gavel.scores import Candidate
from rounds.report.shapes import Example

#: why a pair is doubtful, the most doubtful first
JUDGES = "judges disagree"  # a judging pass prefers the rejected one
ORDERS = "orders disagree"  # the two orders of its comparison prefer different ones
SMALL = "small margin"  # among the smallest tenth of its set
DOUBTS = (JUDGES, ORDERS, SMALL)
_BITS = {JUDGES: 1, ORDERS: 2}

SMALL_SHARE, WIDE_SHARE = 0.1, 0.05
#: stratum → its part of the sample; a pair belongs to the first that it fits
SHARES = {JUDGES: 0.3, ORDERS: 0.25, SMALL: 0.25, "ordinary": 0.15, "wide margin": 0.05}


@dataclass(frozen=True, slots=True)
class Pick:
    """A pair that was drawn. prompt: place of its prompt in the run; pair: its place among that prompt's."""

    prompt: int
    pair: int
    stratum: str
    doubts: tuple[str, ...]


class PairTally:
    """The pairs of one set, in the order they come: 15 bytes a pair."""

    def __init__(self) -> None:
        self._margins: array[float] = array("d")
        self._prompts: array[int] = array("I")
        self._places: array[int] = array("H")
        self._flags: array[int] = array("B")
        self._chars = [0, 0]
        self._longer = 0
        self.prompts = self.without_pair = 0

    def __len__(self) -> int:
        return len(self._margins)

    @property
    def margins(self) -> array[float]:
        return self._margins

    @property
    def chars(self) -> tuple[float, float]:
        """Mean characters of chosen and rejected."""
        n = max(1, len(self))
        return self._chars[0] / n, self._chars[1] / n

    @property
    def longer(self) -> float:
        """Share of the pairs whose chosen text is the longer one."""
        return self._longer / max(1, len(self))

    def add(
        self,
        prompt: int,
        pairs: Sequence[PreferencePair],
        texts: dict[str, str],
        passes: Sequence[dict[str, Candidate]],
    ) -> None:
        """The pairs of one prompt.

        Args:
            prompt: its place in the run. texts: completion id → text.
            passes: of each judging pass, completion id → what it makes of it.
        """
        self.prompts += 1
        self.without_pair += not pairs
        for place, pair in enumerate(pairs[:65536]):
            self._margins.append(pair.margin)
            self._prompts.append(prompt)
            self._places.append(place)
            found = doubts_of(pair, passes)
            self._flags.append(sum(_BITS[doubt] for doubt in found))
            chosen, rejected = (len(texts.get(one, "")) for one in (pair.chosen_id, pair.rejected_id))
            self._chars[0] += chosen
            self._chars[1] += rejected
            self._longer += chosen > rejected

    def doubtful(self) -> dict[str, int]:
        """Doubt → pairs."""
        flags, small = np.asarray(self._flags), self._small()
        counted = {doubt: int(((flags & bit) > 0).sum()) for doubt, bit in _BITS.items()}
        return counted | {SMALL: int(small.sum())}

    def _small(self) -> np.ndarray:
        """Which pairs have a small margin: the smallest tenth by rank, so that ties do not make it all."""
        margins = np.asarray(self._margins)
        small = np.zeros(len(margins), dtype=bool)
        small[np.argsort(margins, kind="stable")[: int(np.ceil(SMALL_SHARE * len(margins)))]] = True
        return small

    def draw(self, count: int, seed: int = 0) -> list[Pick]:
        """At most `count` pairs: a share of each stratum (`SHARES`), what one lacks going to the others in
        turn. The most doubtful first, in a stratum by margin; the same pairs and seed give the same draw."""
        margins, flags, small = np.asarray(self._margins), np.asarray(self._flags), self._small()
        wide = np.zeros(len(margins), dtype=bool)
        most = int(np.floor(WIDE_SHARE * len(margins)))
        wide[np.argsort(-margins, kind="stable")[:most]] = True
        stratum = np.select(
            [(flags & 1) > 0, (flags & 2) > 0, small, wide], [0, 1, 2, 4], default=3
        )  # places in SHARES
        members = [np.flatnonzero(stratum == number) for number in range(len(SHARES))]
        quotas = allot(count, list(SHARES.values()), [len(found) for found in members])
        random = np.random.default_rng(seed)
        names, picks = list(SHARES), []
        for number, (found, quota) in enumerate(zip(members, quotas, strict=True)):
            drawn = random.choice(found, quota, replace=False) if quota else found[:0]
            for place in sorted(drawn.tolist(), key=lambda i: (margins[i], i)):
                doubts = [doubt for doubt, bit in _BITS.items() if flags[place] & bit]
                doubts += [SMALL] if small[place] else []
                picks.append(Pick(self._prompts[place], self._places[place], names[number], tuple(doubts)))
        return picks


def doubts_of(pair: PreferencePair, passes: Sequence[dict[str, Candidate]]) -> list[str]:
    """What the judging passes have against a pair, the size of its margin aside."""
    found = []
    both = (min(pair.chosen_id, pair.rejected_id), max(pair.chosen_id, pair.rejected_id))
    for made in passes:
        chosen, rejected = made.get(pair.chosen_id), made.get(pair.rejected_id)
        if chosen is None or rejected is None:
            continue
        if chosen.score is not None and rejected.score is not None and chosen.score < rejected.score:
            found.append(JUDGES)
        if chosen.standing is not None and both in chosen.standing.disputed:
            found.append(ORDERS)
    return list(dict.fromkeys(found))


def doubtfulness(example: Example) -> int:
    """The rank of an example's gravest doubt, 0 the gravest; those without doubt come last."""
    return min((DOUBTS.index(doubt) for doubt in example.doubts), default=len(DOUBTS))


def allot(count: int, shares: Sequence[float], available: Sequence[int]) -> list[int]:
    """Splits `count` by shares, none above what is available, what is left over going round in turn.

    >>> allot(10, [0.5, 0.3, 0.2], [100, 1, 100])
    [6, 1, 3]
    """
    given = [min(int(count * share), n) for share, n in zip(shares, available, strict=True)]
    left = min(count, sum(available)) - sum(given)
    while left > 0:
        for number, n in enumerate(available):
            if left and given[number] < n:
                given[number] += 1
                left -= 1
    return given
