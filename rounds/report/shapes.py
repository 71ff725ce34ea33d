"""What a report says, before it is drawn: plain values, made by `collect`, read by `sections` and `page`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Bin:
    """A bar of a histogram: values from `start` to `end`, the end left out; equal for a single value."""

    start: float
    end: float
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """How values are spread.

    bins: in order; those outermost also hold what lies beyond. below, above: how many that is.
    n, mean, sd, quantiles: of all values, exact. quantiles: "q05", "median", "q95", "min", "max".
    """

    bins: tuple[Bin, ...]
    n: int
    mean: float
    sd: float
    quantiles: dict[str, float]
    below: int = 0
    above: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """Values of one rectangle of a heat map: x from `x` to `x2`, y from `y` to `y2`."""

    x: float
    x2: float
    y: float
    y2: float
    count: int


@dataclass(frozen=True, slots=True)
class AgainstLength:
    """Scores against lengths in characters.

    cells: those that hold something. means: (length from, to, mean score, completions) by range of lengths.
    rho: Spearman's rank correlation, None where either does not vary.
    """

    cells: tuple[Cell, ...]
    means: tuple[tuple[float, float, float, int], ...]
    rho: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Orders:
    """What a pass's comparisons say of places, for one aspect.

    first, tie, second: comparisons that prefer the completion shown earlier, neither, the later one.
    outcomes: what both orders of a pair say together → pairs; the keys are `tally.OUTCOMES`.
    unusable: comparisons without a verdict.
    """

    aspect: str
    first: int
    tie: int
    second: int
    unusable: int
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class PassReport:
    """One judging pass.

    scores: aspect → its scores, of every usable judgment of one completion. combined: what pairs are made
    of, the mean over the aspects or a strength. against_length: of the combined score.
    unusable: reason → judgments. orders: by aspect, of comparisons.
    """

    name: str
    methods: tuple[str, ...]
    judges: tuple[str, ...]
    judgments: int
    completions: int
    unscored: int
    unusable: dict[str, int]
    scores: dict[str, Histogram]
    combined: Histogram | None
    against_length: AgainstLength | None
    orders: tuple[Orders, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class PairSet:
    """One set of pairs. longer: share of pairs whose chosen text has more characters than the rejected.
    chars: mean characters of chosen and rejected. doubtful: reason → pairs, the keys are `sample.DOUBTS`."""

    name: str
    judging: str | None
    pairs: int
    prompts: int
    without_pair: int
    margins: Histogram | None
    longer: float
    chars: tuple[float, float]
    doubtful: dict[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two passes order the same pairs of completions alike. kappa: Cohen's, None where undefined."""

    one: str
    other: str
    pairs: int
    agree: float | None
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """A training metric: (step, value), thinned."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """The completions of a run. distinct: texts that are unlike the others of their prompt.
    chars: their lengths. tokens: mean number of sampled tokens, None where not known."""

    prompts: int
    completions: int
    cut_off: int
    empty: int
    distinct: int
    chars: Histogram | None
    tokens: float | None
    models: dict[str, int]


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run directory, or a trained model's. `label` is how the page calls it ("round 2"). trained: what a
    training said of a model when it ended."""

    label: str
    texts: Texts | None
    passes: tuple[PassReport, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    pair_sets: tuple[PairSet, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    trained: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning of a text, or all of it. chars: of the whole text."""

    text: str
    chars: int

    @classmethod
    def of(cls, text: str, chars: int) -> Excerpt:
        """At most the first `chars` characters."""
        return cls(text[:chars], len(text))

    def shorter(self, chars: int) -> Excerpt:
        return Excerpt(self.text[:chars], self.chars)

    @property
    def is_cut(self) -> bool:
        return len(self.text) < self.chars


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two completions of an example."""

    id: str
    text: Excerpt
    tokens: int | None
    score: float | None
    finish: str | None
    thinking: Excerpt | None


@dataclass(frozen=True, slots=True)
class Said:
    """A judgment of an example. shown: "chosen", "rejected", or both in the order shown ("rejected, chosen").
    answer: the verdict or score, or the reason why there is neither."""

    judging: str
    judge: str
    aspect: str
    shown: str
    answer: str
    raw: Excerpt | None
    thinking: Excerpt | None


@dataclass(frozen=True, slots=True)
class Example:
    """A pair to look at. prompt: (role, text) by turns. label: of its run. doubts: of `sample.DOUBTS`.
    kind: "pair", or what stands in for one: "best and worst" of a judged prompt, "two answers"."""

    label: str
    kind: str
    id: str
    prompt_id: str
    prompt: tuple[tuple[str, Excerpt], ...]
    references: tuple[Excerpt, ...]
    chosen: Side
    rejected: Side
    margin: float | None
    p_chosen: float | None
    doubts: tuple[str, ...]
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """A line of figures.jsonl. figures: name → value, interval, n. gates: as the loop recorded them."""

    round: int
    model: str
    start: str | None
    learning_rate: float | None
    seconds: dict[str, float]
    figures: dict[str, dict[str, Any]]
    gates: tuple[dict[str, Any], ...]
    decision: str | None
    best: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """All of a page. examples: the most doubtful first. offered: their kind → what they were drawn from."""

    title: str
    path: str
    runs: tuple[RunReport, ...]
    rounds: tuple[RoundFigures, ...] = ()
    examples: tuple[Example, ...] = ()
    offered: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())
