"""What PPO asks of accelerate: the optimiser and its schedule, and whole copies of the models or shards."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import fsdp2_prepare_model

from gavel.errors import InputError
from train.actor_critic import Models
from train.config import SCHEDULES
from train.config_ppo import PpoConfig


def accelerator_of(config: PpoConfig, precision: str, folder: Path) -> Accelerator:
    """folder: where trackers keep their files."""
    made = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no", cpu=not torch.cuda.is_available(),
        log_with=trackers(config) or None, project_dir=str(folder),
    )  # fmt: skip
    policy = made.state.fsdp_plugin.mixed_precision_policy if made.is_fsdp2 else None
    if policy is not None:  # FSDP would round what the module says, log-probabilities and values here
        made.state.fsdp_plugin.mixed_precision_policy = replace(policy, output_dtype=None)
    made.init_trackers("gavel", config.shaping())
    return made


def trackers(config: PpoConfig) -> list[str]:
    """Raises InputError for one that accelerate does not know."""
    unknown = [name for name in config.report_to if name not in LOGGER_TYPE_TO_CLASS]
    if unknown:
        raise InputError(f"PPO cannot report to {unknown[0]}", where="--report-to",
                         hint=f"It can to {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")  # fmt: skip
    return list(config.report_to)


def optimiser_of(config: PpoConfig, models: Models) -> torch.optim.Optimizer:
    """The optimiser of that name, ε = 1e-5 (Huang et al. 2022, detail 3); biases and norms do not decay. It
    comes before the accelerator, whose state TrainingArguments sets anew."""
    named = transformers.TrainingArguments(
        output_dir="unused", optim=config.optim, learning_rate=config.learning_rate, adam_epsilon=1e-5,
        use_cpu=not torch.cuda.is_available(), report_to="none",
    )  # fmt: skip
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(named)
    rates = (config.learning_rate, config.critic_learning_rate or config.learning_rate)
    groups = []
    for part, rate in zip((models.module.policy, models.module.critic), rates, strict=True):
        trained = [p for p in part.parameters() if p.requires_grad]
        for parameters, decay in (([p for p in trained if p.ndim > 1], config.weight_decay),
                                  ([p for p in trained if p.ndim <= 1], 0.0)):  # fmt: skip
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    made: torch.optim.Optimizer = kind(groups, **settings)
    return made


def scheduler_of(config: PpoConfig, optimiser: torch.optim.Optimizer, steps: int) -> Any:
    """steps: optimiser steps in all."""
    warmup = math.ceil(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    return transformers.get_scheduler(SCHEDULES[config.scheduler], optimiser, warmup, steps)


def prepared(accelerator: Accelerator, models: Models, optimiser: Any) -> tuple[Any, Any]:
    """Module and optimiser as several processes share them. The reference goes where they are, divided as
    they are."""
    reference = models.reference
    if reference is not None and not accelerator.is_fsdp2:
        reference.to(accelerator.device)
    module, shared = accelerator.prepare(models.module, optimiser)
    if reference is not None and accelerator.is_fsdp2:
        # accelerate has kept the layers of policy and critic, and refuses a model that lacks one of them
        plugin = accelerator.state.fsdp_plugin
        present = {type(layer).__name__ for layer in reference.modules()}
        named = {*(plugin.transformer_cls_names_to_wrap or ()), *reference._no_split_modules}
        plugin.transformer_cls_names_to_wrap = sorted(present & named)
        fsdp2_prepare_model(accelerator, reference)
    return module, shared
