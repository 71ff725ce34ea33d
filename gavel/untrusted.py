"""A tokenizer for text that nobody may trust: whatever the text spells, no special token comes out.

`encode_special_tokens` alone does not keep that promise: a Unigram model (T5, Gemma 1, XLM-R) holds
its special tokens as ordinary pieces too and finds "</s>" in a text by itself.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer


def without_specials(backend: str, specials: Mapping[str, int], *, inner: bool) -> Tokenizer:
    """A copy of a tokenizer in which each special token has a name that no text can spell.

    Args:
        backend: the tokenizer as JSON (`Tokenizer.to_str`).
        specials: content → id of the tokens to hide; other ids stay as they are.
        inner: for text that does not begin the sequence: "prepend_scheme": "first" puts no space
            before it.
    """
    made: dict[str, Any] = json.loads(backend)
    secret = secrets.token_hex(16)
    hidden = {content: f"\U000f0a13{secret}{token_id}" for content, token_id in specials.items()}
    for token in made["added_tokens"]:
        if token["content"] in hidden:
            token |= {"content": hidden[token["content"]], "normalized": False}
    _rename(made["model"], hidden)
    # some post-processors cut spaces off the offsets (Llama 3); the special tokens they add are not wanted
    made |= {"post_processor": None, "truncation": None, "padding": None}
    if inner:
        _prepend_nothing(made["pre_tokenizer"])
    return Tokenizer.from_str(json.dumps(made))


def _rename(model: dict[str, Any], hidden: Mapping[str, str]) -> None:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [piece, score]
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {hidden.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        pairs = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [p for p in pairs if not hidden.keys() & {*p, "".join(p)}]


def _prepend_nothing(part: Any) -> None:
    """Sets "first" to "never" in every Metaspace of a pre-tokenizer."""
    if isinstance(part, dict):
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
        for inner in part.get("pretokenizers", ()):
            _prepend_nothing(inner)
