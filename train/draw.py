"""Which pairs meet in a step, and which of them in a forward pass, so that they share the most work.

`ByPrompt` keeps the pairs of a prompt together in the random order (`--draw prompts`), as Ouyang et al. 2022
(arXiv 2203.02155, section 3.5) train on all comparisons of a prompt in one batch. `micro_batches` splits the
batch of a step, which changes nothing in what is optimised: a micro-batch of m pairs is as many pairs as
bring no more than the 2m sequences that m pairs bring at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from train import exact
from train.data import PairRow
from train.unique import key_of


class ByPrompt(exact.Drawn):
    """The random order that Trainer draws, a prompt's pairs brought together where the first of them came."""

    def __init__(self, rows: Sequence[PairRow], seed: int) -> None:
        super().__init__(len(rows), seed)
        prompts: dict[bytes, int] = {}
        self._prompts = [prompts.setdefault(key_of(row.prompt_ids), len(prompts)) for row in rows]

    def __iter__(self) -> Iterator[int]:
        order = list(super().__iter__())
        first: dict[int, int] = {}
        for at, place in enumerate(order):
            first.setdefault(self._prompts[place], at)
        yield from sorted(order, key=lambda place: first[self._prompts[place]])


def micro_batches(
    rows: Sequence[PairRow], places: Sequence[int], micro: int, merge: bool = True
) -> list[list[int]]:
    """Splits pairs into micro-batches of at most 2 · micro unique sequences: prompts by length, the longest
    first, and a prompt's pairs by blocks of `micro` completions, so that all pairs between two blocks fit.

    Args:
        places: which of the rows. merge: False counts two sequences for every pair.
    """
    prompts: dict[bytes, list[int]] = {}
    for place in sorted(places, key=lambda place: -rows[place].length):
        prompts.setdefault(key_of(rows[place].prompt_ids), []).append(place)
    split: list[list[int]] = []
    room = 0
    for group in prompts.values():
        numbers: dict[Any, int] = {}  # of this prompt's completions
        named: dict[int, tuple[int, int]] = {}  # by each pair, the lower number first
        for place in group:
            both = (rows[place].chosen_ids, rows[place].rejected_ids)
            keys = [key_of(ids) if merge else (place, side) for side, ids in enumerate(both)]
            low, high = sorted(numbers.setdefault(key, len(numbers)) for key in keys)
            named[place] = low, high
        here: set[int] = set()  # completions of this prompt in the micro-batch under way
        for place in sorted(named, key=lambda place: _block(named[place], micro)):
            low, high = named[place]
            if len({low, high} - here) > room:
                split.append([])
                here, room = set(), 2 * micro
            split[-1].append(place)
            room -= len({low, high} - here)
            here |= {low, high}
    return split


def _block(both: tuple[int, int], size: int) -> tuple[int, ...]:
    """Where two completions of a prompt stand: by their blocks, then by themselves."""
    low, high = both
    return high // size, low // size, high, low


class SharedPairs(exact.ExactRows):
    """Beside a TRL trainer of pairs: micro-batches are made by what their pairs share.

    Attributes:
        together: whether the pairs of a prompt are drawn together. merge: whether completions that pairs have
            in common go through the model once.
    """

    together = True
    merge = True

    def order(self: Any) -> exact.Drawn:
        return ByPrompt(self.rows, self.args.seed) if self.by_length and self.together else super().order()

    def arranged(self: Any, places: list[int]) -> list[list[int]]:
        if not self.by_length:
            return super().arranged(places)  # type: ignore[no-any-return]
        return micro_batches(self.rows, places, self.args.train_batch_size, self.merge)
