"""The evaluation of a round: its policy on held-out prompts that no round samples from."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gavel.errors import CheckFailed
from gavel.packed import unpack_ids
from gavel.protocols import Capability, Engine, Refused, ScoreRequest
from gavel.records import Completion, PreferencePair, Prompt, digest
from gavel.rows import BadRows
from gavel.rundir import RunDir, read_records
from generate.stage import generate, take_in
from judge.duels import Duel, Outcome, ask
from judge.head_to_head import per_prompt
from judge.intervals import wilson
from judge.judging import Judging
from judge.stage import NothingUsable
from judge.winrate import Comparison, length_controlled, length_controlled_interval, win_rate
from rounds.config import EvaluationSettings
from rounds.figures import Answer, Figure, kl, logprob_changes, of_answers, ratios, rises, share
from rounds.judges import asked_twice
from rounds.ledger import Made, content_of
from rounds.sides import Side, bouts_of, join, of_run


@dataclass(frozen=True)
class OfRound:
    """The round that made a policy. folder: its run directory. labelled, paired: the summaries of its judging
    and pairing."""

    folder: Path
    labelled: dict[str, Any]
    paired: dict[str, Any]


def evaluate(
    root: Path, number: int, previous: int | None, held_out: Sequence[Prompt],
    settings: EvaluationSettings, *, policy: Callable[[int], Engine],
    judging: Callable[[], Judging] | None, of_round: OfRound | None,
) -> Made:  # fmt: skip
    """The figures of policy `number`. Completions are kept in ROOT/evaluation/NN, the second judge's words in
    ROOT/evaluation/duels.

    Args:
        previous: the policy that it was trained from; None for the first.
        policy: the engine with the weights of a policy: 0 for the first one, `number` for this one.
        judging: opens the second judge; None where there is none.
        of_round: None for the first.
    """
    folder = _folder(root, number)
    # 1. its completions
    with RunDir.open(folder) as run:
        take_in(run, lambda bad: iter(held_out), BadRows(0))
        generate(run, policy(number), settings.generate)
    answers = _answers(folder)
    # 2. what they are like, and how far from the first policy's
    now = [answer for _, answer in answers]
    figures = of_answers(now)
    if number:
        first = [answer for _, answer in _answers(_folder(root, 0))]
        figures |= ratios(now, first) | rises(figures, of_answers(first)) | _kl(answers, held_out, policy)
    # 3. the second judge: against the previous policy and the first, and on the round's labels
    if previous is not None and judging is not None:
        with RunDir.open(root / "evaluation" / "duels") as journal:
            second, own = _Second(judging(), journal), of_run(str(folder))
            for name, other in (("previous", previous), ("first", 0)):
                figures |= second.win_rates(of_run(str(_folder(root, other))), own, name)
            assert of_round is not None
            figures["judge_agreement"] = second.agreement(_drawn(of_round, settings))
    elif previous is not None:
        names = (f"win_rate_{other}{kind}" for other in ("previous", "first") for kind in ("", "_lc"))
        figures |= dict.fromkeys((*names, "judge_agreement"), Figure(None, why="there is no second judge"))
    # 4. the round that made it
    if of_round is not None:
        figures |= _of_round(of_round)
    return Made(content_of(folder / "completions.jsonl"),
                {"figures": {name: figure.to_json() for name, figure in figures.items()}})  # fmt: skip


def _folder(root: Path, number: int) -> Path:
    return root / "evaluation" / f"{number:02d}"


def _answers(folder: Path) -> list[tuple[Completion, Answer]]:
    """All completions of an evaluation, by prompt and index: the order in which they came is chance."""
    found = sorted(
        read_records(RunDir(folder).completions_path, Completion), key=lambda c: (c.prompt_id, c.index)
    )
    return [
        (c, Answer(c.text, unpack_ids(c.token_ids) if c.token_ids is not None else c.text.split(),
                   c.finish_reason == "length", c.logprob_sum, c.prompt_id))
        for c in found
    ]  # fmt: skip


def _kl(
    answers: Sequence[tuple[Completion, Answer]], held_out: Sequence[Prompt], policy: Callable[[int], Engine]
) -> dict[str, Figure]:
    """The first policy reads what this one wrote."""
    engine = policy(0)
    needed = {Capability.SCORE, Capability.TOKENS}
    if not needed <= engine.capabilities or any(c.token_ids is None for c, _ in answers):
        none = Figure(None, why=f"the {engine.name} engine cannot score token ids")
        return {"kl_first": none, "kl_first_token": none}
    prompts = {p.id: engine.tokenizer.chat_ids(p.messages) for p in held_out}
    requests = [
        ScoreRequest(key=str(place), token_ids=[*prompts[c.prompt_id], *answer.tokens],
                     start=len(prompts[c.prompt_id]))
        for place, (c, answer) in enumerate(answers) if answer.tokens
    ]  # fmt: skip
    logps = {int(reply.key): sum(reply.logprobs) for reply in engine.score(requests)
             if not isinstance(reply, Refused)}  # fmt: skip
    read = [(answer, logps[place]) for place, (_, answer) in enumerate(answers) if place in logps]
    return kl([answer for answer, _ in read], [logp for _, logp in read])


@dataclass(frozen=True)
class _Second:
    """The second judge. All that it says of all rounds is one pass of the journal, so that what it was asked
    in one round it is not asked in another."""

    judging: Judging
    journal: RunDir

    def win_rates(self, before: Side, now: Side, name: str) -> dict[str, Figure]:
        """A policy against another, in percent; plain and at equal lengths."""
        joined = join(before, now)
        outcomes = self._ask([duel for several in joined.duels.values() for duel in several])
        comparisons = [
            c for several in joined.duels.values() for c in per_prompt(bouts_of(several, outcomes))
        ]
        plain = win_rate(comparisons)
        rate = Figure(plain.win_rate, plain.interval, plain.n) if plain.n else _NO_VERDICT
        return {f"win_rate_{name}": rate, f"win_rate_{name}_lc": _at_equal_lengths(comparisons)}

    def agreement(self, pairs: Sequence[Duel]) -> Figure:
        """How often it prefers what was chosen, a, to what was rejected; a draw counts half."""
        if not pairs:
            return Figure(None, why="no pairs were looked at")
        outcomes = self._ask(pairs).values()
        sure = [(o.ab + o.ba) / 2 for o in outcomes if o.ab is not None and o.ba is not None]
        return share(sum(1.0 if p > 0.5 else 0.0 if p < 0.5 else 0.5 for p in sure), len(sure)) if sure else (
            _NO_VERDICT
        )  # fmt: skip

    def _ask(self, duels: Sequence[Duel]) -> dict[str, Outcome]:
        """Equal texts are a draw, unasked. Where nothing that it says can be used there are no verdicts: that
        is a figure that was not measured, and no reason to end the rounds."""
        found = {d.id: Outcome(0.5, 0.5) for d in duels if d.a.text == d.b.text}
        asked = [duel for duel in duels if duel.id not in found]

        def once() -> dict[str, Any]:
            name = f"second-{self.judging.identity()[:8]}"
            outcomes, summary = ask(asked, self.judging, self.journal, name=name)
            found.update(outcomes)
            return summary

        try:
            if asked:
                asked_twice(once, str(self.journal.path))
        except NothingUsable as error:
            if error.summary["failed"]:
                raise
            found |= {duel.id: Outcome(None, None) for duel in asked}
        return found


_NO_VERDICT = Figure(None, why="the second judge gave no verdict")


def _at_equal_lengths(comparisons: Sequence[Comparison]) -> Figure:
    try:
        level = length_controlled(comparisons)
    except CheckFailed as error:
        return Figure(None, why=error.what)
    if level is None:
        return _NO_VERDICT
    return Figure(level.rate, length_controlled_interval(comparisons, level), level.n)


def _drawn(of_round: OfRound, settings: EvaluationSettings) -> list[Duel]:
    """Pairs of a round, drawn by hash; a is what was chosen."""
    run = RunDir(of_round.folder)
    pairs = read_records(run.pairs_path(of_round.paired["name"]), PreferencePair)
    drawn = heapq.nsmallest(settings.pairs, pairs,
                            key=lambda p: digest("agreement", settings.generate.seed, p.id))  # fmt: skip
    wanted = {i for p in drawn for i in (p.chosen_id, p.rejected_id)}
    texts = {c.id: c for c in read_records(run.completions_path, Completion) if c.id in wanted}
    prompts = {p.id: p for p in read_records(run.prompts_path, Prompt)}
    return [Duel(p.id, prompts[p.prompt_id], texts[p.chosen_id], texts[p.rejected_id]) for p in drawn]


def _of_round(of_round: OfRound) -> dict[str, Figure]:
    """What judging, pairing and training said of themselves."""
    gold, labelled = of_round.labelled.get("gold") or {}, of_round.labelled
    why = None if gold else "no gold file"
    no_flips = "there are neither gold labels nor comparisons in both orders"
    path = of_round.folder / "model" / "metrics.jsonl"
    metrics = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    asked, flips = labelled.get("judgments") or 0, of_round.paired.get("flip_rate")
    gold_figures = {
        name: Figure(gold.get(name), wilson(gold[name], gold["n"]) if gold else None, gold.get("n"), why)
        for name in ("accuracy", "order_agreement")
    }
    return {
        **{f"gold_{name}": figure for name, figure in gold_figures.items()},
        "flip_rate": Figure(flips, why=no_flips if flips is None else None),
        "unusable": share(labelled.get("unusable") or 0, asked),
        **logprob_changes(metrics, _beta(path.with_name("gavel.json"))),
    }


def _beta(path: Path) -> float | None:
    """DPO's beta; None of another training."""
    config = json.loads(path.read_bytes()).get("plan", {}).get("config", {}) if path.exists() else {}
    return config.get("beta") if "loss" in config else None
