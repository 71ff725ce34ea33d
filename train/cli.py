"""`gavel train dpo` and `gavel train reward`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gavel.command import command, emit, key_values, place, say
from gavel.errors import InputError
from train.config import DRAWS, PairConfig, RewardConfig, TrainConfig
from train.config_dpo import (
    CONSERVATIVE,
    DIVERGENCES,
    DIVERGING,
    LOSSES,
    REFERENCES,
    SHARING,
    SMOOTHED,
    DpoConfig,
)
from train.options import F, account, common, data_and_out, given, setting, spread, together

MEASURED = "measured"  # what stands for the flip rate of a run's pairs

#: Which pairs are trained on, and where the model goes.
_pair_source: Callable[[F], F] = together(
    data_and_out(
        "Run directory, or a preference file (JSON Lines, JSON, Parquet, CSV, datasets directory, hub:…)."
    ),
    click.option("--pairs", metavar="NAME", help="Which pairs of RUN; the newest unless given."),
    click.option("--run", metavar="RUN", help="Run directory whose token ids the rows of SRC name."),
)


def _draw(kind: type[TrainConfig]) -> Callable[[F], F]:
    return setting(kind, "draw", "What is drawn at random. prompts: a prompt's pairs meet in a batch and "
                    "share work; pairs: each by itself.", type=click.Choice(DRAWS))  # fmt: skip


#: What DPO optimises, beside its loss.
_objective: Callable[[F], F] = together(
    setting(DpoConfig, "divergence", f"What holds the policy to the reference, for the losses "
             f"{', '.join(DIVERGING)}.", type=click.Choice(DIVERGENCES)),
    setting(DpoConfig, "divergence_alpha", "Of alpha_divergence.", type=float),
    setting(DpoConfig, "discopop_tau", "Temperature of the loss discopop.", type=float),
    setting(DpoConfig, "ld_alpha", "LD-DPO: weight of what the longer completion has beyond the shorter "
             "one's length, 0 to 1.", type=float),
    click.option("--wpo", is_flag=True, help="WPO: weigh pairs by how likely the policy is to write them."),
    setting(DpoConfig, "router_aux", "Weight of a mixture-of-experts model's load balancing.  [default: as "
             "its configuration says]", type=float),
    setting(DpoConfig, "sync_steps", "TR-DPO: steps after which the reference follows the policy; 0: never.",
             type=int),
    setting(DpoConfig, "sync_mixup", "By what part of the way it follows.", type=float),
)  # fmt: skip


def _smoothing(kind: type[TrainConfig], losses: str) -> Callable[[F], F]:
    return setting(
        kind,
        "label_smoothing",
        f"How often a label is wrong, below 0.5; {MEASURED}: as `gavel pairs` found it in RUN.{losses}",
        type=str,
        metavar=f"X|{MEASURED}",
        callback=_flip_rate,
    )


def _flip_rate(ctx: click.Context, param: click.Parameter, value: str) -> float | str:
    """click callback: a number, or the word that stands for one of the run's."""
    if value == MEASURED:
        return value
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{value!r} is neither a number nor {MEASURED}", where=place(ctx, param)) from None


