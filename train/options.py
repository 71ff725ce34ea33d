"""Options that the trainers' commands share, and how they become a configuration. Light."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from gavel.command import key_values, say
from gavel.options import source_options
from gavel.processes import in_group, run_on
from train.config import PRECISIONS, SCHEDULES, RowConfig, TrainConfig

F = TypeVar("F", bound=Callable[..., Any])


def settings_of(kind: type[TrainConfig]) -> dict[str, Any]:
    """The fields of a configuration with their defaults."""
    return {f.name: f.default for f in fields(kind)}


def setting(kind: type[TrainConfig], name: str, help: str, **more: Any) -> Callable[[F], F]:
    """An option named after a field of a configuration, with its default."""
    default = settings_of(kind)[name]
    return click.option(f"--{name.replace('_', '-')}", default=default,
                        show_default=default is not None, help=help, **more)  # fmt: skip


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Adds several options, in this order."""

    def wrap(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


def data_and_out(help: str) -> Callable[[F], F]:
    """Adds what is trained on and where the model goes. help: of --data."""
    return together(
        click.option("--data", required=True, metavar="RUN|SRC", help=help),
        click.option(
            "--out", required=True, metavar="DIR", help="Where the model goes; the same command resumes."
        ),
        source_options("0"),
    )


def common(kind: type[RowConfig], rows: str) -> Callable[[F], F]:
    """Adds the options that every trainer on rows of a file or run has. rows: what a batch is made of."""
    return together(
        optimisation(kind, rows),
        setting(kind, "max_length", f"Leave out {rows} with more tokens.  [default: the model's context]",
                type=int),
        click.option("--chat-template-arg", "template_args", multiple=True, callback=key_values,
                     metavar="KEY=VALUE", help="Passed to the chat template, as when sampling."),
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
    )  # fmt: skip


def optimisation(kind: type[TrainConfig], rows: str, batch: str = "optimiser step") -> Callable[[F], F]:
    """Adds the options of how weights are trained. rows: what a batch is made of. batch: what one is for."""

    def of_kind(name: str, help: str, **more: Any) -> Callable[[F], F]:
        return setting(kind, name, help, **more)

    return together(
        of_kind("epochs", "Passes over the data.", type=float),
        of_kind("batch_size", f"{rows.capitalize()} per {batch}.", type=int),
        of_kind("micro_batch", f"{rows.capitalize()} per forward pass, a divisor of the batch size; sets "
                "memory, not results.", type=int),
        of_kind("warmup", "Optimiser steps of warm-up, or below 1 a fraction of all.", type=float),
        of_kind("scheduler", "Learning rate after the warm-up.", type=click.Choice(list(SCHEDULES))),
        of_kind("weight_decay", "AdamW's weight decay.", type=float),
        of_kind("optim", "Optimiser, as transformers names it."),
        of_kind("max_grad_norm", "Gradients are clipped to this norm; 0 is off.", type=float),
        of_kind("seed", "Seed of the order of the data and of new weights.", type=int),
        of_kind("precision", "auto: bf16 on a GPU that has it, else fp32.",
                type=click.Choice(PRECISIONS)),
        click.option("--gradient-checkpointing", is_flag=True, help="Less memory, about 25 % more time."),
        click.option("--halve-micro-batch", is_flag=True,
                     help="When memory runs out, go on with half the micro-batch."),
        of_kind("lora_r", "Rank of a LoRA adapter; 0 trains all weights.", type=int),
        of_kind("lora_alpha", "LoRA's alpha.  [default: twice the rank]", type=float),
        click.option("--lora-target", "lora_targets", multiple=True,
                     help="Module to adapt; every linear layer unless given."),
        of_kind("save_steps", f"{batch.capitalize()}s between checkpoints; 0: one every five minutes.",
                type=int),
        of_kind("log_steps", f"{batch.capitalize()}s between lines of metrics.jsonl.", type=int),
        click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True,
                     help="Of this machine, that train together; changes speed and memory, not results."),
        click.option("--report-to", multiple=True,
                     help="Tracker that transformers knows (wandb, tensorboard, …)."),
    )  # fmt: skip


def spread(options: dict[str, Any]) -> bool:
    """Runs the command on several processes where that is asked for. Returns whether it was done.

    Raises SystemExit with their exit code where one failed.
    """
    count = options.pop("processes")
    if count == 1 or in_group():
        return False
    if code := run_on(count, sys.argv[1:]):
        sys.exit(code)
    return True


def given(kind: type[TrainConfig], options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration among the options."""
    return {name: options[name] for name in settings_of(kind) if name in options}


def account(encoder: Any, bad: Any, rows: str) -> dict[str, Any]:
    """What became of the data, for the summary; what was left out is said. rows: what they are called.

    Raises InputError for more unusable rows than allowed.
    """
    bad.check()
    left_out = +encoder.left_out
    if left_out:
        say(f"{rows} left out: " + ", ".join(f"{reason} ({n:,})" for reason, n in left_out.items()))
    return {"completions": dict(encoder.completions), "left_out": dict(left_out), "bad_rows": bad.count}
