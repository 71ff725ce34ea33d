"""Training curves, and what the loop wrote of each round."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec

from gavel.errors import RunDirError
from gavel.rundir import read_objects
from rounds.report.shapes import Curve, RoundFigures

MOST_POINTS = 300  # of a curve
_NOT_CURVES = ("step", "epoch", "episode")


def read_curves(path: Path) -> list[Curve]:
    """The metrics of a training (one JSON object a line, with its step), thinned to `MOST_POINTS`.

    Raises RunDirError at a line that is no JSON object.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for number, row in read_objects(path):
        step = row.get("step", number)
        for name, value in row.items():
            numeric = isinstance(value, int | float) and not isinstance(value, bool)
            if numeric and name not in _NOT_CURVES and math.isfinite(value):
                found.setdefault(name, []).append((int(step), float(value)))
    return [Curve(name, tuple(_thinned(points))) for name, points in found.items()]


def summary_of(folder: Path) -> dict[str, Any]:
    """What a training said of the model in a folder when it ended; empty where none has."""
    try:
        found = json.loads((folder / "gavel.json").read_bytes())["summary"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MOST_POINTS`: the means of runs of neighbours."""
    width = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(group[-1][0], math.fsum(v for _, v in group) / len(group)) for group in groups]


def read_rounds(path: Path) -> list[RoundFigures]:
    """The lines of figures.jsonl, a round that was done again by its last line; none where there is no file.

    Raises RunDirError at a line that it does not understand.
    """
    found: dict[int, RoundFigures] = {}
    for number, row in read_objects(path):
        row.setdefault("model", "")
        for name in ("start", "learning_rate", "decision", "best"):
            row.setdefault(name, None)
        for name, empty in (("seconds", {}), ("figures", {}), ("gates", [])):
            row[name] = row.get(name) or empty
        try:
            made = msgspec.convert(row, RoundFigures)
        except msgspec.ValidationError as error:
            raise RunDirError(f"not the figures of a round: {error}", where=f"{path}:{number}") from None
        found[made.round] = made
    return [found[number] for number in sorted(found)]
