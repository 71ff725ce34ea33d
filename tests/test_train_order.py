"""Rows of like length go together, and every optimiser step still sees the rows that Trainer drew for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from training_tools import assert_one_trajectory, planted, tiny_model

from train.config_dpo import DpoConfig

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The rows of each micro-batch, in the order trained on."""
    from train.exact import ExactRows

    caught: list[list[int]] = []
    original = ExactRows.finite

    def spy(self: Any, loss: Any, places: Any) -> Any:
        caught.append(list(places))
        return original(self, loss, places)

    monkeypatch.setattr(ExactRows, "finite", spy)
    yield caught


def settings(model: str, **changes: Any) -> DpoConfig:
    base = {"learning_rate": 1e-3, "batch_size": 8, "micro_batch": 2, "epochs": 2, "log_steps": 1,
            "precision": "fp32", "reference": "pass"}  # fmt: skip
    return DpoConfig(model=model, **(base | changes))


def test_each_step_has_the_rows_that_trainer_drew(
    model: str, tmp_path: Path, seen: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import draw
    from train.dpo import train_dpo

    def as_drawn(rows: Any, places: Any, micro: int, *more: Any) -> list[list[int]]:
        return [list(places[start : start + micro]) for start in range(0, len(places), micro)]

    rows = planted(29)
    train_dpo(settings(model), rows, tmp_path / "by-length")
    mine = list(seen)
    seen.clear()
    monkeypatch.setattr(draw, "micro_batches", as_drawn)
    train_dpo(settings(model), rows, tmp_path / "as-drawn")
    drawn = list(seen)

    def steps(micro_batches: list[list[int]]) -> list[list[int]]:
        """15 micro-batches an epoch: three steps of four, one of three."""
        found = []
        for start in range(0, len(micro_batches), 15):
            epoch = micro_batches[start : start + 15]
            found += [list(chain(*epoch[i : i + 4])) for i in range(0, 15, 4)]
        return found

    assert [sorted(step) for step in steps(mine)] == [sorted(step) for step in steps(drawn)]
    assert steps(mine) != steps(drawn)
    for step in steps(mine):
        longest: dict[tuple[int, ...], int] = {}  # pairs of one prompt stand together, by the longest of them
        for place in step:
            prompt = tuple(rows[place].prompt_ids)
            longest[prompt] = max(longest.get(prompt, 0), rows[place].length)
        lengths = [longest[tuple(rows[place].prompt_ids)] for place in step]
        assert lengths == sorted(lengths, reverse=True)
    assert sorted(chain(*steps(mine)[:4])) == list(range(29)), "each row once an epoch"
    assert steps(mine)[:4] != steps(mine)[4:], "another order in another epoch"
    assert_one_trajectory(tmp_path / "by-length", tmp_path / "as-drawn")


def test_a_loss_that_compares_within_micro_batches_keeps_the_order_drawn(
    model: str, tmp_path: Path, seen: list[list[int]]
) -> None:
    from train.dpo import train_dpo

    rows = planted(16)
    train_dpo(settings(model, loss={"aot": 1.0}, epochs=1), rows, tmp_path / "out")
    lengths = [rows[place].length for micro in seen[:4] for place in micro]
    assert lengths != sorted(lengths, reverse=True)
