"""`gavel pairs`: preference pairs from judgments, and their export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gavel.command import command, emit, say, warn
from gavel.errors import InputError

if TYPE_CHECKING:
    from judge.pairs import PairConfig

# names only, so that --help imports nothing: tests hold them equal to judge.select and judge.export_rows
STRATEGIES = ("best-worst", "best-random", "all", "top-bottom")
FORMATS = ("trl", "kto", "reward")


@command(
    help="""Make preference pairs from the judgments of RUN, and export them.

    RUN is a run directory that holds completions and judgments. The pairs are written to
    RUN/pairs/NAME/pairs.jsonl; --to also writes a dataset with a card:

    \b
      gavel pairs RUN --to pairs.parquet
      gavel pairs RUN --strategy all --min-margin 0.5 --per-prompt 4 --to DIR
      gavel pairs RUN --to hub:owner/name      (token in HF_TOKEN)
    """
)
@click.argument("run", type=click.Path())
@click.option("--judgments", metavar="PASS", help="Judging pass to build on.  [default: the newest]")
@click.option(
    "--aspect",
    metavar="A",
    multiple=True,
    help="Aspect to score by; several are averaged.  [default: all of the pass]",
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="best-worst",
    show_default=True,
    help="Which pairs of a prompt to take.",
)
@click.option("--k", type=int, help="How many from top and bottom, with top-bottom.  [default: 2]")
@click.option(
    "--min-margin",
    metavar="X",
    type=float,
    default=0.0,
    show_default=True,
    help="Drop pairs whose scores differ by less, in the judge's unit.",
)
@click.option(
    "--max-length-ratio",
    metavar="R",
    type=float,
    help="Drop pairs whose longer text has more than R times the characters.",
)
@click.option(
    "--per-prompt", metavar="N", type=int, help="At most N pairs of a prompt, the widest margins first."
)
@click.option(
    "--disputed",
    type=click.Choice(["soften", "drop"]),
    default="soften",
    show_default=True,
    help="Pairs whose two orders disagree: keep with the probability of both, or drop.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of best-random and --shuffle-labels.")
@click.option(
    "--shuffle-labels",
    is_flag=True,
    help="A control: swap chosen and rejected of half the pairs; nothing to learn.",
)
@click.option("--name", help="Name of the set.  [default: PASS-STRATEGY]")
@click.option(
    "--to", metavar="DEST", help="Export: .parquet, .jsonl, .jsonl.gz, .json, a folder, or hub:owner/name."
)
@click.option(
    "--format", type=click.Choice(FORMATS), default="trl", show_default=True, help="Columns of the export."
)
@click.option("--overwrite", is_flag=True, help="Replace a file or dataset that is no earlier export.")
@click.option("--private", is_flag=True, help="Make a repository on the Hub private.")
def pairs(
    run: str, to: str | None, format: str, overwrite: bool, private: bool, as_json: bool, **settings: Any
) -> None:
    from gavel.rundir import RunDir, refuse_rounds
    from gavel.scores import check_run
    from judge.export import destination, export_pairs
    from judge.pairs import make_pairs

    config = pair_config(settings)
    refuse_rounds(run)
    check_run(run)
    target = destination(to, overwrite=overwrite) if to else None

    with RunDir.open(run) as opened:
        earlier = {name: opened.stage(f"pairs/{name}").get("settings") for name in opened.pair_sets()}
        summary = make_pairs(opened, config)
        name = summary["name"]
        _say_what_was_used(summary, opened.judging_passes(), config.judgments is None)
        if earlier.get(name) not in (None, _plain(summary["settings"])):
            warn(f"replaced the pairs {name!r}, which were made with other settings; --name keeps both")
        for warning in summary["warnings"]:
            warn(warning)
        exported = export_pairs(opened, name, target, format, private=private) if target else None
        path = str(opened.pairs_path(name))

    result = summary | {"path": path, "export": exported}
    emit(result if as_json else _short(result), as_json)


def pair_config(settings: dict[str, Any]) -> PairConfig:
    """What the options say of the pairs to make. Raises InputError for those that do not fit together."""
    from judge.pairs import PairConfig

    settings = dict(settings)
    if settings["k"] is None:
        del settings["k"]
    elif settings["strategy"] != "top-bottom":
        raise InputError("is read by --strategy top-bottom only", where="--k")
    settings["aspects"] = tuple(settings.pop("aspect"))
    return PairConfig(**settings)


def _say_what_was_used(summary: dict[str, Any], passes: list[str], by_default: bool) -> None:
    if by_default and len(passes) > 1:
        others = ", ".join(name for name in passes if name != summary["judgments"])
        say(f"judging pass {summary['judgments']!r}, the newest; others: {others} (--judgments)")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As they come back from the manifest."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a summary that a person reads on a screen."""
    from judge.pairs import reasons

    scores, chars, exported = result["scores"], result["mean_chars"], result["export"]
    shown = {
        "pairs": result["pairs"],
        "prompts": result["prompts"],
        "without a pair": result["prompts_without_pair"],
        "completions": result["completions"],
        "dropped": reasons(result["dropped"]) or "none",
        "judging pass": result["judgments"],
        "aspects": result["settings"]["aspects"],
        "scores": {name: scores[name] for name in ("mean", "sd", "q05", "median", "q95")},
        "mean characters": {**chars, "chosen longer": result["chosen_longer"]},
        "score with length": result["length_correlation"],
        "orders disagree": result["order_disagreement"],
        "flip rate": result["flip_rate"] and {result["flip_rate_from"]: result["flip_rate"]},
        "pairs written to": result["path"],
    }
    if result["labels_shuffled"]:
        shown = {"CONTROL": f"labels shuffled, {result['labels_swapped']} swapped", **shown}
    if exported:
        shown["exported"] = f"{exported['rows']:,} rows ({exported['format']}) to {exported['to']}"
    return shown
