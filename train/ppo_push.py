"""The engine's copy of the policy: new weights handed over by way of a directory, and proof that they came.

Rounding hides a small step, so one look proves little. What a few completions show at each push is added up
until it can be told which weights the engine has. What was sampled shows as much for nothing: an engine that
never took any weights samples from the reference, where that is what training started from.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gavel.command import say
from gavel.errors import CheckFailed
from train import adapter, group, models, running
from train.experience import Experience
from train.ppo_learner import Learner
from train.rollout import Rollout

_PROBED = 4  # completions
#: How far engine and trainer may differ in a token's log-probability, on average: rounding, no more.
_TOLERANCE = {"fp32": 0.005, "bf16": 0.1}
#: Standard deviations at which it is taken for certain which weights the engine has.
_CERTAIN = 5.0
_LIKELY = 2.0


class Receiver(Protocol):
    """What a policy is pushed to; as `train.rollout.Sampler` has it."""

    def load_weights(self, folder: Path) -> None: ...

    def logps(self, rollouts: Sequence[Rollout]) -> list[Sequence[float]]: ...


class Evidence:
    """Whether an engine has new weights or still those of before.

    Of a token the trainer says l by the old and l' by the new weights, the engine f. It votes for the new
    weights (+1) where f is nearer to l', for the old ones (−1) where it is nearer to l, with the weight
    |l' − l|: a sign test, weighted by how far the policy moved,

        z = Σ |l' − l| · vote / √Σ (l' − l)².

    Rounding of the engine and, in l' and l alike, of the trainer pulls votes to chance and no further, so for
    an engine that takes its weights P(z < −c) ≤ exp(−c²/2) whatever the size of the rounding errors, if they
    are symmetric and independent (Hoeffding 1963, theorem 2): 4e-6 for c = 5. Without rounding z grows as
    the square root of the number of tokens, for either engine.
    """

    def __init__(self) -> None:
        self._votes = self._squares = 0.0

    def add(self, before: Tensor, now: Tensor, found: Tensor) -> float | None:
        """What some tokens show.

        Args:
            before, now: their log-probabilities by the trainer, (tokens,). found: by the engine.

        Returns: the weight of the votes for the new weights among all, in [0, 1]; None without a move.
        """
        moved = now - before
        votes = moved.abs() * torch.sign(moved * (found - (now + before) / 2))
        self._votes += float(votes.sum())
        self._squares += float((moved**2).sum())
        whole = float(moved.abs().sum())
        return (1 + float(votes.sum()) / whole) / 2 if whole else None

    @property
    def z(self) -> float:
        """Above 0 for the new weights, below for the old ones; 0 where nothing is known."""
        return self._votes / math.sqrt(self._squares) if self._squares else 0.0


class LivePolicy:
    """The policy in the engine.

    Args:
        live: the engine, on all processes. folder: of a directory for each version of the weights.
        from_reference: whether the engine begins with the reference's weights.
    """

    def __init__(
        self, learner: Learner, live: Receiver, folder: Path, precision: str, from_reference: bool
    ) -> None:
        self.folder = folder
        self._learner, self._live = learner, live
        self._dtype = running.saved_dtype(precision)
        self._tolerance = _TOLERANCE[precision]
        self._rollouts: Sequence[Rollout] = ()
        self._before = torch.empty(0)
        self._pushes, self._proved = Evidence(), False
        self._samples = Evidence() if from_reference else None

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """What the weights before an update say of a few completions, to tell them from the weights after."""
        self._rollouts = rollouts[:_PROBED]
        self._before = _flat(self._learner.raw_logps(self._rollouts))

    def push(self, version: int) -> dict[str, float]:
        """Gives the engine the newest weights. Returns the probe's figures, none where nothing is remembered.

        sampler/probe: mean |Δ log-probability| of engine and trainer. sampler/new_weights: how the probe's
        tokens voted, see `Evidence`; left out where the policy did not move.

        Raises CheckFailed where the engine does not have them afterwards.
        """
        folder = self.folder / f"{version:06d}"
        with self._learner.memory():
            state = self._learner.state_of("policy")
        if group.is_main():
            shutil.rmtree(folder, ignore_errors=True)
            whole = adapter.merged(self._learner.models.module.policy, state)
            models.save_state(self._learner.models.policy, whole, self._dtype, folder)
            self._live.load_weights(folder)
            for old in self.folder.iterdir():
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        return self._probe() if self._rollouts else {}

    def _probe(self) -> dict[str, float]:
        found = _flat(self._live.logps(self._rollouts))
        with self._learner.memory():
            now = _flat(self._learner.raw_logps(self._rollouts))
        votes = self._pushes.add(self._before, now, found)
        _refuse_stale(self._pushes, "the engine still has the weights of before the update")
        if self._pushes.z > _CERTAIN:
            self._pushes, self._proved = Evidence(), True  # an engine may fail later
        off = float((found - now).abs().mean())
        self._refuse(off)
        return {"sampler/probe": off} | ({} if votes is None else {"sampler/new_weights": votes})

    def conclude(self) -> None:
        """Says so where nothing in a run showed which weights the engine has."""
        z = max(evidence.z for evidence in (self._pushes, self._samples) if evidence is not None)
        if not self._proved and z < _LIKELY:
            say(
                "the policy moved too little to tell by log-probabilities whether the engine took its weights"
            )

    def check(self, learned: Experience) -> None:
        """Raises CheckFailed where what the engine sampled from is not the policy."""
        rounding = learned.sampler_logps[learned.mask].abs() * 2**-11  # they are kept in half precision
        if self._samples is not None:
            tokens = (learned.said.ref_logps, learned.said.logps, learned.sampler_logps)
            self._samples.add(*(values[learned.mask].double().cpu() for values in tokens))
            _refuse_stale(self._samples, "the engine still has the weights that it started with")
            if self._samples.z > _CERTAIN:
                self._samples, self._proved = Evidence(), True
        self._refuse(float((learned.mismatch - rounding).clamp(min=0).mean()))

    def _refuse(self, off: float) -> None:
        if not off <= self._tolerance:
            raise CheckFailed(
                f"engine and trainer differ by {off:.2g} nats a token, {self._tolerance} would be rounding",
                hint="Give the engine the trainer's precision (--dtype, --precision) and the same model.",
            )


def _refuse_stale(evidence: Evidence, what: str) -> None:
    if evidence.z < -_CERTAIN:
        raise CheckFailed(
            f"{what}: what it says is nearer to them than to the new ones, by {-evidence.z:.1f} standard "
            "deviations",
            hint="Take another engine (--policy-engine).",
        )


def _flat(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)
