"""`gavel winrate`: of recorded annotations, of a run's comparisons, or of two sides that a judge compares."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from gavel.command import command, emit, say, warn
from gavel.errors import CheckFailed, InputError
from gavel.options import engine_config, engine_options, source_options
from judge.methods import check_judge, method_options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from judge.duels import Outcome
    from judge.winrate import Anchor, Comparison
    from rounds.sides import Joined, Side

_ANNOTATIONS_ONLY = ("anchors", "difficulty")
_LIVE_ONLY = ("prompts", "out")


@command(
    help="""Win rate, standard error and length-controlled win rate, in percent.

    \b
      gavel winrate ANNOTATIONS          AlpacaEval-style rows: the model against its baseline
      gavel winrate RUN                  two models of a run that was judged pairwise
      gavel winrate A B --judge M        B against A: files, runs, or models with --prompts
    """
)
@click.argument("sources", metavar="SRC | A B", nargs=-1, required=True)
@click.option("--length-control", is_flag=True, help="Also the win rate at equal lengths.")
@click.option("--anchors", metavar="FILE", help="Anchor rows of the length-controlled fit.")
@click.option("--difficulty", metavar="FILE", help="Instruction difficulties for that fit.")
@click.option("--model", metavar="NAME", help="This model of several in SRC.")
@click.option("--judgments", metavar="PASS", help="Judging pass of RUN.  [default: the newest]")
@click.option("--judge", "judge_model", help="Who compares A and B: a model directory or hub id.")
@click.option("--self-judge", is_flag=True, help="The judge may be of the family that it judges.")
@click.option("--out", metavar="RUN", help="Keep answers and judgments here; the same command resumes.")
@click.option("--prompts", metavar="SRC", help="What to ask A and B where they are models.")
@click.option(
    "-n", "--n", "n", default=1, show_default=True, type=click.IntRange(min=1), help="Answers per prompt."
)
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(min=0))
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@click.option(
    "--max-tokens", "answer_tokens", default=512, show_default=True, type=click.IntRange(min=1),
    help="Of an answer.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=int, help="Of the answers.")
@method_options("pairwise")
@source_options("0.01")
@engine_options
def winrate(sources: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Sees what the sources are."""
    from gavel.rundir import is_run

    options["length_control"] |= any(options[name] is not None for name in _ANNOTATIONS_ONLY)
    if len(sources) > 2:
        raise InputError(f"one source or two, not {len(sources)}", where="gavel winrate")
    if len(sources) == 2:
        _refuse(options, _ANNOTATIONS_ONLY, "is for AlpacaEval annotations")
        _refuse(options, ("model", "judgments"), "is for one SRC that holds its judgments")
        _live(*sources, as_json, options)
        return
    if options["judge_model"] is not None:
        raise InputError("compares two sides: name A and B", where="--judge")
    _refuse(options, _LIVE_ONLY, "is for comparing A and B with --judge")
    if is_run(sources[0]):
        _refuse(options, _ANNOTATIONS_ONLY, "is for AlpacaEval annotations")
        _of_run(sources[0], as_json, options)
    else:
        _refuse(options, ("judgments",), "is for a run directory")
        _of_annotations(sources[0], as_json, options)


def _refuse(options: dict[str, Any], names: Sequence[str], why: str) -> None:
    for name in names:
        if options[name] is not None:
            raise InputError(why, where=f"--{name}")


