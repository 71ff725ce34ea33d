"""When memory runs out."""

from __future__ import annotations

import gc

import torch

from train import group
from train.config import TrainConfig


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
