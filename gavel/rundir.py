"""A run directory: JSON Lines appended while running, read while written, resumed by id.

One writer at a time (an flock that names its holder; it ends with its process), any number of
readers. Lines are written whole; a torn last line, which only a crash can leave, is ignored by
readers and cut off by the next writer. `manifest.json` is replaced atomically, stage by stage, and
a stage's entry is written last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from gavel.errors import InputError, RunDirError
from gavel.records import Prompt, R, Record, content_of, decode, encode
from gavel.versions import versions

FORMAT = 1
_FLUSH_S = 0.5  # what power loss may take back; a killed process loses nothing that was written


class JsonlWriter:
    """Appends records to one file. Each record reaches the kernel before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.cut = cut_torn_line(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise disk_error(error, path) from None
        self._synced = time.monotonic()

    def append(self, record: Record) -> None:
        """Raises InputError when it cannot be written (a full disk); what was written before stays
        whole."""
        self.append_line(encode(record))

    def append_line(self, line: bytes) -> None:
        """Appends one line that ends in a newline."""
        start = self._file.tell()
        try:
            written = self._file.write(line)
            if written != len(line):  # a short write is how a full disk begins
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > _FLUSH_S:
                self.sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
                self._file.seek(start)
            raise disk_error(error, self.path) from None

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self.sync()
            self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


#: What libraries that write by themselves say of a full disk: safetensors in the system's words, torch in
#: its own.
_FULL = ("no space left on device", "quota exceeded", "pytorchstreamwriter failed writing", "iostream error",
         "unexpected pos")  # fmt: skip


def is_disk_full(error: Exception) -> bool:
    """Whether an error, of whatever library, says that a disk is full."""
    known = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return known or any(words in str(error).lower() for words in _FULL)


def disk_error(error: Exception, path: Path) -> InputError:
    """What kept a file from being written, and what to do; most often a full disk."""
    if is_disk_full(error):
        return InputError(
            "no space left on the disk",
            where=str(path),
            hint="Free some space and run the same command again: it goes on from here.",
        )
    return InputError(
        f"cannot be written: {getattr(error, 'strerror', None) or error}",
        where=str(path),
        hint="Mend that and run the same command again: it goes on from here.",
    )


def cut_torn_line(path: Path) -> int:
    """Cuts off what follows the last newline; returns how many bytes that was."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return 0
    with open(path, "r+b") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            file.truncate(end)
    return size - end


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yields (line number from 1, byte offset, line) of the whole lines of a file; streams."""
    if not path.exists():
        return
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield number, offset, line
            offset += len(line)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) of the whole lines of a file; streams.

    Raises RunDirError at a line that is no JSON object.
    """
    for number, _, line in read_lines(path):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise RunDirError(f"not JSON: {error}", where=f"{path}:{number}") from None
        if not isinstance(found, dict):
            raise RunDirError("not a JSON object", where=f"{path}:{number}")
        yield number, found


def holds_lines(path: Path) -> bool:
    """Whether a file has a whole line; not so where there is no file."""
    return next(read_lines(path), None) is not None


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Streams the records of a file; nothing where there is no file."""
    for number, _, line in read_lines(path):
        yield decode(line, kind, f"{path}:{number}")


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a small file whole: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def clear_torn(folder: Path) -> None:
    """Removes what a writer that was killed inside `write_atomic` left; the caller is the only writer."""
    for stray in folder.glob(".*.tmp"):
        stray.unlink(missing_ok=True)


class _Key(msgspec.Struct):
    """The two fields that an index reads of a record."""

    id: str
    prompt_id: str = ""


def _read_keys(path: Path) -> Iterator[tuple[int, _Key]]:
    """Yields (byte offset, key) of each record. Raises RunDirError at a line that is none."""
    decoder = msgspec.json.Decoder(_Key)
    for number, offset, line in read_lines(path):
        try:
            yield offset, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunDirError(
                f"not a record: {error}",
                where=f"{path}:{number}",
                hint="Delete this line and run the same command again: what it held is made anew.",
            ) from None


