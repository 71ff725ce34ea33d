"""What the rounds so far say of the next one: pure functions of the lines of figures.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gavel.errors import RunDirError
from gavel.rundir import read_objects


@dataclass(frozen=True, kw_only=True)
class Line:
    """One round in figures.jsonl; round 0 is the policy before any training.

    model, start: weights after the round and those that training began from; relative to the run's
        directory, or the first policy as the configuration names it. weights: version of `model`.
    seconds: by stage. figures, gates: see `rounds.figures` and `rounds.gates`.
    decision: "go_on", "stop" or "roll_back". best: the best round up to this one.
    """

    round: int
    model: str
    weights: str
    start: str | None = None
    learning_rate: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    decision: str = "go_on"
    best: int = 0

    def path(self, root: Path) -> Path:
        """Where its weights are, or were. root: of the run."""
        return root / self.model if self.round else Path(self.model)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


def read_figures(root: Path) -> list[Line]:
    """The rounds that are over. Raises RunDirError at a line that it does not understand."""
    path, found = root / "figures.jsonl", list[Line]()
    for number, row in read_objects(path):
        try:
            found.append(Line(**row))
        except TypeError:
            raise RunDirError("not the figures of a round", where=f"{path}:{number}") from None
    return found


@dataclass(frozen=True)
class Plan:
    """How a round begins.

    number: of the round. previous: the round whose weights it starts from. rollbacks: how many there were
    before.
    """

    number: int
    previous: int
    rollbacks: int


def plan_of(lines: Sequence[Line]) -> Plan:
    """The round after these: from the last one's weights, or after a rollback from the best one's."""
    last = lines[-1]
    previous = last.best if last.decision == "roll_back" else last.round
    return Plan(len(lines), previous, sum(line.decision == "roll_back" for line in lines))


def kept_rounds(lines: Sequence[Line]) -> list[int]:
    """The rounds that were not rolled back."""
    return [line.round for line in lines if line.decision != "roll_back"]


def prunable(lines: Sequence[Line], every: int) -> list[int]:
    """The rounds whose weights nothing needs: not the last that was trained, not the best, not every n-th."""
    last = {line.round for line in lines if line.model == lines[-1].model}
    spared = {0, *last, lines[-1].best, plan_of(lines).previous}
    return [n for n in range(len(lines)) if n not in spared and not (every and n % every == 0)]
