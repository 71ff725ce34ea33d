"""What is looked at before training starts, and refused rather than found out late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from gavel.errors import InputError
from train import group, models
from train.config import TrainConfig
from train.rows import Row


def check_stored(checkpoint: Path | None, by: str) -> None:
    """Refuses a checkpoint of whole models for shards, and the other way round.

    Args:
        by: what divides the model now: FSDP, DeepSpeed or nothing.
    """
    if checkpoint is None:
        return
    for name, files in (("FSDP", f"{FSDP_MODEL_NAME}*"), ("DeepSpeed", "global_step*")):
        stored = any(checkpoint.glob(files))
        if stored != (name == by):
            raise InputError(f"{checkpoint} was saved {'with' if stored else 'without'} {name}",
                             hint="Go on as it was begun, or choose another --out.")  # fmt: skip


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


class TooFewRows(InputError):
    """Fewer rows to train on than one batch, or none."""


def check_halving(config: TrainConfig) -> None:
    """Refuses --halve-micro-batch on several processes."""
    if config.halve_micro_batch and group.size() > 1:
        raise InputError("works with one process: several cannot agree on it once one has no memory",
                         where="--halve-micro-batch", hint="Lower --micro-batch instead.")  # fmt: skip


def check_batch(config: TrainConfig, rows: Sequence[Row]) -> None:
    """Raises TooFewRows."""
    if len(rows) < config.batch_size:
        noun = rows[0].noun
        few = f"{len(rows):,} {noun} to train on are fewer than one batch of {config.batch_size:,}"
        raise TooFewRows(few, where="--batch-size", hint=f"Lower it, or make more {noun}.")


def check_rows(config: TrainConfig, rows: Sequence[Row]) -> None:
    """Refuses what would be truncated or divide by zero. Raises TooFewRows where there are none."""
    if not rows:
        raise TooFewRows("there is nothing to train on", where="--data")
    context = models.context_of(config.model, config.trust_remote_code)
    for row in rows:
        if context is not None and row.length > context:
            raise InputError(f"{row.length} tokens, the model's context is {context}",
                             where=row.place)  # fmt: skip
        if row.fault is not None:
            raise InputError(row.fault, where=row.place)