class RunDir:
    """One run. `RunDir(path)` reads; `RunDir.open(path)` makes it and takes the writer's lock."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path) -> Iterator[RunDir]:
        """Makes the directory where needed and holds its lock.

        Raises:
            RunDirError: another process holds it (it is named), or it is of a newer version.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise InputError("is a file, a run directory is needed", where=str(path))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, run.path) from None
        strangers = [p.name for p in run.path.iterdir() if not p.name.startswith(".")]
        if strangers and not is_run(path):
            raise InputError(
                f"holds other files ({', '.join(sorted(strangers)[:3])}) and is no run directory",
                where=str(path),
                hint="Choose a new or empty directory.",
            )
        run._take_lock()
        clear_torn(run.path)
        try:
            manifest = run.manifest()
            if "format" not in manifest:
                run._write_manifest({"format": FORMAT, "versions": versions(), **manifest})
            yield run
        finally:
            run._drop_lock()

    # files
    @property
    def prompts_path(self) -> Path:
        return self.path / "prompts.jsonl"

    @property
    def completions_path(self) -> Path:
        return self.path / "completions.jsonl"

    def judgments_path(self, judging: str) -> Path:
        return self.path / "judgments" / judging / "judgments.jsonl"

    def pairs_path(self, name: str) -> Path:
        return self.path / "pairs" / name / "pairs.jsonl"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def judging_passes(self) -> list[str]:
        """Names of the judging passes, oldest first."""
        return self._in_order("judge", (self.path / "judgments").glob("*/judgments.jsonl"))

    def pair_sets(self) -> list[str]:
        """Names of the sets of pairs, oldest first."""
        return self._in_order("pairs", (self.path / "pairs").glob("*/pairs.jsonl"))

    def _in_order(self, stage: str, files: Iterable[Path]) -> list[str]:
        """In the order in which the stages were finished, then unfinished ones by time: the manifest's
        order survives copying, the files' times do not."""
        finished = list(self.manifest().get("stages", {}))
        order = {name: number for number, name in enumerate(finished)}

        def key(file: Path) -> tuple[int, float]:
            return order.get(f"{stage}/{file.parent.name}", len(order)), file.stat().st_mtime

        return [file.parent.name for file in sorted(files, key=key)]

    def ids(self, path: Path) -> set[str]:
        """The ids recorded in a file: the resume index, about 130 bytes a record."""
        return {key.id for _, key in _read_keys(path)}

    def known_prompts(self) -> dict[str, str]:
        """The prompts recorded: id → hash of the content."""
        return {p.id: content_of(p) for p in read_records(self.prompts_path, Prompt)}

    def refuse_other(self, known: Mapping[str, str], prompt: Prompt) -> None:
        """Raises InputError when `known` (of `known_prompts`) has other content under the prompt's id."""
        content = content_of(prompt)
        if known.get(prompt.id, content) != content:
            raise InputError(
                f"the run already holds another prompt with the id {prompt.id!r}",
                where=str(self.prompts_path),
                hint="Use another --out, or give the prompt another id.",
            )

    # manifest
    def manifest(self) -> dict[str, Any]:
        """What is known of the run and its stages. Raises RunDirError for a newer version."""
        path = self.path / "manifest.json"
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            manifest = {"format": None}
        version = manifest.get("format", 0) if isinstance(manifest, dict) else None
        if version is None:
            raise RunDirError(
                "is not the manifest of a run",
                where=str(path),
                hint="Delete it: the records stay, and each stage goes on from them.",
            )
        if not isinstance(version, int) or version > FORMAT:
            raise RunDirError(
                f"run directory of version {version}, this gavel reads up to {FORMAT}",
                where=str(self.path),
                hint="Update gavel to use it.",
            )
        return manifest

    def stage(self, name: str) -> dict[str, Any]:
        """The manifest's entry of a stage, empty when it never finished."""
        entry: dict[str, Any] = self.manifest().get("stages", {}).get(name, {})
        return entry

    def finish_stage(self, name: str, summary: dict[str, Any]) -> None:
        """Records that a stage is complete; its last write."""
        manifest = self.manifest()
        stages = manifest.setdefault("stages", {})
        stages.pop(name, None)  # the newest comes last
        stages[name] = summary
        self._write_manifest(manifest)

    def reopen_stage(self, name: str) -> None:
        """Takes back a stage's completion marker before more is appended to it."""
        manifest = self.manifest()
        if manifest.get("stages", {}).pop(name, None) is not None:
            self._write_manifest(manifest)

    def note(self, **entries: Any) -> None:
        """Adds entries to the manifest; one that is None is taken out of it."""
        noted = self.manifest() | entries
        self._write_manifest({name: entry for name, entry in noted.items() if entry is not None})

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        data = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path / "manifest.json", data.encode())

    # lock
    def _take_lock(self) -> None:
        try:
            self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - held until _drop_lock
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock.truncate(0)
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]])
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()} ({command})")
            self._lock.flush()
        except BlockingIOError:
            assert self._lock is not None
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            self._lock = None
            raise RunDirError(
                f"in use by {holder}",
                where=str(self.path),
                hint="Wait for it to end, or choose another --out.",
            ) from None
        except OSError as error:
            raise disk_error(error, self.path / ".lock") from None

    def holder(self) -> str | None:
        """Who writes to it now, None for nobody; takes no lock."""
        try:
            with open(self.path / ".lock") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return lock.read().strip() or "another process"
        except OSError:
            pass
        return None

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()  # closing releases the flock
            self._lock = None


