"""`gavel rounds status`: where a run is, from its files alone; it may be running, stopped or over."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gavel.errors import RunDirError
from gavel.rundir import RunDir, count_lines
from rounds import progress
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
    attempt = None if over else _attempt(events, running=holder is not None)
    found: dict[str, Any] = {
        "state": "running" if holder else "over" if over else "stopped",
        "by": holder,
        "round": max(0, len(lines) - (1 if over else 0)),
        "rounds": config.rounds,
        "stage": attempt and attempt.stage,
        "progress": attempt and _progress(root, config, attempt),
        "seconds_left": None if over else _left(config, entries, lines, attempt),
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


@dataclass(frozen=True)
class _Attempt:
    """The last attempt at the stage that has not ended.

    kept: what earlier ones had made of it. seconds: that this one has taken, all_seconds: with those before
    it. runs: whether it is at work now.
    """

    stage: str
    kept: int
    seconds: float
    all_seconds: float
    runs: bool


def _attempt(events: list[dict[str, Any]], *, running: bool) -> _Attempt | None:
    """running: whether the run is at work."""
    begun: list[dict[str, Any]] = []  # the attempts at one stage
    until: list[datetime] = []  # of each; a killed one lasted to its last event as far as is known
    runs = False
    for event in events:
        what, at = event["what"], _time(event)
        if what in ("end", "redo") or (what == "begin" and begun and begun[-1]["stage"] != event["stage"]):
            begun, until = [], []
        if what == "begin":
            begun.append(event)
            until.append(at)
            runs = running
        elif begun:
            until[-1] = at
            runs = runs and what not in ("failed", "stopped")
    if not begun:
        return None
    if runs:
        until[-1] = datetime.now(UTC)
    seconds = [(end - _time(one)).total_seconds() for one, end in zip(begun, until, strict=True)]
    return _Attempt(begun[-1]["stage"], begun[-1].get("kept", 0), seconds[-1], sum(seconds), runs)


def _time(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["at"])


def _progress(root: Path, config: RoundsConfig, attempt: _Attempt) -> dict[str, Any] | None:
    """How much of a stage is done, as far as its files tell, and at what rate since it was begun."""
    noun, done = progress.noun_of(attempt.stage), progress.done(root, attempt.stage)
    if noun is None or (noun == "steps" and not done):
        return None
    rate = max(0, done - attempt.kept) / attempt.seconds if attempt.runs and attempt.seconds else None
    return {
        "of": noun,
        "done": done,
        "total": _total(root, config, attempt.stage),
        "per_second": None if rate is None else float(f"{rate:.3g}"),
    }


def _total(root: Path, config: RoundsConfig, stage: str) -> int | None:
    """How many there will be; None where that cannot be told."""
    number, _, name = stage.partition("/")
    if name == "sample":
        return count_lines([root / "rounds" / number / "prompts.jsonl"]) * config.sample.n
    if name == "evaluate":
        return count_lines([root / "held_out.jsonl"]) * config.evaluate.generate.n
    trained = config.train.reward if name == "reward" else config.train.policy if name == "train" else None
    last = progress.last_metrics(root, stage) if trained else {}
    return round(last["step"] / last["epoch"] * trained.epochs) if trained and last.get("epoch") else None


def _left(
    config: RoundsConfig, entries: dict[str, Any], lines: list[Line], attempt: _Attempt | None
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
    spent = by_round.get(f"{len(lines):02d}", 0.0)
    now = max(0.0, max(over) - spent - (attempt.all_seconds if attempt else 0.0))
    return round(now + max(over) * (config.rounds - len(lines)), 1)


def _failures(entries: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, int]:
    """What went wrong so far, by kind."""
    found = {"requests refused": 0, "judgments unusable": 0}
    for entry in entries.values():
        summary = entry.get("summary") or {}
        found["requests refused"] += summary.get("failed") or 0
        found["judgments unusable"] += summary.get("unusable") or 0
    found["stages failed"] = sum(event["what"] == "failed" for event in events)
    return found
