"""Sections made to fit: what is left out of the page where a run has more than it can hold."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rounds.report.charts import Chart
from rounds.report.embed import size_of
from rounds.report.sections import Card, Section, Table


def lighten(groups: Sequence[Sequence[Weighed]], room: int) -> tuple[list[list[dict[str, Any]]], int]:
    """The sections of each group as plain values, of about `room` bytes at most all together, and how many
    sections were left out whole.

    The heaviest one always gives first: its charts from the last, which are the less important, then the last
    rows of its tables, then itself. One that gave something says so in a note.
    """
    every = [one for group in groups for one in group]
    heaviest = [(-one.bytes, place) for place, one in enumerate(every)]
    heapq.heapify(heaviest)
    total = sum(one.bytes for one in every)
    while total > room and heaviest:
        weight, place = heapq.heappop(heaviest)
        one = every[place]
        one.give()
        total += weight + one.bytes
        if one.bytes:
            heapq.heappush(heaviest, (-one.bytes, place))
    kept = [[one.plain() for one in group if one.bytes] for group in groups]
    return kept, len(every) - sum(map(len, kept))


class Weighed:
    """A section and its bytes; 0 once it is left out."""

    def __init__(self, section: Section) -> None:
        self._section = _plain(section) | {"cards": [_plain(card) for card in section.cards]}
        self._charts = [_plain(chart) for chart in section.charts]
        self._tables = [_plain(table) for table in section.tables]
        self._section |= {"charts": [], "tables": []}
        self._sizes = {id(part): size_of(part) + 1 for part in (*self._charts, *self._tables)}
        self.bytes = size_of(self._section) + sum(self._sizes.values())
        self._left_out: Counter[str] = Counter()

    def give(self) -> None:
        """The last chart; without charts half of the longest table's rows; without tables all."""
        if self._charts:
            self.bytes -= self._sizes[id(self._charts.pop())]
            self._left_out["charts"] += 1
            return
        longest = max(self._tables, key=lambda table: len(table["rows"]), default=None)
        if longest is None:
            self.bytes = 0
            return
        rows = longest["rows"]
        longest["rows"] = rows[: len(rows) // 2]
        self._left_out["rows of tables"] += len(rows) - len(longest["rows"])
        before = self._sizes[id(longest)]
        if longest["rows"]:
            self._sizes[id(longest)] = size_of(longest) + 1
            self.bytes += self._sizes[id(longest)] - before
        else:
            self._tables = [table for table in self._tables if table is not longest]
            self.bytes -= before

    def plain(self) -> dict[str, Any]:
        parts = " and ".join(f"{n:,} {what}" for what, n in self._left_out.items())
        notes = (f"To keep the page small {parts} are left out here.",) if parts else ()
        return self._section | {
            "charts": self._charts,
            "tables": self._tables,
            "notes": [*self._section["notes"], *notes],
        }


def _plain(part: Section | Card | Chart | Table) -> dict[str, Any]:
    """Its fields; `asdict` would copy all that is in them."""
    return {one.name: getattr(part, one.name) for one in fields(part)}
