"""The figures of a policy on held-out prompts that need no judge: pure functions of completions.

All sizes are comparable between rounds: each has the same prompts and as many completions of each.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from judge.intervals import wilson
from judge.winrate import Z95

_REPEATED = 4  # tokens of the n-grams that self-repetition counts


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with what is known of its error. value: None where it cannot be had, `why` says why.
    interval: of 95 %. n: what it is a mean over."""

    value: float | None
    interval: tuple[float, float] | None = None
    n: int | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"value": self.value}
        if self.interval is not None:
            found["interval"] = list(self.interval)
        return found | {k: v for k, v in (("n", self.n), ("why", self.why)) if v is not None}

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Figure:
        """From `to_json`."""
        interval = entry.get("interval")
        return cls(
            entry["value"], (interval[0], interval[1]) if interval else None, entry.get("n"), entry.get("why")
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion as the figures see it. tokens: its ids, or its words where it has none. logp: summed, by
    the policy that wrote it, None where not known. prompt: id of what it answers, None where no other answer
    has the same."""

    text: str
    tokens: Sequence[int] | Sequence[str]
    cut_off: bool
    logp: float | None = None
    prompt: str | None = None


def _by_prompt(answers: Sequence[Answer], values: Iterable[float]) -> dict[Hashable, float]:
    """The mean of a value of each answer over those to one prompt. These are not independent of each other,
    so that it is prompts that an interval counts."""
    found: dict[Hashable, list[float]] = {}
    for place, (answer, value) in enumerate(zip(answers, values, strict=True)):
        found.setdefault(place if answer.prompt is None else answer.prompt, []).append(value)
    return {prompt: statistics.fmean(own) for prompt, own in found.items()}


def _per_prompt(answers: Sequence[Answer], values: Iterable[float]) -> list[float]:
    return list(_by_prompt(answers, values).values())


def of_answers(answers: Sequence[Answer]) -> dict[str, Figure]:
    """length_mean (tokens), cut_off (share), distinct_1 to _3, self_repetition and top_answer (shares).
    self_repetition: of an answer too short to repeat four tokens 0."""
    n = len(answers)
    top = Counter(a.text.strip() for a in answers).most_common(1)[0][0]
    cut_off = _per_prompt(answers, (float(a.cut_off) for a in answers))
    at_top = _per_prompt(answers, (float(a.text.strip() == top) for a in answers))
    return {
        "length_mean": mean(_per_prompt(answers, _lengths(answers))),
        "cut_off": share(math.fsum(cut_off), len(cut_off)),
        **{f"distinct_{k}": Figure(distinct([a.tokens for a in answers], k), n=n) for k in (1, 2, 3)},
        "self_repetition": mean(_per_prompt(answers, (repetition(a.tokens) or 0.0 for a in answers))),
        "top_answer": share(math.fsum(at_top), len(at_top)),
    }


def _lengths(answers: Iterable[Answer]) -> list[float]:
    return [float(len(answer.tokens)) for answer in answers]


def mean(values: Sequence[float]) -> Figure:
    """A mean with its interval, mean ± z · sd / √n.

    >>> mean([1.0, 3.0]).value
    2.0
    """
    if not values:
        return Figure(None, n=0, why="nothing to measure")
    middle = math.fsum(values) / len(values)
    if len(values) < 2:
        return Figure(middle, n=len(values))
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return Figure(middle, (middle - half, middle + half), len(values))


def share(count: float, n: int) -> Figure:
    """A share of n with Wilson's interval, which few cases do not make certain."""
    return Figure(count / n, wilson(count / n, n), n) if n else Figure(None, n=0, why="nothing to measure")


def distinct(texts: Iterable[Sequence[Any]], k: int) -> float | None:
    """distinct-k: different k-grams over all k-grams of all texts together, 1 where none comes twice; a
    k-gram does not reach into the next text. None where no text has k tokens. (Li et al. 2016, arXiv
    1510.03055, divide by the number of tokens instead.)

    >>> distinct([[1, 2, 1, 2], [1, 2]], 2)
    0.5
    """
    counts = Counter(_grams(texts, k))
    return len(counts) / counts.total() if counts else None


def _grams(texts: Iterable[Sequence[Any]], k: int) -> Iterator[tuple[Any, ...]]:
    return (tuple(tokens[i : i + k]) for tokens in texts for i in range(len(tokens) - k + 1))


def repetition(tokens: Sequence[Any], k: int = _REPEATED) -> float | None:
    """seq-rep-k (Welleck et al. 2019, arXiv 1908.04319, sec. 6): the share of a text's k-grams that came
    before in it. None for a text of fewer than k tokens.

    >>> repetition([1, 2, 1, 2, 1, 2], k=2)
    0.6
    """
    count = len(tokens) - k + 1
    if count < 1:
        return None
    return 1 - len({tuple(tokens[i : i + k]) for i in range(count)}) / count


def kl(answers: Sequence[Answer], first_logps: Sequence[float]) -> dict[str, Figure]:
    """kl_first, in nats a completion: the mean of log π − log π_first over completions of π, which at
    temperature 1 from the whole distribution is KL(π ‖ π_first) without bias. kl_first_token: their sum over
    that of tokens.

    first_logps: summed, by the first policy.
    """
    both = zip(answers, first_logps, strict=True)
    known = [(a, a.logp - first) for a, first in both if a.logp is not None]
    scored = [a for a, _ in known]
    deltas = _per_prompt(scored, (delta for _, delta in known))
    tokens = _per_prompt(scored, _lengths(scored))
    if not any(tokens):
        none = Figure(None, why="the engine gives no log-probabilities")
        return {"kl_first": none, "kl_first_token": none}
    return {"kl_first": mean(deltas), "kl_first_token": ratio_of_means(deltas, tokens)}


def ratio_of_means(values: Sequence[float], to: Sequence[float]) -> Figure:
    """r = mean(values) / mean(to), the two in pairs, with r ± z · sd(values − r · to) / (√n · mean(to)), the
    ratio estimator (Cochran 1977, section 6.4). mean(to) is not 0.

    >>> ratio_of_means([1.0, 3.0], [2.0, 2.0]).value
    1.0
    """
    n, below = len(values), math.fsum(to) / len(to)
    r = math.fsum(values) / n / below
    if n < 2:
        return Figure(r, n=n)
    residuals = [value - r * beside for value, beside in zip(values, to, strict=True)]
    half = Z95 * statistics.stdev(residuals) / math.sqrt(n) / abs(below)
    return Figure(r, (r - half, r + half), n)


def ratios(now: Sequence[Answer], first: Sequence[Answer]) -> dict[str, Figure]:
    """length_ratio_first, of mean lengths over the prompts that both answered; distinct_1_ratio_first to _3:
    `distinct_ratio`."""
    a, b = (_by_prompt(answers, _lengths(answers)) for answers in (now, first))
    both = [prompt for prompt in a if prompt in b]
    found = {"length_ratio_first": Figure(None, why="the first policy's answers are empty")}
    if not both:
        found = {"length_ratio_first": Figure(None, why="no prompt was answered by both policies")}
    elif any(b[prompt] for prompt in both):
        found = {"length_ratio_first": ratio_of_means([a[p] for p in both], [b[p] for p in both])}
    for k in (1, 2, 3):
        ratio = distinct_ratio([a.tokens for a in now], [a.tokens for a in first], k)
        why = None if ratio is not None else f"no answer of the first policy has {k} token{'s' * (k > 1)}"
        found[f"distinct_{k}_ratio_first"] = Figure(ratio, why=why)
    return found


def distinct_ratio(now: Iterable[Sequence[Any]], first: Iterable[Sequence[Any]], k: int) -> float | None:
    """How many different k-grams some texts have for each that others have, in equally many k-grams.

    In more text more of them come again, so that by `distinct` alone longer answers are less diverse, and
    shorter ones more. Here as many k-grams as the smaller set has are drawn from the larger without return;
    the different ones to be expected are E(S_m) = Σ_i 1 − C(N − N_i, m) / C(N, m), m of N being drawn among
    which the i-th comes N_i times (Hurlbert 1971, Ecology 52:577). 0 where these texts have no k-gram and the
    others have: they have lost them all. None where the others have none.

    >>> ratio = distinct_ratio([[1, 2], [1, 2]], [[1, 2]], 1)  # of two drawn from 1 2 1 2 a third are alike
    >>> round(ratio, 6)
    0.833333
    """
    counts = [Counter(_grams(texts, k)) for texts in (now, first)]
    if not counts[1]:
        return None
    size = min(c.total() for c in counts)
    return _expected(counts[0], size) / _expected(counts[1], size) if size else 0.0


def _expected(counts: Counter[Any], size: int) -> float:
    """How many different things are to be expected in `size` of them, drawn without return."""
    total = counts.total()

    def log_missed(count: int) -> float:  # C(total - count, size) / C(total, size)
        if total - count < size:
            return -math.inf
        return (math.lgamma(total - count + 1) - math.lgamma(total - count - size + 1)
                - math.lgamma(total + 1) + math.lgamma(total - size + 1))  # fmt: skip

    often = Counter(counts.values())
    return math.fsum(kinds * -math.expm1(log_missed(count)) for count, kinds in often.items())


def rises(now: dict[str, Figure], first: dict[str, Figure]) -> dict[str, Figure]:
    """cut_off_rise_first, top_answer_rise_first and self_repetition_rise_first: less the first policy's,
    which may rightly be high (of yes/no questions half have one answer).

    Their intervals follow from the two figures' own (Newcombe 1998, method 10), as of independent samples.
    """
    found = {}
    for name in ("cut_off", "top_answer", "self_repetition"):
        a, b = now[name], first[name]
        if a.value is None or b.value is None:
            found[f"{name}_rise_first"] = Figure(None, why=a.why or b.why)
            continue
        (low_a, high_a), (low_b, high_b) = a.interval or (a.value,) * 2, b.interval or (b.value,) * 2
        rise = a.value - b.value
        down, up = (
            math.hypot(a.value - low_a, high_b - b.value),
            math.hypot(high_a - a.value, b.value - low_b),
        )
        found[f"{name}_rise_first"] = Figure(rise, (rise - down, rise + up), a.n)
    return found


def logprob_changes(metrics: Sequence[dict[str, Any]], beta: float | None = None) -> dict[str, Figure]:
    """chosen_logprob_change and rejected_logprob_change, in nats a completion: what a training logged in its
    last steps less what it logged in its first; each the mean of a tenth of the lines.

    With DPO's beta it is read from the implicit rewards β · (log π − log π_ref), in which a batch of longer
    completions is no change; without, from the log-probabilities themselves.
    """
    found = {}
    for side in ("chosen", "rejected"):
        values = [line[f"logps/{side}"] for line in metrics if f"logps/{side}" in line]
        if beta and all(f"rewards/{side}" in line for line in metrics):
            values = [line[f"rewards/{side}"] / beta for line in metrics]
        part = max(1, len(values) // 10)
        change = (
            statistics.fmean(values[-part:]) - statistics.fmean(values[:part]) if len(values) > 1 else None
        )
        few = "it was logged once; set log-steps lower in [train]" if values else "this training logs none"
        why = few if change is None else None
        found[f"{side}_logprob_change"] = Figure(change, n=len(values), why=why)
    return found
