"""One command on several processes of this machine, as torchrun starts them: each has its RANK."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from gavel.errors import CheckFailed, Exit

if TYPE_CHECKING:
    import subprocess

_GRACE_S = 20.0  # for the others, once one has failed
_TAIL = 2000  # characters of what a failed process said


def is_main() -> bool:
    """Whether this process speaks and writes for all of them."""
    return int(os.environ.get("RANK", 0)) == 0


def in_group() -> bool:
    """Whether this process is one of several that were started together, by gavel, accelerate or torchrun."""
    return "WORLD_SIZE" in os.environ


def run_on(count: int, arguments: Sequence[str]) -> int:
    """Runs `gavel ARGUMENTS` on so many processes and returns the exit code, 0 where all succeeded.

    The first speaks for all; what the others say is shown only where one of them fails by itself, and then
    all are stopped. Ctrl-C and SIGTERM reach every one.
    """
    import subprocess
    import tempfile

    environment = os.environ | {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }  # fmt: skip
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-P", "-m", "gavel", *arguments]
    with tempfile.TemporaryFile() as said:
        started = [
            subprocess.Popen(
                command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else said, stderr=None if rank == 0 else said,
                stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent,
                start_new_session=True,  # of the terminal's signals, this process alone passes one on
            )
            for rank in range(count)
        ]  # fmt: skip
        try:
            return _wait(started, said)
        finally:
            _stop(started, signal.SIGKILL)


def _wait(started: list[subprocess.Popen[bytes]], said: IO[bytes]) -> int:
    """Waits for all. Raises CheckFailed where another than the first has failed by itself."""
    while True:
        try:
            codes = [process.poll() for process in started]
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is None and None not in codes:
                return Exit.DONE
            if failed is not None:
                break
            time.sleep(0.05)
        except (
            KeyboardInterrupt
        ):  # of the terminal, which they got as well, or of SIGTERM, which they did not
            _stop(started, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S  # they often fail alike, and the first one says it best
    while time.monotonic() < deadline and started[0].poll() is None:
        time.sleep(0.05)
    alone = started[0].poll() in (None, 0)
    _stop(started, signal.SIGTERM)
    if not alone:
        return started[0].wait()
    said.seek(0)
    tail = said.read().decode(errors="replace").strip()[-_TAIL:]
    raise CheckFailed(f"process {failed} of {len(started)} failed:\n{tail}", where="--processes")


def _stop(started: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(number)


def _die_with_parent() -> None:
    """In the new process: the kernel ends it when its parent is gone, so that none is left behind."""
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
