"""What the trainers built on transformers' Trainer have in common."""

from __future__ import annotations

import contextlib
import gc
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
from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import OptimizerNames

from gavel.command import say
from gavel.errors import InputError
from gavel.tokenizer import HfTokenizer
from gavel.weights import weights_version
from train import group, models
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
            state = models.merged(model, state)
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
    check_halving(config)
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
            check_stored(checkpoint, trainer.divided_by)
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
            if not out_of_memory(error):
                raise
            micro, smaller = (f(group.size()) for f in (config.micro_batch_on, config.halved_micro_batch_on))
            alone = group.size() == 1  # else the others know nothing of it, and cannot save with this one
            kept = _kept(trainer, output) if alone else ""
            if smaller is None or not config.halve_micro_batch:
                raise InputError("out of memory while training", where=f"--micro-batch {micro}",
                                 hint=f"{less_memory(config, smaller)} {kept}".strip()) from None  # fmt: skip
        say(f"out of memory with a micro-batch of {micro}: going on with {smaller}")
        config = replace(config, micro_batch=smaller)
        del trainer
        free_memory()


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


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def free_memory() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def less_memory(config: TrainConfig, smaller: int | None) -> str:
    """What a person can do about it that was not done. smaller: a micro-batch that can be tried."""
    ways = []
    if smaller is not None:
        by_itself = "" if config.halve_micro_batch or group.size() > 1 else "; --halve-micro-batch does it"
        ways.append(f"--micro-batch {smaller} (the batch stays {config.batch_size}{by_itself})")
    if not config.gradient_checkpointing:
        ways.append("--gradient-checkpointing")
    ways += [config.shorter, *([] if config.lora_r else ["--lora-r 16"])]
    return f"Try {', or '.join(ways)}."


def _kept(trainer: Any, output: Output) -> str:
    """Saves the weights of the last whole step, unless the optimiser was at work on them, and says what
    there is."""
    step = trainer.state.global_step if trainer is not None and not trainer.stepping else 0

    def save() -> None:
        trainer._save_checkpoint(trainer.model, None)
        output.mark_whole(step)

    return output.keep(step, save, "step")


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
    """Fewer rows to train on than one batch."""


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
    """Refuses what would be truncated or divide by zero."""
    if not rows:
        raise InputError("there is nothing to train on", where="--data")
    context = models.context_of(config.model, config.trust_remote_code)
    for row in rows:
        if context is not None and row.length > context:
            raise InputError(f"{row.length} tokens, the model's context is {context}",
                             where=row.place)  # fmt: skip
        if row.fault is not None:
            raise InputError(row.fault, where=row.place)


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
