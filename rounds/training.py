"""The training of a round: DPO on its pairs, or a reward model on them and PPO against that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gavel.engines import EngineConfig
from gavel.records import Prompt, seed_for
from gavel.rundir import RunDir
from gavel.weights import weights_version
from rounds import stages
from rounds.config import JudgeConfig
from rounds.freed import folder_of
from rounds.ledger import Made
from rounds.standing import Line, Plan, kept_rounds

if TYPE_CHECKING:
    from rounds.loop import Rounds


class Training:
    """Makes a round's new weights in its folder.

    Args:
        work: the run. plan, lines: how the round begins, and the rounds before it. run: the round's, open for
            writing. prompts, paired: its prompts, and what came of its pairing.
    """

    def __init__(
        self,
        work: Rounds,
        plan: Plan,
        lines: Sequence[Line],
        run: RunDir,
        prompts: Sequence[Prompt],
        paired: Made,
    ) -> None:
        self.work, self.plan, self.lines, self.run, self.prompts = work, plan, lines, run, prompts
        self.config, self.recipe = work.config, work.config.train
        self.previous, self.folder = lines[plan.previous], folder_of(work.root, plan.number)
        self.paired, self.pairs = paired, paired.summary["name"]
        self.kept = [n for n in kept_rounds(lines) if n]

    def train(self) -> Made:
        """The new weights, unless they are there."""
        tuned = self._tuned().shaping()
        if self.recipe.dpo is not None:
            return self._do("train", self._settings() | tuned, self._inputs(), self._dpo)
        assert self.recipe.reward is not None
        shaped = self.recipe.reward.shaping() | {"model": self.recipe.reward_model}
        start = self.recipe.reward_model
        begun = {"reward model": weights_version(start)} if start else {}
        rewarded = self._do("reward", self._settings() | shaped, self._inputs() | begun, self._reward_model)
        inputs = {"reward": rewarded.output, "policy": self.previous.weights}
        return self._do("train", self._settings() | tuned, inputs, self._ppo)

    def _do(self, stage: str, settings: dict[str, Any], inputs: dict[str, str], work: Any) -> Made:
        return self.work.do(self.plan.number, stage, settings, inputs, work)

    def _settings(self) -> dict[str, Any]:
        found = {"reference": self.recipe.reference, "replay": self.config.replay,
                 "measured": self.recipe.smoothing_measured}  # fmt: skip
        return found | ({"ema": self.recipe.ema} if self.recipe.reference == "ema" else {})

    def _inputs(self) -> dict[str, str]:
        replayed = self.kept if self.config.replay else []
        return {"pairs": self.paired.output, "policy": self.previous.weights} | {
            f"pairs of {n}": self.work.output(n, "pair") for n in replayed
        }

    def _tuned(self) -> Any:
        """The policy's settings in this round."""
        return replace(self.recipe.policy, model=str(self.previous.path(self.work.root)),
                       learning_rate=self.work.learning_rate(self.plan))  # fmt: skip

    def _rows(self, config: Any) -> Any:
        entries = self.work.ledger.entries()
        earlier = {n: (RunDir(folder_of(self.work.root, n)), entries[f"{n:02d}/pair"]["summary"]["name"])
                   for n in self.kept}  # fmt: skip
        return stages.pair_rows(self.run, self.pairs, config, earlier, self.config.replay)

    def _smoothed(self, config: Any) -> Any:
        return stages.smoothed(config, self.run, self.pairs, self.recipe.smoothing_measured)

    def _dpo(self) -> Made:
        self.work.model(self.previous)
        config = self._smoothed(replace(self._tuned(), reference_model=self._reference()))
        with self.work.engines.room():
            return stages.train_by_dpo(config, self._rows(config), self.folder / "model")

    def _reward_model(self) -> Made:
        assert self.recipe.reward is not None
        start = self.recipe.reward_model or self.config.policy.model
        config = self._smoothed(replace(self.recipe.reward, model=start))
        with self.work.engines.room():
            return stages.train_reward_model(config, self._rows(config), self.folder / "reward")

    def _ppo(self) -> Made:
        reward, engines = self.folder / "reward", self.work.engines
        # seeds of no other round's rollouts, nor of the samples that the reward model was trained on
        seed = seed_for(self.config.sample.seed, "ppo", self.plan.number)
        sampling = replace(self.config.sample, seed=seed)
        config = replace(self._tuned(), critic=str(reward), reference_model=self._reference())
        policy = engines.policy(self.work.model(self.previous))
        judging = engines.judging("reward", _reward_judge(self.config.policy, reward), beside=True)
        try:
            return stages.train_by_ppo(config, self.prompts, policy, judging, sampling, self.folder / "model")
        finally:
            engines.forget_weights()
            engines.drop("reward")

    def _reference(self) -> str | None:
        """The policy that training is held to; None where it is the one that training starts from."""
        recipe, start = self.recipe, self.work.model(self.previous)
        if recipe.reference == "previous" or self.plan.previous == 0:
            return None
        if recipe.reference == "first":
            return self.config.policy.model
        from train.average import average

        before = folder_of(self.work.root, self.plan.previous) / "reference"
        older = str(before) if before.exists() else self.config.policy.model
        out = self.folder / "reference"
        average(older, str(start), recipe.ema, out, self.config.policy.trust_remote_code)
        return str(out)


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
