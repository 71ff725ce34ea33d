"""Loading the model that training starts from, and saving one that is whole."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from gavel.errors import InputError
from gavel.tokenizer import HfTokenizer
from gavel.weights import weights_version
from train.config import DpoConfig
from train.data import Encoder

#: Files beside the weights that make a directory whole. They are copied as they are, so that the
#: tokenizer's version stays the same.
_COMPANIONS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
               "*.model", "*.tiktoken", "chat_template*", "generation_config.json", "*.py")  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model with the configuration it came with: trainers write pad and EOS ids into both."""

    model: Any
    config: Any
    generation_config: Any


def context_of(path: str, trust_remote_code: bool = False) -> int | None:
    """The model's longest sequence in tokens, None where it states none."""
    if not Path(path).exists() and (path.count("/") != 1 or path[0] in "/.~"):  # no hub id either
        raise InputError("no such model directory", where=f"--model {path}")
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unloadable(path, error) from None
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def encoder_of(config: DpoConfig) -> Encoder:
    """How the model that training starts from reads pairs.

    Raises InputError for a model, tokenizer or chat template that cannot be used.
    """
    trust = config.trust_remote_code
    context = context_of(config.model, trust)
    tokenizer = HfTokenizer.load(
        config.model, trust_remote_code=trust, template_args=dict(config.template_args)
    )
    tokenizer.require_chat_template()
    return Encoder(tokenizer, weights_version(config.model), context, config.max_length)


def load(path: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Loaded:
    """Loads a causal language model for training, all dropout off.

    TRL's `disable_dropout` turns off dropout layers only: the attention dropout of Llama and its kin is
    a number in the configuration, which is set to 0 here (and kept in what is saved).

    Raises InputError when it cannot be loaded.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        original = copy.deepcopy(config)
        _no_dropout(config)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(path, error) from None
    return Loaded(model, original, copy.deepcopy(model.generation_config))


def _no_dropout(config: Any) -> None:
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and any(word in name for word in ("dropout", "pdrop", "drop_rate")):
                setattr(part, name, 0.0)


def _unloadable(path: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"no model can be loaded from it: {reason}", where=f"--model {path}",
                      hint="Give a directory or hub id of a causal language model.")  # fmt: skip


def save(loaded: Loaded, model: Any, source: str, tokenizer: Any, dtype: torch.dtype, folder: Path) -> None:
    """Saves a whole model: weights, configuration, tokenizer, chat template, generation settings.

    Args:
        model: the trained model. source: what it started from. tokenizer: its transformers tokenizer.
    """
    model.config, model.generation_config = loaded.config, loaded.generation_config
    model.to(dtype).save_pretrained(folder)
    save_companions(source, tokenizer, folder)


def save_companions(source: str, tokenizer: Any, folder: Path) -> None:
    """Copies tokenizer, chat template and generation settings from a local directory; saves the
    tokenizer of a model from the hub."""
    if not Path(source).is_dir():
        tokenizer.save_pretrained(folder)
        return
    for pattern in _COMPANIONS:
        for file in Path(source).glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Raises InputError for a target that is the end of no module's name."""
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            linear = {
                n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)
            }
            raise InputError(f"the model has no module {target!r}", where="--lora-target",
                             hint=f"Its linear layers: {', '.join(sorted(linear))}.")  # fmt: skip


def lora(rank: int, alpha: float | None, targets: Sequence[str]) -> Any:
    """The peft configuration of an adapter; alpha is 2 · rank where it is None."""
    import peft

    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha if alpha is not None else 2 * rank,
        target_modules=list(targets) or "all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