def _of_annotations(source: str, as_json: bool, options: dict[str, Any]) -> None:
    from gavel.rows import BadRows
    from judge.annotations import by_model, read_anchors, read_annotations, with_difficulty

    bad = BadRows(options["max_bad_rows"])
    anchors = read_anchors(options["anchors"]) if options["anchors"] else []
    annotations = read_annotations(source, options["mapping"], bad)
    if options["difficulty"]:
        annotations = with_difficulty(annotations, options["difficulty"])
    found = by_model(annotations, options["model"])
    results = {}
    for name, rows in found.items():
        comparisons = [row.comparison for row in rows]
        results[name] = (
            _rates(comparisons, options["length_control"], anchors)
            | {"reasons": _counted(row.reason for row in rows if row.comparison.p is None)}
            | {"contradicted": sum(row.contradicted for row in rows)}
        )
        if results[name]["contradicted"]:
            warn(f"{name}: {results[name]['contradicted']:,} preferences contradict their log-probabilities")
    if options["length_control"] and not options["difficulty"]:
        say("without --difficulty the fit has no term for it; docs/winrate.md says how far that is off")
    _show(results, as_json)


def _of_run(path: str, as_json: bool, options: dict[str, Any]) -> None:
    from gavel.rundir import RunDir
    from gavel.scores import choose_pass
    from judge.head_to_head import choose_models, head_to_head
    from judge.winrate import orders

    run = RunDir(path)
    judging = choose_pass(run, options["judgments"])
    baseline, models = choose_models(run, options["model"])
    results = {}
    for pair in head_to_head(run, judging, baseline, models):
        results[pair.b] = (
            {"model": pair.b, "baseline": pair.a}
            | _rates(pair.comparisons(), options["length_control"])
            | _in_both_orders(orders(pair.shown()))
            | {"comparisons": sum(map(len, pair.prompts)), "not_asked": pair.not_asked, "pass": judging}
        )
    _show(results, as_json)


def _live(a: str, b: str, as_json: bool, options: dict[str, Any]) -> None:
    """Gets the outputs of both sides, has them judged, reports B against A."""
    from gavel.rundir import RunDir, refuse_rounds
    from judge.duels import ask
    from judge.head_to_head import per_prompt
    from judge.judging import default_pass, open_judging
    from judge.kinship import warn_of_kin
    from judge.winrate import orders
    from rounds.sides import bouts_of, check_sides, join

    model = options.pop("judge_model")
    check_judge(model, options)
    check_sides(a, b, options["prompts"])
    _check_method(options)
    if options["out"]:
        refuse_rounds(options["out"])
    with _folder(options["out"]) as out, RunDir.open(out) as journal:
        sides = [_side(source, out, options) for source in (a, b)]
        joined = join(*sides)
        with open_judging(model, options) as judging:
            makers = [kin for side in sides for kin in side.makers()]
            warn_of_kin(judging.kin(), makers, allowed=options["self_judge"])
            duels = [duel for several in joined.duels.values() for duel in several]
            name = f"{default_pass(judging)}-{judging.identity()[:8]}"
            outcomes, summary = ask(duels, judging, journal, name=name)
            twice = _asked_twice(journal.judgments_path(summary["pass"]))
    prompts = [bouts_of(several, outcomes) for several in joined.duels.values()]
    result = (
        {"a": a, "b": b}
        | _rates([c for bouts in prompts for c in per_prompt(bouts)], options["length_control"])
        | _in_both_orders(orders(_shown(joined, outcomes)) if twice else None)
        | {
            "comparisons": len(duels),
            "only_a": joined.only_a,
            "only_b": joined.only_b,
            "left_out": joined.left_out,
        }
        | {"blank": joined.blank(), "judge": "+".join(judging.models), "method": judging.name}
        | {"pass": summary["pass"], "run": options["out"]}
    )
    if result["blank"]:
        warn(f"{result['blank']:,} comparisons with an empty output were not judged and count as unparsed")
    for side in sides:
        _warn_of_repetition(side)
    _show({b: result}, as_json)


def _check_method(options: dict[str, Any]) -> None:
    """Raises InputError for a method that cannot be made: before models are sampled, not after."""
    from judge.methods import SEVERAL, make_method, method_from

    name, settings, _ = method_from(dict(options))
    if name not in SEVERAL:
        make_method(name, settings)


