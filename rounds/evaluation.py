"""The evaluation of a round: its policy on held-out prompts that no round samples from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gavel.packed import unpack_ids
from gavel.protocols import Capability, Engine, Refused, ScoreRequest
from gavel.records import Completion, PreferencePair, Prompt, digest
from gavel.rows import BadRows
from gavel.rundir import RunDir, read_records
from generate.stage import generate, take_in
from judge.duels import Duel, ask
from judge.head_to_head import per_prompt
from judge.judging import Judging
from judge.winrate import length_controlled, win_rate
from rounds.config import EvaluationSettings
from rounds.figures import Answer, Figure, kl, logprob_changes, mean, of_answers, ratios
from rounds.ledger import Made, content_of
from rounds.sides import bouts_of, join, of_run


@dataclass(frozen=True)
class OfRound:
    """The round that made a policy. folder: its run directory. pairs: name of its pairs. labelled, paired:
    the summaries of its judging and pairing."""

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
    figures = of_answers([answer for _, answer in answers])
    if number:
        first = of_answers([answer for _, answer in _answers(_folder(root, 0))])
        figures |= ratios(figures, first) | _kl(answers, held_out, policy)
    # 3. the second judge: against the previous policy and the first, and on the round's labels
    if previous is not None and judging is not None:
        with RunDir.open(root / "evaluation" / "duels") as journal:
            judge = judging()
            for name, other in (("previous", previous), ("first", 0)):
                figures |= _win_rates(root, number, other, judge, journal, name)
            assert of_round is not None
            figures["judge_agreement"] = _agreement(of_round, settings, number, judge, journal)
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
                   c.finish_reason == "length", c.logprob_sum))
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


def _win_rates(
    root: Path, number: int, other: int, judge: Judging, journal: RunDir, name: str
) -> dict[str, Figure]:
    """This policy against another, in percent; plain and at equal lengths."""
    joined = join(of_run(str(_folder(root, other))), of_run(str(_folder(root, number))))
    duels = [duel for several in joined.duels.values() for duel in several]
    outcomes, _ = ask(duels, judge, journal, name=f"{number:02d}-against-{other:02d}")
    comparisons = [c for several in joined.duels.values() for c in per_prompt(bouts_of(several, outcomes))]
    plain, level = win_rate(comparisons), length_controlled(comparisons)
    rate = Figure(plain.win_rate, plain.interval, plain.n) if plain.n else Figure(None, why="no verdict")
    controlled = Figure(level.rate, n=level.n) if level and plain.n else Figure(None, why="no verdict")
    return {f"win_rate_{name}": rate, f"win_rate_{name}_lc": controlled}


def _agreement(
    of_round: OfRound, settings: EvaluationSettings, number: int, judge: Judging, journal: RunDir
) -> Figure:
    """How often the second judge prefers what was chosen to what was rejected; a draw counts half."""
    run = RunDir(of_round.folder)
    pairs = list(read_records(run.pairs_path(of_round.paired["name"]), PreferencePair))
    drawn = sorted(pairs, key=lambda p: digest("agreement", settings.generate.seed, p.id))[: settings.pairs]
    if not drawn:
        return Figure(None, why="no pairs were looked at")
    wanted = {i for p in drawn for i in (p.chosen_id, p.rejected_id)}
    texts = {c.id: c for c in read_records(run.completions_path, Completion) if c.id in wanted}
    prompts = {p.id: p for p in read_records(run.prompts_path, Prompt)}
    duels = [Duel(p.id, prompts[p.prompt_id], texts[p.chosen_id], texts[p.rejected_id]) for p in drawn]
    outcomes, _ = ask(duels, judge, journal, name=f"{number:02d}-labels")
    sure = [(o.ab + o.ba) / 2 for o in outcomes.values() if o.ab is not None and o.ba is not None]
    return mean([1.0 if p > 0.5 else 0.0 if p < 0.5 else 0.5 for p in sure])


def _of_round(of_round: OfRound) -> dict[str, Figure]:
    """What judging, pairing and training said of themselves."""
    gold, labelled = of_round.labelled.get("gold") or {}, of_round.labelled
    why = None if gold else "no gold file"
    path = of_round.folder / "model" / "metrics.jsonl"
    metrics = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    asked = labelled.get("judgments") or 0
    return {
        "gold_accuracy": Figure(gold.get("accuracy"), n=gold.get("n"), why=why),
        "gold_order_agreement": Figure(gold.get("order_agreement"), n=gold.get("n"), why=why),
        "flip_rate": Figure(of_round.paired.get("flip_rate"), why="not measured by this judge"),
        "unusable": Figure((labelled.get("unusable") or 0) / asked if asked else None, n=asked),
        **logprob_changes(metrics),
    }
