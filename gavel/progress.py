"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from gavel.processes import is_main

_EVERY_S = 15.0


class Progress:
    """Counts what is done. `with Progress("sampling", total) as progress: progress.advance()`.

    Inside another one that is open it shows nothing: a person wants to see the whole.
    """

    _open = 0

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._bar: Any = None
        self._inner = False
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        self._inner = Progress._open > 0 or not is_main()
        Progress._open += 1
        if sys.stderr.isatty() and not self._inner:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self.label, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        Progress._open -= 1
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Says that `count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.advance(0, count)
            return
        now = time.monotonic()
        if not self._inner and now - self._shown > _EVERY_S:
            self._shown = now
            of = f" of {self.total:,}" if self.total else ""
            rate = self.done / (now - self._started)
            print(f"{self.label}: {self.done:,}{of}, {rate:,.1f}/s", file=sys.stderr, flush=True)
