"""`gavel agreement`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gavel.command import command, emit, say
from gavel.errors import CheckFailed, InputError
from gavel.options import engine_options, source_options
from judge.methods import check_judge, method_options

if TYPE_CHECKING:
    from judge.agreement import Compared
    from judge.recorded import Replay


@command(
    help="""Check a judge against the gold labels of SRC.

    SRC holds labelled pairs: prompt, response_a, response_b and label (a, b or tie), or prompt, chosen
    and rejected. The judge is asked in both orders, or recorded replies are read again.

    \b
      gavel agreement labelled.jsonl --judge M --method pairwise
      gavel agreement labelled.jsonl --recorded replies.jsonl --evaluator NAME --rule first
    """
)
@click.argument("source", metavar="SRC")
@click.option("--judge", "model", help="The judge: a model directory or hub id.")
@click.option(
    "--recorded", metavar="FILE", help="Raw replies to read again: id, evaluator, order, raw_output."
)
@click.option("--evaluator", metavar="NAME", help="Of --recorded, where it holds several.")
@click.option(
    "--rule",
    type=click.Choice(["last", "first"]),
    default="last",
    show_default=True,
    help="Of --recorded: which of several verdicts in one reply counts.",
)
@click.option("--pattern", metavar="REGEX", help="Of --recorded: how a verdict looks, with (?P<label>…).")
@click.option("--labels", metavar="A,B[,TIE]", default="a,b", show_default=True, help="Of --pattern.")
@click.option("--differences", metavar="FILE", help="Of --recorded: write all records the rules differ on.")
@click.option("--out", metavar="RUN", help="Keep what the judge says there, and go on from it.")
@click.option("--min-accuracy", type=click.FloatRange(0, 1), help="Exit 1 below it.")
@click.option("--min-order-agreement", type=click.FloatRange(0, 1), help="Exit 1 below it.")
@method_options("pairwise")
@source_options("0.01")
@engine_options
def agreement(
    source: str,
    model: str | None,
    recorded: str | None,
    evaluator: str | None,
    rule: str,
    out: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Reads the labels, asks or replays, prints."""
    from gavel.sources import BadRows
    from judge.agreement import agreement as measure
    from judge.labelled import read_labelled

    least = {key: options.pop(f"min_{key}") for key in ("accuracy", "order_agreement")}
    replayed = {key: options.pop(key) for key in ("pattern", "labels", "differences")}
    mapping, bad = options.pop("mapping"), BadRows(options.pop("max_bad_rows"))
    if recorded is None:
        for key, value in {"evaluator": evaluator, **replayed}.items():
            if value is not None and (key, value) != ("labels", "a,b"):
                raise InputError("reads recorded replies", where=f"--{key}", hint="Add --recorded FILE.")
        check_judge(model, options)
    elif model is not None:
        raise InputError("either a judge is asked or replies are read again", where="--recorded")
    labelled = list(read_labelled(source, mapping, bad, draw_sides=recorded is None))
    bad.check()
    if not labelled:
        raise InputError("holds no labelled pairs", where=source)
    compared: list[Compared]
    if recorded is not None:
        compared, more = _replay(recorded, labelled, evaluator, rule, replayed)
    else:
        compared, more = _ask(labelled, model, options, out)
    result = measure(compared) | more | {"bad_rows": bad.count}
    if as_json:
        emit(result, as_json)
    else:
        _table(result)
    _check(result, least, source)


def _ask(
    labelled: list[Any], model: str | None, options: dict[str, Any], out: str | None
) -> tuple[list[Compared], dict[str, Any]]:
    import tempfile

    from gavel.rundir import RunDir, refuse_rounds
    from judge.agreement import compare
    from judge.duels import ask
    from judge.judging import open_judging
    from judge.labelled import duels_of

    if out:
        refuse_rounds(out)
    with (
        tempfile.TemporaryDirectory() as folder,
        RunDir.open(out or Path(folder) / "run") as journal,
        open_judging(model, options) as judging,
    ):
        outcomes, summary = ask(duels_of(labelled), judging, journal, name="agreement")
    kept = ("judge", "weights", "method", "settings", "calls", "tokens", "failed", "seconds")
    return compare(labelled, outcomes), {key: summary[key] for key in kept}


