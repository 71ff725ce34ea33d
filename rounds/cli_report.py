"""`gavel report`: a run as one page."""

from __future__ import annotations

from pathlib import Path

import click

from gavel.command import command, emit


@command(
    help="""Write one self-contained HTML page about RUN: figures, charts, and pairs to look at.

    RUN is a run directory of any stage, a trained model's directory, or a directory of rounds:

    \b
      gavel report RUN
      gavel report ROUNDS --out report.html --pairs 300
    """
)
@click.argument("run", type=click.Path())
@click.option("--out", metavar="FILE", help="Where the page is written.  [default: RUN/report.html]")
@click.option(
    "--pairs", default=1000, show_default=True, type=click.IntRange(min=0),
    help="How many pairs the page shows, the doubtful ones before others.",
)  # fmt: skip
def report(run: str, out: str | None, pairs: int, as_json: bool) -> None:
    from gavel.errors import InputError, RunDirError
    from rounds.report.page import write_page

    if not Path(run).is_dir():
        raise RunDirError("there is no such directory", where=run)
    target = Path(out) if out else Path(run) / "report.html"
    if target.is_dir():
        raise InputError("is a directory, a file is needed", where=f"--out {target}")
    summary = write_page(run, target, pairs)
    figures, offered = summary.pop("headline"), summary.pop("offered")
    if as_json:
        emit({"report": str(target), **summary, "offered": offered, "headline": figures}, as_json)
    else:
        emit(
            figures | {"pairs shown": summary["pairs"], "page": f"{target} ({summary['bytes']:,} bytes)"},
            False,
        )
