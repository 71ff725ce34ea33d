"""Proximal policy optimisation of a language model against a judge's scores (Schulman et al. 2017; Ouyang et
al. 2022, arXiv 2203.02155; the details of Huang et al. 2024, arXiv 2403.17031).

Each iteration samples `batch_size` completions from the live engine, scores them, and takes `ppo_epochs`
passes over them. A token is an action, EOS too where it was sampled. The reward of a token is −kl_coef ·
(log π_old − log π_ref), and of the last one the judge's score as well. One optimiser step over N tokens
minimises

    1/N Σ_t [ w_t · max(−ρ_t A_t, −clamp(ρ_t, 1 ± clip) A_t)
              + value_coef · ½ max((V_t − R_t)², (V_t^clip − R_t)²) ],

ρ = π / π_old, A the whitened advantages, R the returns, w the truncated importance weights of old policy
against sampler. Log-probabilities are the trainer's, at the sampling temperature, all dropout off; the
sampler's serve for w alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gavel.command import say
from gavel.errors import CheckFailed, InputError
from gavel.records import Prompt, digest
from gavel.tokenizer import HfTokenizer
from gavel.weights import weights_version
from train import actor_critic, group, models, running
from train.callbacks import stopping
from train.config import PpoConfig
from train.experience import Experience, experience
from train.output import Output
from train.ppo_learner import Learner, shuffled, trackers
from train.ppo_log import Log
from train.rollout import Rollout, Sampler, Scorer

_PROBED = 4  # completions
#: How far engine and trainer may differ in a token's log-probability, on average: rounding, no more.
_TOLERANCE = {"fp32": 0.005, "bf16": 0.1}


def train_ppo(
    config: PpoConfig, prompts: Sequence[Prompt], sampler: Sampler | None, scorer: Scorer | None,
    out: str | Path,
) -> dict[str, Any]:  # fmt: skip
    """Trains `config.model` on what `scorer` says of completions that `sampler` draws, saves it to `out`.

    The same call on the same `out` resumes from the newest whole checkpoint; on a CPU what follows is the
    same to the bit. SIGTERM and Ctrl-C leave a checkpoint and raise KeyboardInterrupt.

    Args:
        sampler: its engine has the weights of `config.model` or of any policy trained from it.
        sampler, scorer: None on all processes but the main one, which tells the others.

    Returns: the summary that gavel.json keeps.

    Raises:
        InputError: fewer prompts than an iteration takes, a model or critic that cannot be loaded, an `out`
            that holds the work of other settings or data, or out of memory.
        CheckFailed: a loss that is not a number, not one usable score, or an engine whose log-probabilities
            are not those of the weights it was given.
    """
    running.quiet()
    group.check_shards("PPO")
    running.check_names(config)
    trackers(config)
    group.join()
    iterations = group.of_main(iterations_of(config, prompts) if group.is_main() else 0)
    live = _OfMain(sampler, scorer)
    precision = running.resolve(config.precision)

    with Output.open(out) as output:
        finished = output.begin(_plan(config, precision, prompts, live), live.names)
        if finished is not None:
            say(f"{out} is finished already; nothing to do")
            return finished
        tokenizer = HfTokenizer.load(config.model, trust_remote_code=config.trust_remote_code)
        loaded = actor_critic.load(config, tokenizer, running.loaded_dtype(config, precision))
        learner = Learner(config, loaded, precision, iterations * config.steps_per_iteration, output.path)
        policy = _LivePolicy(learner, live, output.path / ".weights", precision)
        start = _restore(learner, output)
        if start:
            policy.push(start)

        with Log(config, output, learner, iterations, start) as log, stopping(log), learner.memory():
            for iteration in range(start, iterations):
                with log.timed("sample"):  # 1. completions from the engine, which has the newest weights
                    rollouts = live.sample(iteration, list(_drawn(config, prompts, iteration)))
                with log.timed("score"):  # 2. the judge's word on each
                    scores = live.score(iteration, rollouts)
                with log.timed("evaluate"):  # 3. log-probabilities of policy and reference, values
                    said = learner.evaluate(rollouts)
                # 4. rewards by token, advantages, returns
                learned = experience(config, rollouts, scores, said, learner.kl.coef)
                policy.check(learned)
                with log.timed("update"):  # 5. clipped steps
                    policy.remember(rollouts[:_PROBED])
                    steps = learner.update(iteration, rollouts, learned)
                learner.kl.update(learned.mean(learned.kl), len(rollouts))  # 6. the KL coefficient
                with log.timed("push"):  # 7. the engine takes the new weights, and proves it
                    probed = policy.push(iteration + 1)
                # 8. figures and, where it is time, a checkpoint
                log.end(iteration, rollouts, learned, steps | {"sampler/probe": probed})
                if log.stop_requested:
                    raise KeyboardInterrupt

        with log.timed("save"):
            output.publish(lambda folder: _save(config, learner, tokenizer, precision, folder))
        summary = {
            "model": str(out), "prompts": len(prompts), "iterations": iterations, "precision": precision,
            "completions": iterations * config.batch_size, "metrics": log.shown(), "seconds": log.seconds,
        }  # fmt: skip
        shutil.rmtree(policy.folder, ignore_errors=True)
        output.finish(summary)
        return summary


class _OfMain:
    """Sampler and scorer of the main process, on all processes."""

    def __init__(self, sampler: Sampler | None, scorer: Scorer | None) -> None:
        self._sampler, self._scorer = sampler, scorer

    def sample(self, iteration: int, prompts: Sequence[Prompt]) -> list[Rollout]:
        return group.of_main(self._sampler.sample(iteration, prompts) if self._sampler else [])

    def score(self, iteration: int, rollouts: Sequence[Rollout]) -> list[float | None]:
        return group.of_main(self._scorer.score(iteration, rollouts) if self._scorer else [])

    def logps(self, rollouts: Sequence[Rollout]) -> list[Sequence[float]]:
        return group.of_main(self._sampler.logps(rollouts) if self._sampler else [])

    def load_weights(self, folder: Path) -> None:
        if self._sampler:
            self._sampler.load_weights(folder)

    @property
    def identity(self) -> dict[str, str]:
        found = {"sampler": self._sampler, "scorer": self._scorer}
        return {name: part.identity for name, part in found.items() if part is not None}

    @property
    def names(self) -> dict[str, str]:
        return {"scorer": self._scorer.name} if self._scorer else {}


class _LivePolicy:
    """The engine's copy of the policy: pushed by way of a directory for each version, and probed."""

    def __init__(self, learner: Learner, live: _OfMain, folder: Path, precision: str) -> None:
        self.folder = folder
        self._learner, self._live = learner, live
        self._dtype = running.saved_dtype(precision)
        self._tolerance = _TOLERANCE[precision]
        self._rollouts: Sequence[Rollout] = ()
        self._before: list[list[float]] = []

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """What the weights before an update say, to tell them from the weights after it."""
        self._rollouts, self._before = rollouts, self._learner.raw_logps(rollouts)

    def push(self, version: int) -> float:
        """Gives the engine the newest weights. Returns the mean |Δ log-probability| of the probe, 0 where
        there is nothing to probe with.

        Raises CheckFailed where the engine does not have them afterwards.
        """
        folder, state = self.folder / f"{version:06d}", self._learner.policy_state()
        if group.is_main():
            shutil.rmtree(folder, ignore_errors=True)
            models.save_state(self._learner.models.policy, state, self._dtype, folder)
            self._live.load_weights(folder)
            for old in self.folder.iterdir():
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        return self._probe() if self._rollouts else 0.0

    def _probe(self) -> float:
        found = _flat(self._live.logps(self._rollouts))
        now, before = _flat(self._learner.raw_logps(self._rollouts)), _flat(self._before)
        off, stale = (float((found - other).abs().mean()) for other in (now, before))
        moved = float((now - before).abs().mean())
        if stale < off and moved > 5 * stale:
            raise CheckFailed(
                f"the engine still has the weights of before the update: it differs from them by {stale:.2g} "
                f"nats a token, from the new ones by {off:.2g}"
            )
        self._refuse(off)
        return off

    def check(self, learned: Experience) -> None:
        """Raises CheckFailed where what the engine sampled from is not the policy."""
        rounding = learned.sampler_logps[learned.mask].abs() * 2**-11  # they are kept in half precision
        self._refuse(float((learned.mismatch - rounding).clamp(min=0).mean()))

    def _refuse(self, off: float) -> None:
        if not off <= self._tolerance:
            raise CheckFailed(
                f"engine and trainer differ by {off:.2g} nats a token, {self._tolerance} would be rounding",
                hint="Give the engine the trainer's precision (--dtype, --precision) and the same model.",
            )


