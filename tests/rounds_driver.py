"""A process that has imported everything and forks for each run of rounds it is told of, so that a run can
be killed and begun again without waiting for imports.

Reads lines "ROOT CONFIG STEP" from standard input; prints "pid N" when a run has begun and "exit N" when it
is over; and of a line "!COMMAND", which it gives to the shell. A run kills itself before it changes the file
system for the STEP-th time, 0: never; of a STEP below 0 after that many requests to engines. What engines are
asked is noted in ROOT.asked, one line a request: the engine's weights and the request's key; how often a run
changed the file system in ROOT.changes.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

SLOWER_S = float(os.environ.get("GAVEL_TEST_SLOWER_S", "0"))  # a request, so that kills find stages at work


def noting(log: int, kind: type, name: str, left: Iterator[int]) -> None:
    """Notes what an engine's method is asked. kind: of the engine. left: where it says 0 it dies."""
    plain = getattr(kind, name)

    def noted(self: Any, requests: Iterable[Any]) -> Iterator[Any]:
        def through() -> Iterator[Any]:
            for request in requests:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                os.write(log, f"{self.weights} {request.key}\n".encode())
                time.sleep(SLOWER_S)
                yield request

        return plain(self, through())  # type: ignore[no-any-return]

    setattr(kind, name, noted)


def at_changes(then: Callable[[int], None], events: Container[str]) -> None:
    """Calls `then` with 1, 2, 3 … before a file is opened for writing, or one of the audit events happens."""
    count = 0

    def changed(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR) or path == "/dev/null":
                return
        elif event not in events:
            return
        count += 1
        then(count)

    sys.addaudithook(changed)


def watch_changes(log: int, fatal: int) -> None:
    """Counts files opened for writing, made, moved and removed from now on, and dies at one of them."""

    def then(count: int) -> None:
        os.pwrite(log, f"{count}\n".encode(), 0)
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    at_changes(then, ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"))


def _engine() -> type:
    if os.environ.get("GAVEL_TEST_VLLM"):
        from gavel.engines.vllm import VllmEngine

        return VllmEngine
    from gavel.engines.fake import FakeEngine

    return FakeEngine


def run(root: str, config: str, step: str) -> None:
    from gavel.command import exit_codes
    from rounds.loop import run_rounds
    from rounds.read_config import read_config

    log = os.open(f"{root}.asked", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    left = itertools.count(int(step) or 1)
    for name in ("sample", "score"):
        noting(log, _engine(), name, left)
    watch_changes(os.open(f"{root}.changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), int(step))
    with exit_codes():
        run_rounds(Path(root), read_config(config))


def main() -> None:
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch

    torch.set_num_threads(1)
    import train.dpo
    import train.models  # noqa: F401

    if os.environ.get("GAVEL_TEST_VLLM"):
        from gavel.engines.vllm import prepare_environment

        prepare_environment()
        import vllm
        import vllm.v1.engine.llm_engine  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        if line.startswith("!"):  # for the shell: whoever sees this process's mounts
            print(f"exit {subprocess.run(line[1:], shell=True).returncode}", flush=True)
            continue
        child = os.fork()
        if child == 0:
            try:
                run(*line.split())
            except SystemExit as done:
                os._exit(int(done.code or 0))
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(70)
            os._exit(0)
        print(f"pid {child}", flush=True)
        _, status = os.waitpid(child, 0)
        print(f"exit {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
