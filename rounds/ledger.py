"""What every stage of a run of rounds was made of, and what came of it.

A stage's entry in the root's manifest holds its settings, what the stages before it came to (`inputs`) and
what it came to itself (`output`), each a content hash. A stage that stands there is not done again; one that
stands there with other settings is refused, with what differs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gavel.errors import BudgetSpent, InputError
from gavel.plans import differences
from gavel.rundir import JsonlWriter, RunDir, read_objects
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
        self, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Any], work: Callable[[], Made]
    ) -> Made:
        """Does a stage, unless it is done.

        Args:
            stage: its name, "02/train" for that of round 2.
            settings: all that shapes its output and is not an input.
            inputs: content hashes, by what they are of.

        Raises InputError where it was done, or begun, with other settings or inputs.
        """
        made = self.done(stage, settings, inputs)
        if made is not None:
            return made
        self._run.note(begun={stage: _as_kept(settings, inputs)})  # one at a time
        with self.events.of(stage):
            before = self.spent(stage)  # a killed attempt ends where this one begins
            made = work()
        seconds = round(before + self.events.last_s, 3)
        entry = {"output": made.output, "summary": made.summary, "seconds": seconds}
        self._run.finish_stage(stage, _as_kept(settings, inputs) | entry)
        return made

    def done(self, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> Made | None:
        """What a stage came to; None where it is to be done.

        Raises InputError where it was done, or begun, with other settings or inputs.
        """
        known = self.known(stage)
        self._refuse_changes(stage, known, _as_kept(settings, inputs))
        return Made(known["output"], known["summary"]) if "output" in known else None

    def known(self, stage: str) -> dict[str, Any]:
        """The entry of a stage that was done or begun; empty for another."""
        entry: dict[str, Any] = self.entries().get(stage) or self.begun().get(stage, {})
        return entry

    def spent(self, stage: str) -> float:
        """Seconds that interrupted attempts at a stage took, those before a redo aside."""
        events = self.events.read()
        redone = max((place for place, event in enumerate(events) if event["what"] == "redo"), default=-1)
        return sum(seconds for name, seconds in interrupted(events[redone + 1 :]) if name == stage)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The finished stages, in the order in which they were finished."""
        found: dict[str, dict[str, Any]] = self._run.manifest().get("stages", {})
        return found

    def begun(self) -> dict[str, dict[str, Any]]:
        """The stage that was begun last; it may be finished."""
        found: dict[str, dict[str, Any]] = self._run.manifest().get("begun", {})
        return found

    def forget(self, which: Callable[[str], bool], **notes: Any) -> None:
        """Takes stages back, begun ones too, and notes something in the same moment."""
        kept = {
            section: {name: entry for name, entry in entries.items() if not which(name)}
            for section, entries in (("stages", self.entries()), ("begun", self.begun()))
        }
        self._run.note(**kept, **notes)

    def _refuse_changes(self, stage: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if not known:
            return
        changes = differences(known["settings"], now["settings"])
        changes += differences(known["inputs"], now["inputs"], "made from ")
        if changes:
            done = "was done" if "output" in known else "was begun"
            raise InputError(
                f"stage {stage} {done} with other settings:\n  " + "\n  ".join(changes),
                where=str(self._run.path),
                hint=f"Set them back, or redo it on purpose with --from {stage} (what there is now is kept "
                "beside it)."
                if "/" in stage
                else "Set them back, or begin another run with a new --out: all rounds share these.",
            )


class NotDone(Exception):
    """What a rehearsal came to. stage: the first one that is to be done."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class Rehearsal(Ledger):
    """A ledger by which nothing is done: it raises NotDone at the first stage that is to be done.

    again: of the finished stages, those that are to be redone.
    """

    def __init__(self, run: RunDir, again: Callable[[str], bool]) -> None:
        super().__init__(run)
        self._again = again

    def do(
        self, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Any], work: Callable[[], Made]
    ) -> Made:
        made = None if self._again(stage) else self.done(stage, settings, inputs)
        if made is None:
            raise NotDone(stage)
        return made


def _as_kept(settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """As they are read from the manifest: with lists for tuples."""
    kept: dict[str, Any] = json.loads(json.dumps({"settings": settings, "inputs": inputs}))
    return kept


class Events:
    """events.jsonl: what happened when: for `gavel rounds status`, and for what a run took in all."""

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
            kind = "stopped" if isinstance(error, KeyboardInterrupt | BudgetSpent) else "failed"
            self.add(kind, stage=stage, seconds=round(time.monotonic() - started, 3), why=str(error)[:500])
            raise
        self.last_s = time.monotonic() - started
        self.add("end", stage=stage, seconds=round(self.last_s, 3))

    def read(self) -> list[dict[str, Any]]:
        """Raises RunDirError at a line that is no JSON object."""
        return [event for _, event in read_objects(self._path)]

    def seconds(self) -> float:
        """Of all attempts at stages, those that did not end and those of stages that were redone too."""
        events = self.read()
        ended = sum(event["seconds"] for event in events if event["what"] == "end")
        return float(ended + sum(seconds for _, seconds in interrupted(events)))


def interrupted(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """(stage, seconds) of attempts that did not end; those of a killed one last to its last event."""
    begun: tuple[str, datetime] | None = None
    last: datetime | None = None
    for event in events:
        at = datetime.fromisoformat(event["at"])
        if event["what"] in ("begin", "redo"):
            if begun and last:
                yield begun[0], (last - begun[1]).total_seconds()
            begun = (event["stage"], at) if event["what"] == "begin" else None
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
