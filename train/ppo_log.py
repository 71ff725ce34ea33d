"""What PPO reports of each iteration, under the names of TRL's PPOTrainer where it had them, and when it
keeps a checkpoint."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gavel.command import say
from gavel.progress import Progress
from gavel.rundir import JsonlWriter
from train import group
from train import ppo_terms as terms
from train.callbacks import SAY_S, checkpoint_due
from train.config_ppo import PpoConfig
from train.exact import NotANumber
from train.experience import Experience
from train.output import Output
from train.ppo_learner import Learner
from train.rollout import OutOfMemory, Rollout

_SHOWN = ("objective/scores", "objective/kl", "objective/kl_coef", "completions/mean_length",
          "completions/cut_off", "policy/entropy_avg")  # fmt: skip


_LAST_GOOD = "last-good"  # beside the checkpoints, and freed with them


class Log:
    """Use as `with Log(…) as log, stopping(log)`.

    Args:
        iterations: in all. start: how many are done. rescue: saves policy and critic as models, on all
            processes alike.

    Attributes:
        seconds: by stage, over all iterations. stop_requested: set by a signal; the iteration under way is
            the last.
    """

    def __init__(
        self, config: PpoConfig, output: Output, learner: Learner, iterations: int, start: int,
        rescue: Callable[[Path], None],
    ) -> None:  # fmt: skip
        self._config, self._output, self._learner, self._rescue = config, output, learner, rescue
        self._iterations = iterations
        self._saved = self._said = time.monotonic()
        self._last: dict[str, Any] = output.last_metrics()
        self.seconds: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self.stop_requested = False
        self._writer = JsonlWriter(output.metrics_path) if group.is_main() else None
        self._done = start
        self._progress = Progress("training", iterations)

    def __enter__(self) -> Log:
        self._progress.__enter__()
        self._progress.advance(self._done)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, NotANumber):  # all processes have found it
            listed = f"All {len(error.names):,} are in {self._output.name_suspects(error.names)}."
            error.hint = " ".join(filter(None, (error.hint, listed, self._keep(), self._models())))
        elif isinstance(error, OutOfMemory) and group.size() == 1:  # else the others know nothing of it
            error.hint = f"{error.hint} {self._keep()}".strip()
        self._progress.__exit__(kind, error, trace)
        if self._writer is not None:
            self._writer.close()
        for tracker in self._learner.accelerator.trackers:  # its end_training() would part the processes
            tracker.finish()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - began
            self._spent[stage] = spent
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + spent, 2)

    def end(
        self, iteration: int, rollouts: Sequence[Rollout], learned: Experience, steps: dict[str, float]
    ) -> None:
        """Writes the figures of an iteration, and saves where it is time."""
        self._done = done = iteration + 1
        self._learner.stepped = 0
        self.stop_requested = group.any_of(self.stop_requested)
        if done % self._config.log_steps == 0 or done == self._iterations or self.stop_requested:
            self._last = {
                "step": done,
                "episode": done * len(rollouts),
                **figures(rollouts, learned),
                **steps,
            }
            self._last |= {f"seconds/{name}": round(s, 3) for name, s in self._spent.items()}
            self._learner.accelerator.log(self._last, step=done)
            if self._writer is not None:
                self._writer.append_line(json.dumps(self._last).encode() + b"\n")
            if time.monotonic() - self._said > SAY_S and not sys.stderr.isatty():
                self._said = time.monotonic()
                say(f"iteration {done}/{self._iterations}: score {self._last['objective/scores']:.4g}, "
                    f"KL {self._last['objective/kl']:.3g}")  # fmt: skip
        self._progress.advance()
        due = checkpoint_due(done, self._iterations, self._config.save_steps, self._saved)
        if due or self.stop_requested:
            with self._learner.memory():
                self._checkpoint(done)

    def shown(self) -> dict[str, Any]:
        """Of the last figures, what a person wants to read."""
        return {name: self._last[name] for name in _SHOWN if name in self._last}

    def _keep(self) -> str:
        """Saves the state of the last iteration, unless optimiser steps of the next have changed it, and says
        what there is."""
        step = 0 if self._learner.stepped else self._done
        return self._output.keep(step, lambda: self._checkpoint(self._done), "iteration")

    def _models(self) -> str:
        """Where steps of an iteration were taken, saves policy and critic of before the one that failed: no
        iteration can be gone on with from there, but another run can begin there."""
        folder = self._output.checkpoints / _LAST_GOOD
        if not self._learner.stepped:
            return ""
        try:
            self._rescue(folder)
        except (RuntimeError, OSError):  # no memory, no disk
            return ""
        return f"Policy and critic of before this step are models in {folder}."

    def _checkpoint(self, done: int) -> None:
        self._learner.save(self._output.checkpoints / f"checkpoint-{done}")
        self._output.mark_whole(done)
        self._saved = time.monotonic()


def figures(rollouts: Sequence[Rollout], learned: Experience) -> dict[str, Any]:
    """Figures of an iteration. KL, entropy and rewards are means over the scored completions of sums over
    their tokens; `objective/scores` is the judge's, `objective/rlhf_reward` less penalties."""
    mask, said, mismatch = learned.mask, learned.said, learned.mismatch
    scores, errors = learned.scores[learned.scored], (learned.returns - said.values)[mask]
    spread = learned.returns[mask].var(correction=0)
    lengths = [len(r.completion_ids) for r in rollouts]
    return {
        "objective/kl": learned.mean(learned.kl),
        "objective/kl_k3": learned.mean(terms.kl_k3(said.logps, said.ref_logps)),
        "objective/kl_coef": learned.kl_coef,
        "objective/non_score_reward": -learned.kl_coef * learned.mean(learned.kl),
        "objective/entropy": learned.mean(-said.logps),
        "objective/rlhf_reward": learned.mean(learned.rewards),
        "objective/scores": float(scores.mean()),
        "objective/scores_std": float(scores.std(correction=0)),
        "policy/entropy_avg": float(said.entropies[mask].mean()),
        "val/explained_variance": 1 - float(errors.var(correction=0) / spread.clamp(min=1e-12)),
        "val/num_eos_tokens": sum(not r.cut_off for r in rollouts),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/cut_off": sum(r.cut_off for r in rollouts) / len(rollouts),
        "completions/unscored": int((~learned.scored).sum()),
        "sampler/logp_diff_mean": float(mismatch.mean()),
        "sampler/logp_diff_max": float(mismatch.max()),
        "sampler/ess": terms.effective_sample_size(said.logps, learned.sampler_logps, mask),
    }
