"""How much of a stage of a run is done, by its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gavel.rundir import count_lines

#: stage → what it makes, one by one
_MAKES = {"sample": "completions", "judge": "judgments", "evaluate": "completions", "reward": "steps",
          "train": "steps"}  # fmt: skip
_WEIGHTS = {"reward": "reward", "train": "model"}


def noun_of(stage: str) -> str | None:
    """What a stage, such as "02/judge", makes; None for one whose work is not counted."""
    return _MAKES.get(stage.partition("/")[2])


def done(root: Path, stage: str) -> int:
    """How many of them are there; of a training the last step that it logged."""
    number, _, name = stage.partition("/")
    folder = root / "rounds" / number
    if name == "sample":
        return count_lines([folder / "completions.jsonl"])
    if name == "judge":
        return count_lines(folder.glob("judgments/*/judgments.jsonl"))
    if name == "evaluate":
        return count_lines([root / "evaluation" / number / "completions.jsonl"])
    if name in _WEIGHTS:
        return int(last_metrics(root, stage).get("step", 0))
    return 0


def kept(root: Path, stage: str) -> int:
    """How many of them a stage that begins now goes on from; a training from its newest whole checkpoint."""
    number, _, name = stage.partition("/")
    if name not in _WEIGHTS:
        return done(root, stage)
    whole = (root / "rounds" / number / _WEIGHTS[name]).glob("checkpoints/checkpoint-*/whole")
    return max((int(marker.parent.name.rpartition("-")[2]) for marker in whole), default=0)


def last_metrics(root: Path, stage: str) -> dict[str, Any]:
    """The last whole line that a training logged; empty where there is none."""
    number, _, name = stage.partition("/")
    path = root / "rounds" / number / _WEIGHTS[name] / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found
