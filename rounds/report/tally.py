"""Counts while a run streams by: numbers only, 8 bytes a value, never a text."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gavel.correlation import rank_correlation
from gavel.packed import count_of
from gavel.records import Completion, Judgment
from gavel.scores import Candidate, is_usable
from gavel.standing import by_order, disagree, outcomes
from rounds.report.shapes import AgainstLength, Bin, Cell, Histogram, Orders, PassReport, Texts

#: what the two orders of a pair say together
SAME, FIRST, LATER, TIE, TIES = "the same one", "whichever is first", "whichever is second", "a tie in one order", "ties"  # fmt: skip  # noqa: E501
OUTCOMES = (SAME, FIRST, LATER, TIE, TIES)

BARS = 40
DISCRETE = 24  # up to so many whole numbers each have a bar of their own
ACROSS, UP = 26, 22  # cells of a heat map
_LISTED = 12  # reasons, judges and models that are told apart
OTHER = "others"


def histogram(values: array[float]) -> Histogram | None:
    """The spread of finite values; None where there is none.

    Whole numbers of a narrow range (ratings) have a bar each. Else the bars span the middle 99 % of the
    values, and the outermost hold the rest, so that a few far values do not flatten the picture.
    """
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return None
    low, high = float(numbers.min()), float(numbers.max())
    below = above = 0
    if high - low < DISCRETE and bool(np.all(numbers == np.round(numbers))):
        counts = np.bincount((numbers - low).astype(np.int64))
        bins = tuple(Bin(low + i, low + i, int(n)) for i, n in enumerate(counts.tolist()))
    else:
        edges = _edges(numbers, BARS)
        counts, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), edges)
        below, above = int((numbers < edges[0]).sum()), int((numbers > edges[-1]).sum())
        bins = tuple(
            Bin(a, b, n)
            for a, b, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        )
    q05, median, q95 = np.quantile(numbers, (0.05, 0.5, 0.95)).tolist()
    return Histogram(
        bins=bins,
        n=int(numbers.size),
        mean=float(numbers.mean()),
        sd=float(numbers.std(ddof=1)) if numbers.size > 1 else 0.0,
        quantiles={"min": low, "q05": q05, "median": median, "q95": q95, "max": high},
        below=below,
        above=above,
    )


def against_length(scores: array[float], lengths: array[int]) -> AgainstLength | None:
    """Scores against lengths as a heat map, with the mean score by range of lengths; None without both."""
    y, x = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    kept = np.isfinite(y)
    x, y = x[kept], y[kept]
    if not x.size:
        return None
    across, up = _edges(x, ACROSS), _edges(y, UP)
    at = np.clip(np.searchsorted(across, x, "right") - 1, 0, len(across) - 2)
    on = np.clip(np.searchsorted(up, y, "right") - 1, 0, len(up) - 2)
    flat = np.bincount(at * (len(up) - 1) + on, minlength=(len(across) - 1) * (len(up) - 1))
    table = flat.reshape(len(across) - 1, len(up) - 1)
    cells = tuple(
        Cell(float(across[i]), float(across[i + 1]), float(up[j]), float(up[j + 1]), int(table[i, j]))
        for i, j in np.argwhere(table).tolist()
    )
    sums, counts = np.bincount(at, y, len(across) - 1), np.bincount(at, minlength=len(across) - 1)
    means = tuple(
        (float(across[i]), float(across[i + 1]), float(sums[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts).tolist()
    )
    return AgainstLength(cells, means, rank_correlation(y.tolist(), x.tolist()), int(x.size))


def _edges(values: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """Edges of at most so many cells over the middle 99 %; of whole numbers each a whole number, so that no
    cell holds fewer of them than its neighbour."""
    low, high = np.quantile(values, (0.005, 0.995)).tolist()
    if not low < high:
        low, high = float(values.min()), float(values.max())
    if bool(np.all(values == np.round(values))):
        low, width = float(np.floor(low)), max(1, int(np.ceil((np.floor(high) + 1 - np.floor(low)) / cells)))
        return np.arange(low, np.floor(high) + width + 0.5, width)
    edges = np.linspace(low, high, cells + 1)
    if not np.all(np.diff(edges) > 0):  # so close that no number lies between
        return np.array([low, np.nextafter(high, np.inf)])
    return edges


def _sampler(completion: Completion) -> str:
    """Who wrote a completion; its weights too, since rounds load new ones into the same model."""
    named = [completion.model, completion.weights and f"weights {completion.weights[:8]}"]
    return ", ".join(filter(None, named)) or "not named"


class TextTally:
    """Of a run's completions."""

    def __init__(self) -> None:
        self.prompts = self._cut = self._empty = self._distinct = 0
        self._chars: array[int] = array("I")
        self._tokens = [0, 0]  # of how many completions; tokens in all
        self._models: Counter[str] = Counter()

    def add(self, completions: Sequence[Completion]) -> None:
        """The completions of one prompt."""
        self.prompts += 1
        self._distinct += len({c.text for c in completions})
        for completion in completions:
            self._chars.append(len(completion.text))
            self._cut += completion.finish_reason == "length"
            self._empty += not completion.text.strip()
            _count(self._models, _sampler(completion))
            tokens = tokens_of(completion)
            if tokens is not None:
                self._tokens[0] += 1
                self._tokens[1] += tokens

    def report(self) -> Texts:
        known, tokens = self._tokens
        return Texts(
            prompts=self.prompts,
            completions=len(self._chars),
            cut_off=self._cut,
            empty=self._empty,
            distinct=self._distinct,
            chars=histogram(array("d", self._chars)),
            tokens=tokens / known if known else None,
            models=dict(self._models.most_common()),
        )


