"""The rounds of a run as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rounds.gates import tripped, unmeasured
from rounds.standing import Line

#: figure → (heading, format)
_COLUMNS = {
    "win_rate_first": ("first %", "{:.1f}"),
    "win_rate_previous": ("prev. %", "{:.1f}"),
    "kl_first": ("KL", "{:.2f}"),
    "length_mean": ("tokens", "{:.1f}"),
    "cut_off": ("cut", "{:.2f}"),
    "distinct_2": ("dist-2", "{:.2f}"),
    "judge_agreement": ("agree", "{:.2f}"),
}


def show_rounds(lines: Sequence[Line]) -> None:
    """Prints a table: one row a round."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = "held-out prompts; win rates against the first and the previous policy"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # room for gates
    table.add_column("round", justify="right")
    shown = [name for name in _COLUMNS if any(name in line.figures for line in lines)]
    for name in shown:
        table.add_column(_COLUMNS[name][0], justify="right")
    table.add_column("gates", overflow="fold")
    for line in lines:
        label = str(line.round) if line.round else "before"
        table.add_row(label, *(_cell(line.figures.get(name), name) for name in shown), _gates(line))
    Console().print(table)


def _cell(figure: dict[str, Any] | None, name: str) -> str:
    if not figure or figure.get("value") is None:
        return "-"
    return _COLUMNS[name][1].format(figure["value"])


def _gates(line: Line) -> str:
    silent = len(unmeasured(line))
    not_measured = f"{silent} figure{'s' * (silent > 1)} not measured" if silent else ""
    if figures := dict.fromkeys(gate["figure"] for gate in tripped(line)):
        what = {"go_on": "warned", "stop": "stopped", "roll_back": "rolled back"}[line.decision]
        said = f"{what}: {', '.join(figures)}"
    else:
        said = "passed" if any(gate["value"] is not None for gate in line.gates) else ""
    return "; ".join(filter(None, (said, not_measured))) or "-"


def show_status(found: dict[str, Any], root: Path) -> None:
    """Prints what `rounds.status.status` found. root: of the run."""
    import click

    head = {"running": f"running ({found['by']})", "stopped": f"stopped; gavel rounds resume {root} goes on",
            "over": "over"}[found["state"]]  # fmt: skip
    click.echo(head)
    if found["stage"]:
        click.echo(f"  stage     {found['stage']}, round {found['round']} of {found['rounds']}")
    if (progress := found["progress"]) is not None:
        of = f" of {progress['total']:,}" if progress["total"] else ""
        rate = f", {progress['per_second']:,}/s" if progress["per_second"] is not None else ""
        click.echo(f"  done      {progress['done']:,}{of} {progress['of']}{rate}")
    if found["seconds_left"] is not None:
        click.echo(f"  left      about {_duration(found['seconds_left'])}")
    failed = {what: n for what, n in found["failures"].items() if n}
    click.echo("  failures  " + (", ".join(f"{what} {n:,}" for what, n in failed.items()) or "none"))
    if found["figures"]:
        show_rounds([Line(**line) for line in found["figures"]])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