@command("Train MODEL on preference pairs by direct preference optimisation.", name="dpo")
@click.option("--model", required=True, help="Model directory or hub id to start from.")
@setting(DpoConfig, "reference_model", "The reference.  [default: the model that training starts from]")
@_pair_source
@setting(DpoConfig, "learning_rate", "Peak learning rate.", type=float)
@setting(DpoConfig, "beta", "How closely the policy is kept to the reference.", type=float)
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
@common(DpoConfig, "pairs")
@_draw(DpoConfig)
@setting(
    DpoConfig,
    "sharing",
    "What pairs of a forward pass share; changes speed and memory, not results.",
    type=click.Choice(SHARING),
)
@click.option("--merge", is_flag=True, help="Save the merged model, the adapter beside it.")
@click.option("--qlora", is_flag=True, help="Keep the weights under the adapter in 4 bits (bitsandbytes).")
@setting(
    DpoConfig,
    "reference",
    "Where its log-probabilities come from. auto: the samples if an audit agrees, else a pass.",
    type=click.Choice(REFERENCES),
)
@setting(DpoConfig, "audit_rows", "Pairs that the audit reads.", type=int)
def dpo(**options: Any) -> None:
    """Reads the pairs, trains, prints the summary."""
    if spread(options):
        return
    config = dpo_config(options)
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
@setting(RewardConfig, "learning_rate", "Peak learning rate.", type=float)
@_smoothing(RewardConfig, "")
@click.option(
    "--soft-labels",
    is_flag=True,
    help="Train towards each pair's probability that chosen is better; where it has none, 1 less the label "
    "smoothing.",
)
@setting(
    RewardConfig,
    "margin_scale",
    "How much of a pair's own margin the rewards must differ by; 0: any difference will do.",
    type=float,
)
@setting(RewardConfig, "center", "Weight of a term that keeps rewards around 0, e.g. 0.01.", type=float)
@setting(
    RewardConfig, "held_out", "Share of the prompts kept from training and measured afterwards.", type=float
)
@common(RewardConfig, "pairs")
@_draw(RewardConfig)
def reward(**options: Any) -> None:
    """Reads the pairs, trains, prints the summary and what held-out pairs say."""
    if spread(options):
        return
    config = reward_config(options)
    rows, account = _pairs(config, options)

    from train.reward import train_reward

    emit(train_reward(config, rows, options["out"]) | account, options["as_json"], "trained")


def dpo_config(options: dict[str, Any]) -> DpoConfig:
    """What the options of `gavel train dpo` say. Raises InputError for those that do not fit together."""
    return DpoConfig(**_settings(DpoConfig, options) | {"loss": _weights(options["loss"])})


def reward_config(options: dict[str, Any]) -> RewardConfig:
    """What the options of `gavel train reward` say. Raises InputError as `dpo_config`."""
    return RewardConfig(**_settings(RewardConfig, options))


def _settings(kind: type[PairConfig], options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration of pairs among the options."""
    settings = given(kind, options)
    if settings["label_smoothing"] == MEASURED:
        settings["label_smoothing"] = _measured(options)
    return settings


def _pairs(config: PairConfig, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The pairs as token ids, and the account of them that goes into the summary."""
    from gavel.rows import BadRows
    from train.models import encoder_of

    encoder = encoder_of(config)
    bad = BadRows(options["max_bad_rows"])
    rows = _rows(options, encoder, bad)
    return rows, account(encoder, bad, "pairs")


def _measured(options: dict[str, Any]) -> float:
    """The flip rate of the run's pairs."""
    from gavel.rundir import RunDir, is_run
    from train.data import flip_rate

    source = options["data"]
    if not is_run(source):
        raise InputError(
            f"only a run directory knows its flip rate, and {source} is none",
            where=f"--label-smoothing {MEASURED}",
            hint="Give the number, e.g. the one in the dataset card: --label-smoothing 0.08",
        )
    rate = flip_rate(RunDir(source), options["pairs"])
    say(f"label smoothing {rate:.4g}: the measured flip rate of the pairs")
    return rate


def _rows(options: dict[str, Any], encoder: Any, bad: Any) -> Any:
    """The pairs of a run directory or of a preference file."""
    from gavel.rundir import RunDir, is_run, refuse_rounds
    from gavel.sources import read_preferences
    from train import data

    source, given = options["data"], options["run"]
    if is_run(source):
        refuse_rounds(source)
        return data.read_run(RunDir(source), encoder, bad, options["pairs"])
    if options["pairs"]:
        raise InputError("chooses among the pairs of a run directory, and --data is none", where="--pairs")
    if given and not is_run(given):
        raise InputError("is not a run directory", where=f"--run {given}")
    run = RunDir(given) if given else data.run_beside(source)
    preferences = read_preferences(source, options["mapping"], bad)
    if run is None:
        say("no run directory beside it: texts are tokenised anew (--run RUN trains on the sampled ids)")
    return data.read_preferences(preferences, encoder, bad, run)


def _weights(loss: dict[str, Any]) -> dict[str, float]:
    for name, weight in loss.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise InputError(f"{name}={weight}: the weight is no number", where="--loss")
    return {name: float(weight) for name, weight in loss.items()} or {"sigmoid": 1.0}
