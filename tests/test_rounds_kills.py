"""Rounds that are killed at random moments end as if nothing had happened."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny
from rounds_made import small_table

from rounds.toml_table import to_toml

pytestmark = pytest.mark.engine

KILLS = 30


class Driver:
    """The process of tests/rounds_driver.py."""

    def __init__(self, *before: str, **environment: str) -> None:
        """before: a command that starts the rest of its line."""
        here = Path(__file__).parent
        self._process = subprocess.Popen(
            [*before, sys.executable, str(here / "rounds_driver.py")], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def begin(self, root: Path, config: Path, fatal: int = 0) -> int:
        """Starts or resumes a run; returns its process id. fatal: which of its changes of the file system it
        dies at, or below 0 after how many requests."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{root} {config} {fatal}\n")
        self._process.stdin.flush()
        return int(self._line().removeprefix("pid "))

    def end(self) -> int:
        """Waits for a run; returns its exit code, negative for a signal."""
        return int(self._line().removeprefix("exit "))

    def shell(self, command: str) -> int:
        """Runs it in the process's own view of the file system."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"!{command}\n")
        self._process.stdin.flush()
        return self.end()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver(GAVEL_TEST_SLOWER_S="0.001")
    yield made
    made.close()


@dataclass
class Calm:
    """A run that nobody disturbed. changes: of the file system. seconds: it took."""

    config: Path
    contents: dict[str, Any]
    outputs: dict[str, Any]
    changes: int
    seconds: float


@pytest.fixture(scope="module")
def calm(tiny: Tiny, driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    config, root = folder / "rounds.toml", folder / "run"
    config.write_text(to_toml(small_table(tiny, folder)))
    began = time.monotonic()
    driver.begin(root, config)
    assert driver.end() == 0
    seconds = time.monotonic() - began
    assert {"rounds/03/model/model.safetensors", "figures.jsonl"} <= contents(root).keys()
    return Calm(config, contents(root), outputs(root), int(Path(f"{root}.changes").read_bytes()), seconds)


def kill_after(pid: int, seconds: float) -> None:
    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    threading.Timer(seconds, kill).start()


def without_times(value: Any) -> Any:
    """What a run says, times aside."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items()
                if k not in ("seconds", "at", "tokens_per_second", "train_runtime", "versions")}  # fmt: skip
    return [without_times(v) for v in value] if isinstance(value, list) else value


