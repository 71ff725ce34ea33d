"""Which pairs meet in a step, and which of them in a forward pass, so that they share the most work.

`ByPrompt` keeps the pairs of a prompt together in the random order (`--draw prompts`), as Ouyang et al. 2022
(arXiv 2203.02155, section 3.5) train on all comparisons of a prompt in one batch. `micro_batches` splits the
batch of a step, which changes nothing in what is optimised: a micro-batch of m pairs is as many pairs as
bring no more than the 2m sequences that m pairs bring at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import torch

from train import running
from train.data import PairRow
from train.unique import key_of


def places(count: int) -> datasets.Dataset:
    """A data set of rows' places alone: what is trained on is made of the rows themselves."""
    return datasets.Dataset.from_dict({running.ROW: range(count)})


def bare(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A collator that makes nothing of examples: `running.Carrying` adds their places."""
    return {}


class ByPrompt(running.ByLength):
    """The random order that Trainer draws, a prompt's pairs brought together where the first of them came,
    and those of one optimiser step arranged in the micro-batches that share most.

    Args:
        batch: pairs per optimiser step, over all processes. micro: pairs per micro-batch.
        together: False leaves the pairs of a step those that Trainer drew.
    """

    def __init__(self, rows: Sequence[PairRow], batch: int, micro: int, seed: int, together: bool) -> None:
        super().__init__([row.length for row in rows], batch, seed)
        self._rows, self._micro, self._together = rows, micro, together
        prompts: dict[bytes, int] = {}
        self._prompts = [prompts.setdefault(key_of(row.prompt_ids), len(prompts)) for row in rows]

    def __iter__(self) -> Iterator[int]:
        order = list(self._drawn)
        if self._together:
            first: dict[int, int] = {}
            for at, place in enumerate(order):
                first.setdefault(self._prompts[place], at)
            order.sort(key=lambda place: first[self._prompts[place]])
        for start in range(0, len(order), self._batch):
            for micro in micro_batches(self._rows, order[start : start + self._batch], self._micro):
                yield from micro


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


class SharedPairs(running.ExactRows):
    """Beside a TRL trainer of pairs: micro-batches are made anew from the rows of a step, by what they share.

    Attributes:
        together: whether the pairs of a prompt are drawn together. merge: whether completions that pairs have
            in common go through the model once. sizes: of the micro-batches since the last log, what their
            metrics are means over. counted_by: which of the sizes, of metrics that are no means over pairs.
    """

    together = True
    merge = True
    sizes: list[dict[str, float]]
    counted_by: Mapping[str, str] = MappingProxyType({})

    def _get_train_sampler(self: Any, *args: Any) -> Any:
        if not self.by_length:
            return super()._get_train_sampler(*args)
        micro = self.args.train_batch_size
        batch = micro * self.args.gradient_accumulation_steps * self.args.world_size
        return ByPrompt(self.rows, batch, micro, self.args.seed, self.together)

    def micro_batch(self, places: Sequence[int]) -> dict[str, Any]:
        """Rows as the inputs of a forward pass, their places under ROW."""
        raise NotImplementedError

    def arranged(self: Any, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same rows in as many micro-batches; where fewer do, the first are empty."""
        drawn = [batch[running.ROW].tolist() for batch in batches]
        # several processes gather metrics micro-batch by micro-batch, so that theirs must be of one size
        if self.by_length and self.accelerator.num_processes == 1:
            places = [place for micro in drawn for place in micro]
            split = micro_batches(self.rows, places, self.args.train_batch_size, self.merge)
            drawn = [[]] * (len(drawn) - len(split)) + split
        return [self.micro_batch(places) if places else _EMPTY for places in drawn]

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not len(inputs[running.ROW]):
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def log(self: Any, logs: dict[str, float], *args: Any) -> None:
        """TRL's metrics are means over micro-batches; here each counts by what it has."""
        for name, values in self._metrics["train"].items():
            if len(values) == len(self.sizes):
                weights = [sizes[self.counted_by.get(name, "pairs")] for sizes in self.sizes]
                values[:] = [float(np.average(values, weights=weights))]
        self.sizes.clear()
        super().log(logs, *args)  # type: ignore[misc]


_EMPTY = {running.ROW: torch.empty(0, dtype=torch.long)}
