"""PPO's side of the tensors: forward passes, optimiser steps and checkpoints, in micro-batches, on any number
of processes.

Every process knows the whole iteration; forward passes are divided among them, micro-batch by micro-batch in
the order of length, and what they find is put together again. A step's loss is a sum over its tokens divided
by their number over all processes, so neither micro-batch nor number of processes changes what is optimised.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gavel.command import say
from gavel.records import seed_for
from train import group
from train import ppo_terms as terms
from train.actor_critic import ActorCritic, Models
from train.config_ppo import PpoConfig
from train.exact import NotANumber
from train.experience import Evaluated, Experience
from train.memory import free_memory, less_memory, out_of_memory
from train.ppo_accelerate import accelerator_of, optimiser_of, prepared, scheduler_of
from train.rollout import OutOfMemory, Rollout
from train.tokens import Tokens, by_kin
from train.unique import TOLERANCE

T = TypeVar("T")


class Learner:
    """Policy and critic with their optimiser.

    Args:
        steps: optimiser steps in all. folder: where trackers keep their files.

    Attributes:
        kl: the KL coefficient. micro_batch: rows per forward pass. stepped: optimiser steps since the end of
            an iteration, after which the weights are those of none. shared: whether forward passes are one
            row with each prompt once; None until completions show whether the models can.
    """

    def __init__(self, config: PpoConfig, models: Models, precision: str, steps: int, folder: Path) -> None:
        self._config, self.models = config, models
        optimiser = optimiser_of(config, models)
        self.accelerator = accelerator_of(config, precision, folder)
        self.micro_batch = config.micro_batch_on(group.size())
        self.stepped = 0
        self.shared: bool | None = None
        self._agree_within = TOLERANCE[precision]
        self.kl = terms.AdaptiveKl(config.kl_coef, config.kl_target, config.kl_horizon)
        self.scheduler = scheduler_of(config, optimiser, steps)
        self._module, self._optimiser = prepared(self.accelerator, models, optimiser)
        self._module.train()
        self.accelerator.register_for_checkpointing(self.kl, self.scheduler)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def evaluate(self, rollouts: Sequence[Rollout]) -> Evaluated:
        """Log-probabilities at the sampling temperature, values and entropies of completions."""
        rows, width = len(rollouts), max(len(r.completion_ids) for r in rollouts)
        found = torch.zeros(4, rows, width + 1, device=self.device)
        temperature = self._config.temperature
        if self.shared is None:
            self._within_memory(lambda micro: self._try_sharing(rollouts, micro))

        def passes(micro: int) -> None:
            for part, tokens in self._micro_batches(rollouts, range(rows), micro):
                with self.accelerator.autocast():
                    kinds = self._module(self.models.evaluated, tokens, temperature)
                for place, kind in enumerate(kinds):
                    found[place, part, : kind.shape[1]] = kind.float()

        self._within_memory(passes)
        found = group.summed(found)
        ends = torch.tensor([len(r.completion_ids) for r in rollouts], device=self.device)
        after = found[2].gather(1, ends[:, None])[:, 0]
        return Evaluated(found[0, :, :-1], found[1, :, :-1], found[2, :, :-1], after, found[3, :, :-1])

    def _try_sharing(self, rollouts: Sequence[Rollout], micro: int) -> None:
        """On the longest, which would show whatever a model does only in long sequences: one completion, the
        next of its prompt and that of another, as far as a micro-batch holds them."""
        longest, *others = (rollouts[row] for row in by_kin(rollouts, range(len(rollouts))))
        kin = [other for other in others if other.prompt_ids == longest.prompt_ids]
        strangers = [other for other in others if other.prompt_ids != longest.prompt_ids]
        tried = [longest, *kin[:1], *strangers[:1]][:micro]
        with self.accelerator.autocast():
            why = self.models.try_sharing(tried, self.device, self._agree_within)
        self.shared = why is None
        if why is not None:
            say(f"prompts go through the models once for each completion: {why}")

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def raw_logps(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probabilities of completion tokens by the policy at temperature 1."""
        found = []
        for start in range(0, len(rollouts), self.micro_batch):
            part = rollouts[start : start + self.micro_batch]
            tokens = Tokens.of(part, self.device, bool(self.shared))
            logps = self._module(ActorCritic.said, tokens, 1.0)[0]
            found += [row[: len(r.completion_ids)].tolist() for row, r in zip(logps, part, strict=True)]
        return found

    def update(self, iteration: int, rollouts: Sequence[Rollout], learned: Experience) -> dict[str, float]:
        """The optimiser steps of an iteration. Returns means over them under TRL's names.

        Raises:
            NotANumber: a loss or gradient that is not finite, before it touches the weights.
            InputError: out of memory, and no smaller micro-batch may be tried.
        """
        stats: dict[str, list[float]] = defaultdict(list)
        size = len(rollouts) // self._config.mini_batches
        for epoch in range(self._config.ppo_epochs):
            order = shuffled(len(rollouts), self._config.seed, f"iteration {iteration}", epoch)
            for start in range(0, len(order), size):
                for name, value in self._step(
                    iteration, rollouts, learned, order[start : start + size]
                ).items():
                    stats[name].append(value)
        ratios = torch.tensor(stats["val/ratio"])
        means = {name: sum(values) / len(values) for name, values in stats.items()}
        return means | {"val/ratio_var": float(ratios.var(correction=0))}

    def _step(self, iteration: int, rollouts: Sequence[Rollout], learned: Experience,
              rows: Sequence[int]) -> dict[str, float]:  # fmt: skip
        """One optimiser step on some of the completions."""
        count = learned.mask[list(rows)].sum()
        if not count:
            return {}
        sums = self._within_memory(lambda micro: self._gradients(rollouts, learned, rows, micro, count))
        sums = group.summed(sums) / count
        norms = [self._clip(part) for part in (self.models.module.policy, self.models.module.critic)]
        if not all(map(math.isfinite, [*norms, float(sums[0]), float(sums[1])])):
            self._optimiser.zero_grad()
            raise _not_a_number(iteration, sums, norms, [rollouts[row] for row in rows])
        learning_rate = self.scheduler.get_last_lr()[0]
        self.stepped += 1
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.scheduler.step()
        names = ("loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "val/clipfrac_avg",
                 "policy/approxkl_avg", "val/ratio")  # fmt: skip
        return dict(zip(names, sums.tolist(), strict=True)) | {
            "grad_norm/policy": norms[0], "grad_norm/value": norms[1], "lr": learning_rate,
        }  # fmt: skip

    def _clip(self, part: torch.nn.Module) -> float:
        """Clips the gradients of policy or critic. Returns their norm before that."""
        limit = self._config.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(part.parameters(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _gradients(self, rollouts: Sequence[Rollout], learned: Experience, rows: Sequence[int], micro: int,
                   count: Tensor) -> Tensor:  # fmt: skip
        """Adds up the gradients of a step. Returns sums over this process's tokens: policy loss, value loss,
        tokens clipped in either, squared change of log-probability / 2, ratio."""
        config, sums = self._config, torch.zeros(6, device=self.device)
        self._optimiser.zero_grad()
        for part, tokens, last in _marked(self._micro_batches(rollouts, rows, micro)):
            # processes exchange gradients at a step's last micro-batch only; shards have no room to wait
            at_once = last or self.accelerator.is_fsdp2
            with contextlib.nullcontext() if at_once else self.accelerator.no_sync(self._module):
                width = tokens.mask.shape[1]
                mask, old_logps, old_values, advantages, returns, weights = (
                    array[part, :width]
                    for array in (learned.mask, learned.said.logps, learned.said.values,
                                  learned.advantages, learned.returns, learned.weights)
                )  # fmt: skip
                logps, values = self._module(ActorCritic.said, tokens, config.temperature)
                policy = terms.policy_loss(logps, old_logps, advantages, weights, mask, config.clip)
                value = terms.value_loss(values[:, :-1], old_values, returns, mask, config.value_clip)
                loss = (policy.total + config.value_coef * value.total) / count
                # gradients are averaged over processes, the objective is a sum over their shares
                self.accelerator.backward(loss * group.size())
            with torch.no_grad():
                change = torch.where(mask, logps - old_logps, 0.0)
                ratio = torch.where(mask, change.exp(), 0.0)
                sums += torch.stack([policy.total, value.total, policy.clipped, value.clipped,
                                     (change**2).sum() / 2, ratio.sum()])  # fmt: skip
        return sums

    def _micro_batches(
        self, rollouts: Sequence[Rollout], rows: Sequence[int], micro: int
    ) -> Iterator[tuple[list[int], Tokens]]:
        """This process's share of some rows, those of one prompt and of like length together: of every
        `micro` times processes the next ones, so that each has as many and prompts are parted no more than
        on one process."""
        ordered = list(by_kin(rollouts, rows))
        for start in range(0, len(ordered), micro * group.size()):
            block = ordered[start : start + micro * group.size()]
            first, end = (len(block) * at // group.size() for at in (group.rank(), group.rank() + 1))
            part = block[first:end]
            yield part, Tokens.of([rollouts[row] for row in part], self.device, bool(self.shared))

    def _within_memory(self, work: Callable[[int], T]) -> T:
        """Calls `work` with the micro-batch, and with half of it again where memory runs out and it may."""
        while True:
            try:
                return work(self.micro_batch)
            except (RuntimeError, MemoryError) as error:
                smaller = self.micro_batch // 2
                if not (smaller and self._config.halve_micro_batch and out_of_memory(error)):
                    raise
            say(f"out of memory with a micro-batch of {self.micro_batch}: going on with {smaller}")
            self.micro_batch = smaller
            free_memory()

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """Turns a lack of memory into an error that says what to lower."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemory(
                "out of memory while training", where=f"--micro-batch {self.micro_batch}",
                hint=less_memory(self._config, self.micro_batch // 2 or None),
            ) from None  # fmt: skip

    def state_of(self, part: Literal["policy", "critic"]) -> dict[str, Tensor]:
        """The weights of one of the two as training has them, an adapter's apart; empty on all processes but
        the main one."""
        return group.whole_state(getattr(self.models.module, part))

    def save(self, folder: Path) -> None:
        """Policy, critic, optimiser, learning rate, KL coefficient and random state."""
        self.accelerator.save_state(str(folder), safe_serialization=False)

    def restore(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))


def shuffled(count: int, seed: int, of: str, number: int) -> list[int]:
    """A random order of `count` places, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed_for(seed, of, number))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def _marked(parts: Iterator[tuple[list[int], Tokens]]) -> Iterator[tuple[list[int], Tokens, bool]]:
    """Each with whether it is the last."""
    before = None
    for part in parts:
        if before is not None:
            yield *before, False
        before = part
    if before is not None:
        yield *before, True


def _not_a_number(
    iteration: int, sums: Tensor, norms: Sequence[float], rows: Sequence[Rollout]
) -> NotANumber:
    return NotANumber(
        f"policy loss {float(sums[0]):.4g}, value loss {float(sums[1]):.4g}, gradient norms "
        f"{norms[0]:.4g} and {norms[1]:.4g}",
        f"iteration {iteration + 1}, in completions", [row.completion.id for row in rows],
    )  # fmt: skip
