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

from gavel.command import say
from gavel.errors import InputError
from gavel.records import Prompt, digest
from gavel.tokenizer import HfTokenizer
from gavel.weights import weights_version
from train import actor_critic, adapter, checks, group, models, running
from train.callbacks import stopping
from train.config_ppo import PpoConfig
from train.experience import experience
from train.output import Output
from train.ppo_accelerate import trackers
from train.ppo_learner import Learner, shuffled
from train.ppo_log import Log
from train.ppo_push import LivePolicy
from train.rollout import Rollout, Sampler, Scorer


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
        InputError: fewer prompts than an iteration takes, a model or critic that cannot be loaded, or an
            `out` that holds the work of other settings or data.
        OutOfMemory: of the trainer; a sampler or scorer raises its own.
        CheckFailed: a loss that is not a number, not one usable score, or an engine whose log-probabilities
            are not those of the weights it was given.
    """
    running.quiet()
    group.check_shards("PPO", "FSDP2")
    checks.check_names(config)
    trackers(config)
    group.join()
    checks.check_halving(config)
    config.micro_batch_on(group.size())  # raises where the batch cannot be divided
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
        policy = LivePolicy(
            learner, live, output.path / ".weights", precision, config.reference_from == config.model
        )
        with learner.memory():
            start = _restore(learner, output)
        if start:
            policy.push(start)

        def rescue(folder: Path) -> None:
            _save(config, learner, tokenizer, precision, folder / "policy")
            _save_critic(config, learner, tokenizer, precision, folder / "critic")

        with Log(config, output, learner, iterations, start, rescue) as log, stopping(log):
            for iteration in range(start, iterations):
                with log.timed("sample"):  # 1. completions from the engine, which has the newest weights
                    rollouts = live.sample(iteration, list(_drawn(config, prompts, iteration)))
                with log.timed("score"):  # 2. the judge's word on each
                    scores = live.score(iteration, rollouts)
                # 3. log-probabilities of policy and reference, values
                with log.timed("evaluate"), learner.memory():
                    said = learner.evaluate(rollouts)
                    # 4. rewards by token, advantages, returns
                    learned = experience(config, rollouts, scores, said, learner.kl.coef)
                policy.check(learned)
                with log.timed("update"), learner.memory():  # 5. clipped steps
                    policy.remember(rollouts)
                    steps = learner.update(iteration, rollouts, learned)
                learner.kl.update(learned.mean(learned.kl), len(rollouts))  # 6. the KL coefficient
                with log.timed("push"):  # 7. the engine takes the new weights, and proves it
                    probed = policy.push(iteration + 1)
                # 8. figures and, where it is time, a checkpoint
                log.end(iteration, rollouts, learned, steps | probed)
                if log.stop_requested:
                    raise KeyboardInterrupt

        policy.conclude()
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
    checks.check_stored(checkpoint, "FSDP" if learner.accelerator.is_fsdp2 else "")
    if checkpoint:
        learner.restore(checkpoint)
        say(f"resuming after iteration {step}")
    return step


def _save(config: PpoConfig, learner: Learner, tokenizer: HfTokenizer, precision: str, folder: Path) -> None:
    """The whole policy, with LoRA merged and the adapter beside it."""
    state, policy = learner.state_of("policy"), learner.models.module.policy
    if not group.is_main():
        return
    if config.lora_r:
        policy.save_pretrained(folder / "adapter", state_dict=state)
    whole = adapter.merged(policy, state)
    models.save_state(learner.models.policy, whole, running.saved_dtype(precision), folder)
    models.save_companions(config.model, tokenizer.hf, folder)


def _save_critic(
    config: PpoConfig, learner: Learner, tokenizer: HfTokenizer, precision: str, folder: Path
) -> None:
    """The critic as a reward model, with LoRA merged."""
    state, critic = learner.state_of("critic"), learner.models.module.critic
    if group.is_main():
        whole = adapter.merged(critic, state)
        models.save_state(learner.models.critic, whole, running.saved_dtype(precision), folder)
        models.save_companions(config.critic or config.model, tokenizer.hf, folder)
