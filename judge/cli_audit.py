"""`gavel audit`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from gavel.command import F, command, emit
from gavel.errors import CheckFailed
from gavel.options import source_options
from judge.audit_limits import CONTAINMENT, LIMITS, LISTED, NEAR, NGRAM


def _limit_options(function: F) -> F:
    for limit in reversed(LIMITS):
        function = click.option(
            limit.option,
            limit.name,
            metavar="SHARE",
            type=click.FloatRange(0, 1),
            default=limit.most,
            show_default=True,
            help=f"Of {limit.of}: {limit.help}",
        )(function)
    return function


@command(
    help="""Say what is wrong with the preference file SRC, and exit 1 when a limit is crossed.

    SRC holds chosen and rejected (TRL, UltraFeedback-binarized, hh-rlhf), two outputs and a label
    (AlpacaEval, response_a and response_b), or completions with scores (UltraFeedback); or it is a run
    directory, of which the newest set of pairs is read. A limit of 1 allows everything.

    \b
      gavel audit pairs.parquet --eval test.jsonl
      gavel audit RUN --max-ties 0.2 --json
    """
)
@click.argument("source", metavar="SRC")
@click.option(
    "--eval",
    "evals",
    multiple=True,
    metavar="FILE",
    help="Whose prompts should not be in SRC; may be given several times.",
)
@_limit_options
@click.option(
    "--near",
    type=click.FloatRange(0.7, 1),
    default=NEAR,
    show_default=True,
    help="Jaccard similarity from which two texts are near-duplicates.",
)
@click.option(
    "--ngram",
    type=click.IntRange(1, 100),
    default=NGRAM,
    show_default=True,
    help="Words of the n-grams that are looked for in prompts.",
)
@click.option(
    "--containment",
    type=click.FloatRange(0.01, 1),
    default=CONTAINMENT,
    show_default=True,
    help="Share of the n-grams of a prompt of --eval that a prompt of SRC must hold.",
)
@click.option(
    "--list",
    "listed",
    type=click.IntRange(0, 1000),
    default=LISTED,
    show_default=True,
    help="How many of each finding are named with their place.",
)
@source_options("0.01")
def audit(
    source: str, evals: tuple[str, ...], mapping: dict[str, str], as_json: bool, **settings: Any
) -> None:
    """Prints the report, then says which limits were crossed."""
    from judge.audit import AuditConfig, crossed_message
    from judge.audit import audit as look

    limits = {limit.name: settings.pop(limit.name) for limit in LIMITS}
    report = look(source, AuditConfig(limits=limits, **settings), mapping, evals)
    if as_json:
        emit(report, True)
    else:
        for line in _lines(report):
            click.echo(line)
    if report["crossed"]:
        n = len(report["crossed"])
        raise CheckFailed(
            f"{n} limit{'s' if n > 1 else ''} crossed: {crossed_message(report)}",
            where=source,
            hint="Mend the file, or allow more with the option named.",
        )


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for a person."""
    layouts = ", ".join(f"{name} ({n:,})" for name, n in report["layouts"].items())
    yield f"{report['source']}: {layouts}"
    counts = ("rows", "comparisons", "labelled", "prompts", "contents", "repeated_prompts")
    yield ", ".join(f"{name.replace('_', ' ')} {report[name]:,}" for name in counts)
    yield f"near-duplicates: {report['method']['near_duplicates']}"
    yield ""
    yield f"{'finding':<24}{'count':>9}{'of':>10} {'':<12}{'share':>8}{'limit':>9}"
    for name, finding in report["findings"].items():
        yield _finding(name.replace("_", " "), finding)
    yield from _named(report["findings"])
    yield from _numbers(report, "lengths", "characters")
    yield from _numbers(report, "scores", "scores")
    yield from _special(report["special_tokens"])
    yield from _evals(report)


def _finding(name: str, finding: dict[str, Any]) -> str:
    if not finding["total"]:
        return f"{name:<24}{'-':>9}{'':>10} {finding.get('not_applicable', 'nothing to count')}"
    limit = (
        f"{finding['limit']:,.0f} rows"
        if finding["limit"] >= 1 and name == "unusable"
        else f"{finding['limit']:.1%}"
    )
    if "least" in finding:
        limit = f"{finding['least']:.0%}-{finding['limit']:.0%}"
    line = (
        f"{name:<24}{finding['count']:>9,}{finding['total']:>10,} {finding['of']:<12}"
        f"{finding['share']:>8.1%}{limit:>9}{'  CROSSED' if finding['crossed'] else ''}"
    )
    if "interval" in finding:
        low, high = finding["interval"]
        line += f"  [{low:.1%}, {high:.1%}]"
    more = {k: v for k, v in finding.items() if k in ("equal", "pairs", "wrong_at_least", "reasons") and v}
    said = "; ".join(f"{k.replace('_', ' ')} {_plain(v)}" for k, v in more.items())
    return line + (f"  {said}" if said else "")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{reason} ({n:,})" for reason, n in value.items())
    return f"{value:,}"


def _named(findings: dict[str, Any]) -> Iterator[str]:
    """Where the first of each finding stand."""
    for name, finding in findings.items():
        places = finding.get("places")
        if not places:
            continue
        yield ""
        more = finding["groups"] - len(places)
        yield f"{name.replace('_', ' ')}:" + (f" ({more:,} more)" if more else "")
        for group in places:
            yield "  " + " = ".join(group) if name in _ALIKE else "  " + ", ".join(group)


#: findings whose groups are rows that are alike
_ALIKE = ("duplicates", "near_duplicates", "near_duplicate_prompts")


def _numbers(report: dict[str, Any], part: str, title: str) -> Iterator[str]:
    """Distributions as a table."""
    shown = {name: values for name, values in report[part].items() if values}
    if not shown:
        return
    names = ("mean", "sd", "min", "q05", "median", "q95", "max")
    yield ""
    yield f"{title:<14}" + "".join(f"{name:>10}" for name in names)
    for name, values in shown.items():
        yield f"{name.replace('_', ' '):<14}" + "".join(f"{values[key]:>10,.4g}" for key in names)


def _special(tokens: dict[str, Any]) -> Iterator[str]:
    if tokens:
        yield ""
        yield "special tokens in texts (times, rows)"
    for family, found in tokens.items():
        named = ", ".join(f"{token} {n['times']:,} {n['rows']:,}" for token, n in found.items())
        yield f"  {family}: {named}"


def _evals(report: dict[str, Any]) -> Iterator[str]:
    for file in report["eval_files"]:
        yield ""
        same, more = (f"{file[kind]:,} ({file['rows_' + kind]:,} rows)" for kind in ("exact", "contained"))
        yield (
            f"{file['file']}: of {file['prompts']:,} prompts SRC holds {same} as they are and {more} more by "
            f"their {report['method']['ngram']}-grams, for which {file['short']:,} are too short"
        )
