"""Processes of their own that have the trainers imported already: half a second each, not ten.

They are forked from one process that has done nothing but import, so none of the threads, engines and random
states of the tests are in them.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_IMPORTED = ["torch", "train.dpo", "train.sft", "train.reward", "train.ppo", "rounds.live",
             "gavel.engines.transformers"]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_IMPORTED)


def start(function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Calls a function that can be imported, on one thread."""
    process = _context.Process(target=_call, args=(dict(os.environ), function, arguments))
    process.start()
    return process


def gavel_on(
    count: int, folder: Path, *arguments: object, before: Callable[[], None] | None = None
) -> tuple[int, str, str]:
    """`gavel ARGUMENTS` on so many processes, as gavel itself or torchrun would start them.

    Args:
        before: a function that can be imported, called in each of them first.

    Returns: the worst exit code, and what the first of them wrote to standard output and standard error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port)}  # fmt: skip
    logs = [(folder / f"out-{rank}.txt", folder / f"err-{rank}.txt") for rank in range(count)]
    line = [str(argument) for argument in arguments]
    started = [
        start(_gavel, group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, log, line, before)
        for rank, log in enumerate(logs)
    ]
    for process in started:
        process.join(300)
        process.kill()
        process.join()
    out, err = (file.read_text() for file in logs[0])
    return max(abs(process.exitcode or 0) for process in started), out, err


def _call(environment: Mapping[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    function(*arguments)


def _gavel(
    group: Mapping[str, str], log: tuple[Path, Path], line: list[str], before: Callable[[], None] | None
) -> None:
    from gavel.cli import main

    os.environ.update(group)
    if before is not None:
        before()
    for number, file in zip((1, 2), log, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["gavel", *line]
    main()
