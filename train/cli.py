"""`gavel train`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from gavel.command import command, emit, key_values, place, say
from gavel.errors import InputError
from gavel.options import source_options
from train.config import (
    CONSERVATIVE,
    DIVERGENCES,
    DIVERGING,
    DRAWS,
    LOSSES,
    PRECISIONS,
    REFERENCES,
    SCHEDULES,
    SHARING,
    SMOOTHED,
    DpoConfig,
    RewardConfig,
    TrainConfig,
)

F = TypeVar("F", bound=Callable[..., Any])
_MEASURED = "measured"


def _settings_of(kind: type[TrainConfig]) -> dict[str, Any]:
    """The fields of a configuration with their defaults."""
    return {f.name: f.default for f in fields(kind)}


def _setting(kind: type[TrainConfig], name: str, help: str, **more: Any) -> Callable[[F], F]:
    """An option named after a field of a configuration, with its default."""
    default = _settings_of(kind)[name]
    return click.option(f"--{name.replace('_', '-')}", default=default,
                        show_default=default is not None, help=help, **more)  # fmt: skip


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Adds several options, in this order."""

    def wrap(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


#: Which pairs are trained on, and where the model goes.
_pair_source: Callable[[F], F] = _all(
    click.option(
        "--data",
        required=True,
        metavar="RUN|SRC",
        help="Run directory, or a preference file (JSON Lines, JSON, Parquet, CSV, datasets directory, "
        "hub:…).",
    ),
    click.option(
        "--out", required=True, metavar="DIR", help="Where the model goes; the same command resumes."
    ),
    click.option("--pairs", metavar="NAME", help="Which pairs of RUN; the newest unless given."),
    click.option("--run", metavar="RUN", help="Run directory whose token ids the rows of SRC name."),
    source_options("0"),
)


def _common(kind: type[TrainConfig], rows: str) -> Callable[[F], F]:
    """Adds the options that every trainer has. rows: what a batch is made of."""

    def setting(name: str, help: str, **more: Any) -> Callable[[F], F]:
        return _setting(kind, name, help, **more)

    return _all(
        setting("epochs", "Passes over the data.", type=float),
        setting("batch_size", f"{rows.capitalize()} per optimiser step.", type=int),
        setting("micro_batch", f"{rows.capitalize()} per forward pass, a divisor of the batch size; sets "
                "memory, not results.", type=int),
        setting("max_length", f"Leave out {rows} with more tokens.  [default: the model's context]",
                type=int),
        setting("warmup", "Warm-up steps, or below 1 a fraction of all.", type=float),
        setting("scheduler", "Learning rate after the warm-up.", type=click.Choice(list(SCHEDULES))),
        setting("weight_decay", "AdamW's weight decay.", type=float),
        setting("optim", "Optimiser, as transformers names it."),
        setting("max_grad_norm", "Gradients are clipped to this norm; 0 is off.", type=float),
        setting("seed", "Seed of the order of the data and of new weights.", type=int),
        setting("precision", "auto: bf16 on a GPU that has it, else fp32.",
                type=click.Choice(PRECISIONS)),
        click.option("--gradient-checkpointing", is_flag=True, help="Less memory, about 25 % more time."),
        click.option("--halve-micro-batch", is_flag=True,
                     help="When memory runs out, go on with half the micro-batch."),
        setting("lora_r", "Rank of a LoRA adapter; 0 trains all weights.", type=int),
        setting("lora_alpha", "LoRA's alpha.  [default: twice the rank]", type=float),
        click.option("--lora-target", "lora_targets", multiple=True,
                     help="Module to adapt; every linear layer unless given."),
        setting("save_steps", "Steps between checkpoints; 0: one every five minutes.", type=int),
        setting("log_steps", "Steps between lines of metrics.jsonl.", type=int),
        click.option("--report-to", multiple=True,
                     help="Tracker that transformers knows (wandb, tensorboard, …)."),
        click.option("--chat-template-arg", "template_args", multiple=True, callback=key_values,
                     metavar="KEY=VALUE", help="Passed to the chat template, as when sampling."),
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
    )  # fmt: skip


def _draw(kind: type[TrainConfig]) -> Callable[[F], F]:
    return _setting(kind, "draw", "What is drawn at random. prompts: a prompt's pairs meet in a batch and "
                    "share work; pairs: each by itself.", type=click.Choice(DRAWS))  # fmt: skip


#: What DPO optimises, beside its loss.
_objective: Callable[[F], F] = _all(
    _setting(DpoConfig, "divergence", f"What holds the policy to the reference, for the losses "
             f"{', '.join(DIVERGING)}.", type=click.Choice(DIVERGENCES)),
    _setting(DpoConfig, "divergence_alpha", "Of alpha_divergence.", type=float),
    _setting(DpoConfig, "discopop_tau", "Temperature of the loss discopop.", type=float),
    _setting(DpoConfig, "ld_alpha", "LD-DPO: weight of what the longer completion has beyond the shorter "
             "one's length, 0 to 1.", type=float),
    click.option("--wpo", is_flag=True, help="WPO: weigh pairs by how likely the policy is to write them."),
    _setting(DpoConfig, "router_aux", "Weight of a mixture-of-experts model's load balancing.  [default: as "
             "its configuration says]", type=float),
    _setting(DpoConfig, "sync_steps", "TR-DPO: steps after which the reference follows the policy; 0: never.",
             type=int),
    _setting(DpoConfig, "sync_mixup", "By what part of the way it follows.", type=float),
)  # fmt: skip


def _smoothing(kind: type[TrainConfig], losses: str) -> Callable[[F], F]:
    return _setting(
        kind,
        "label_smoothing",
        f"How often a label is wrong, below 0.5; {_MEASURED}: as `gavel pairs` found it in RUN.{losses}",
        type=str,
        metavar=f"X|{_MEASURED}",
        callback=_flip_rate,
    )


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
@_pair_source
@_setting(DpoConfig, "learning_rate", "Peak learning rate.", type=float)
@_setting(DpoConfig, "beta", "How closely the policy is kept to the reference.", type=float)
@click.option(
    "--loss",
    multiple=True,
    callback=key_values,
    metavar="NAME=WEIGHT",
    help=f"Weighted mix, e.g. --loss sigmoid=1 --loss sft=1: {', '.join(LOSSES)}.  [default: sigmoid=1]",
)
@_smoothing(DpoConfig, f" For the losses {', '.join(SMOOTHED)}.")
@click.option(
    "--soft-labels",
    is_flag=True,
    help=f"Train towards each pair's probability that chosen is better ({', '.join(CONSERVATIVE)}); "
    "where it has none, 1 less the label smoothing.",
)
@_objective
@_common(DpoConfig, "pairs")
@_draw(DpoConfig)
@_setting(
    DpoConfig,
    "sharing",
    "What pairs of a forward pass share; changes speed and memory, not results.",
    type=click.Choice(SHARING),
)
@click.option("--merge", is_flag=True, help="Save the merged model, the adapter beside it.")
@click.option("--qlora", is_flag=True, help="Keep the weights under the adapter in 4 bits (bitsandbytes).")
@_setting(
    DpoConfig,
    "reference",
    "Where its log-probabilities come from. auto: the samples if an audit agrees, else a pass.",
    type=click.Choice(REFERENCES),
)
@_setting(DpoConfig, "audit_rows", "Pairs that the audit reads.", type=int)
def dpo(**options: Any) -> None:
    """Reads the pairs, trains, prints the summary."""
    config = DpoConfig(**_given(DpoConfig, options) | {"loss": _weights(options["loss"])})
    rows, account = _pairs(config, options)

    from train.dpo import train_dpo

    emit(train_dpo(config, rows, options["out"]) | account, options["as_json"], "trained")


@command("Train a reward model on preference pairs, one score per sequence.", name="reward")
@click.option(
    "--model",
    required=True,
    help="Model directory or hub id to start from: a language model, which gets a head, or a reward model.",
)
@_pair_source
@_setting(RewardConfig, "learning_rate", "Peak learning rate.", type=float)
@_smoothing(RewardConfig, "")
@click.option(
    "--soft-labels",
    is_flag=True,
    help="Train towards each pair's probability that chosen is better; where it has none, 1 less the label "
    "smoothing.",
)
@_setting(
    RewardConfig,
    "margin_scale",
    "How much of a pair's own margin the rewards must differ by; 0: any difference will do.",
    type=float,
)
@_setting(RewardConfig, "center", "Weight of a term that keeps rewards around 0, e.g. 0.01.", type=float)
@_setting(
    RewardConfig, "held_out", "Share of the prompts kept from training and measured afterwards.", type=float
)
@_common(RewardConfig, "pairs")
@_draw(RewardConfig)
def reward(**options: Any) -> None:
    """Reads the pairs, trains, prints the summary and what held-out pairs say."""
    config = RewardConfig(**_given(RewardConfig, options))
    rows, account = _pairs(config, options)

    from train.reward import train_reward

    emit(train_reward(config, rows, options["out"]) | account, options["as_json"], "trained")


def _given(kind: type[TrainConfig], options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration among the options."""
    settings = {name: options[name] for name in _settings_of(kind) if name in options}
    if settings["label_smoothing"] == _MEASURED:
        settings["label_smoothing"] = _measured(options)
    return settings


def _pairs(config: TrainConfig, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The pairs as token ids, and the account of them that goes into the summary."""
    from gavel.rows import BadRows
    from train.models import encoder_of

    encoder = encoder_of(config)
    bad = BadRows(options["max_bad_rows"])
    rows = _rows(options, encoder, bad)
    bad.check()
    if encoder.left_out:
        say("pairs left out: " + ", ".join(f"{reason} ({n:,})" for reason, n in encoder.left_out.items()))
    return rows, {"completions": dict(encoder.completions), "left_out": dict(encoder.left_out),
                  "bad_rows": bad.count}  # fmt: skip


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
train.add_command(reward)
