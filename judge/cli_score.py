"""`gavel score`."""

from __future__ import annotations

from typing import Any

import click

from gavel.command import command, emit
from gavel.options import engine_config, engine_options, source_options
from judge.methods import method_from, method_options


@command("Score the outputs in SRC: every row comes out, in order, with `scores` added.")
@click.argument("source", metavar="SRC")
@click.option("--judge", "model", required=True, help="The judge: a model directory or hub id.")
@click.option("--out", required=True, metavar="FILE", help="Where to write: .jsonl, .jsonl.gz or .parquet.")
@click.option(
    "--correlate",
    multiple=True,
    metavar="COLUMN",
    help="Print the rank correlation with this column of human scores.",
)
@method_options
@source_options("0.01")
@engine_options
def score(
    source: str, model: str, out: str, correlate: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Opens the engine, scores, prints a summary."""
    from gavel.engines import open_engine
    from gavel.sources import BadRows
    from judge.score import check_destination, check_source
    from judge.score import score as run_stage

    path = check_destination(out, source)
    mapping, bad = options.pop("mapping"), BadRows(options.pop("max_bad_rows"))
    method = method_from(options)
    settings = engine_config(model, options)
    check_source(source, mapping, bad, correlate)
    with open_engine(settings) as engine:
        summary = run_stage(source, path, engine, method, mapping=mapping, correlate=correlate)
    emit(summary | {"bad_rows": bad.count}, as_json, "scored")
