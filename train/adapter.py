"""LoRA: what an adapter goes to, and the weights with it merged in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from gavel.errors import InputError
from train.config import TrainConfig


def merged(model: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model with a LoRA adapter as those of a model without one: W + scaling · B A (Hu et
    al. 2021, arXiv 2106.09685, eq. 3). Nothing is changed in place, so training goes on to the bit.

    Args:
        model: a peft model. state: its state, by the names it has there.
    """
    base = {name.removeprefix("base_model.model."): weight for name, weight in state.items()}
    adapted = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules() if hasattr(layer, "lora_A")
    }  # fmt: skip
    found = {}
    for name, weight in base.items():
        layer, inside, end = name.partition(".base_layer.")
        if not inside:
            if ".lora_" not in name and ".original_module." not in name:
                found[name.replace(".modules_to_save.default.", ".")] = weight  # trained whole
            continue
        if end == "weight":
            a, b = (base[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            delta = adapted[layer].scaling["default"] * (b @ a)
            weight = weight + (delta.T if adapted[layer].fan_in_fan_out else delta).to(weight.dtype)
        found[f"{layer}.{end}"] = weight
    return found


def check_targets(
    model: Any, targets: Sequence[str], head_is: str | None = None, noun: str = "model"
) -> None:
    """Raises InputError for a target that no adapter can go to; those that one can are named.

    Args:
        head_is: why no adapter goes to the model's head, None where one can. noun: what the model is called.
    """
    modules = dict(model.named_modules())
    head = model.get_output_embeddings() or getattr(model, "score", None)
    for target in targets:
        meant = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not meant:
            fault = f"the {noun} has no module {target!r}"
        elif head_is is not None and any(modules[name] is head for name in meant):
            fault = f"{target} is the head, {head_is}"
        else:
            continue
        can = {
            name.rpartition(".")[2]
            for name, module in modules.items()
            if isinstance(module, torch.nn.Linear | Conv1D) and not (head_is and module is head)
        }
        raise InputError(fault, where="--lora-target", hint=f"Its linear layers: {', '.join(sorted(can))}.")


def train_in_float32(model: Any) -> None:
    """Brings what is trained to float32: peft does so with an adapter, but leaves a head in the base's
    bfloat16, in which small steps are lost."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def lora(config: TrainConfig, task: str = "CAUSAL_LM") -> Any:
    """The peft configuration of an adapter, None without one. task: as peft names it; with "SEQ_CLS" the head
    is trained whole."""
    if not config.lora_r:
        return None
    import peft

    return peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha if config.lora_alpha is not None else 2 * config.lora_r,
        target_modules=list(config.lora_targets) or "all-linear",
        lora_dropout=0.0,
        task_type=task,
    )
