"""What the trainers built on transformers' Trainer have in common."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import datasets
import torch
import transformers
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from gavel.errors import InputError
from train import models
from train.callbacks import Bar
from train.config import SCHEDULES, TrainConfig
from train.data import PairRow
from train.output import Output


def check_names(config: TrainConfig) -> None:
    """Refuses what transformers would only find out late."""
    optimisers = [o.value for o in OptimizerNames]
    if config.optim not in optimisers:
        raise InputError(f"unknown optimiser {config.optim}", where="--optim",
                         hint=f"Known: {', '.join(optimisers)}")  # fmt: skip
    trackers = get_available_reporting_integrations()
    for name in config.report_to:
        if name not in trackers:
            raise InputError(f"unknown tracker {name}, or not installed", where="--report-to",
                             hint=f"Installed here: {', '.join(trackers) or 'none'}")  # fmt: skip


def check_rows(config: TrainConfig, rows: Sequence[PairRow]) -> None:
    """Refuses what would be truncated or divide by zero."""
    if not rows:
        raise InputError("there are no pairs to train on", where="--data")
    context = models.context_of(config.model, config.trust_remote_code)
    for row in rows:
        if context is not None and row.length > context:
            raise InputError(f"{row.length} tokens, the model's context is {context}",
                             where=row.where or f"pair {row.pair_id}")  # fmt: skip
        if not (row.prompt_ids and row.chosen_ids and row.rejected_ids):
            raise InputError("empty prompt or completion", where=row.where or f"pair {row.pair_id}")


def arguments(config: TrainConfig, precision: str, output: Output) -> dict[str, Any]:
    """The training arguments that do not depend on what is optimised."""
    return {
        "output_dir": str(output.checkpoints),
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size // config.micro_batch_size,
        "warmup_steps": config.warmup,
        "lr_scheduler_type": SCHEDULES[config.scheduler],
        "weight_decay": config.weight_decay,
        "optim": config.optim,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "bf16": precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": config.gradient_checkpointing,
        "max_length": None,
        "disable_dropout": True,
        "logging_steps": config.log_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # the Checkpoints callback decides
        "report_to": list(config.report_to) or "none",
        "disable_tqdm": True,  # its own bar prints to standard output
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def bar() -> list[Any]:
    return [Bar()] if sys.stderr.isatty() else []


def resolve(precision: str) -> str:
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def quiet() -> None:
    """Keeps the libraries' notices off the terminal; errors are raised, not logged."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(trl|transformers|torch|accelerate|peft)(\.|$)")
