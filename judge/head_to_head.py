"""What a judging pass of a run says of two models whose completions stand in it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from gavel.errors import InputError
from gavel.records import Completion, Judgment
from gavel.rundir import Index, RunDir, read_records
from gavel.scores import distinct_prompts
from gavel.standing import Pair, by_order, settled
from judge.winrate import Comparison


@dataclass(frozen=True, slots=True)
class Bout:
    """One output of a against one of b, outputs to the same prompt.

    p: probability that b is better, None: no verdict. ab, ba: probability that a is better with a / b
    shown first, None where that order has no verdict or was not asked.
    """

    p: float | None
    len_a: int
    len_b: int
    ab: float | None = None
    ba: float | None = None


@dataclass(slots=True)
class HeadToHead:
    """The bouts of b against a, prompt by prompt. not_asked: pairs of outputs that the pass leaves out."""

    a: str
    b: str
    prompts: list[list[Bout]] = field(default_factory=list)
    not_asked: int = 0

    def comparisons(self) -> list[Comparison]:
        return [found for bouts in self.prompts for found in per_prompt(bouts)]

    def shown(self) -> list[tuple[float | None, float | None]]:
        """For `judge.winrate.orders`."""
        return [(bout.ab, bout.ba) for bouts in self.prompts for bout in bouts]


def per_prompt(bouts: Sequence[Bout]) -> list[Comparison]:
    """The bouts of one prompt as one comparison, since they are not independent of each other: the mean
    of those with a verdict. Each one without a verdict stays, so that it is counted."""
    known = [bout for bout in bouts if bout.p is not None]
    silent = [Comparison(None)] * (len(bouts) - len(known))
    if not known:
        return silent
    n = len(known)
    mean = Comparison(
        sum(bout.p for bout in known if bout.p is not None) / n,
        sum(bout.len_a for bout in known) / n,
        sum(bout.len_b for bout in known) / n,
    )
    return [mean, *silent]


def models_of(run: RunDir) -> list[str]:
    """The models that made a run's completions, in file order."""
    made = dict.fromkeys(maker(c) for c in read_records(run.completions_path, Completion))
    return list(made)


def maker(completion: Completion) -> str:
    return completion.model or completion.weights or "(unnamed)"


def choose_models(run: RunDir, wanted: str | None) -> tuple[str, list[str]]:
    """The baseline (the first model of the run that is not the one wanted) and those to compare with it.

    Raises InputError for fewer than two models, or an unknown one.
    """
    models = models_of(run)
    if len(models) < 2:
        raise InputError(
            f"its completions come from one model ({', '.join(models) or 'none'}), a win rate needs two",
            where=str(run.path),
            hint="Compare two runs, files or models: gavel winrate A B --judge M.",
        )
    if wanted is not None and wanted not in models:
        raise InputError(f"no completions of {wanted!r}", where="--model", hint=f"Of: {', '.join(models)}.")
    baseline = next(model for model in models if model != wanted)
    return baseline, [wanted] if wanted is not None else [m for m in models if m != baseline]


def head_to_head(run: RunDir, judging: str, baseline: str, models: Sequence[str]) -> list[HeadToHead]:
    """Each of `models` against `baseline` by the judging pass `judging`; every output against every
    other of the same prompt, both orders averaged.

    Raises InputError where the pass compares nothing.
    """
    found = [HeadToHead(baseline, model) for model in models]
    compared = False
    with (
        contextlib.closing(Index(run.completions_path)) as completions,
        contextlib.closing(Index(run.judgments_path(judging))) as judgments,
    ):
        for prompt in distinct_prompts(run):
            outputs = completions.read(prompt.id, Completion)
            judged = [j for j in judgments.read(prompt.id, Judgment) if len(j.completion_ids) > 1]
            compared = compared or bool(judged)
            asked = by_order(_by_text(judged, outputs))
            for pair in found:
                _bouts(pair, outputs, asked)
    if not compared:
        raise InputError(
            f"the judging pass {judging!r} holds no comparisons",
            where=str(run.path),
            hint="Judge it with gavel judge RUN --judge M --method pairwise, or choose a pass with "
            "--judgments.",
        )
    return found


def _by_text(judgments: Sequence[Judgment], outputs: Sequence[Completion]) -> list[Judgment]:
    """The judgments by the texts of what was shown: of equal texts a judge is asked about one."""
    texts = {completion.id: completion.text for completion in outputs}
    return [
        msgspec.structs.replace(j, completion_ids=tuple(texts[one] for one in j.completion_ids))
        for j in judgments
        if all(one in texts for one in j.completion_ids)
    ]


def _bouts(
    pair: HeadToHead,
    outputs: Sequence[Completion],
    asked: Mapping[Pair, Mapping[bool, Sequence[float | None]]],
) -> None:
    """Adds the bouts of one prompt."""
    a_side = [c.text for c in outputs if maker(c) == pair.a]
    b_side = [c.text for c in outputs if maker(c) == pair.b]
    bouts = []
    for a in a_side:
        for b in b_side:
            orders = asked.get((min(a, b), max(a, b)))
            if a == b:  # equal texts need no judge
                bouts.append(Bout(0.5, len(a), len(b)))
            elif orders is None:
                pair.not_asked += 1
            else:
                bouts.append(_bout(a, b, orders))
    pair.prompts.append(bouts)


def _bout(a: str, b: str, orders: Mapping[bool, Sequence[float | None]]) -> Bout:
    """orders: whether the lesser text was shown first → probabilities that the lesser is better."""
    a_is_lesser = a < b

    def of_a(lesser_first: bool) -> float | None:
        p = settled({True: orders[lesser_first]}) if lesser_first in orders else None
        return p if p is None or a_is_lesser else 1 - p

    p = settled(orders)
    return Bout(
        p=p if p is None or not a_is_lesser else 1 - p,
        len_a=len(a),
        len_b=len(b),
        ab=of_a(a_is_lesser),
        ba=of_a(not a_is_lesser),
    )
