"""An assistant's turn that came as text, as the token ids that an engine would have to sample."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from gavel.errors import RowError
from gavel.protocols import Tokenizer
from gavel.records import Message
from gavel.thinking import DEFAULT


class Asked(NamedTuple):
    """A prompt: its messages, and the ids that an engine sees of them."""

    messages: Sequence[Message]
    ids: array[int]


def asked(messages: Sequence[Message], tokenizer: Tokenizer) -> Asked:
    """A prompt as an engine sees it. Raises RowError where the chat template refuses the conversation."""
    return Asked(messages, array("i", tokenizer.chat_ids(messages)))


def turn_ids(prompt: Asked, text: str, tokenizer: Tokenizer, *, ended: bool = True) -> array[int]:
    """The ids of `text` as the answer to a prompt: the chat template's own rendering of it (some put a space
    before it, some trim it) where that goes on from the prompt and says the same, else its text alone; and
    what ends the turn.

    Args:
        ended: False for an answer that was cut off, which nothing ends.

    Raises RowError where the template refuses the conversation, or begins a thinking that `text` lacks.
    """
    end = array("i", [tokenizer.eos_id])
    if not tokenizer.begins_thinking(text):
        messages = [*prompt.messages, Message("assistant", text)]
        whole = array("i", tokenizer.chat_ids(messages, add_generation_prompt=False))
        rest = whole[len(prompt.ids) :]
        said = rest[: rest.index(end[0])] if end[0] in rest else rest
        if whole[: len(prompt.ids)] == prompt.ids and tokenizer.decode(said).strip() == text.strip():
            return said + end if ended else said
    opened = tokenizer.decode(prompt.ids[-8:]).rstrip().endswith(DEFAULT.open)
    if opened and not text.lstrip().startswith(DEFAULT.open):
        raise RowError("an answer without thinking, and the chat template's prompt begins one",
                       hint="Some templates take --chat-template-arg enable_thinking=false.")  # fmt: skip
    alone = array("i", tokenizer.answer_ids(text, opened=opened))
    return alone + end if ended else alone