def _flat(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def iterations_of(config: PpoConfig, prompts: Sequence[Prompt]) -> int:
    """Raises InputError where the prompts do not fill one iteration."""
    size = config.batch_size // config.n
    if len(prompts) < size:
        raise InputError(
            f"{len(prompts):,} prompts are fewer than the {size:,} of an iteration",
            where="--batch-size", hint="Lower it, raise --n, or give more prompts.",
        )  # fmt: skip
    return max(1, int(config.epochs * (len(prompts) // size) + 1e-9))


def _drawn(config: PpoConfig, prompts: Sequence[Prompt], iteration: int) -> Iterator[Prompt]:
    """The prompts of an iteration: in each pass over all of them a random order, of which what does not fill
    an iteration is left out."""
    size = config.batch_size // config.n
    lap, within = divmod(iteration, len(prompts) // size)
    order = shuffled(len(prompts), config.seed, "prompts", lap)
    return (prompts[place] for place in order[within * size : (within + 1) * size])


def _plan(config: PpoConfig, precision: str, prompts: Sequence[Prompt], live: _OfMain) -> dict[str, Any]:
    return {
        "stage": "train ppo", "config": config.shaping() | {"precision": precision},
        **running.weights_of(config),
        "critic": weights_version(config.critic) if config.critic else None,
        "prompts": digest("prompts", [p.id for p in prompts]),
        **live.identity,
    }  # fmt: skip


def _restore(learner: Learner, output: Output) -> int:
    """Takes the state of the newest whole checkpoint. Returns how many iterations it has behind it."""
    checkpoint, step = output.resume()
    if checkpoint:
        learner.restore(checkpoint)
        say(f"resuming after iteration {step}")
    return step


def _save(config: PpoConfig, learner: Learner, tokenizer: HfTokenizer, precision: str, folder: Path) -> None:
    """The whole policy, with LoRA merged and the adapter beside it."""
    state = learner.policy_state()
    if not group.is_main():
        return
    if config.lora_r:
        learner.models.module.policy.save_pretrained(folder / "adapter")
    models.save_state(learner.models.policy, state, running.saved_dtype(precision), folder)
    models.save_companions(config.model, tokenizer.hf, folder)
