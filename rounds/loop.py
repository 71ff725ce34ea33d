"""The loop: sample → judge → pair → train, round after round.

Two engines live through all rounds: the judge's, and the policy's, which takes the new weights after
each training. Every stage resumes by itself, so running the loop again on the same directory goes on
where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gavel.command import say
from gavel.protocols import Engine
from gavel.records import Prompt
from gavel.rundir import RunDir
from gavel.sources import BadRows
from generate.stage import GenerateConfig, generate, take_in
from judge.gate import Gate
from judge.judging import Single
from judge.method import Method
from judge.pairs import PairConfig, make_pairs
from train.config import DpoConfig


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """What every round does. `dpo.model` is the policy that round 1 starts from."""

    rounds: int
    generate: GenerateConfig
    pairs: PairConfig
    dpo: DpoConfig


@dataclass(slots=True)
class Seconds:
    """Wall time by stage, over all rounds."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.spent[stage] = self.spent.get(stage, 0.0) + time.monotonic() - started


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one round. number: 0 is the policy before any training."""

    number: int
    model: str
    pairs: dict[str, Any] | None = None
    training: dict[str, Any] | None = None


def run_rounds(
    root: Path,
    config: RoundsConfig,
    *,
    policy: Engine,
    judge_engine: Engine,
    method: Method,
    prompts: Callable[[int], Iterable[Prompt]],
    evaluate: Callable[[Round], None],
    seconds: Seconds,
    gate: Gate | None = None,
) -> list[Round]:
    """Runs all rounds below `root`, which is ROOT/rounds/01 and so on, each a run directory.

    Args:
        policy: an engine with the weights of `config.dpo.model`; it ends with the last round's.
        prompts: the prompts of a round.
        evaluate: called with each round (0 before any training) while `policy` has its weights.
        gate: what the judge must pass before it labels; asked once, noted in every round.

    Returns: the rounds, from round 0.

    Raises CheckFailed when the judge fails the gate: nothing was labelled in that round.
    """
    judging = Single(judge_engine, method)
    done = [Round(0, config.dpo.model)]
    with seconds.of("evaluate"):
        evaluate(done[0])
    for number in range(1, config.rounds + 1):
        folder = root / "rounds" / f"{number:02d}"
        start = done[-1].model
        with RunDir.open(folder) as run:
            with seconds.of("generate"):
                ids = take_in(run, lambda bad, n=number: prompts(n), BadRows(0))  # type: ignore[misc]
                sampling = replace(config.generate, seed=config.generate.seed + number)
                sampled = generate(run, policy, sampling, ids=ids)
            say(f"round {number}: {sampled['completions']:,} completions of {sampled['prompts']:,} prompts")
            with seconds.of("judge"):
                if gate is not None:
                    gate.check(run, judging, journal=root / "gold")
                judged = judging.judge(run)
            with seconds.of("pairs"):
                pairs = make_pairs(run, replace(config.pairs, judgments=judged["pass"]))
            say(f"round {number}: {judged['judgments']:,} judgments, {pairs['pairs']:,} pairs")
            with seconds.of("train"):
                training = _train(run, replace(config.dpo, model=start), pairs["name"], folder / "model")
            say(f"round {number}: trained on {training['pairs']:,} pairs, {training['steps']:,} steps")
        done.append(Round(number, str(folder / "model"), pairs, training))
        with seconds.of("load weights"):
            policy.load_weights(done[-1].model)
        with seconds.of("evaluate"):
            evaluate(done[-1])
    return done


def _train(run: RunDir, config: DpoConfig, pairs: str, out: Path) -> dict[str, Any]:
    """DPO on a set of the run's pairs, from the weights that sampled them."""
    from train.data import read_run
    from train.dpo import train_dpo
    from train.models import encoder_of

    bad = BadRows(0)
    rows = read_run(run, encoder_of(config), bad, pairs)
    bad.check(len(rows) + bad.count)
    return train_dpo(config, rows, out)
