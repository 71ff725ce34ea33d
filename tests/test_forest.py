"""Leaves of one length without stems are read as the batch that they are."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]

ROWS, LENGTH, HEADS, WIDTH = 3, 7, 4, 8


def attended(grown: Any, groups: int, window: int | None, dtype: str) -> list[Any]:
    """What attention gives, and its gradients, for states that are the same in every call."""
    import torch

    from train.forest import attend

    draw = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, ROWS * LENGTH, n, WIDTH, generator=draw).to(getattr(torch, dtype)).requires_grad_()
        for n in (HEADS, groups, groups)
    ]
    found, _ = attend(None, *(s.transpose(1, 2) for s in states), None, scaling=0.3, forest=grown,
                      sliding_window=window)  # fmt: skip
    weights = torch.randn(found.shape, generator=draw).to(found.dtype)
    (found * weights).sum().backward()
    return [found.detach(), *(s.grad for s in states)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("groups", [HEADS, 2])
def test_a_regular_forest_gives_what_its_gathers_gave(
    groups: int, window: int | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, gradients too."""
    import torch

    from train import forest

    grown = forest.plant([[]] * ROWS, [(i, list(range(LENGTH))) for i in range(ROWS)])
    assert grown.regular
    monkeypatch.setattr(forest, "_pick", None)  # it gathers nothing
    found = attended(grown, groups, window, dtype)
    monkeypatch.undo()
    monkeypatch.setattr(forest.Forest, "regular", False)
    for ours, expected in zip(found, attended(grown, groups, window, dtype), strict=True):
        assert ours.shape == expected.shape and torch.equal(ours, expected)


def test_what_is_not_regular() -> None:
    from train.forest import plant

    leaf = list(range(LENGTH))
    assert not plant([[], []], [(0, leaf), (1, leaf[1:])]).regular, "two lengths"
    assert not plant([[1], []], [(0, leaf), (1, leaf)]).regular, "a stem"
    assert plant([[]], [(0, leaf)]).regular