def is_run(path: str | Path) -> bool:
    """Whether a path is a run directory, also one whose manifest was lost."""
    return any((Path(path) / name).exists() for name in ("manifest.json", "completions.jsonl"))


def refuse_rounds(path: str | Path) -> None:
    """Raises RunDirError for a directory of rounds: its prompts.jsonl is not that of a run directory, and
    what is written there would change the rounds."""
    if (Path(path) / "config.toml").exists() and (Path(path) / "manifest.json").exists():
        raise RunDirError(
            "holds rounds, each a run directory of its own", where=str(path),
            hint=f"Name one of them, such as {Path(path) / 'rounds' / '01'}, or another directory.",
        )  # fmt: skip


class Index:
    """Where each prompt's records lie in a file: 24 bytes a record, records read on demand.

    Lets pairing walk prompt by prompt through files that do not fit into memory.
    """

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        keys: list[tuple[int, int]] = []
        chunks = []
        for offset, key in _read_keys(path):
            keys.append((_key64(key.prompt_id), offset))
            if len(keys) == 65536:
                chunks.append(np.array(keys, dtype=np.uint64))
                keys.clear()
        chunks.append(np.array(keys, dtype=np.uint64).reshape(-1, 2))
        table = np.concatenate(chunks)
        order = np.argsort(table[:, 0], kind="stable")
        self._keys, self._offsets = table[order, 0], table[order, 1]
        self._file: IO[bytes] | None = None

    def read(self, prompt_id: str, kind: type[R]) -> list[R]:
        """The records of one prompt, in file order."""
        import numpy as np

        key = np.uint64(_key64(prompt_id))
        lo, hi = np.searchsorted(self._keys, key, "left"), np.searchsorted(self._keys, key, "right")
        if lo == hi:
            return []
        if self._file is None:
            self._file = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        found = []
        for offset in self._offsets[lo:hi]:
            self._file.seek(int(offset))
            record = decode(self._file.readline(), kind, f"{self.path} at byte {offset}")
            if getattr(record, "prompt_id", prompt_id) == prompt_id:
                found.append(record)
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _key64(text: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def count_lines(paths: Iterable[Path]) -> int:
    """Whole lines in the files together."""
    return sum(1 for path in paths for _ in read_lines(path))