@contextlib.contextmanager
def _folder(out: str | None) -> Iterator[Path]:
    """The folder for answers and judgments; one that goes away where none was named."""
    import tempfile
    from pathlib import Path

    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="gavel-winrate-") as folder:
        yield Path(folder)


def _side(source: str, out: Path, options: dict[str, Any]) -> Side:
    """The outputs of one side. Models get the judge's engine options but for its server, adapter and
    tokenizer."""
    from gavel.records import Sampling
    from gavel.rows import BadRows
    from gavel.rundir import is_run
    from generate.stage import GenerateConfig
    from rounds.sides import Sampled, is_model, of_model, of_run, of_source

    bad, mapping = BadRows(options["max_bad_rows"]), options["mapping"]
    if is_run(source):
        return of_run(source)
    if not is_model(source):
        return of_source(source, mapping, bad)
    own = {"base_url": None, "adapter": None, "tokenizer": None}
    if options["base_url"] or options["engine"] == "server":
        own |= {"engine": None}
    engine = engine_config(source, options | own)
    sampling = Sampling(
        temperature=options["temperature"], top_p=options["top_p"], max_tokens=options["answer_tokens"]
    )
    config = GenerateConfig(n=options["n"], seed=options["seed"], sampling=sampling)
    return of_model(engine, Sampled(options["prompts"], config, out / "outputs"), mapping, bad)


def _warn_of_repetition(side: Side) -> None:
    from judge.pair_statistics import excerpt

    if (found := side.repeated()) is not None:
        text, count = found
        shown = json.dumps(excerpt(text, 60), ensure_ascii=False)
        warn(f"{side.name}: the same text is offered for {count:,} of {len(side.asked):,} prompts: {shown}")


def _asked_twice(path: Path) -> bool:
    """Whether a pass shows any two completions in both orders; without that it says nothing of order."""
    from gavel.records import Judgment
    from gavel.rundir import read_records

    seen: set[tuple[str, ...]] = set()
    for judgment in read_records(path, Judgment):
        if len(judgment.completion_ids) > 1 and judgment.completion_ids[::-1] in seen:
            return True
        seen.add(judgment.completion_ids)
    return False


def _shown(joined: Joined, outcomes: dict[str, Outcome]) -> list[tuple[float | None, float | None]]:
    """The outcomes of what a judge was asked about; equal texts it was not."""
    asked = [duel for duels in joined.duels.values() for duel in duels if duel.a.text != duel.b.text]
    return [(outcomes[duel.id].ab, outcomes[duel.id].ba) for duel in asked]


def _rates(
    comparisons: Sequence[Comparison], length_control: bool, anchors: Sequence[Anchor] = ()
) -> dict[str, Any]:
    """The figures that all reports have."""
    from dataclasses import asdict

    from judge.winrate import length_controlled, win_rate

    rates = asdict(win_rate(comparisons))
    if not length_control:
        return rates
    found = length_controlled(comparisons, anchors)
    if found is None:
        lengths = "no comparison has a verdict and both lengths"
        warn(f"no length-controlled win rate: {lengths}")
        return rates | {"length_controlled_win_rate": None, "length_control": {"n": 0}}
    fit = asdict(found)
    return rates | {"length_controlled_win_rate": fit.pop("rate"), "length_control": fit}


def _in_both_orders(found: Any) -> dict[str, Any]:
    return {
        "order_agreement": found.order_agreement if found else None,
        "p_first": found.p_first if found else None,
    }


def _counted(reasons: Iterator[str | None]) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(reason or "no verdict" for reason in reasons).most_common())


def _show(results: dict[str, dict[str, Any]], as_json: bool) -> None:
    """One object for one model, an object by model for several.

    Raises CheckFailed after the report where not one comparison has a verdict.
    """
    if as_json:
        emit(next(iter(results.values())) if len(results) == 1 else results, True)
    else:
        for name, result in results.items():
            emit(result, False, name)
    if all(math.isnan(result["win_rate"]) for result in results.values()):
        raise CheckFailed("not one comparison has a verdict")
