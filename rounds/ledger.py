"""What every stage of a run of rounds was made of, and what came of it.

A stage's entry in the root's manifest holds its settings, what the stages before it came to (`inputs`) and
what it came to itself (`output`), each a content hash. A stage that stands there is not done again; one that
stands there with other settings is refused, with what differs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gavel.errors import InputError
from gavel.plans import differences
from gavel.rundir import JsonlWriter, RunDir, read_lines
from gavel.weights import file_hash
from rounds import progress


@dataclass(frozen=True)
class Made:
    """What a stage came to. output: its content hash. summary: for people and for the stages after it."""

    output: str
    summary: dict[str, Any]


class Ledger:
    """The stages of a run; `run` is its root, open for writing."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self.events = Events(run.path / "events.jsonl")

    def do(
        self, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str], work: Callable[[], Made]
    ) -> Made:
        """Does a stage, unless it is done.

        Args:
            stage: its name, "02/train" for that of round 2.
            settings: all that shapes its output and is not an input.

        Raises InputError where it was done, or begun, with other settings or inputs.
        """
        now = json.loads(json.dumps({"settings": settings, "inputs": inputs}))
        known = self._run.stage(stage) or self._run.manifest().get("begun", {}).get(stage)
        if known is not None:
            self._refuse_changes(stage, known, now)
        if "output" in (known or {}):
            return Made(known["output"], known["summary"])
        self._run.note(begun={stage: now})  # one at a time
        before = self.spent(stage)
        with self.events.of(stage):
            made = work()
        seconds = round(before + self.events.last_s, 3)
        entry = now | {"output": made.output, "summary": made.summary, "seconds": seconds}
        self._run.finish_stage(stage, entry)
        return made

    def spent(self, stage: str) -> float:
        """Seconds that earlier, interrupted attempts at a stage took."""
        return sum(seconds for name, seconds in self.events.interrupted() if name == stage)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The finished stages, in the order in which they were finished."""
        found: dict[str, dict[str, Any]] = self._run.manifest().get("stages", {})
        return found

    def forget(self, which: Callable[[str], bool]) -> None:
        """Takes stages back, begun ones too."""
        manifest = self._run.manifest()
        for section in ("stages", "begun"):
            kept = {name: entry for name, entry in manifest.get(section, {}).items() if not which(name)}
            self._run.note(**{section: kept})

    def _refuse_changes(self, stage: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changes = differences(known["settings"], now["settings"])
        changes += differences(known["inputs"], now["inputs"], "made from ")
        if changes:
            done = "was done" if "output" in known else "was begun"
            raise InputError(
                f"stage {stage} {done} with other settings:\n  " + "\n  ".join(changes),
                where=str(self._run.path),
                hint=f"Set them back, or redo it on purpose: gavel rounds resume {self._run.path} "
                f"--from {stage} (what there is now is kept beside it).",
            )


class Events:
    """events.jsonl: what happened when. Times and counts for `gavel rounds status`, nothing else reads it."""

    def __init__(self, path: Path) -> None:
        self._path, self.last_s = path, 0.0

    def add(self, what: str, **about: Any) -> None:
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "what": what, **about}
        with JsonlWriter(self._path) as writer:
            writer.append_line(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Notes when a stage begins, how much of it is there by then, and when it ends, or why it did not."""
        started = time.monotonic()
        self.add("begin", stage=stage, kept=progress.kept(self._path.parent, stage))
        try:
            yield
        except BaseException as error:
            kind = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self.add(kind, stage=stage, seconds=round(time.monotonic() - started, 3), why=str(error)[:500])
            raise
        self.last_s = time.monotonic() - started
        self.add("end", stage=stage, seconds=round(self.last_s, 3))

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, _, line in read_lines(self._path)]

    def interrupted(self) -> Iterator[tuple[str, float]]:
        """(stage, seconds) of attempts that did not end; those of a killed one last to its last event."""
        begun: tuple[str, datetime] | None = None
        last: datetime | None = None
        for event in self.read():
            at = datetime.fromisoformat(event["at"])
            if event["what"] == "begin":
                if begun and last:
                    yield begun[0], (last - begun[1]).total_seconds()
                begun = (event["stage"], at)
            elif event["what"] in ("end", "failed", "stopped"):
                if event["what"] != "end":
                    yield event["stage"], event["seconds"]
                begun = None
            last = at


def content_of(*paths: Path) -> str:
    """A hash of what files hold, in this order."""
    state = hashlib.blake2b(digest_size=12)
    for path in paths:
        state.update(bytes.fromhex(file_hash(path)))
    return state.hexdigest()
