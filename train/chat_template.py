"""The chat template that a model is trained with: its own, a known one by name, or a file's.

The known ones are in prompts/chat/. Before each of them the tokenizer's BOS is put where the tokenizer puts
it before plain text, since that is how the model was trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gavel import HOME
from gavel.errors import InputError, RowError
from gavel.records import Message
from gavel.rundir import write_atomic
from gavel.stops import FILE, read_ends
from gavel.tokenizer import HfTokenizer
from train.config import CHAT_TEMPLATES, SftConfig

#: name → the special tokens that it is made of
_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "plain": (),
}
#: name → strings that end an answer. A model whose turns are marked by words may write the next mark.
_STOPS = {"plain": ("\n### User:",)}
assert _TOKENS.keys() == set(CHAT_TEMPLATES)
_OPTION = "--chat-template"


@dataclass(frozen=True)
class Prepared:
    """A tokenizer that renders as the model will be trained.

    added: ids of tokens that the model does not know yet. stops: strings that end an answer, None for those
    that the model has already. changed: whether the tokenizer is another than the model's own.
    """

    tokenizer: HfTokenizer
    added: tuple[int, ...] = ()
    stops: tuple[str, ...] | None = None
    changed: bool = False

    def save(self, folder: Path) -> None:
        """Makes a saved model render and stop as it was trained, wherever it is loaded."""
        if self.changed:
            for pattern in ("chat_template*", "special_tokens_map.json", "added_tokens.json"):  # of before
                for file in folder.glob(pattern):
                    file.unlink()
            self.tokenizer.hf.save_pretrained(folder)
        file = folder / FILE
        ends = read_ends(file)
        strings = ends.strings if self.stops is None else self.stops
        if self.tokenizer.eos_id in ends.token_ids and strings == ends.strings:
            return
        settings: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
        settings["eos_token_id"] = list(dict.fromkeys([self.tokenizer.eos_id, *ends.token_ids]))
        settings.pop("stop_strings", None)
        if strings:
            settings["stop_strings"] = list(strings)
        write_atomic(file, (json.dumps(settings, indent=2) + "\n").encode())


def prepare(config: SftConfig) -> Prepared:
    """Loads the tokenizer of the model that training starts from, with the template that is asked for.

    Raises:
        InputError: no such template, one that cannot be used, or one whose tokens are new while a LoRA
            adapter is trained, which holds no embeddings.
    """
    tokenizer = HfTokenizer.load(
        config.model, trust_remote_code=config.trust_remote_code, template_args=dict(config.template_args)
    )
    name = config.chat_template
    if name is None:
        return Prepared(tokenizer)
    hf = tokenizer.hf
    missing = [token for token in _TOKENS.get(name, ()) if token not in hf.get_added_vocab()]
    before = set(hf.get_vocab())
    new = [token for token in missing if token not in before]
    if new and config.lora_r:
        raise InputError(
            f"the tokenizer has no {', '.join(new)}, and an adapter holds no embeddings for new tokens",
            where=f"{_OPTION} {name}",
            hint="Train all weights (without --lora-r), or take --chat-template plain.",
        )
    if missing:
        from tokenizers import AddedToken

        hf.add_tokens([AddedToken(token, normalized=False) for token in missing], special_tokens=True)
    hf.chat_template = _text(name, tokenizer)
    made = HfTokenizer(hf, tokenizer.template_args)
    _check(made, name)
    return Prepared(made, tuple(sorted(hf.convert_tokens_to_ids(new))), _STOPS.get(name, ()), changed=True)


def require(tokenizer: HfTokenizer) -> None:
    """Raises InputError for a model without a chat template."""
    if not tokenizer.has_chat_template:
        raise InputError("the model has no chat template", where=tokenizer.hf.name_or_path,
                         hint=f"Give it one: {_OPTION} {', '.join(CHAT_TEMPLATES)} or a file.")  # fmt: skip


def _text(name: str, tokenizer: HfTokenizer) -> str:
    if name not in CHAT_TEMPLATES:
        try:
            return Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not UTF-8"
            raise InputError(f"neither a template that is known nor a file: {reason}",
                             where=f"{_OPTION} {name}",
                             hint=f"Known: {', '.join(CHAT_TEMPLATES)}.") from None  # fmt: skip
    text = (HOME / "prompts" / "chat" / f"{name}.jinja").read_text("utf-8")
    return ("{{- bos_token }}" if tokenizer.adds_bos else "") + text


def _check(tokenizer: HfTokenizer, name: str) -> None:
    """Raises InputError for a template that does not render the simplest of conversations."""
    try:
        tokenizer.chat_ids([Message("user", "a")])
        tokenizer.chat_ids([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
    except RowError as error:
        raise InputError(error.what, where=f"{_OPTION} {name}") from None
    _ = tokenizer.eos_id  # raises where nothing would end a turn
