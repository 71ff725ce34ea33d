"""The loop: sample → judge → pair → train → evaluate → gate, round after round.

Every stage stands in the ledger with what it was made of, so running the loop again on the same directory
passes over what is done and goes on where it was stopped, to the request. Engines are opened when a stage
needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from gavel.command import say
from gavel.engines import EngineConfig
from gavel.errors import InputError
from gavel.records import Prompt
from gavel.rundir import RunDir, write_atomic
from gavel.weights import weights_version
from rounds import gates, redo, stages
from rounds.budget import check_budget, judge_limits
from rounds.config import RoundsConfig
from rounds.evaluation import OfRound, evaluate
from rounds.figures import Figure
from rounds.freed import folder_of, free, held
from rounds.judges import gold_contents, judge_contents, judge_settings, tokenizer_hash
from rounds.ledger import Ledger, Made, NotDone, Rehearsal
from rounds.lifetimes import Lifetimes
from rounds.pool import Pool
from rounds.standing import Line, Plan, plan_of, prunable, read_figures
from rounds.toml_table import to_toml
from rounds.training import Training


def run_rounds(
    root: Path,
    config: RoundsConfig,
    observe: Callable[[Line, Lifetimes, Path], None] | None = None,
    again: str | None = None,
    drawn: Pool | None = None,
) -> list[Line]:
    """Runs or resumes all rounds below `root` and returns the rounds that are over, round 0 first.

    Args:
        observe: called after each round with its line, the engines and the model, for measurements of one's
            own; also with rounds that were over before.
        again: a stage that is redone, with all after it, such as "02/train".
        drawn: the prompts, where their source was read already.

    Raises:
        InputError: a stage was done with other settings: they are named, and nothing is changed.
        CheckFailed: the labelling judge failed its gold test, or a budget is spent. All that was done is
        kept.
    """
    with RunDir.open(root) as run:
        redo.finish(run)
        ledger = Ledger(run)
        with Lifetimes(config.policy, config.engines, ledger.events) as engines:
            _prepare(run, config, engines, again)
            work = Rounds(root, config, ledger, engines, drawn)
            over, lines = read_figures(root), [work.first()]
            work.record(lines, over)
            while work.go_on(lines):
                if observe is not None:
                    observe(lines[-1], engines, lines[-1].path(root))
                lines.append(work.round(lines))
                work.record(lines, over)
            if observe is not None:
                observe(lines[-1], engines, lines[-1].path(root))
    return lines


def _prepare(run: RunDir, config: RoundsConfig, engines: Lifetimes, again: str | None) -> None:
    """Writes the configuration down once all that is done fits it, and sets aside what is to be redone.

    Raises InputError, with nothing changed, where something does not fit or cannot be redone.
    """
    redone = redo.parse(again) if again else None
    over = [line for line in read_figures(run.path) if redone is None or line.round < redone[0]]
    if len(over) - 1 > config.rounds:
        raise InputError(f"{len(over) - 1} rounds are over, more than rounds = {config.rounds}",
                         where=str(run.path), hint="Set rounds to as many at least.")  # fmt: skip
    to_redo = redo.from_on(*redone) if redone else lambda stage: False
    following, lines = None, list[Line]()
    try:
        work = Rounds(run.path, config, Rehearsal(run, to_redo), engines)
        lines.append(work.first())
        while work.go_on(lines):
            lines.append(work.round(lines))
    except NotDone as first:
        following = first.stage
    if redone:
        begun, stage = redo.begun_in(run), "{:02d}/{}".format(*redone)
        if following != stage:
            raise InputError(f"{again!r} was not begun in this run", where="--from",
                             hint=f"Known: {', '.join(begun) or 'none'}.")  # fmt: skip
        if stage in begun:
            say(f"what there was is kept in {redo.set_aside(run, stage, config, lines)}")
    write_atomic(run.path / "config.toml", to_toml(dict(config.table)).encode())


class Rounds:
    """What the rounds of a run have in common. root: its directory. drawn: as `run_rounds` has it."""

    def __init__(
        self, root: Path, config: RoundsConfig, ledger: Ledger, engines: Lifetimes, drawn: Pool | None = None
    ) -> None:
        self.root, self.config, self.ledger, self.engines = root, config, ledger, engines
        pool = ledger.do("prompts", Pool.settings(config.prompts, config.seed), {},
                         lambda: self._draw(drawn).take_in(root))  # fmt: skip
        self.pool = Pool.read(root, pool.output)
        self._shared = {"prompts": pool.output, "tokenizer": tokenizer_hash(config.policy)}
        self.pool.check(config.prompts, config.rounds)

    def _draw(self, drawn: Pool | None) -> Pool:
        config = self.config
        pool = drawn or Pool.draw(config.prompts, config.seed, config.policy)
        pool.check(config.prompts, config.rounds)
        return pool

    def go_on(self, lines: Sequence[Line]) -> bool:
        """Whether there is a round after these."""
        return len(lines) <= self.config.rounds and lines[-1].decision != "stop"

    def first(self) -> Line:
        """Round 0: the policy before any training."""
        first = self.config.policy.model
        weights = _weights(self.config.policy)
        evaluated = self._evaluate(0, first, weights, None, {})
        return Line(round=0, model=first, weights=weights, figures=evaluated.summary["figures"],
                    seconds=self._seconds(0))  # fmt: skip

    def round(self, lines: Sequence[Line]) -> Line:
        """One round. lines: those before it."""
        config, plan = self.config, plan_of(lines)
        previous, folder = lines[plan.previous], self._folder(plan.number)
        prompts = self.pool.of_round(plan.number, config.prompts)
        gold = config.gold.gold if config.gold else None
        with RunDir.open(folder) as run:
            # 1. completions by the newest weights
            sampled = self.do(
                plan.number, "sample", self._sampling(),
                {"policy": previous.weights} | self._shared | self._earlier(plan, lines),
                lambda: stages.sample(run, self.engines.policy(self.model(previous)),
                                      self._seeded(plan.number), prompts, self._joining(plan, prompts),
                                      self._taker(run)),
            )  # fmt: skip
            # 2. the judge's word on each
            judged = self.do(
                plan.number, "judge",
                judge_settings(config.judge) | {"gold": gold},
                {"sample": sampled.output} | judge_contents(config.judge) | gold_contents(gold),
                lambda: self._label(run),
            )  # fmt: skip
            try:
                # 3. preference pairs
                chosen = replace(config.pairs, judgments=judged.summary["pass"])
                paired = self.do(plan.number, "pair", msgspec.to_builtins(chosen), {"judge": judged.output},
                                  lambda: stages.pair(run, chosen))  # fmt: skip
                # 4. new weights
                trained = Training(self, plan, lines, run, prompts, paired).train()
            except stages.too_few() as error:
                return self._ended(plan, lines, error.what)
        # 5. figures on held-out prompts
        evaluated = self._evaluate(plan.number, self._name(plan.number), trained.output, previous,
                                   {"pairs": paired.output}, paired, judged)  # fmt: skip
        # 6. gates
        figures = {name: Figure.of(entry) for name, entry in evaluated.summary["figures"].items()}
        outcomes = gates.check(config.gates, figures)
        line = Line(
            round=plan.number, model=self._name(plan.number), weights=trained.output, start=previous.model,
            learning_rate=self.learning_rate(plan), seconds=self._seconds(plan.number),
            figures=evaluated.summary["figures"], gates=[o.to_json() for o in outcomes],
            decision=gates.decide(outcomes),
        )  # fmt: skip
        return replace(line, best=gates.best([*lines, line]))

    def _ended(self, plan: Plan, lines: Sequence[Line], why: str) -> Line:
        """The line of a round that has too little to train on: it ends the run, with the weights as they
        were."""
        before = lines[plan.previous]
        gate = gates.Outcome("pairs", None, None, None, "stop", True, why)
        line = Line(round=plan.number, model=before.model, weights=before.weights, start=before.model,
                    seconds=self._seconds(plan.number), gates=[gate.to_json()], decision="stop")  # fmt: skip
        return replace(line, best=gates.best([*lines, line]))

    def record(self, lines: Sequence[Line], over: list[Line]) -> None:
        """Writes the last line down unless it stands there, says what it says, frees what nothing needs.

        over: the lines that stand there. They may have been written with other gates than today's: what they
            would say today takes their place.
        """
        line = lines[-1]
        known = over[line.round] if line.round < len(over) else None
        if known is None or known.to_json() != line.to_json():
            if known is not None and (known.gates, known.decision) != (line.gates, line.decision):
                say(f"round {line.round}: by the gates as they are now {gates.DECIDED[line.decision]}, "
                    f"before {gates.DECIDED[known.decision]}")  # fmt: skip
            over[line.round :] = [line]
            write_atomic(self.root / "figures.jsonl", b"".join(one.to_json() for one in over))
            for said in gates.sayings(line):
                say(said)
        for number in prunable(lines, self.config.keep.every):
            free(self._folder(number))

    def model(self, line: Line) -> Path:
        """Where a round's weights are. Raises InputError where they were freed."""
        path = line.path(self.root)
        if line.round and not held(path):
            raise InputError(
                "its weights were freed: they are neither the last round's nor the best one's",
                where=str(path),
                hint="Redo an earlier round, and keep more with every in [keep].",
            )
        return path

    # stages
    def _label(self, run: RunDir) -> Made:
        """The labelling judge's word on a round's completions."""
        judging = self.engines.judging("judge", self.config.judge)
        return stages.label(run, judging, self.config.gold, self.root / "gold",
                            lambda: judge_limits(self.root, self.config.budget))  # fmt: skip

    def _taker(self, run: RunDir) -> stages.Taker | None:
        """Who takes completions while they are sampled, if that is wanted."""
        if not self.config.overlap:
            return None
        judging = self.engines.judging("judge", self.config.judge, beside=True)
        if self.config.gold is not None:
            self.config.gold.check(run, judging, journal=self.root / "gold")
        return stages.while_sampling(run, judging, judge_limits(self.root, self.config.budget))

    def do(
        self,
        number: int,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        work: Callable[[], Made],
    ) -> Made:
        """A stage of a round, unless it is done or a budget is spent."""

        def within_budget() -> Made:
            check_budget(self.root, self.config.budget, self.ledger.events)
            return work()

        return self.ledger.do(f"{number:02d}/{stage}", settings, inputs, within_budget)

    def _evaluate(
        self, number: int, model: str, weights: str, previous: Line | None, inputs: dict[str, str],
        paired: Made | None = None, judged: Made | None = None,
    ) -> Made:  # fmt: skip
        """A policy's figures on the held-out prompts."""
        config = self.config
        judge = config.evaluate.judge
        settings = {
            "n": config.evaluate.generate.n, "seed": config.seed, "tags": list(config.sample.tags),
            "max_tokens": config.evaluate.generate.sampling.max_tokens,
            "stop": list(config.evaluate.generate.sampling.stop), "pairs": config.evaluate.pairs,
            "engine": stages.engine_settings(config.policy), "judge": judge and judge_settings(judge),
        }  # fmt: skip
        inputs = {"policy": weights} | self._shared | inputs
        inputs |= judge_contents(judge) if judge else {}
        if previous is not None:
            inputs["previous"] = previous.weights

        def work() -> Made:
            path = config.policy.model if number == 0 else str(self.root / model)
            of_round = None
            if paired is not None and judged is not None:
                of_round = OfRound(self._folder(number), judged.summary, paired.summary)
            return evaluate(
                self.root, number, previous.round if previous else None, self.pool.held_out, config.evaluate,
                policy=lambda which: self.engines.policy(path if which else config.policy.model),
                judging=(lambda: self.engines.judging("evaluation judge", judge)) if judge else None,
                of_round=of_round,
            )  # fmt: skip

        return self.do(number, "evaluate", settings, inputs, work)

    # what a round begins with
    def _sampling(self) -> dict[str, Any]:
        config = self.config
        shape = {"n": config.sample.n, "seed": config.seed, "tags": list(config.sample.tags),
                 "sampling": msgspec.to_builtins(config.sample.sampling),
                 "per_round": config.prompts.per_round, "reuse": config.prompts.reuse}  # fmt: skip
        shape["engine"] = stages.engine_settings(config.policy)
        joining = ("reference_answer", "earlier_best")
        return shape | {name: True for name in joining if getattr(config, name)}

    def _seeded(self, number: int) -> Any:
        return replace(self.config.sample, seed=self.config.sample.seed + number)

    def _joining(self, plan: Plan, prompts: Sequence[Prompt]) -> Any:
        """Candidates that are not sampled."""
        n = self.config.sample.n
        if self.config.reference_answer:
            yield from stages.reference_answers(prompts, n)
        if self.config.earlier_best and plan.previous:
            yield from stages.earlier_best(RunDir(self._folder(plan.previous)), prompts, 2 * n)

    def _earlier(self, plan: Plan, lines: Sequence[Line]) -> dict[str, str]:
        """What earlier rounds add to the candidates, by its content."""
        if not (self.config.earlier_best and plan.previous):
            return {}
        return {"earlier": self.output(plan.previous, "judge")}

    def learning_rate(self, plan: Plan) -> float:
        """That of the configuration, lowered by each rollback before."""
        return self.config.train.policy.learning_rate * self.config.train.lower**plan.rollbacks

    # where things are
    def _folder(self, number: int) -> Path:
        return folder_of(self.root, number)

    def _name(self, number: int) -> str:
        return f"rounds/{number:02d}/model"

    def output(self, number: int, stage: str) -> str:
        output: str = self.ledger.entries()[f"{number:02d}/{stage}"]["output"]
        return output

    def _seconds(self, number: int) -> dict[str, float]:
        prefix = f"{number:02d}/"
        return {name.removeprefix(prefix): entry["seconds"] for name, entry in self.ledger.entries().items()
                if name.startswith(prefix)}  # fmt: skip


def _weights(policy: EngineConfig) -> str:
    """Version of the first policy's weights."""
    if policy.resolved() == "fake" and not held(Path(policy.model)):
        return policy.model
    return weights_version(policy.model, policy.adapter)
