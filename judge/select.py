"""Pure selection: the scored completions of one prompt → pairs of (chosen, rejected).

A strategy proposes pairs, filters drop some of them, and everything dropped is counted by name.
Nothing here depends on the order in which completions were recorded.

The strategies read only scores; where those come from, `gavel.scores` knows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gavel import scores
from gavel.errors import InputError
from gavel.records import digest
from gavel.scores import Candidate


class Strategy(StrEnum):
    """Which pairs of a prompt are proposed."""

    BEST_WORST = "best-worst"
    BEST_RANDOM = "best-random"
    ALL = "all"
    TOP_BOTTOM = "top-bottom"


class Drop(StrEnum):
    """Why something is no pair, and what is counted: completions, pairs or prompts."""

    UNSCORED = scores.UNSCORED  # completions without a usable score in every aspect
    EMPTY = scores.EMPTY  # completions with nothing but white space
    DUPLICATE = scores.DUPLICATE  # completions with the text of another one
    TOO_FEW = "too_few"  # prompts with fewer than two completions left
    TIE = "tie"  # proposed pairs of equal score
    DISPUTED = "disputed"  # proposed pairs whose two orders disagree
    MIN_MARGIN = "min_margin"  # proposed pairs under the minimum margin
    MAX_LENGTH_RATIO = "max_length_ratio"  # proposed pairs of too different lengths
    PER_PROMPT = "per_prompt"  # pairs over the number wanted of a prompt


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to select.

    k: how many from the top and from the bottom (top-bottom only).
    min_margin: smallest difference of scores, in the judge's own unit.
    max_length_ratio: characters of the longer text over those of the shorter; None for no limit.
    per_prompt: at most so many pairs of a prompt, the widest margins first; None for no limit.
    disputed: what becomes of a pair whose two orders disagree: "soften" keeps it with the probability
        of both together, "drop" drops it.
    seed: of best-random.

    Raises:
        InputError: a value out of its range; the option is named.
    """

    strategy: str = Strategy.BEST_WORST
    k: int = 2
    min_margin: float = 0.0
    max_length_ratio: float | None = None
    per_prompt: int | None = None
    disputed: str = "soften"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in list(Strategy):
            raise InputError(
                f"no strategy {self.strategy!r}", where="--strategy", hint=f"Known: {', '.join(Strategy)}."
            )
        if self.disputed not in ("soften", "drop"):
            raise InputError(f"{self.disputed!r} is neither soften nor drop", where="--disputed")
        if self.k < 1:
            raise InputError(f"must be at least 1, not {self.k}", where="--k")
        if not (math.isfinite(self.min_margin) and self.min_margin >= 0):
            raise InputError(f"must be at least 0, not {self.min_margin}", where="--min-margin")
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1:
            raise InputError(
                f"must be at least 1 (longer over shorter), not {self.max_length_ratio}",
                where="--max-length-ratio",
            )
        if self.per_prompt is not None and self.per_prompt < 1:
            raise InputError(f"must be at least 1, not {self.per_prompt}", where="--per-prompt")

    def most(self, n: int) -> int:
        """How many pairs n completions of one prompt make at most."""
        found = {Strategy.ALL: n * (n - 1) // 2, Strategy.TOP_BOTTOM: min(self.k, n // 2) ** 2}
        return min(found.get(Strategy(self.strategy), min(1, n // 2)), self.per_prompt or n * n)


Proposal = tuple[Candidate, Candidate]  # chosen, rejected


def p_better(one: Candidate, other: Candidate) -> float | None:
    """Probability that `one` is better than `other`, None where the method gives none.

    From comparisons: `Standing.p`. From log-odds (reward models, DPO's own reward): their difference
    through the sigmoid (Bradley-Terry). From ratings with a standard deviation: the normal
    approximation Φ((a − b) / √(sd_a² + sd_b²)).
    """
    if one.standing is not None and one.standing is other.standing:
        return one.standing.p(one.completion.id, other.completion.id)
    if one.log_odds is not None and other.log_odds is not None:
        return 0.5 * (1 + math.tanh(0.5 * (one.log_odds - other.log_odds)))
    if one.sd is not None and other.sd is not None and (spread := math.hypot(one.sd, other.sd)) > 0:
        return 0.5 * (1 + math.erf((one.number - other.number) / (spread * math.sqrt(2))))
    return None


def is_disputed(one: Candidate, other: Candidate) -> bool:
    """Whether the two orders in which they were compared disagree."""
    if one.standing is None:
        return False
    a, b = sorted((one.completion.id, other.completion.id))
    return (a, b) in one.standing.disputed


def select(
    prompt_id: str, ranked: Sequence[Candidate], rules: Selection, dropped: Counter[str]
) -> list[Proposal]:
    """The pairs of one prompt, widest margin first.

    Args:
        ranked: what `gavel.scores.eligible` returns.
        dropped: reasons are counted here.
    """
    if len(ranked) < 2:
        dropped[Drop.TOO_FEW] += 1
        return []
    kept = []
    for pair in propose(prompt_id, ranked, rules):
        reason = objection(pair, rules)
        if reason is None:
            kept.append(pair)
        else:
            dropped[reason] += 1
    kept.sort(key=lambda pair: (-margin(pair), pair[0].completion.id, pair[1].completion.id))
    if rules.per_prompt is not None and len(kept) > rules.per_prompt:
        dropped[Drop.PER_PROMPT] += len(kept) - rules.per_prompt
        kept = kept[: rules.per_prompt]
    return kept


def propose(prompt_id: str, ranked: Sequence[Candidate], rules: Selection) -> list[Proposal]:
    """The pairs that a strategy wants, before any filter. ranked: best first, at least two."""
    best, worst = ranked[0], ranked[-1]
    if rules.strategy == Strategy.BEST_WORST:
        return [(best, worst)]
    if rules.strategy == Strategy.BEST_RANDOM:
        lower = [c for c in ranked[1:] if not same_score(c.number, best.number)]
        if not lower:
            return [(best, worst)]  # a tie, and counted as one
        return [(best, lower[int(digest("best-random", rules.seed, prompt_id), 16) % len(lower)])]
    if rules.strategy == Strategy.ALL:
        return [(ranked[i], ranked[j]) for i in range(len(ranked)) for j in range(i + 1, len(ranked))]
    k = min(rules.k, len(ranked) // 2)  # top and bottom never overlap
    return [(top, bottom) for top in ranked[:k] for bottom in ranked[-k:]]


def objection(pair: Proposal, rules: Selection) -> Drop | None:
    """Why a proposed pair is none."""
    chosen, rejected = pair
    if same_score(chosen.number, rejected.number):
        return Drop.TIE
    if rules.disputed == "drop" and is_disputed(chosen, rejected):
        return Drop.DISPUTED
    short_of = margin(pair) < rules.min_margin
    if short_of and not math.isclose(margin(pair), rules.min_margin, rel_tol=1e-9):  # 0.3 - 0.2 >= 0.1
        return Drop.MIN_MARGIN
    if rules.max_length_ratio is not None:
        shorter, longer = sorted((len(chosen.completion.text), len(rejected.completion.text)))
        if longer > rules.max_length_ratio * shorter:
            return Drop.MAX_LENGTH_RATIO
    return None


def margin(pair: Proposal) -> float:
    """Score of chosen minus score of rejected."""
    return pair[0].number - pair[1].number


def same_score(a: float, b: float) -> bool:
    """Equal up to what floating-point means and batching in the engine leave behind."""
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def is_swapped(seed: int, prompt_id: str, pair: Proposal) -> bool:
    """The label-shuffle control: a fair coin per pair, the same in every run."""
    ids = sorted(candidate.completion.id for candidate in pair)
    return int(digest("shuffle-labels", seed, prompt_id, *ids), 16) % 2 == 1
