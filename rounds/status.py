"""`gavel rounds status`: where a run is, from its files alone; it may be running, stopped or over."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gavel.errors import RunDirError
from gavel.rundir import RunDir, count_lines
from rounds.config import RoundsConfig
from rounds.ledger import Events
from rounds.read_config import read_config
from rounds.standing import Line, read_figures


def status(root: Path) -> dict[str, Any]:
    """What is known of a run: state, present stage with its progress, time left, rounds, failures.

    Raises RunDirError for a directory that holds no rounds.
    """
    run, config = RunDir(root), config_in(root)
    holder, lines, events = run.holder(), read_figures(root), Events(root / "events.jsonl").read()
    entries = run.manifest().get("stages", {})
    over = len(lines) > config.rounds or bool(lines and lines[-1].decision == "stop")
    begun = _begun(events)
    found: dict[str, Any] = {
        "state": "running" if holder else "over" if over else "stopped",
        "by": holder,
        "round": max(0, len(lines) - (1 if over else 0)),
        "rounds": config.rounds,
        "stage": None if over else begun and begun["stage"],
        "progress": None if over or not begun else _progress(root, config, begun),
        "seconds_left": None if over else _left(config, entries, lines, root, begun),
        "best": lines[-1].best if lines else None,
        "decision": lines[-1].decision if lines else None,
        "failures": _failures(entries, events),
        "seconds": {name: entry["seconds"] for name, entry in entries.items() if "seconds" in entry},
        "figures": [asdict(line) for line in lines],
    }
    return found


def config_in(root: Path) -> RoundsConfig:
    """The configuration of a run. Raises RunDirError for a directory that holds no rounds."""
    path = root / "config.toml"
    if not path.exists():
        raise RunDirError("holds no rounds (no config.toml)", where=str(root),
                          hint=f"Begin some: gavel rounds start CONFIG --out {root}")  # fmt: skip
    return read_config(str(path))


def _begun(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The stage that was begun last and has not ended."""
    begun = None
    for event in events:
        if event["what"] == "begin":
            begun = event
        elif event["what"] == "end":
            begun = None
    return begun


def _progress(root: Path, config: RoundsConfig, begun: dict[str, Any]) -> dict[str, Any] | None:
    """How much of a stage is done, as far as its files tell, and at what rate since it was begun."""
    number, _, stage = begun["stage"].partition("/")
    folder = root / "rounds" / number
    prompts = count_lines([folder / "prompts.jsonl"]) if stage in ("sample", "judge") else 0
    if stage == "sample":
        done, total, noun = (
            count_lines([folder / "completions.jsonl"]),
            prompts * config.sample.n,
            "completions",
        )
    elif stage == "judge":
        done = count_lines(folder.glob("judgments/*/judgments.jsonl"))
        total, noun = None, "judgments"
    elif stage in ("train", "reward"):
        last = _last_metrics(folder / ("model" if stage == "train" else "reward"))
        if last is None:
            return None
        noun, done = "steps", last["step"]
        total = round(done / last["epoch"] * config.train.policy.epochs) if last.get("epoch") else None
    elif stage == "evaluate":
        done = count_lines([root / "evaluation" / number / "completions.jsonl"])
        total, noun = count_lines([root / "held_out.jsonl"]) * config.evaluate.generate.n, "completions"
    else:
        return None
    seconds = (datetime.now(UTC) - datetime.fromisoformat(begun["at"])).total_seconds()
    return {
        "of": noun,
        "done": done,
        "total": total,
        "per_second": round(done / seconds, 2) if seconds else None,
    }


def _last_metrics(folder: Path) -> dict[str, Any] | None:
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return found


def _left(
    config: RoundsConfig, entries: dict[str, Any], lines: list[Line], root: Path, begun: dict[str, Any] | None
) -> float | None:
    """Seconds that the rest takes, if rounds take what the dearest one so far took; None before a first
    round."""
    by_round: dict[str, float] = {}
    for name, entry in entries.items():
        number, _, stage = name.partition("/")
        if stage:
            by_round[number] = by_round.get(number, 0.0) + entry["seconds"]
    over = [by_round[f"{line.round:02d}"] for line in lines if line.round and f"{line.round:02d}" in by_round]
    if not over:
        return None
    now = f"{len(lines):02d}"
    spent = by_round.get(now, 0.0)
    if begun:
        spent += (datetime.now(UTC) - datetime.fromisoformat(begun["at"])).total_seconds()
    return round(max(0.0, max(over) * (config.rounds + 1 - len(lines)) - spent), 1)


def _failures(entries: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, int]:
    """What went wrong so far, by kind."""
    found = {"requests refused": 0, "judgments unusable": 0}
    for entry in entries.values():
        summary = entry.get("summary") or {}
        found["requests refused"] += summary.get("failed") or 0
        found["judgments unusable"] += summary.get("unusable") or 0
    found["stages failed"] = sum(event["what"] == "failed" for event in events)
    found["stages stopped"] = sum(event["what"] == "stopped" for event in events)
    return found
