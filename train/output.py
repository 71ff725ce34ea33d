"""The output directory of a training run: locked, resumed, and whole or not there at all.

OUT/  config.json, *.safetensors, tokenizer …   the model; config.json is moved in last
      metrics.jsonl   one line per log step
      gavel.json      what was asked for (plan) and, written last, what came of it (summary)
      checkpoints/    while training; each is trusted only with its `whole` marker, which has its files'
                      sizes, and while they are these
                      suspects.txt: the rows of a step whose loss or gradient was no number
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gavel.command import say
from gavel.errors import InputError, RunDirError
from gavel.plans import differences
from gavel.rundir import clear_torn, disk_error, is_disk_full, write_atomic
from train import group

_WHOLE = "whole"
_STAGING = ".saving"


class Output:
    """Use as `with Output.open(path) as output`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path) -> Iterator[Output]:
        """Makes the directory and holds its lock.

        Raises:
            InputError: it is a file, or a directory that holds something else.
            RunDirError: another process is training into it.

        Whatever finds the disk full inside raises InputError.
        """
        output = cls(Path(path))
        try:
            with output._held():
                yield output
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise disk_error(error, output.path) from None

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        if not group.is_main():  # the first holds the lock and writes for all
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise  # said by `open`
            raise InputError(f"cannot make this directory: {error.strerror}", where=str(self.path)) from None
        strangers = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
        if strangers and not (self.path / "gavel.json").exists():
            raise InputError(f"holds other files ({', '.join(sorted(strangers)[:3])})",
                             where=f"--out {self.path}", hint="Choose a new or empty directory.")  # fmt: skip
        with open(self.path / ".lock", "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                by = lock.read().strip() or "another process"
                raise RunDirError(f"in use by {by}", where=str(self.path),
                                  hint="Wait for it to end, or choose another --out.") from None  # fmt: skip
            clear_torn(self.path)
            lock.truncate(0)
            lock.write(f"process {os.getpid()}")
            lock.flush()
            yield

    def begin(self, plan: dict[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """Records the plan; returns the summary if it was carried out before.

        Args:
            names: of entries that are hashes, what a person calls them. They may change.

        Raises InputError, with what differs, when the directory holds the work of another plan.
        """
        return group.of_main(self._begin(plan, dict(names or {})) if group.is_main() else None)

    def _begin(self, plan: dict[str, Any], names: dict[str, str]) -> dict[str, Any] | None:
        plan = json.loads(json.dumps(plan))
        known = self._read()
        if "summary" not in known and self._newest_checkpoint() is None:
            known = {}  # nothing came of the plan that stands there
        if "plan" in known and known["plan"] != plan:
            before, now = _unlike(known["plan"], plan), _unlike(plan, known["plan"])
            changes = "\n  ".join(differences(_named(before, known.get("names", {})), _named(now, names)))
            raise InputError(f"holds a model trained otherwise:\n  {changes}", where=f"--out {self.path}",
                             hint="Choose another --out, or remove this one.")  # fmt: skip
        if "summary" in known:
            self._free_checkpoints()  # of a process that was killed when it was about to
            summary: dict[str, Any] = known["summary"]
            return summary
        if "plan" not in known:
            self._write({"plan": plan} | ({"names": names} if names else {}))
        return None

    def newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; torn ones, which a kill or a failing disk leaves, are removed."""
        return group.of_main(self._newest_checkpoint() if group.is_main() else None)

    def _newest_checkpoint(self) -> Path | None:
        whole = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            marker = folder / _WHOLE
            marked = marker.exists()
            if marked and _is_as_marked(folder, marker.read_bytes()):
                whole.append(folder)
                continue
            if marked:
                say(f"{folder} has lost a part of what was saved: it does not count")
            shutil.rmtree(folder, ignore_errors=True)
        return max(whole, key=step_of, default=None)

    def mark_whole(self, step: int) -> None:
        """Marks a checkpoint as complete, once all processes have written theirs, and removes all but it and
        the one before."""
        group.wait()
        if not group.is_main():
            return
        folder = self.checkpoints / f"checkpoint-{step}"
        write_atomic(folder / _WHOLE, json.dumps(_sizes(folder)).encode())
        for old in sorted(self.checkpoints.glob("checkpoint-*"), key=step_of)[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> tuple[Path | None, int]:
        """The newest whole checkpoint and its step, 0 where there is none. What was measured of later steps,
        which are about to be done again, is dropped."""
        checkpoint = self.newest_checkpoint()
        step = step_of(checkpoint) if checkpoint else 0
        self.rewind_metrics(step)
        return checkpoint, step

    def keep(self, step: int, save: Callable[[], None], noun: str) -> str:
        """After a failure: saves the state of `step` where no checkpoint has it, and says what there is.

        Args:
            save: makes the checkpoint and marks it. noun: what a step is called.
        """
        newest = self.newest_checkpoint()
        if step > (step_of(newest) if newest else 0):
            with contextlib.suppress(RuntimeError, OSError):  # no memory, no disk: what was saved remains
                save()
        newest = self.newest_checkpoint()
        return f"The state of {noun} {step_of(newest)} is in {newest}." if newest else ""

    def name_suspects(self, names: Sequence[str]) -> Path:
        """Writes down the rows of a step that is no number, one a line, beside the checkpoint that is kept:
        a message has no room for all. The file goes when the checkpoints do."""
        path = self.checkpoints / "suspects.txt"
        if group.is_main():
            self.checkpoints.mkdir(exist_ok=True)
            write_atomic(path, "".join(f"{name}\n" for name in names).encode())
        return path

    def rewind_metrics(self, step: int) -> None:
        if not group.is_main() or not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        write_atomic(self.metrics_path, b"".join(x for x in whole if json.loads(x)["step"] <= step))

    def last_metrics(self) -> dict[str, Any]:
        """The last line of metrics.jsonl; empty where there is none."""
        lines = self._metrics()
        return json.loads(lines[-1]) if lines else {}

    def mean_loss(self) -> float:
        """Over all steps: a line of metrics.jsonl has the mean over those since the one before."""
        total = before = 0
        for line in map(json.loads, self._metrics()):
            total += (line["step"] - before) * line["loss"]
            before = line["step"]
        return total / before if before else math.nan

    def _metrics(self) -> list[bytes]:
        return self.metrics_path.read_bytes().splitlines() if self.metrics_path.exists() else []

    def publish(self, save: Callable[[Path], None]) -> None:
        """Saves a model to a staging directory, then moves it in: config.json last, for without it
        nothing loads. `save` is called on all processes, and is to write on the main one."""
        staging = self.path / _STAGING
        if not group.is_main():
            save(staging)
            return
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            save(staging)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise disk_error(error, self.path) from None
        last = ("adapter_config.json", "config.json")
        for file in sorted(staging.iterdir(), key=lambda p: (p.name in last, p.name)):
            target = self.path / file.name
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
        staging.rmdir()

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the completion marker, then frees the checkpoints."""
        group.wait()
        if not group.is_main():
            return
        self._write(self._read() | {"summary": summary})
        self._free_checkpoints()

    def _free_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        path = self.path / "gavel.json"
        try:
            known: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            raise RunDirError("is not JSON", where=str(path)) from None
        return known

    def _write(self, entries: dict[str, Any]) -> None:
        data = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path / "gavel.json", data.encode())


def step_of(folder: Path) -> int:
    """The step of a checkpoint."""
    return int(folder.name.rpartition("-")[2])


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below, the marker aside."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != _WHOLE]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _is_as_marked(folder: Path, marker: bytes) -> bool:
    """Whether a checkpoint's files have the sizes that its marker names; that of an earlier gavel names
    none."""
    try:
        named = json.loads(marker or b"{}")
    except ValueError:
        return False
    found = _sizes(folder)
    return all(found.get(name) == size for name, size in named.items())


def _unlike(plan: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The entries of a plan that another one has otherwise or not at all."""
    return {key: value for key, value in plan.items() if key not in other or other[key] != value}


def _named(plan: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A plan as a person reads it."""
    return plan | {key: f"{name} ({str(plan[key])[:8]})" for key, name in names.items() if key in plan}
