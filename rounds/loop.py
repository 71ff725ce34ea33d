"""The loop: sample → judge → pair → train → evaluate → gate, round after round.

Every stage stands in the ledger with what it was made of, so running the loop again on the same directory
passes over what is done and goes on where it was stopped, to the request. Engines are opened when a stage
needs one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from gavel.command import say
from gavel.engines import EngineConfig
from gavel.errors import CheckFailed, InputError
from gavel.records import Prompt
from gavel.rundir import RunDir, write_atomic
from gavel.weights import weights_version
from judge.collect import Limits
from rounds import gates, stages
from rounds.config import JudgeConfig, RoundsConfig
from rounds.evaluation import OfRound, evaluate
from rounds.figures import Figure
from rounds.ledger import Ledger, Made
from rounds.lifetimes import Lifetimes
from rounds.pool import Pool
from rounds.standing import Line, Plan, kept_rounds, plan_of, prunable, read_figures
from rounds.toml_table import to_toml


def run_rounds(
    root: Path, config: RoundsConfig, observe: Callable[[Line, Lifetimes, Path], None] | None = None
) -> list[Line]:
    """Runs or resumes all rounds below `root` and returns the rounds that are over, round 0 first.

    Args:
        observe: called after each round with its line, the engines and the model, for measurements of one's
            own; also with rounds that were over before.

    Raises:
        InputError: a stage was done with other settings: they are named.
        CheckFailed: the labelling judge failed its gold test, or a budget is spent. All that was done is
        kept.
    """
    with RunDir.open(root) as run:
        write_atomic(root / "config.toml", to_toml(dict(config.table)).encode())
        ledger = Ledger(run)
        with Lifetimes(config.policy, config.engines, ledger.events) as engines:
            work = Rounds(root, config, ledger, engines)
            over, lines = read_figures(root), [work.first()]
            work.record(lines, over)
            while len(lines) <= config.rounds and lines[-1].decision != "stop":
                if observe is not None:
                    observe(lines[-1], engines, lines[-1].path(root))
                lines.append(work.round(lines))
                work.record(lines, over)
            if observe is not None:
                observe(lines[-1], engines, lines[-1].path(root))
    return lines


class Rounds:
    """What the rounds of a run have in common. root: its directory."""

    def __init__(self, root: Path, config: RoundsConfig, ledger: Ledger, engines: Lifetimes) -> None:
        self.root, self.config, self.ledger, self.engines = root, config, ledger, engines
        pool = ledger.do("prompts", Pool.settings(config.prompts, config.seed), {},
                         lambda: Pool.take_in(root, config))  # fmt: skip
        self.pool, self._pool_hash = Pool.read(root), pool.output
        self.pool.check(config.prompts, config.rounds)

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
        with RunDir.open(folder) as run:
            # 1. completions by the newest weights
            sampled = self._do(
                plan.number, "sample", self._sampling(),
                {"policy": previous.weights, "prompts": self._pool_hash} | self._earlier(plan, lines),
                lambda: stages.sample(run, self.engines.policy(self.model(previous)),
                                      self._seeded(plan.number), prompts, self._joining(plan, prompts),
                                      self._taker(run)),
            )  # fmt: skip
            # 2. the judge's word on each
            judged = self._do(
                plan.number, "judge",
                judge_settings(config.judge) | {"gold": config.gold and config.gold.gold},
                {"sample": sampled.output}, lambda: self._label(run),
            )  # fmt: skip
            try:
                # 3. preference pairs
                chosen = replace(config.pairs, judgments=judged.summary["pass"])
                paired = self._do(plan.number, "pair", msgspec.to_builtins(chosen), {"judge": judged.output},
                                  lambda: stages.pair(run, chosen))  # fmt: skip
                # 4. new weights
                trained = self._train(plan, lines, run, prompts, paired)
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
            learning_rate=self._learning_rate(plan), seconds=self._seconds(plan.number),
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
            if known is not None:
                say(f"round {line.round}: by the gates as they are now {gates.DECIDED[line.decision]}, "
                    f"before {gates.DECIDED[known.decision]}")  # fmt: skip
            over[line.round :] = [line]
            write_atomic(self.root / "figures.jsonl", b"".join(one.to_json() for one in over))
            for said in gates.sayings(line):
                say(said)
        for number in prunable(lines, self.config.keep.every):
            _prune(self._folder(number))

    def model(self, line: Line) -> Path:
        """Where a round's weights are. Raises InputError where they were freed."""
        path = line.path(self.root)
        if line.round and not any(path.glob("*.safetensors")):
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
        return stages.label(run, judging, self.config.gold, self.root / "gold", self._limits())

    def _taker(self, run: RunDir) -> stages.Taker | None:
        """Who takes completions while they are sampled, if that is wanted."""
        if not self.config.overlap:
            return None
        judging = self.engines.judging("judge", self.config.judge, beside=True)
        if self.config.gold is not None:
            self.config.gold.check(run, judging, journal=self.root / "gold")
        return stages.while_sampling(run, judging, self._limits())

    def _limits(self) -> Limits:
        """What is left of the judge's budget."""
        budget, spent = self.config.budget, {"calls": 0, "tokens": 0}
        for name, entry in self.ledger.entries().items():
            prefix = "" if name.endswith("/judge") else "judge_"  # the latter: what was asked while sampling
            for key in spent:
                spent[key] += entry["summary"].get(prefix + key, 0)
        calls, tokens = spent["calls"], spent["tokens"]
        return Limits(
            calls=None if budget.judge_calls is None else max(0, budget.judge_calls - calls),
            tokens=None if budget.judge_tokens is None else max(0, budget.judge_tokens - tokens),
        )

    def _train(
        self, plan: Plan, lines: Sequence[Line], run: RunDir, prompts: Sequence[Prompt], paired: Made
    ) -> Made:
        """A round's training: DPO, or a reward model and PPO."""
        config, recipe = self.config, self.config.train
        previous, folder = lines[plan.previous], self._folder(plan.number)
        pairs = paired.summary["name"]
        kept = {n: (RunDir(self._folder(n)), self._pairs_of(n)) for n in kept_rounds(lines) if n}
        settings = {
            "reference": recipe.reference,
            "replay": config.replay,
            "measured": recipe.smoothing_measured,
        }
        if recipe.reference == "ema":
            settings["ema"] = recipe.ema
        inputs = {"pairs": paired.output, "policy": previous.weights}
        inputs |= {f"pairs of {n}": self._output(n, "pair") for n in kept} if config.replay else {}

        def rows(trained: Any) -> Any:
            return stages.pair_rows(run, pairs, trained, kept, config.replay)

        def dpo() -> Made:
            self.model(previous)
            trained = replace(tuned, reference_model=self._reference(plan, lines))
            trained = stages.smoothed(trained, run, pairs, recipe.smoothing_measured)
            with self.engines.room():
                return stages.train_by_dpo(trained, rows(trained), folder / "model")

        def reward_model() -> Made:
            assert recipe.reward is not None
            trained = replace(recipe.reward, model=recipe.reward_model or config.policy.model)
            trained = stages.smoothed(trained, run, pairs, recipe.smoothing_measured)
            with self.engines.room():
                return stages.train_reward_model(trained, rows(trained), folder / "reward")

        def ppo() -> Made:
            trained = replace(
                tuned, critic=str(folder / "reward"), reference_model=self._reference(plan, lines)
            )
            policy = self.engines.policy(self.model(previous))
            judging = self.engines.judging(
                "reward", _reward_judge(config.policy, folder / "reward"), beside=True
            )
            try:
                return stages.train_by_ppo(trained, prompts, policy, judging, config.sample, folder / "model")
            finally:
                self.engines.forget_weights()
                self.engines.drop("reward")

        tuned: Any = replace(recipe.policy, model=str(previous.path(self.root)),
                             learning_rate=self._learning_rate(plan))  # fmt: skip
        if recipe.dpo is not None:
            return self._do(plan.number, "train", settings | tuned.shaping(), inputs, dpo)
        assert recipe.reward is not None
        from_model = {"model": recipe.reward_model}
        rewarded = self._do(
            plan.number, "reward", settings | recipe.reward.shaping() | from_model, inputs, reward_model
        )
        return self._do(plan.number, "train", settings | tuned.shaping(),
                        {"reward": rewarded.output, "policy": previous.weights}, ppo)  # fmt: skip

    def _do(
        self,
        number: int,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        work: Callable[[], Made],
    ) -> Made:
        """A stage of a round, unless it is done or a budget is spent."""

        def within_budget() -> Made:
            self._check_budget()
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
            "n": config.evaluate.generate.n, "max_tokens": config.evaluate.generate.sampling.max_tokens,
            "stop": list(config.evaluate.generate.sampling.stop), "pairs": config.evaluate.pairs,
            "engine": stages.engine_settings(config.policy), "judge": judge and judge_settings(judge),
        }  # fmt: skip
        inputs = {"policy": weights, "prompts": self._pool_hash} | inputs
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

        return self._do(number, "evaluate", settings, inputs, work)

    # what a round begins with
    def _sampling(self) -> dict[str, Any]:
        config = self.config
        shape = {"n": config.sample.n, "seed": config.seed, "tags": list(config.sample.tags),
                 "sampling": msgspec.to_builtins(config.sample.sampling)}  # fmt: skip
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
        return {"earlier": self._output(plan.previous, "judge")}

    def _learning_rate(self, plan: Plan) -> float:
        """That of the configuration, lowered by each rollback before."""
        return self.config.train.policy.learning_rate * self.config.train.lower**plan.rollbacks

    def _reference(self, plan: Plan, lines: Sequence[Line]) -> str | None:
        """The policy that training is held to; None where it is the one that training starts from."""
        recipe, start = self.config.train, self.model(lines[plan.previous])
        if recipe.reference == "previous" or plan.previous == 0:
            return None
        if recipe.reference == "first":
            return self.config.policy.model
        from train.average import average

        before = self._folder(plan.previous) / "reference"
        older = str(before) if before.exists() else self.config.policy.model
        out = self._folder(plan.number) / "reference"
        average(older, str(start), recipe.ema, out, self.config.policy.trust_remote_code)
        return str(out)

    # where things are
    def _folder(self, number: int) -> Path:
        return self.root / "rounds" / f"{number:02d}"

    def _name(self, number: int) -> str:
        return f"rounds/{number:02d}/model"

    def _output(self, number: int, stage: str) -> str:
        output: str = self.ledger.entries()[f"{number:02d}/{stage}"]["output"]
        return output

    def _pairs_of(self, number: int) -> str:
        name: str = self.ledger.entries()[f"{number:02d}/pair"]["summary"]["name"]
        return name

    def _seconds(self, number: int) -> dict[str, float]:
        prefix = f"{number:02d}/"
        return {name.removeprefix(prefix): entry["seconds"] for name, entry in self.ledger.entries().items()
                if name.startswith(prefix)}  # fmt: skip

    def _check_budget(self) -> None:
        """Raises CheckFailed where the hours or the disk are spent."""
        budget = self.config.budget
        hours = (sum(entry["seconds"] for entry in self.ledger.entries().values())) / 3600
        if budget.hours is not None and hours >= budget.hours:
            raise CheckFailed(f"the budget of {budget.hours:g} hours is spent ({hours:.2f})",
                              where=str(self.root), hint="Raise hours in [budget] and resume.")  # fmt: skip
        if budget.disk_gb is not None and (size := _bytes_in(self.root) / 1e9) >= budget.disk_gb:
            raise CheckFailed(f"the budget of {budget.disk_gb:g} GB on disk is spent ({size:.2f})",
                              where=str(self.root),
                              hint="Raise disk_gb in [budget], or free some, and resume.")  # fmt: skip


