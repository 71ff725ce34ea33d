"""The processes that train together: what they agree on. Alone, each of these is itself."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from gavel import processes
from gavel.errors import InputError

T = TypeVar("T")


def join() -> None:
    """Meets the others, where there are any. To be called before anything else here."""
    if processes.in_group():
        # in PPO the others wait for engines and judges, however long these take
        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))


def shards() -> str:
    """What accelerate is told to divide the model itself by: FSDP1, FSDP2, DeepSpeed or nothing."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"FSDP{os.environ.get('FSDP_VERSION', '1')}"
    return "DeepSpeed" if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else ""


def check_shards(task: str, *known: str) -> None:
    """Raises InputError where accelerate divides the model by something else than what `task` knows."""
    if shards() and shards() not in known:
        ways = [*known, "whole copies of the model (--processes N, or accelerate with data parallelism)"]
        hint = "Set fsdp_version: 2 in accelerate's configuration." if "FSDP2" in known else None
        raise InputError(f"{task} works with {' or '.join(ways)}, not with {shards()}",
                         hint=hint if shards() == "FSDP1" else None)  # fmt: skip


def reshard(model: torch.nn.Module) -> None:
    """Lets go of what a forward pass without gradients has left whole of a model in shards: a checkpoint can
    be loaded into shards alone."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights by name, on the main process and its CPU, where they are merged and saved without
    memory of a GPU; of a model in shards they are brought there one after another. Empty on the others."""
    reshard(model)
    state = {}
    for name, weight in model.state_dict().items():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight  # of all processes
        if is_main():
            state[name] = whole.cpu()
    return state


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() and processes.in_group() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def is_main() -> bool:
    """Whether this one writes and speaks for all."""
    return rank() == 0


def wait() -> None:
    """Until all are here."""
    if size() > 1:
        PartialState().wait_for_everyone()


def of_main(value: T) -> T:
    """The main process's value, on all."""
    if size() == 1:
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=0, device=PartialState().device)
    found: T = held[0]
    return found


def any_of(flag: bool) -> bool:
    """Whether it is so on any of them."""
    return bool(summed(torch.tensor([float(flag)])).item())


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over the processes."""
    if size() > 1:
        held = values.to(PartialState().device)
        dist.all_reduce(held)
        return held.to(values.device)
    return values
