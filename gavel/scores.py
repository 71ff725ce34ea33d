"""What a judging pass says of a run's completions: one score each, by the pass that is asked for.

Scores come from judgments of single completions, or from comparisons as Bradley-Terry strengths
(`gavel.standing`). `judge` makes pairs of them, `train` takes the best.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gavel.errors import InputError, RunDirError
from gavel.records import Completion, Judgment, Prompt
from gavel.rundir import Index, RunDir, holds_lines, read_lines, read_records
from gavel.standing import Standing, distinct, standing

# why a completion is not among the `eligible` ones
UNSCORED = "unscored"  # without a usable score in every aspect
EMPTY = "empty"  # nothing but white space
DUPLICATE = "duplicate"  # the text of another one


@dataclass(frozen=True, slots=True)
class Candidate:
    """A completion with what the judge made of it.

    score: higher is better, None if unscored. sd: of the score, where the judge gives one. log_odds: a
    score whose differences are log-odds of being better. standing: of all that was compared.
    """

    completion: Completion
    score: float | None
    judgment_ids: tuple[str, ...] = ()
    sd: float | None = None
    log_odds: float | None = None
    standing: Standing | None = None

    @property
    def number(self) -> float:
        """The score of a candidate that is known to have one."""
        assert self.score is not None
        return self.score


@dataclass(frozen=True)
class Scores:
    """The scores of a run's completions by one judging pass, prompt by prompt; files of any size.

    judging: name of the pass. aspects: those that are averaged.
    """

    judging: str
    aspects: tuple[str, ...]
    both_orders: bool
    _completions: Index
    _judgments: Index

    @classmethod
    @contextlib.contextmanager
    def open(cls, run: RunDir, judging: str, aspects: Sequence[str]) -> Iterator[Scores]:
        """Args: judging: as `choose_pass` gives it. aspects: of the pass."""
        with (
            contextlib.closing(Index(run.completions_path)) as completions,
            contextlib.closing(Index(run.judgments_path(judging))) as judgments,
        ):
            yield cls(judging, tuple(aspects), in_both_orders(run, judging), completions, judgments)

    def of(self, prompt_id: str) -> list[Candidate]:
        """All completions of a prompt, in file order."""
        return score_completions(
            self._completions.read(prompt_id, Completion),
            self._judgments.read(prompt_id, Judgment),
            self.aspects,
            both_orders=self.both_orders,
        )


def in_both_orders(run: RunDir, judging: str) -> bool:
    """Whether a pass was to compare every two completions in both orders."""
    orders = run.manifest().get("passes", {}).get(judging, {}).get("orders")
    return bool(orders == "both")


def score_completions(
    completions: Iterable[Completion],
    judgments: Iterable[Judgment],
    aspects: Sequence[str],
    *,
    both_orders: bool = False,
) -> list[Candidate]:
    """Scores each completion.

    both_orders: whether comparisons were to be made in both orders, see `gavel.standing.standing`.

    From judgments of single completions: the mean over the aspects of its mean score in each. An
    aspect that was asked about several times is the mean of its usable judgments; one without a
    usable judgment leaves the completion unscored. From comparisons: its Bradley-Terry strength.
    """
    singles: dict[tuple[str, str], list[Judgment]] = defaultdict(list)
    comparisons = []
    for judgment in judgments:
        if len(judgment.completion_ids) > 1:
            if judgment.aspect in aspects:
                comparisons.append(judgment)
        elif is_usable(judgment):
            singles[judgment.completion_ids[0], judgment.aspect].append(judgment)
    if comparisons:
        return _compared(completions, comparisons, both_orders)
    found = []
    for completion in completions:
        by_aspect = [singles.get((completion.id, aspect), []) for aspect in aspects]
        if aspects and all(by_aspect):
            found.append(_scored(completion, by_aspect))
        else:
            found.append(Candidate(completion, None))
    return found


def _scored(completion: Completion, by_aspect: Sequence[Sequence[Judgment]]) -> Candidate:
    score = _mean([_mean([float(j.score or 0.0) for j in answers]) for answers in by_aspect])
    ids = tuple(sorted(j.id for answers in by_aspect for j in answers))
    sds = [j.measures.get("sd") for answers in by_aspect for j in answers]
    known = [sd for sd in sds if sd is not None]
    sd = math.sqrt(math.fsum(x * x for x in known)) / len(known) if known and len(known) == len(sds) else None
    odds = by_aspect[0][0].measures.get("log_odds") if len(ids) == 1 else None
    return Candidate(completion, score, ids, sd, odds)


def _compared(
    completions: Iterable[Completion], judgments: Sequence[Judgment], both_orders: bool
) -> list[Candidate]:
    """A text that is offered twice was asked about once and has one strength."""
    found = standing(judgments, both_orders=both_orders)
    offered = list(completions)
    asked = {c.text: c.id for c in distinct(offered)}
    made = []
    for completion in offered:
        one = asked.get(completion.text)
        if found is None or one is None or one not in found.places:
            made.append(Candidate(completion, None))
        else:
            ids = found.judgment_ids[one]
            made.append(Candidate(completion, found.score(one), ids, standing=found))
    return made


def is_usable(judgment: Judgment) -> bool:
    """Whether a judgment says something: a number, or an order."""
    if judgment.reason is not None:
        return False
    if len(judgment.completion_ids) > 1:
        return judgment.verdict is not None
    return judgment.score is not None and math.isfinite(judgment.score)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # fsum: exact, so the order of records does not matter


def eligible(candidates: Iterable[Candidate], dropped: Counter[str]) -> list[Candidate]:
    """The candidates that can be preferred or learned from, best first; equal scores by id.

    Of one text the completion of the lowest index stays, whatever its score, so that repeating an
    answer does not buy the better of several judgments.
    """
    seen: set[str] = set()
    kept = []
    for candidate in sorted(candidates, key=lambda c: (c.completion.index, c.completion.id)):
        if not candidate.completion.text.strip():
            dropped[EMPTY] += 1
        elif candidate.completion.text in seen:
            dropped[DUPLICATE] += 1
        elif candidate.score is None:
            dropped[UNSCORED] += 1
        else:
            seen.add(candidate.completion.text)
            kept.append(candidate)
    return sorted(kept, key=lambda c: (-c.number, c.completion.id))


def check_run(path: str | Path) -> None:
    """Raises RunDirError when a path is no run directory whose completions were judged."""
    run = RunDir(path)
    make = f"Run first: gavel generate --model M --prompts SRC --out {path}"
    if not run.path.is_dir():
        what = "is a file, not a run directory" if run.path.exists() else "there is no such run directory"
        raise RunDirError(what, where=str(path), hint=make)
    if not run.manifest() and not run.completions_path.exists():
        raise RunDirError("is not a run directory (no manifest.json)", where=str(path), hint=make)
    if not holds_lines(run.completions_path):
        raise RunDirError("holds no completions yet", where=str(path), hint=make)
    if not run.judging_passes():
        hint = f"Run first: gavel judge {path} --judge M --method gptscore"
        raise RunDirError("holds no judgments yet", where=str(path), hint=hint)


def choose_pass(run: RunDir, wanted: str | None) -> str:
    """The judging pass to build on: the one wanted, else the newest."""
    check_run(run.path)
    passes = run.judging_passes()
    if wanted is None:
        return passes[-1]
    if wanted not in passes:
        raise InputError(
            f"no judging pass {wanted!r} in {run.path}",
            where="--judgments",
            hint=f"Known: {', '.join(passes)}.",
        )
    return wanted


class _Aspect(msgspec.Struct):
    aspect: str


def aspects_of(run: RunDir, judging: str) -> tuple[str, ...]:
    """The aspects that a pass was judged by, sorted. Raises RunDirError where it holds no judgments."""
    path, decode = run.judgments_path(judging), msgspec.json.Decoder(_Aspect).decode
    try:
        found = {decode(line).aspect for _, _, line in read_lines(path)}
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunDirError(f"not a judgment: {error}", where=str(path)) from None
    if not found:
        raise RunDirError(f"judging pass {judging!r} holds no judgments yet", hint="Run gavel judge first.")
    return tuple(sorted(found))


def distinct_prompts(run: RunDir) -> Iterator[Prompt]:
    """The prompts in file order, each id once."""
    seen: set[str] = set()
    for prompt in read_records(run.prompts_path, Prompt):
        if prompt.id not in seen:
            seen.add(prompt.id)
            yield prompt
