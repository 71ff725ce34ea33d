"""The weights of a run: which are still there, who needs them, and how they are freed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rounds.config import Recipe
from rounds.standing import Line, plan_of


def held(folder: Path) -> bool:
    """Whether a model directory still has its weights."""
    return any(folder.glob("*.safetensors"))


def free(folder: Path) -> None:
    """Frees the weights of a round; what was measured of them stays. folder: of the round."""
    for name in ("model", "reward", "reference"):
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        shutil.rmtree(folder / name / "adapter", ignore_errors=True)


def folder_of(root: Path, number: int) -> Path:
    """Where a round's records and weights are. root: of the run."""
    return root / "rounds" / f"{number:02d}"


def lacking(root: Path, lines: Sequence[Line], recipe: Recipe, number: int, stage: str) -> list[Path]:
    """The models that round `number` needs from a stage on, and that were freed.

    lines: the rounds that are over, those before `number` at least.
    """
    if number == 0:
        return []
    if stage == "evaluate":
        needed = [folder_of(root, number) / "model"]
    else:
        previous = plan_of(lines[:number]).previous
        needed = [lines[previous].path(root)] if previous else []
        reference = folder_of(root, previous) / "reference"
        if recipe.reference == "ema" and reference.exists():
            needed.append(reference)
        if stage == "train" and recipe.ppo is not None:
            needed.append(folder_of(root, number) / "reward")
    return [folder for folder in needed if not held(folder)]
