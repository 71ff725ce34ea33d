"""`gavel rounds start | resume | status`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gavel.command import emit

if TYPE_CHECKING:
    from rounds.config import RoundsConfig
    from rounds.pool import Pool
    from rounds.standing import Line

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_FROM = click.option("--from", "stage", metavar="STAGE", help="Redo from this stage on, e.g. 02/train.")


@click.command(
    help="""Run the rounds that CONFIG describes: sample, judge, pair, train, evaluate, gate.

CONFIG is a TOML file, see docs/rounds.md. The same command on the same RUN goes on where it was stopped."""
)
@click.argument("config", metavar="CONFIG", type=click.Path(dir_okay=False))
@click.option("--out", required=True, metavar="RUN", help="Where everything is written.")
@click.option("--dry-run", is_flag=True,
              help="Check everything and print calls, tokens, disk and time, by a short probe.")  # fmt: skip
@_FROM
@_JSON
def start(config: str, out: str, dry_run: bool, stage: str | None, as_json: bool) -> None:
    """Checks, writes the configuration down, runs."""
    from gavel.command import read_toml
    from rounds.check import absolute, check
    from rounds.read_config import config_of

    wanted = config_of(absolute(read_toml(config, config)), config)
    _refuse_run(Path(out))
    if dry_run:
        from gavel.errors import InputError
        from rounds.probe import estimate

        if stage is not None:
            raise InputError("redoes nothing", where="--dry-run, --from", hint="Leave one of them out.")
        emit(estimate(wanted, check(wanted), Path(out)), as_json, "would take")
        return
    pool = check(wanted, drawn=_drawn(Path(out)))
    _run(Path(out), wanted, stage, pool, as_json)


@click.command(
    help="""Go on with a run that was stopped, in its own configuration (RUN/config.toml).

What a finished stage was made by cannot be changed unless it is redone: --from 02/train redoes round 2 from
its training on, and keeps what there was in RUN/redone."""
)
@click.argument("run", metavar="RUN", type=click.Path(file_okay=False))
@_FROM
@_JSON
def resume(run: str, stage: str | None, as_json: bool) -> None:
    """Reads the configuration, runs."""
    from rounds.check import check
    from rounds.redo import settle
    from rounds.status import config_in

    root = Path(run)
    settle(root)  # it may bring another configuration
    config = config_in(root)
    pool = check(config, drawn=_drawn(root))
    _run(root, config, stage, pool, as_json)


@click.command(
    help="""Where a run is: stage, rates, time left, the figures of each round, failures so far.

At any time, from any shell; nothing is locked or changed."""
)
@click.argument("run", metavar="RUN", type=click.Path(file_okay=False))
@_JSON
def status(run: str, as_json: bool) -> None:
    """Reads the run's files."""
    from rounds.show import show_status
    from rounds.status import status as status_of

    found = status_of(Path(run))
    if as_json:
        emit(found, True)
    else:
        show_status(found, Path(run))


def _refuse_run(root: Path) -> None:
    """Raises InputError for a directory of `gavel generate` or `judge`, which has prompts of its own."""
    from gavel.errors import InputError
    from gavel.rundir import RunDir

    if RunDir(root).prompts_path.exists() and not (root / "config.toml").exists():
        raise InputError("is a run directory, not one of rounds", where=f"--out {root}",
                         hint="Choose a new or empty directory.")  # fmt: skip


def _drawn(root: Path) -> bool:
    """Whether a run has its prompts, so that their source is not needed again."""
    from gavel.rundir import RunDir

    return root.is_dir() and bool(RunDir(root).stage("prompts"))


def _run(root: Path, config: RoundsConfig, stage: str | None, pool: Pool | None, as_json: bool) -> None:
    """Runs, again from a stage on where one is named; the last words go to standard output. pool: the prompts
    where their source was read for it.

    Raises CheckFailed where a gate stopped the run."""
    from gavel.errors import CheckFailed
    from rounds.loop import run_rounds
    from rounds.standing import read_figures

    try:
        lines = run_rounds(root, config, again=stage, drawn=pool)
    except CheckFailed:  # a budget is spent, or the judge failed its gold test: so far this holds
        if so_far := read_figures(root):
            _show(root, so_far, as_json)
        raise
    _show(root, lines, as_json)
    if lines[-1].decision == "stop":
        raise CheckFailed(f"a gate stopped the run after round {lines[-1].round}", where=str(root))


def _show(root: Path, lines: list[Line], as_json: bool) -> None:
    """The table of the rounds, and the last words."""
    from rounds.gates import last_words
    from rounds.show import show_rounds

    words = last_words(lines, root)
    if as_json:
        emit(_result(root, lines, words), True)
    else:
        show_rounds(lines)
        click.echo(words)


def _result(root: Path, lines: list[Line], words: str) -> dict[str, Any]:
    from dataclasses import asdict

    best = lines[lines[-1].best]
    return {"run": str(root), "best": best.round, "model": str(best.path(root)),
            "decision": lines[-1].decision, "words": words,
            "rounds": [asdict(line) for line in lines]}  # fmt: skip
