"""`gavel judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gavel.command import command, emit
from gavel.errors import InputError
from gavel.options import engine_config, engine_options, source_options
from judge.methods import method_from, method_options


@command("Judge the completions of RUN, or outputs that exist already (SRC, with --out RUN).")
@click.argument("source", metavar="RUN|SRC")
@click.option("--judge", "model", required=True, help="The judge: a model directory or hub id.")
@click.option("--out", metavar="RUN", help="Run directory for outputs that exist already.")
@click.option("--name", help="Name of this judging pass.  [default: method and judge]")
@method_options
@source_options("0.01")
@engine_options
def judge(source: str, model: str, out: str | None, name: str | None, as_json: bool, **options: Any) -> None:
    """Opens run and engine, judges."""
    from gavel.engines import open_engine
    from gavel.rundir import RunDir, is_run
    from gavel.sources import BadRows, read_outputs
    from judge.stage import judge as run_stage
    from judge.stage import take_in_outputs

    in_place = is_run(source)
    if not in_place and out is None:
        if not source.startswith("hub:") and not Path(source).exists():
            raise InputError("there is no such run directory or file", where=source)
        what = "is no run directory" if Path(source).is_dir() else "is read as outputs that exist already"
        raise InputError(f"{what}, so --out RUN is needed", where=source)
    if in_place and out is not None:
        raise InputError("is for outputs that exist already; a run is judged in place", where="--out")
    mapping, bad = options.pop("mapping"), BadRows(options.pop("max_bad_rows"))
    method = method_from(options)
    settings = engine_config(model, options)
    with RunDir.open(source if in_place else str(out)) as run:
        if not in_place:
            take_in_outputs(run, lambda b: read_outputs(source, mapping, b), bad)
        with open_engine(settings) as engine:
            summary = run_stage(run, engine, method, name=name)
    emit(summary | {"bad_rows": bad.count, "run": str(run.path)}, as_json, "judged")