def judge_settings(judge: JudgeConfig) -> dict[str, Any]:
    """Of a judge, what shapes its judgments; what is not set is left out."""
    speed = {"engine_arg", "trust_remote_code", "self_judge", "base_url"}
    given = {k: v for k, v in judge.options.items() if v not in (None, (), {}, False) and k not in speed}
    return {"model": judge.model} | given


def _reward_judge(policy: EngineConfig, model: Path) -> JudgeConfig:
    """A reward model of our own as a judge, on an engine like the policy's."""
    from gavel.command import options_of
    from judge.cli import judge

    table: dict[str, Any] = {
        "method": "reward",
        "dtype": policy.dtype,
        "engine_arg": dict(policy.engine_args),
    }
    if policy.engine:
        table["engine"] = policy.engine
    if policy.context:
        table["max_model_len"] = policy.context
    unused = {"out", "name", "dry_run", "reparse", "gold"}
    return JudgeConfig(model=str(model), options=options_of(judge, table, "[train.reward]", unused))


def _weights(policy: EngineConfig) -> str:
    """Version of the first policy's weights."""
    if policy.resolved() == "fake" and not any(Path(policy.model).glob("*.safetensors")):
        return policy.model
    return weights_version(policy.model, policy.adapter)


def _prune(folder: Path) -> None:
    """Frees a round's weights; what was measured of them stays."""
    for name in ("model", "reward", "reference"):
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        shutil.rmtree(folder / name / "adapter", ignore_errors=True)


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
