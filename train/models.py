"""Loading the model that training starts from, and saving one that is whole."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from gavel.errors import InputError
from gavel.stops import ends_of
from gavel.tokenizer import HfTokenizer
from gavel.weights import check_whole, weights_version
from train.config import RowConfig
from train.memory import out_of_memory
from train.rows import Encoder

#: Files beside the weights that make a directory whole. They are copied as they are, so that the
#: tokenizer's version stays the same.
_COMPANIONS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
               "*.model", "*.tiktoken", "chat_template*", "generation_config.json", "*.py")  # fmt: skip
_SCORES = "ForSequenceClassification"  # of the name of a model that gives scores
_WRITES = "ForCausalLM"  # of one that writes
#: What transformers raises of files that are damaged or no model's; PyTorch's lack of memory among them.
_FAULTS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


@dataclass(frozen=True)
class Loaded:
    """A model with the configuration it came with: trainers write pad and EOS ids into both."""

    model: Any
    config: Any
    generation_config: Any


def context_of(path: str, trust_remote_code: bool = False, *, option: str = "--model") -> int | None:
    """The model's longest sequence in tokens, None where it states none.

    Args:
        option: that names the model.
    """
    if not Path(path).exists() and (path.count("/") != 1 or path[0] in "/.~"):  # no hub id either
        raise InputError("no such model directory", where=f"{option} {path}")
    config = _config_of(path, trust_remote_code, option)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def gives_scores(path: str, trust_remote_code: bool = False) -> bool | None:
    """Whether a model is a reward model; None where its architecture is neither one that scores nor one that
    writes. Raises InputError for a model that cannot be used."""
    names = str(_config_of(path, trust_remote_code, "--model").architectures)
    return True if _SCORES in names else False if _WRITES in names else None


def encoder_of(config: RowConfig, tokenizer: HfTokenizer | None = None) -> Encoder:
    """How the model that training starts from reads rows.

    Args:
        tokenizer: None for the model's own, which must have a chat template.

    Raises InputError for a model, tokenizer or chat template that cannot be used.
    """
    trust = config.trust_remote_code
    context = context_of(config.model, trust)
    if tokenizer is None:
        tokenizer = HfTokenizer.load(
            config.model, trust_remote_code=trust, template_args=dict(config.template_args)
        )
        tokenizer.require_chat_template()
    return Encoder(tokenizer, weights_version(config.reference_from), context, config.max_length)


def check_reference(model: str, reference: str, trust_remote_code: bool = False) -> None:
    """Raises InputError where a reference reads other token ids than the model writes."""
    if reference == model:
        return
    context_of(reference, trust_remote_code, option="--reference-model")  # a path that is none
    made = [
        HfTokenizer.load(path, trust_remote_code=trust_remote_code).version for path in (model, reference)
    ]
    if made[0] != made[1]:
        raise InputError(f"its tokenizer or chat template is not that of {model}",
                         where=f"--reference-model {reference}")  # fmt: skip


def load(
    path: str, dtype: torch.dtype, trust_remote_code: bool = False, four_bit: bool = False, *,
    option: str = "--model",
) -> Loaded:  # fmt: skip
    """Loads a causal language model for training, all dropout off.

    four_bit: its linear layers as NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314),
    which compute in `dtype` and cannot be trained themselves. option: that names the model.

    TRL's `disable_dropout` turns off dropout layers only: the attention dropout of Llama and its kin is
    a number in the configuration, which is set to 0 here (and kept in what is saved).

    Raises InputError when it cannot be loaded or is no language model.
    """
    more = {"quantization_config": _nf4(dtype)} if four_bit else {}
    config = _config_of(path, trust_remote_code, option)
    if _SCORES in str(config.architectures):
        raise InputError("a reward model, and a language model is trained here", where=f"{option} {path}")
    original = copy.deepcopy(config)
    _no_dropout(config)
    model, missing = _read(transformers.AutoModelForCausalLM, path, config, dtype, trust_remote_code, option,
                           **more)  # fmt: skip
    check_whole(f"{option} {path}", missing=missing)
    _own_layers(model)
    return Loaded(model, original, copy.deepcopy(model.generation_config))


def load_reward(
    path: str, tokenizer: HfTokenizer, dtype: torch.dtype, trust_remote_code: bool = False, seed: int = 0,
    *, ready: bool = False,
) -> Loaded:  # fmt: skip
    """Loads a model with one score per sequence, all dropout off: a reward model, or a causal language
    model that gets a head, its weights drawn with standard deviation 1/√(d + 1) (Stiennon et al. 2020,
    arXiv 2009.01325). It gets a pad token of its own, see `own_pad`; `tokenizer` has it afterwards.

    Args:
        ready: only a reward model will do, since it is a critic's beginning.

    Raises InputError when it cannot be loaded, scores several labels, or is not `ready`.
    """
    option = "--critic" if ready else "--model"
    config = _config_of(path, trust_remote_code, option)
    if _SCORES in str(config.architectures) and config.num_labels != 1:
        raise InputError(
            f"it scores {config.num_labels} labels, a reward model one", where=f"{option} {path}"
        )
    config.num_labels = 1
    original = copy.deepcopy(config)
    _no_dropout(config)
    model, missing = _read(transformers.AutoModelForSequenceClassification, path, config, dtype,
                           trust_remote_code, option)  # fmt: skip
    head = {name for name in missing if name.startswith("score.")}
    check_whole(f"{option} {path}", missing=missing - head)
    if head and ready:
        raise InputError("no reward model: it gives no scores", where=f"{option} {path}",
                         hint="Make one of it, gavel train reward, or start from the policy's body, --critic "
                              "none.")  # fmt: skip
    pad = own_pad(tokenizer, ends_of(path).token_ids)
    if pad >= (before := model.get_input_embeddings().weight.shape[0]):
        model.resize_token_embeddings(pad + 1, mean_resizing=False)
        original.get_text_config().vocab_size = pad + 1
        with torch.no_grad():  # what stands there was drawn by a generator that nobody has seeded
            table = model.get_input_embeddings().weight
            table[before:] = table[:before].mean(dim=0)
    model.config.get_text_config().pad_token_id = original.get_text_config().pad_token_id = pad
    if head:
        generator = torch.Generator().manual_seed(seed)
        width = model.score.weight.shape[1]
        with torch.no_grad():
            drawn = torch.randn(model.score.weight.shape, generator=generator) / (width + 1) ** 0.5
            model.score.weight.copy_(drawn)
    _own_layers(model)
    return Loaded(model, original, None)


def grow(loaded: Loaded, added: Sequence[int]) -> None:
    """Gives new tokens their place in the embedding and in the head, each as the mean of the tokens that
    the tokenizer had before: nothing is known of them yet.

    Args:
        added: their ids, sorted.
    """
    model = loaded.model
    if added[-1] >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(added[-1] + 1, mean_resizing=False)
        loaded.config.get_text_config().vocab_size = added[-1] + 1
    head = model.get_output_embeddings()
    with torch.no_grad():
        for table in (model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)):
            if table is not None:  # a tied head is written twice, with the same
                table[list(added)] = table[: added[0]].mean(dim=0)


def own_pad(tokenizer: HfTokenizer, more_ends: Collection[int] = ()) -> int:
    """A token that no sequence ends with, made the tokenizer's pad token: its own pad token unless that ends
    sequences, else a special token kept in reserve, else a new one.

    transformers scores a sequence at its last token that is no pad token, vLLM at its last token: with
    pad = EOS the two differ.

    Args:
        more_ends: tokens that engines stop at beside those that the tokenizer knows (of Qwen 2.5 the pad
            token is one).
    """
    hf = tokenizer.hf
    ends = {tokenizer.eos_id, hf.eos_token_id, hf.bos_token_id, *more_ends}
    if hf.pad_token_id is not None and hf.pad_token_id not in ends:
        return int(hf.pad_token_id)
    for token_id, token in sorted(hf.added_tokens_decoder.items()):
        named = any(word in token.content.lower() for word in ("pad", "reserved", "unused", "extra_id"))
        if token.special and named and token_id not in ends:
            hf.pad_token = token.content
            return int(token_id)
    hf.add_special_tokens({"pad_token": "<|pad|>"})
    return int(hf.pad_token_id)


def _nf4(dtype: torch.dtype) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("needs bitsandbytes, which is not installed", where="--qlora",
                         hint="Install it with: pip install 'gavel[qlora]'")  # fmt: skip
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip


def _no_dropout(config: Any) -> None:
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and any(word in name for word in ("dropout", "pdrop", "drop_rate")):
                setattr(part, name, 0.0)


def _own_layers(model: Any) -> None:
    """Of the classes of layers that FSDP is to keep whole, those that the model has: some families name those
    of their other models as well, and accelerate ends where it does not find one."""
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = sorted(present.intersection(model._no_split_modules or ()))


def _config_of(path: str, trust_remote_code: bool, option: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except _FAULTS as error:
        raise _unloadable(path, error, option) from None


def _read(
    kind: Any, path: str, config: Any, dtype: torch.dtype, trust_remote_code: bool, option: str, **more: Any
) -> tuple[Any, set[str]]:
    """A model, and the names of its weights that are missing.

    Raises InputError for files that are damaged or do not fit the configuration.
    """
    try:
        model, info = kind.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True,
            ignore_mismatched_sizes=True, **more,
        )  # fmt: skip
    except _FAULTS as error:
        if out_of_memory(error):
            raise
        raise _unloadable(path, error, option) from None
    check_whole(f"{option} {path}", unlike=info["mismatched_keys"])
    return model, set(info["missing_keys"])


def _unloadable(path: str, error: Exception, option: str) -> InputError:
    if (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").exists():
        return InputError("an adapter, and a whole model is needed", where=f"{option} {path}",
                          hint="The training that made it gives one with --merge.")  # fmt: skip
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"no model can be loaded from it: {reason}", where=f"{option} {path}",
                      hint="Give a directory or hub id of a causal language model.")  # fmt: skip


def save(loaded: Loaded, model: Any, source: str, tokenizer: Any, dtype: torch.dtype, folder: Path) -> None:
    """Saves a whole model: weights, configuration, tokenizer, chat template, generation settings.

    Args:
        model: the trained model. source: what it started from. tokenizer: its transformers tokenizer.
    """
    model.config, model.generation_config = loaded.config, loaded.generation_config
    model.to(dtype).save_pretrained(folder)
    save_companions(source, tokenizer, folder)


def save_state(loaded: Loaded, state: Mapping[str, torch.Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Saves weights that are not those of a module at rest, and the configuration; the model stays as it is.

    Args:
        state: by the names of `loaded.model` as it came; of tied weights one is saved.
    """
    tied = loaded.model.all_tied_weights_keys
    cast = {name: w.detach().to(dtype) for name, w in state.items() if tied.get(name) not in state}
    loaded.model.save_pretrained(folder, state_dict=cast)
    config = copy.deepcopy(loaded.config)
    # FSDP2 makes the class of a model in shards one of its own, which no engine knows
    config.dtype, config.architectures = dtype, [type(loaded.model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    if loaded.generation_config is not None:
        loaded.generation_config.save_pretrained(folder)


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
