"""The `gavel` command: a static table, so that nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

import click

from gavel.command import exit_codes

#: command → (module:attribute, one help line)
Table = dict[str, tuple[str, str]]

TRAINERS: Table = {
    "sft": ("train.cli_sft:sft", "On texts, instructions, conversations, or a run's best completions."),
    "dpo": ("train.cli:dpo", "On preference pairs, by direct preference optimisation."),
    "reward": ("train.cli:reward", "A reward model on preference pairs."),
    "ppo": ("rounds.cli_ppo:ppo", "Against a judge's scores, by proximal policy optimisation."),
}
ROUNDS: Table = {
    "start": ("rounds.cli_rounds:start", "Begin the rounds that a TOML file describes."),
    "resume": ("rounds.cli_rounds:resume", "Go on with a run that was stopped, or redo a part of it."),
    "status": ("rounds.cli_rounds:status", "Where a run is, at any time, from any shell."),
}
COMMANDS: Table = {
    "demo": ("demo.cli:demo", "Run the whole loop on the bundled models."),
    "generate": ("generate.cli:generate", "Sample completions for prompts into a run directory."),
    "judge": ("judge.cli:judge", "Judge completions of a run, or outputs that exist already."),
    "pairs": ("judge.cli_pairs:pairs", "Make preference pairs from judgments and export them."),
    "score": ("judge.cli_score:score", "Score outputs that exist already, row by row."),
    "agreement": ("judge.cli_agreement:agreement", "Check a judge against gold labels."),
    "winrate": ("rounds.cli_winrate:winrate", "Win rate, standard error, length-controlled win rate."),
    "audit": ("judge.cli_audit:audit", "What is wrong with a preference file."),
    "report": ("rounds.cli_report:report", "A run as one page: figures, charts, pairs to look at."),
    "train": ("gavel.cli:train", "Train a model: SFT, DPO, reward model, PPO."),
    "rounds": ("gavel.cli:rounds", "Rounds of all of it by themselves, gated."),
    "doctor": ("gavel.doctor:doctor", "Check machine, engines and versions."),
}


class _Commands(click.Group):
    """Looks a command up in a table and imports its module only then."""

    table: Table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, attribute = self.table[name][0].split(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.table, n=1)
            if close:
                raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None
            raise


@click.command(cls=_Commands, invoke_without_command=False)
@click.version_option(package_name="gavel", message="gavel %(version)s")
def root() -> None:
    """Turn a file of prompts into a better language model, without human labels."""


@click.command(cls=_Commands, invoke_without_command=False)
def train() -> None:
    """Train a model."""


@click.command(cls=_Commands, invoke_without_command=False)
def rounds() -> None:
    """Sample, judge, pair, train, evaluate, gate: round after round."""


root.table, train.table, rounds.table = COMMANDS, TRAINERS, ROUNDS


def _environment() -> None:
    """What libraries read from the environment when they are loaded, where the user did not set it."""
    for name, value in {
        # threads that wait by spinning take the cores from each other: seven times slower beside other work
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def main() -> None:
    """Entry of the console script."""
    _environment()
    with exit_codes():
        root(standalone_mode=False)
