"""`gavel judge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gavel.command import command, emit, say
from gavel.errors import InputError
from gavel.options import engine_options, source_options
from judge.methods import check_judge, method_options

if TYPE_CHECKING:
    pass


def limit_options(function: Any) -> Any:
    """Adds `--max-calls` and `--max-tokens`."""
    function = click.option(
        "--max-tokens",
        "limit_tokens",
        type=click.IntRange(min=0),
        help="Stop before more prompt tokens; the same command goes on.",
    )(function)
    return click.option(
        "--max-calls",
        "limit_calls",
        type=click.IntRange(min=0),
        help="Stop after so many calls; the same command goes on.",
    )(function)


@command("Judge the completions of RUN, or outputs that exist already (SRC, with --out RUN).")
@click.argument("source", metavar="RUN|SRC")
@click.option("--judge", "model", help="The judge: a model directory or hub id.")
@click.option("--out", metavar="RUN", help="Run directory for outputs that exist already.")
@click.option("--name", help="Name of this judging pass.  [default: method and judge]")
@click.option("--dry-run", is_flag=True, help="Print the number of calls and tokens; ask nothing.")
@click.option("--reparse", is_flag=True, help="Read the replies of a pass again; asks nothing.")
@click.option("--self-judge", is_flag=True, help="Judge and policy may be one model or family.")
@click.option("--gold", metavar="FILE", help="Labelled pairs that the judge must pass first.")
@click.option("--min-accuracy", type=click.FloatRange(0, 1), help="Of the judge on --gold.  [default: 0.6]")
@click.option("--min-order-agreement", type=click.FloatRange(0, 1), help="Of its two orders.  [default: 0.5]")
@limit_options
@method_options()
@source_options("0.01")
@engine_options
def judge(
    source: str, model: str | None, out: str | None, name: str | None, as_json: bool, **options: Any
) -> None:
    """Opens run and judge, judges."""
    from gavel.rundir import RunDir, is_run, refuse_rounds
    from gavel.sources import BadRows, read_outputs
    from judge.collect import Limits
    from judge.gate import Gate
    from judge.judging import open_judging
    from judge.kinship import policies, warn_of_kin
    from judge.stage import take_in_outputs

    in_place = is_run(source)
    _check_place(source, out, in_place)
    dry, reparse, own = (options.pop(key) for key in ("dry_run", "reparse", "self_judge"))
    gate = Gate.of(*(options.pop(key) for key in ("gold", "min_accuracy", "min_order_agreement")))
    if not reparse:
        check_judge(model, options)
    limits = Limits(calls=options.pop("limit_calls"), tokens=options.pop("limit_tokens"))
    mapping, bad = options.pop("mapping"), BadRows(options.pop("max_bad_rows"))

    refuse_rounds(place := source if in_place else str(out))
    with RunDir.open(place) as run:
        if reparse:
            from judge.reparse import reparse_pass

            emit(reparse_pass(run, name), as_json, "read again")
            return
        if not in_place:
            take_in_outputs(run, lambda b: read_outputs(source, mapping, b), bad)
        if dry:
            from judge.estimate import estimate

            emit(estimate(run, model, options, name), as_json, "would ask")
            return
        with open_judging(model, options) as judging:
            warn_of_kin(judging.kin(), policies(run.completions_path), allowed=own)
            if gate is not None:
                say(f"the judge is checked on {gate.gold}")
                gate.check(run, judging, name)
            summary = judging.judge(run, name, limits=limits)
    _say_what_is_left(summary)
    emit(summary | {"bad_rows": bad.count, "run": str(run.path)}, as_json, "judged")


def _check_place(source: str, out: str | None, in_place: bool) -> None:
    if not in_place and out is None:
        if not source.startswith("hub:") and not Path(source).exists():
            raise InputError("there is no such run directory or file", where=source)
        what = "is no run directory" if Path(source).is_dir() else "is read as outputs that exist already"
        raise InputError(f"{what}, so --out RUN is needed", where=source)
    if in_place and out is not None:
        raise InputError("is for outputs that exist already; a run is judged in place", where="--out")


def _say_what_is_left(summary: dict[str, Any]) -> None:
    if summary.get("left"):
        say(f"stopped at the limit, {summary['left']:,} judgments are left; the same command goes on")
