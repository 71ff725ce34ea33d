"""What a few log-probabilities tell of the weights that an engine has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gavel.errors import CheckFailed
from train.ppo_push import Evidence, LivePolicy

TOKENS = 200  # of a probe: four completions of fifty


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("found", "z", "new"),
    [
        ((-0.9, -2.2), 0.3 / 0.05**0.5, 1.0),  # the new weights
        ((-1.0, -2.0), -0.3 / 0.05**0.5, 0.0),  # the old ones
        ((-0.96, -2.15), 0.1 / 0.05**0.5, 2 / 3),  # −0.1 + 0.2 of 0.3: halfways are −0.95 and −2.1
    ],
)
def test_votes_are_weighed_by_the_move(found: tuple[float, ...], z: float, new: float) -> None:
    evidence = Evidence()
    assert evidence.add(tensor(-1, -2), tensor(-0.9, -2.2), tensor(*found)) == pytest.approx(new)
    assert evidence.z == pytest.approx(z)
    evidence.add(tensor(-1), tensor(-0.9), tensor(-0.9))
    votes = z * 0.05**0.5 + 0.1
    assert evidence.z == pytest.approx(votes / 0.06**0.5), "pushes add up"


def test_a_policy_that_stands_still_tells_nothing() -> None:
    evidence = Evidence()
    assert evidence.add(tensor(-1, -2), tensor(-1, -2), tensor(-1.5, -2)) is None
    assert evidence.z == 0


class World:
    """A policy in training that walks away from where it began, the trainer's word on it and an engine's,
    both with rounding errors. In the place of learner, engine and what was learned.

    move: mean |Δ log-probability| of an update. rounding: standard deviation of the engine's errors; the
    trainer's are half as large. heard: which of the updates the engine takes.
    """

    def __init__(self, seed: int, move: float, heard: Callable[[int], bool], rounding: float = 0.02) -> None:
        self._draw = torch.Generator().manual_seed(seed)
        self._move, self._heard, self._rounding = move, heard, rounding
        self._number, self._began = 0, -torch.rand(TOKENS, generator=self._draw)
        self._policy = self._engine = self._began
        self.memory, self.models = (
            contextlib.nullcontext,
            SimpleNamespace(policy=None, module=SimpleNamespace(policy=None)),
        )
        self.mask = torch.ones(TOKENS, dtype=torch.bool)

    def _rounded(self, logps: torch.Tensor, share: float) -> torch.Tensor:
        return logps + torch.randn(TOKENS, generator=self._draw) * self._rounding * share

    def update(self) -> None:
        self._number += 1
        step = torch.randn(TOKENS, generator=self._draw)
        self._policy = self._policy + step * self._move / 0.798  # E|N(0, 1)|

    def raw_logps(self, rollouts: Any) -> list[list[float]]:
        return [self._rounded(self._policy, 0.5).tolist()]

    def state_of(self, part: str) -> dict[str, Any]:
        return {}

    def load_weights(self, folder: Path) -> None:
        if self._heard(self._number):
            self._engine = self._policy

    def logps(self, rollouts: Any) -> list[list[float]]:
        return [self._rounded(self._engine, 1).tolist()]

    @property
    def said(self) -> SimpleNamespace:
        return SimpleNamespace(
            logps=self._rounded(self._policy, 0.5), ref_logps=self._rounded(self._began, 0.5)
        )

    @property
    def sampler_logps(self) -> torch.Tensor:
        return self._rounded(self._engine, 1)

    @property
    def mismatch(self) -> torch.Tensor:
        return (self.said.logps - self.sampler_logps).abs()


Pushed = Callable[..., tuple[int, str]]


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pushed:
    """In which iteration an engine is refused, and why; 0: in none of so many."""
    from train import adapter, models

    def save(loaded: Any, state: Any, dtype: Any, folder: Path) -> None:
        folder.mkdir(parents=True)

    monkeypatch.setattr(models, "save_state", save)
    monkeypatch.setattr(adapter, "merged", lambda model, state: state)

    def run(world: World, iterations: int, from_reference: bool) -> tuple[int, str]:
        given: Any = world
        policy = LivePolicy(given, given, tmp_path, "bf16", from_reference)
        for number in range(1, iterations + 1):
            try:
                policy.check(given)
                policy.remember([given])
                world.update()
                policy.push(number)
            except CheckFailed as error:
                return number, str(error)
        return 0, ""

    return run


@pytest.mark.parametrize(("move", "within"), [(0.005, 10), (0.01, 6), (0.02, 4), (0.05, 2), (0.09, 1)])
def test_an_engine_that_hears_nothing_is_found_however_small_the_steps(
    pushed: Pushed, move: float, within: int
) -> None:
    """Its rounding errors are 0.02 nats a token: more than many a step, less than the 0.1 that bfloat16 may
    have."""
    for seed in range(10):
        number, why = pushed(World(seed, move, lambda number: False), within, True)
        assert number and "the engine still has the weights" in why, (seed, number, why)


@pytest.mark.parametrize(("move", "within"), [(0.02, 12), (0.05, 2)])
def test_pushes_alone_find_it_too(pushed: Pushed, move: float, within: int) -> None:
    """Where training does not start from the reference, and where an engine fails after it has proved itself:
    evidence of before does not hide it."""
    for seed in range(10):
        number, why = pushed(World(seed, move, lambda number: False), within, False)
        assert number and "weights of before the update" in why, (seed, number, why)
        number, why = pushed(World(seed, move, lambda number: number <= 30), 30 + within, False)
        assert number > 30 and "weights of before the update" in why, (seed, number, why)


@pytest.mark.slow
@pytest.mark.parametrize("move", [0.005, 0.05])
def test_an_engine_that_takes_its_weights_is_never_refused(pushed: Pushed, move: float) -> None:
    for seed in range(200):
        assert pushed(World(seed, move, lambda number: True), 12, True) == (0, ""), seed


def test_what_cannot_be_told_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: Any = World(0, 1.0, lambda number: True)
    policy = LivePolicy(given, given, tmp_path, "bf16", True)
    policy.conclude()
    assert "moved too little to tell" in capsys.readouterr().err
    policy.remember([given])
    given.update()
    given.load_weights(tmp_path)
    figures = policy._probe()
    assert figures["sampler/new_weights"] > 0.9 and figures["sampler/probe"] < 0.1
    policy.conclude()
    assert capsys.readouterr().err == ""
