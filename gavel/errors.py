"""The errors that a person may see: what happened, where, and what to do next."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    FAILED = 1  # the work failed a gate or a check
    USAGE = 2  # bad usage or bad input
    INTERRUPTED = 130  # stopped by a signal, state kept


class GavelError(Exception):
    """A mistake or a limit that the user can act on; shown without a traceback.

    Args:
        what: what happened.
        where: the file (with line) or option it is about.
        hint: what to do next.
    """

    exit_code: Exit = Exit.USAGE

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  {self.hint}" if self.hint else head


class InputError(GavelError):
    """A file, row or option that cannot be used."""


class RowError(InputError):
    """One row that cannot be used; counted and reported, the rest goes on."""


class RunDirError(GavelError):
    """A run directory that is locked, of a newer version, or does not hold what was asked for."""


class CapabilityError(GavelError):
    """An engine was asked for something it cannot do."""


class EngineError(GavelError):
    """An engine could not be started or died."""

    exit_code = Exit.FAILED


class CheckFailed(GavelError):
    """A check or gate said no."""

    exit_code = Exit.FAILED


class BudgetSpent(CheckFailed):
    """What a run may spend is spent: it stopped as it was told to."""
