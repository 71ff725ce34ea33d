"""`gavel train`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from gavel.command import command, emit, key_values, place, say
from gavel.errors import InputError
from gavel.options import source_options
from train.config import CONSERVATIVE, LOSSES, PRECISIONS, REFERENCES, SCHEDULES, SMOOTHED, DpoConfig

F = TypeVar("F", bound=Callable[..., Any])
_MEASURED = "measured"
_DEFAULTS = {f.name: f.default for f in fields(DpoConfig)}


def _setting(name: str, help: str, **more: Any) -> Callable[[F], F]:
    """An option named after a field of DpoConfig, with its default."""
    return click.option(f"--{name.replace('_', '-')}", default=_DEFAULTS[name],
                        show_default=_DEFAULTS[name] is not None, help=help, **more)  # fmt: skip


def _flip_rate(ctx: click.Context, param: click.Parameter, value: str) -> float | str:
    """click callback: a number, or the word that stands for one of the run's."""
    if value == _MEASURED:
        return value
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{value!r} is neither a number nor {_MEASURED}", where=place(ctx, param)) from None


@click.group(help="Train a model on preference pairs.")
def train() -> None: ...


@command("Train MODEL on preference pairs by direct preference optimisation.", name="dpo")
@click.option(
    "--model", required=True, help="Model directory or hub id to start from; it is the reference too."
)
@click.option(
    "--data",
    required=True,
    metavar="RUN|SRC",
    help="Run directory, or a preference file (JSON Lines, JSON, Parquet, CSV, datasets directory, hub:…).",
)
@click.option("--out", required=True, metavar="DIR", help="Where the model goes; the same command resumes.")
@click.option("--pairs", metavar="NAME", help="Which pairs of RUN; the newest unless given.")
@click.option("--run", metavar="RUN", help="Run directory whose token ids the rows of SRC name.")
@source_options("0")
@_setting("learning_rate", "Peak learning rate.", type=float)
@_setting("beta", "How closely the policy is kept to the reference.", type=float)
@click.option(
    "--loss",
    multiple=True,
    callback=key_values,
    metavar="NAME=WEIGHT",
    help=f"Weighted mix, e.g. --loss sigmoid=1 --loss sft=1: {', '.join(LOSSES)}.  [default: sigmoid=1]",
)
@_setting(
    "label_smoothing",
    f"How often a label is wrong, below 0.5; {_MEASURED}: as `gavel pairs` found it in RUN. "
    f"For the losses {', '.join(SMOOTHED)}.",
    type=str,
    metavar=f"X|{_MEASURED}",
    callback=_flip_rate,
)
@click.option(
    "--soft-labels",
    is_flag=True,
    help=f"Train towards each pair's probability that chosen is better ({', '.join(CONSERVATIVE)}); "
    "where it has none, 1 less the label smoothing.",
)
@_setting("epochs", "Passes over the data.", type=float)
@_setting("batch_size", "Pairs per optimiser step.", type=int)
@_setting(
    "micro_batch", "Pairs per forward pass, a divisor of the batch size; sets memory, not results.", type=int
)
@_setting("max_length", "Leave out pairs with more tokens.  [default: the model's context]", type=int)
@_setting("warmup", "Warm-up steps, or below 1 a fraction of all.", type=float)
@_setting("scheduler", "Learning rate after the warm-up.", type=click.Choice(list(SCHEDULES)))
@_setting("weight_decay", "AdamW's weight decay.", type=float)
@_setting("optim", "Optimiser, as transformers names it.")
@_setting("max_grad_norm", "Gradients are clipped to this norm; 0 is off.", type=float)
@_setting("seed", "Seed of the order of the data and of the adapter.", type=int)
@_setting("precision", "auto: bf16 on a GPU that has it, else fp32.", type=click.Choice(PRECISIONS))
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, about 25 % more time.")
@_setting("lora_r", "Rank of a LoRA adapter; 0 trains all weights.", type=int)
@_setting("lora_alpha", "LoRA's alpha.  [default: twice the rank]", type=float)
@click.option(
    "--lora-target", "lora_targets", multiple=True, help="Module to adapt; every linear layer unless given."
)
@click.option("--merge", is_flag=True, help="Save the merged model, the adapter beside it.")
@_setting("save_steps", "Steps between checkpoints; 0: one every five minutes.", type=int)
@_setting("log_steps", "Steps between lines of metrics.jsonl.", type=int)
@click.option("--report-to", multiple=True, help="Tracker that transformers knows (wandb, tensorboard, …).")
@_setting(
    "reference",
    "Where its log-probabilities come from. auto: the samples if an audit agrees, else a pass.",
    type=click.Choice(REFERENCES),
)
@_setting("audit_rows", "Pairs that the audit reads.", type=int)
@click.option(
    "--chat-template-arg",
    "template_args",
    multiple=True,
    callback=key_values,
    metavar="KEY=VALUE",
    help="Passed to the chat template, as when sampling.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
def dpo(**options: Any) -> None:
    """Reads the pairs, trains, prints the summary."""
    settings = {name: options[name] for name in _DEFAULTS if name in options}
    if settings["label_smoothing"] == _MEASURED:
        settings["label_smoothing"] = _measured(options)
    config = DpoConfig(**settings | {"loss": _weights(options["loss"])})

    from gavel.rows import BadRows
    from train.models import encoder_of

    encoder = encoder_of(config)
    bad = BadRows(options["max_bad_rows"])
    rows = _rows(options, encoder, bad)
    bad.check()
    if encoder.left_out:
        say("pairs left out: " + ", ".join(f"{reason} ({n:,})" for reason, n in encoder.left_out.items()))

    from train.dpo import train_dpo

    summary = train_dpo(config, rows, options["out"])
    account = {"completions": dict(encoder.completions), "left_out": dict(encoder.left_out)}
    emit(summary | account | {"bad_rows": bad.count}, options["as_json"], "trained")


def _measured(options: dict[str, Any]) -> float:
    """The flip rate of the run's pairs."""
    from gavel.rundir import RunDir, is_run
    from train.data import flip_rate

    source = options["data"]
    if not is_run(source):
        raise InputError(
            f"only a run directory knows its flip rate, and {source} is none",
            where=f"--label-smoothing {_MEASURED}",
            hint="Give the number, e.g. the one in the dataset card: --label-smoothing 0.08",
        )
    rate = flip_rate(RunDir(source), options["pairs"])
    say(f"label smoothing {rate:.4g}: the measured flip rate of the pairs")
    return rate


def _rows(options: dict[str, Any], encoder: Any, bad: Any) -> Any:
    """The pairs of a run directory or of a preference file."""
    from gavel.rundir import RunDir, is_run
    from gavel.sources import read_preferences
    from train import data

    source, given = options["data"], options["run"]
    if is_run(source):
        return data.read_run(RunDir(source), encoder, bad, options["pairs"])
    if options["pairs"]:
        raise InputError("chooses among the pairs of a run directory, and --data is none", where="--pairs")
    if given and not is_run(given):
        raise InputError("is not a run directory", where=f"--run {given}")
    run = RunDir(given) if given else data.run_beside(source)
    if run is None:
        say("no run directory beside it: texts are tokenised anew (--run RUN trains on the sampled ids)")
    return data.read_preferences(read_preferences(source, options["mapping"], bad), encoder, bad, run)


def _weights(loss: dict[str, Any]) -> dict[str, float]:
    for name, weight in loss.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise InputError(f"{name}={weight}: the weight is no number", where="--loss")
    return {name: float(weight) for name, weight in loss.items()} or {"sigmoid": 1.0}


train.add_command(dpo)
