"""Foreign rows, where they stand, and the account of those that cannot be used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gavel.command import warn
from gavel.errors import InputError, RowError

SAID = 20  # bad rows named one by one; the rest is counted
NAMED = 5  # bad rows repeated in the error that ends the work


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source, its columns untouched.

    where: ``file:line`` or ``file, row N``. number: counts rows from 1, unusable ones included.
    """

    where: str
    data: dict[str, Any]
    number: int


class BadRows:
    """Counts and reports the rows of a source that cannot be used.

    A RowError's text up to the first ``": "`` is its short reason.

    Args:
        max_fraction: how many are allowed (`--max-bad-rows`): a share of all rows below 1, a count
            from 1 up, 0 for none.
        option: what the person set it with. sign: what stands between it and a value.
        say: tells the person about one row.

    Attributes:
        total: rows seen so far, bad ones included; the readers count.
        count, reasons: the bad ones. first: the first few errors.
        repeated: prompts that came again and were skipped.
        ties: rows of preferences that prefer neither.

    Raises:
        InputError: `max_fraction` is negative or not a number, or a count that is not whole.
    """

    def __init__(
        self,
        max_fraction: float = 0.01,
        option: str = "--max-bad-rows",
        say: Callable[[str], None] = warn,
        sign: str = " ",
    ) -> None:
        if not math.isfinite(max_fraction) or max_fraction < 0 or (max_fraction >= 1 and max_fraction % 1):
            raise InputError(f"{max_fraction} is neither a fraction below 1 nor a count", where=option)
        self.max_fraction = max_fraction
        self.option = option
        self._sign = sign
        self.total = 0
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.first: list[RowError] = []
        self.repeated = 0
        self.ties = 0
        self._say = say
        self._heard: Callable[[RowError], None] = lambda error: None

    @classmethod
    def quiet(cls, heard: Callable[[RowError], None] = lambda error: None) -> BadRows:
        """For a second reading of a source whose bad rows were told and checked: `heard` gets them."""
        rows = cls(0, say=lambda message: None)
        rows._heard = heard
        return rows

    def add(self, error: RowError) -> None:
        """Counts one row and, while they are few, says it."""
        self.count += 1
        self._heard(error)
        self.reasons[error.what.partition(": ")[0]] += 1
        if len(self.first) < NAMED:
            self.first.append(error)
        if self.count <= SAID:
            self._say(f"row skipped: {error}")
        elif self.count == SAID + 1:
            self._say("more rows are skipped; they are counted, not named")

    def limit(self, total: int) -> float:
        """How many bad rows are allowed among `total`."""
        return self.max_fraction if self.max_fraction >= 1 else self.max_fraction * total

    def check(self, total: int | None = None) -> None:
        """To be called when the source was read to its end, before the work.

        Args:
            total: rows in all, bad ones included; None for those the readers counted.

        Raises:
            InputError: over the limit, or every row is bad; the first few are named.
        """
        rows = max(self.total if total is None else total, self.count)
        if not self.count or (self.count <= self.limit(rows) and self.count < rows):
            return
        named = "\n  ".join(f"{e.where}: {e.what}" if e.where else e.what for e in self.first)
        more = f"\n  … and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in self.reasons.most_common(NAMED))
        if self.count == rows:
            raise InputError(f"none of the {rows:,} rows can be used: {reasons}\n  {named}{more}",
                             hint=self.first[0].hint)  # fmt: skip
        allowed = f"{self.limit(rows):,.0f}" if self.max_fraction >= 1 else f"{self.max_fraction:.2%}"
        raise InputError(
            f"{self.count:,} of {rows:,} rows cannot be used, {allowed} allowed: {reasons}\n  {named}{more}",
            where=self.option,
            hint=f"Mend them, or leave them out with {self.option}{self._sign}{self.count}.",
        )