def contents(root: Path) -> dict[str, Any]:
    """Everything that a run keeps: records byte by byte, summaries without their times."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or path.name in (".lock", "events.jsonl"):
            continue
        if path.name in ("manifest.json", "gavel.json"):
            continue  # how much was reused and what was asked at which time stands there
        data = path.read_bytes()
        if path.name in ("figures.jsonl", "metrics.jsonl"):
            found[name] = [without_times(json.loads(line)) for line in data.splitlines()]
        else:
            found[name] = data
    return found


def differing(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, str]:
    """The files that are not the same, each with how: a comparison of all bytes would print megabytes."""
    told = {}
    for name in sorted(found.keys() | expected.keys()):
        if name not in expected:
            told[name] = "left over"
        elif name not in found:
            told[name] = "missing"
        elif found[name] != expected[name]:
            told[name] = f"{found[name]!r:.600} instead of {expected[name]!r:.600}"
    return told


def outputs(root: Path) -> dict[str, Any]:
    """What the ledger says that each stage was made of and came to."""
    stages = json.loads((root / "manifest.json").read_bytes())["stages"]
    return {
        name: without_times({k: v for k, v in entry.items() if k != "summary"})
        for name, entry in stages.items()
    }


def recorded(root: Path) -> set[str]:
    """The ids of all completions and judgments on record."""
    ids = set()
    for name in ("completions.jsonl", "judgments.jsonl"):
        for path in root.rglob(name):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    ids.add(json.loads(line)["id"])
    return ids


def asked_in(log: Path) -> list[str]:
    """The ids of what engines were asked for, in order."""
    lines = log.read_bytes().decode().splitlines() if log.exists() else []
    return [line.split()[1].split("/")[0] for line in lines]


def test_thirty_kills_change_nothing(driver: Driver, calm: Calm, tmp_path: Path) -> None:
    """Records, pairs, weights and figures are byte for byte those of a run that nobody disturbed; nothing
    that was on record when the process died is asked again; no id is there twice. Half of the kills come at a
    random time, half at a random change of the file system."""
    kills, attempt, draw = 0, 0, random.Random(0)
    died_in: set[str] = set()
    while kills < KILLS:
        attempt += 1
        root = tmp_path / f"killed-{attempt}"
        log = Path(f"{root}.asked")
        while True:
            fatal = draw.randrange(1, calm.changes) if kills < KILLS and kills % 2 else 0
            before, seen = recorded(root), len(asked_in(log))
            pid = driver.begin(root, calm.config, fatal)
            if kills < KILLS and not fatal:
                kill_after(pid, draw.uniform(0, 0.7 * calm.seconds))
            code = driver.end()
            again = before & set(asked_in(log)[seen:])
            assert not again, f"asked again of what was on record: {sorted(again)[:3]}"
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
            died_in.add(last_begun(root))
        assert recorded(root) & set(asked_in(log)), "what is asked is not noted"
        assert not differing(contents(root), calm.contents)
        assert outputs(root) == calm.outputs
        for path in root.rglob("*s.jsonl"):
            ids = [json.loads(line).get("id") for line in path.read_bytes().splitlines()]
            assert None in ids or len(ids) == len(set(ids)), path
    assert len(died_in) >= 5, f"kills met only {died_in}"


_OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*_OWN_MOUNTS, "true"], capture_output=True).returncode != 0,
    reason="a process may not have mounts of its own here",
)
def test_a_disk_that_was_full_and_then_freed_changes_nothing(calm: Calm, tmp_path: Path) -> None:
    """Three rounds on a disk that is filled again and again: each time a message, no traceback, and nothing
    lost; at last what there is on a disk with room."""
    root, kilobytes, full = tmp_path / "run", 16, 0
    root.mkdir()
    small = Driver(*_OWN_MOUNTS)
    assert small.shell(f"mount -t tmpfs -o size={kilobytes}k none {root}") == 0
    small.begin(root, calm.config)
    while (code := small.end()) != 0:
        assert code == 2, "an error of a user's, not of the program's"
        full += 1
        kilobytes = kilobytes * 3 // 2
        assert small.shell(f"mount -o remount,size={kilobytes}k {root}") == 0
        small.begin(root, calm.config)
    assert small.shell(f"cp -a {root} {tmp_path}/freed") == 0
    small.close()
    assert full >= 5
    assert not differing(contents(tmp_path / "freed"), calm.contents)
    assert outputs(tmp_path / "freed") == calm.outputs


def last_begun(root: Path) -> str:
    path = root / "events.jsonl"
    events = [json.loads(line) for line in path.read_bytes().splitlines() if line] if path.exists() else []
    return next((e["stage"] for e in reversed(events) if e["what"] == "begin"), "start")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_kills_with_vllm_lose_nothing_that_was_on_record(tiny: Tiny, tmp_path: Path) -> None:
    """Five kills, each in the middle of a run: every record is there unchanged after the next start; nothing
    that was on record is asked again, no id doubled, none lost."""
    config = tmp_path / "rounds.toml"
    table = small_table(tiny, tmp_path, engine="vllm")
    for part in (table["policy"], table["judge"], table["evaluate"]["judge"]):
        part["engine-arg"] = {"max_num_seqs": 2}  # few at once: some are on record while others are asked
    config.write_text(to_toml(table))
    driver, draw = Driver(GAVEL_TEST_VLLM="1"), random.Random(1)
    kills, attempt = 0, 0
    while kills < 5:
        attempt += 1
        root = tmp_path / f"run-{attempt}"
        log, code, kept = Path(f"{root}.asked"), -1, dict[str, list[bytes]]()
        while code != 0:
            # by what is done more than by the clock: a quick machine would be through before the third
            ends = (-draw.randrange(50, 66), draw.randrange(10, 150), 0, -draw.randrange(10, 100), 0, 0)
            fatal = ends[min(kills, 5)]  # the first in the midst of judging, after 8 and 32 completions
            before, seen = recorded(root), len(asked_in(log))
            pid = driver.begin(root, config, fatal)
            if kills < 5 and not fatal:
                kill_after(pid, draw.uniform(0.5, 2.5))
            code = driver.end()
            again = before & set(asked_in(log)[seen:])
            assert not again, f"asked again of what was on record: {sorted(again)[:3]}"
            now = lines_of(root)
            for path, lines in kept.items():
                assert now[path][: len(lines)] == lines, path
            kept = now
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert recorded(root) & set(asked_in(log)), "what is asked is not noted"
        check_whole(root)
    driver.close()


def check_whole(root: Path) -> None:
    """Three rounds are over, with each completion judged once."""
    for path, lines in lines_of(root).items():
        ids = [json.loads(line)["id"] for line in lines]
        assert len(ids) == len(set(ids)), path
    figures = (root / "figures.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["round"] for line in figures] == [0, 1, 2, 3]
    stages = json.loads((root / "manifest.json").read_bytes())["stages"]
    for number in (1, 2, 3):
        judged, sampled = (stages[f"{number:02d}/{stage}"]["summary"] for stage in ("judge", "sample"))
        assert judged["judgments"] == sampled["completions"] == 8 * 4


def lines_of(root: Path) -> dict[str, list[bytes]]:
    """The whole lines of all records by file: prompts, completions and judgments only grow."""
    return {
        str(path): [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        for name in ("prompts.jsonl", "completions.jsonl", "judgments.jsonl")
        for path in root.rglob(name)
    }
