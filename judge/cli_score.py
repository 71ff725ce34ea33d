"""`gavel score`."""

from __future__ import annotations

from typing import Any

import click

from gavel.command import command, emit
from gavel.options import engine_options, source_options
from judge.cli import limit_options
from judge.methods import check_judge, method_options


@command("Score the outputs in SRC: every row comes out, in order, with `scores` added.")
@click.argument("source", metavar="SRC")
@click.option("--judge", "model", help="The judge: a model directory or hub id.")
@click.option("--out", required=True, metavar="FILE", help="Where to write: .jsonl, .jsonl.gz or .parquet.")
@click.option(
    "--correlate",
    multiple=True,
    metavar="COLUMN",
    help="Print the rank correlation with this column of human scores.",
)
@limit_options
@method_options()
@source_options("0.01")
@engine_options
def score(
    source: str, model: str | None, out: str, correlate: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Opens the judge, scores, prints a summary."""
    from gavel.sources import BadRows
    from judge.collect import Limits
    from judge.judging import open_judging
    from judge.score import check_destination, check_source
    from judge.score import score as run_stage

    check_judge(model, options)
    path = check_destination(out, source)
    mapping, bad = options.pop("mapping"), BadRows(options.pop("max_bad_rows"))
    limits = Limits(calls=options.pop("limit_calls"), tokens=options.pop("limit_tokens"))
    check_source(source, mapping, bad, correlate)
    with open_judging(model, options) as judging:
        summary = run_stage(source, path, judging, mapping=mapping, correlate=correlate, limits=limits)
    emit(summary | {"bad_rows": bad.count}, as_json, "scored")