def tokens_of(completion: Completion) -> int | None:
    """How many tokens were sampled, None where not known."""
    return None if completion.token_ids is None else count_of(completion.token_ids)


class PassTally:
    """Of one judging pass."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._methods: Counter[str] = Counter()
        self._judges: Counter[str] = Counter()
        self._unusable: Counter[str] = Counter()
        self._judgments = self._unscored = 0
        self._aspects: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self._scores: array[float] = array("d")  # of the scored completions
        self._lengths: array[int] = array("I")
        self._places: dict[str, list[int]] = defaultdict(
            lambda: [0, 0, 0, 0]
        )  # preferred: first, tie, second, none
        self._outcomes: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, judgments: Sequence[Judgment], candidates: Sequence[Candidate]) -> None:
        """What the pass says of one prompt."""
        compared: dict[str, list[Judgment]] = defaultdict(list)
        for judgment in judgments:
            self._judgments += 1
            _count(self._methods, judgment.method)
            _count(self._judges, judgment.judge)
            if not is_usable(judgment):
                _count(self._unusable, judgment.reason or "no score")
            elif len(judgment.completion_ids) == 1:
                assert judgment.score is not None
                self._aspects[judgment.aspect].append(judgment.score)
            if len(judgment.completion_ids) > 1:
                compared[judgment.aspect].append(judgment)
        for aspect, asked in compared.items():
            self._add_orders(aspect, asked)
        for candidate in candidates:
            if candidate.score is None:
                self._unscored += 1
            else:
                self._scores.append(candidate.score)
                self._lengths.append(len(candidate.completion.text))

    def _add_orders(self, aspect: str, judgments: Sequence[Judgment]) -> None:
        places = self._places[aspect]
        for judgment in judgments:
            for _, _, p in outcomes(judgment):
                places[3 if p is None else 0 if p > 0.5 else 1 if p == 0.5 else 2] += 1
        for found in by_order(judgments).values():
            if disagree(found) is not None:
                self._outcomes[aspect][_outcome(_mean(found[True]), _mean(found[False]))] += 1

    def report(self, *, finished: bool) -> PassReport:
        return PassReport(
            name=self.name,
            methods=tuple(self._methods),
            judges=tuple(self._judges),
            judgments=self._judgments,
            completions=len(self._scores) + self._unscored,
            unscored=self._unscored,
            unusable=dict(self._unusable.most_common()),
            scores={
                aspect: made
                for aspect, values in sorted(self._aspects.items())
                if (made := histogram(values)) is not None
            },
            combined=histogram(self._scores),
            against_length=against_length(self._scores, self._lengths),
            orders=tuple(
                Orders(aspect, first, tie, second, silent, {o: self._outcomes[aspect][o] for o in OUTCOMES})
                for aspect, (first, tie, second, silent) in sorted(self._places.items())
            ),
            finished=finished,
        )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(sorted(known)) / len(known)


def _outcome(shown_first: float, shown_second: float) -> str:
    """Of the probabilities that one completion is better, where it is shown first and where second."""
    one, other = ((p > 0.5) - (p < 0.5) for p in (shown_first, shown_second))
    if one == other:
        return SAME if one else TIES
    if one and other:
        return FIRST if one > 0 else LATER
    return TIE


def _count(counter: Counter[str], key: str) -> None:
    counter[key if key in counter or len(counter) < _LISTED else OTHER] += 1
