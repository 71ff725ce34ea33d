"""What a section of the page holds: cards, charts, tables and notes."""

from __future__ import annotations

from dataclasses import dataclass

from rounds.report.charts import Chart, Row


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure. note: what it is measured by, or its interval. bad: something to look at."""

    label: str
    value: str
    note: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """nav: its name in the page's navigation. lead: one or two sentences under the heading."""

    nav: str
    title: str
    lead: str = ""
    cards: tuple[Card, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    def empty(self) -> bool:
        return not (self.cards or self.charts or self.tables or self.notes)


def percent(part: float, whole: float) -> str:
    """
    >>> percent(1, 3), percent(0, 0)
    ('33.3 %', '–')
    """
    return f"{100 * part / whole:.1f} %" if whole else "–"
