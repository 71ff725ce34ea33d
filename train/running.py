"""What the trainers built on transformers' Trainer have in common."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
import transformers
from transformers.trainer_callback import PrinterCallback

from gavel.command import say
from gavel.errors import InputError
from gavel.tokenizer import HfTokenizer
from gavel.weights import weights_version
from train import adapter, checks, group, memory, models
from train.callbacks import Bar, Checkpoints, Metrics, stopping
from train.config import SCHEDULES, TrainConfig
from train.exact import NotANumber
from train.output import Output
from train.rows import Row

C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class Done:
    """A training that came to its end, however often it was resumed. loss: the mean over all steps. metrics:
    of the last log step. began: when training itself did."""

    trainer: Any
    steps: int
    loss: float
    metrics: dict[str, Any]
    began: float

    def shown(self, *names: str) -> dict[str, Any]:
        """Of the metrics, what a person wants to read."""
        return {name: self.metrics[name] for name in names if name in self.metrics}


@dataclass(frozen=True)
class Begun:
    """A training that has its directory. finished: its summary, where it was carried out before."""

    config: TrainConfig
    output: Output
    precision: str
    finished: dict[str, Any] | None

    @cached_property
    def tokenizer(self) -> HfTokenizer:
        """That of the model that training starts from."""
        return HfTokenizer.load(self.config.model, trust_remote_code=self.config.trust_remote_code)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as they are loaded."""
        return loaded_dtype(self.config, self.precision)

    def save(self, trainer: Any, folder: Path, *, merge: bool) -> None:
        """The model at `folder`; with LoRA the adapter, or the merged model with the adapter beside it."""
        dtype = saved_dtype(self.precision)
        if trainer.divided_by:
            self._save_shards(trainer, folder, dtype, merge)
            return
        if not group.is_main():
            return
        model, source = trainer.accelerator.unwrap_model(trainer.model), self.config.model
        if self.config.lora_r:
            model.save_pretrained(folder / "adapter" if merge else folder)
            if not merge:
                models.save_companions(source, self.tokenizer.hf, folder)
                return
            model = model.merge_and_unload()
        models.save(trainer.loaded, model, source, self.tokenizer.hf, dtype, folder)

    def _save_shards(self, trainer: Any, folder: Path, dtype: torch.dtype, merge: bool) -> None:
        """The same of a model of which each process has a shard: all of them are brought to the main one."""
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not group.is_main():
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self.config.lora_r:
            model.save_pretrained(folder / "adapter" if merge else folder, state_dict=state)
            state = adapter.merged(model, state)
        if merge or not self.config.lora_r:
            models.save_state(trainer.loaded, state, dtype, folder)
        models.save_companions(self.config.model, self.tokenizer.hf, folder)


@contextlib.contextmanager
def begin(
    stage: str, config: TrainConfig, rows: Sequence[Row], data: str, out: str | Path
) -> Iterator[Begun]:
    """Opens the directory of a training, and says so where it is finished already.

    Args:
        data: a hash of what is trained on.

    Raises InputError where it holds the work of other settings or data, or --halve-micro-batch is asked of
    several processes.
    """
    group.join()
    checks.check_halving(config)
    precision = resolve(config.precision)
    shaping = config.shaping() | {"precision": precision}
    if config.within_micro_batch:
        shaping["micro_batch"] = config.micro_batch_on(group.size())
    plan = {"stage": stage, "config": shaping, **weights_of(config), "data": data, rows[0].noun: len(rows)}
    with Output.open(out) as output:
        finished = output.begin(plan)
        if finished is not None:
            say(f"{out} is finished already; nothing to do")
        yield Begun(config, output, precision, finished)


def weights_of(config: TrainConfig) -> dict[str, str]:
    """For a plan: the weights that training starts from, and those of its reference where it has others."""
    weights, reference = (weights_version(model) for model in (config.model, config.reference_from))
    return {"weights": weights} | ({} if reference == weights else {"reference_weights": reference})


def run(config: C, output: Output, make: Callable[[C, list[Any]], Any]) -> Done:
    """Trains from the newest whole checkpoint to the end.

    Args:
        make: makes the trainer, an `ExactRows`, for a configuration and callbacks.

    Raises:
        NotANumber: the weights of the step before are kept in a checkpoint.
        InputError: out of memory, and no smaller micro-batch may be tried.
    """
    while True:
        checkpoint, step = output.resume()
        if checkpoint:
            say(f"resuming after step {step}")
        checkpoints = Checkpoints(output, config.save_steps)
        trainer: Any = None
        try:
            trainer = make(config, [Metrics(output), checkpoints, *bar()])
            checks.check_stored(checkpoint, trainer.divided_by)
            trainer.remove_callback(PrinterCallback)
            began = time.monotonic()
            with stopping(checkpoints):
                result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return Done(trainer, result.global_step, output.mean_loss(), output.last_metrics(), began)
        except NotANumber as error:
            kept = _kept(trainer, output)
            listed = f"All {len(error.names):,} are in {output.name_suspects(error.names)}."
            error.hint = " ".join(filter(None, (error.hint, listed, kept)))
            raise
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
            micro, smaller = (f(group.size()) for f in (config.micro_batch_on, config.halved_micro_batch_on))
            alone = group.size() == 1  # else the others know nothing of it, and cannot save with this one
            kept = _kept(trainer, output) if alone else ""
            if smaller is None or not config.halve_micro_batch:
                hint = f"{memory.less_memory(config, smaller)} {kept}".strip()
                raise InputError(
                    "out of memory while training", where=f"--micro-batch {micro}", hint=hint
                ) from None
        say(f"out of memory with a micro-batch of {micro}: going on with {smaller}")
        config = replace(config, micro_batch=smaller)
        del trainer
        memory.free_memory()


def _kept(trainer: Any, output: Output) -> str:
    """Saves the weights of the last whole step, unless the optimiser was at work on them, and says what
    there is."""
    step = trainer.state.global_step if trainer is not None and not trainer.stepping else 0

    def save() -> None:
        trainer._save_checkpoint(trainer.model, None)
        output.mark_whole(step)

    return output.keep(step, save, "step")


def arguments(config: TrainConfig, precision: str, output: Output) -> dict[str, Any]:
    """The training arguments that do not depend on what is optimised."""
    micro = config.micro_batch_on(group.size())
    return {
        "output_dir": str(output.checkpoints),
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // (micro * group.size()),
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
    return [Bar()] if sys.stderr.isatty() and group.is_main() else []


def resolve(precision: str) -> str:
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def loaded_dtype(config: TrainConfig, precision: str) -> torch.dtype:
    """Of the weights as they are loaded: a base that stays frozen needs no float32."""
    return saved_dtype(precision) if config.lora_r else torch.float32


def saved_dtype(precision: str) -> torch.dtype:
    """Of the weights as they are saved."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def quiet() -> None:
    """Keeps the libraries' notices off the terminal; errors are raised, not logged."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(trl|transformers|torch|accelerate|peft)(\.|$)")