def _replay(
    recorded: str, labelled: list[Any], evaluator: str | None, rule: str, options: dict[str, Any]
) -> tuple[list[Compared], dict[str, Any]]:
    from gavel.sources import BadRows
    from judge.agreement import compare
    from judge.recorded import STYLES, as_rows, own_style, replay

    labels = [label.strip() for label in options["labels"].split(",")]
    styles = (own_style(options["pattern"], labels),) if options["pattern"] else STYLES
    found: Replay = replay(recorded, labelled, evaluator, rule, BadRows(0.01), styles)
    rows = as_rows(found.differences)
    if options["differences"]:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(options["differences"]).write_text(lines, "utf-8")
    if found.replaced:
        say(f"{found.replaced:,} records gave way to another of the same pair and order (final, stage, last)")
    return compare(labelled, found.outcomes), {
        "rule": rule,
        "evaluator": evaluator,
        "records": found.records,
        "records_of_other_pairs": found.unknown,
        "unparsed_reasons": dict(found.reasons.most_common()),
        "rules_differ": rows,
    }


def _table(result: dict[str, Any]) -> None:
    """What a person sees."""
    intervals, base, matched = result["intervals"], result["baselines"], result["length_matched"]
    rows: list[tuple[str, float | None, Any, str]] = [
        ("accuracy", result["accuracy"], intervals["accuracy"], "mean of the two orders"),
        ("  a shown first", result["accuracy_ab"], intervals["accuracy_ab"], ""),
        ("  b shown first", result["accuracy_ba"], intervals["accuracy_ba"], ""),
        ("both orders right", result["both_correct"], intervals["both_correct"], ""),
        ("orders agree", result["order_agreement"], intervals["order_agreement"], ""),
        ("picks the first", result["p_first"], intervals["p_first"], "0.5 without position bias"),
        ("kappa", result["kappa"], intervals["kappa"], "Cohen's, with gold"),
        ("of matched length", matched["accuracy"], matched.get("interval"), f"{matched['n']:,} pairs"),
        ("always the longer", base["longer_wins"], base["intervals"]["longer_wins"], "baseline"),
        ("always a", base["first_wins"], base["intervals"]["first_wins"], "baseline"),
    ]
    click.echo(f"{result['n']:,} labelled pairs, {result['unparsed']:,} answers without a verdict")
    for name, value, ends, note in rows:
        shown = "     -" if value is None else f"{value:6.3f}"
        between = f"[{ends[0]:6.3f}, {ends[1]:6.3f}]" if ends else " " * 16
        click.echo(f"  {name:18} {shown}  {between}  {note}".rstrip())
    for reason, count in result.get("unparsed_reasons", {}).items():
        click.echo(f"  without a verdict: {reason} ({count:,})")
    differ = result.get("rules_differ", [])
    if differ:
        click.echo(f"the first and the last verdict differ in {len(differ):,} records:")
    for row in differ:
        first, last = row["first"] or "none", row["last"] or "none"
        click.echo(
            f"  {row['id']} {row['order']}: first {first}, last {last}; a careful reader: {row['careful']}"
        )
        click.echo(f"      … {row['ends'][-90:]}")


def _check(result: dict[str, Any], least: dict[str, float | None], source: str) -> None:
    failed = [
        f"{name.replace('_', ' ')} {result[name]:.3f} is under {wanted:g}"
        for name, wanted in least.items()
        if wanted is not None and result[name] < wanted
    ]
    if failed:
        raise CheckFailed(", ".join(failed), where=source)
