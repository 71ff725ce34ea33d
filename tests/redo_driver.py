"""A process that has `--from` fail at each of its changes of the file system in turn, each in its own fork.

Arguments: a run, a folder for copies of it, the stage, and "kill" or "full". In the copy WORK/STEP the redo
is killed before its change number STEP, or finds the disk full from that change on. Prints the number of
steps; fails where one ended in another way.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

from rounds_driver import at_changes, watch_changes

from gavel.errors import InputError
from gavel.rundir import RunDir
from rounds import redo
from rounds.config import RoundsConfig
from rounds.standing import read_figures
from rounds.status import config_in

SAID = 5  # exit code of a redo that said that the disk is full


def fill_disk(step: int) -> None:
    """From the change number `step` on, whatever takes room fails."""

    def then(count: int) -> None:
        if count >= step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_changes(then, ("os.rename", "os.mkdir"))


def attempt(root: Path, stage: str, config: RoundsConfig, how: str, step: int) -> int:
    """Returns how the fork ended, as an exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if how == "kill":
        watch_changes(os.open(os.devnull, os.O_WRONLY), step)
    else:
        fill_disk(step)
    try:
        with RunDir.open(root) as run:
            redo.set_aside(run, stage, config, read_figures(root)[: redo.parse(stage)[0]])
    except InputError as error:
        os._exit(SAID if "no space left" in error.what else 70)
    os._exit(0)


def main() -> None:
    template, work, stage, how = sys.argv[1:]
    config, step, code = config_in(Path(template)), 0, 1
    while code:
        step += 1
        root = Path(shutil.copytree(template, Path(work) / str(step)))
        code = attempt(root, stage, config, how, step)
        if code not in (0, -signal.SIGKILL if how == "kill" else SAID):
            sys.exit(f"step {step} ended with {code}")
    print(step)


if __name__ == "__main__":
    main()
