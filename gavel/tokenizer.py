"""Text to token ids and back, exactly: no second BOS, no special token out of untrusted text.

A conversation is rendered by the model's own chat template and tokenised whole, as the model was
trained. Only where a message holds a string that the tokenizer would read as a special token is it
taken apart: the template's own special tokens become ids, everything between them is tokenised with
special tokens off (FIELD: a candidate must not be able to add turns).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gavel.errors import GavelError, InputError, RowError
from gavel.records import Message, digest
from gavel.thinking import DEFAULT
from gavel.untrusted import without_specials

# what holds a vocabulary; of tokenizer_config.json alone transformers makes a tokenizer without one
_FILES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json")

#: Stands for a message's text while the template is rendered to find where its text lands.
_MARK = "\U000f0a11{}\U000f0a12"
_MARKED = re.compile("\U000f0a11(\\d+)\U000f0a12")


class HfTokenizer:
    """A transformers tokenizer. Implements `gavel.protocols.Tokenizer`."""

    def __init__(self, tokenizer: Any, template_args: dict[str, Any] | None = None) -> None:
        """Raises InputError for a tokenizer that is not one of the `tokenizers` library."""
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise InputError(
                f"its tokenizer ({type(tokenizer).__name__}) has no fast form",
                where=tokenizer.name_or_path,
                hint="Convert it to a tokenizer.json.",
            )
        self.hf = tokenizer
        self.template_args = template_args or {}
        self._bos = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
        # whitespace runs can be added tokens too (GPT-NeoX); those are ordinary text
        added = {i: t for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
        self._special_id = {token.content: token_id for token_id, token in added.items()}
        self._special_ids = {*added} - {tokenizer.unk_token_id}  # any text may hold unknown characters
        longest_first = sorted(added.values(), key=lambda t: -len(t.content))
        self._specials = re.compile("|".join(re.escape(t.content) for t in longest_first) or r"(?!)")
        # a special token may swallow the spaces beside it (Phi-3)
        self._with_spaces = re.compile(
            "|".join(
                (r"\s*" if t.lstrip else "") + f"({re.escape(t.content)})" + (r"\s*" if t.rstrip else "")
                for t in longest_first
            )
            or r"(?!)"
        )

    @classmethod
    def load(
        cls,
        path: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        template_args: dict[str, Any] | None = None,
    ) -> HfTokenizer:
        """Loads the tokenizer of a model directory or hub id.

        Raises InputError where there is none.
        """
        from transformers import AutoTokenizer

        if path.startswith(("/", ".", "~")) and not Path(path).exists():  # no hub id either
            raise InputError("there is no such model directory", where=path)
        if Path(path).is_dir() and not any(any(Path(path).glob(name)) for name in _FILES):
            raise InputError(
                "model directory has no tokenizer",
                where=path,
                hint="Copy tokenizer.json and tokenizer_config.json into it.",
            )
        try:
            made = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever damaged files make of it
            raise InputError(f"its tokenizer cannot be loaded: {_first_line(error)}", where=path) from None
        return cls(made, template_args)

    @cached_property
    def version(self) -> str:
        """Hash of vocabulary, merges, chat template and template arguments."""
        return digest(self._json, self.hf.chat_template, self.template_args)

    @cached_property
    def _whole(self) -> Any:
        """Tokenises trusted text, special tokens and all."""
        backend = copy.deepcopy(self.hf.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        return backend

    @cached_property
    def _json(self) -> str:
        text: str = self._whole.to_str()
        return text

    @cached_property
    def _plain(self) -> Any:
        """Tokenises untrusted text: what looks like a special token stays text."""
        return without_specials(self._json, self._special_id, inner=False)

    @cached_property
    def _plain_inner(self) -> Any:
        """As `_plain`, for text that does not begin the sequence."""
        if '"first"' not in self._json:
            return self._plain
        return without_specials(self._json, self._special_id, inner=True)

    @cached_property
    def eos_id(self) -> int:
        """The token that ends an assistant's turn: what the chat template puts after it, else EOS.

        Raises InputError when there is neither.
        """
        ending = self._turn_ending() if self.has_chat_template else None
        if ending is not None:
            return ending
        if self.hf.eos_token_id is None:
            raise InputError("its tokenizer has no end-of-sequence token", where=self.hf.name_or_path)
        return int(self.hf.eos_token_id)

    def _turn_ending(self) -> int | None:
        """The special token that the template puts right after an assistant's text, if it does."""
        mark = _MARK.format(0)
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        try:
            rendered = self.hf.apply_chat_template(turns, tokenize=False, **self.template_args)
        except Exception:  # a template that refuses this conversation says nothing about its turns
            return None
        found = self._specials.match(rendered.partition(mark)[2].lstrip())
        return self._special_id[found.group()] if found else None

    @property
    def has_chat_template(self) -> bool:
        return bool(self.hf.chat_template)

    def require_chat_template(self) -> None:
        """Raises InputError when there is none."""
        if not self.has_chat_template:
            raise InputError(
                "the model has no chat template",
                where=self.hf.name_or_path,
                hint="Add chat_template.jinja to the model directory.",
            )

    def chat_ids(self, messages: Sequence[Message], **template_args: Any) -> list[int]:
        """Ids of a conversation, ready for the assistant's turn (or not, with add_generation_prompt=False).

        Raises RowError when the template refuses the conversation (an unknown role, say).
        """
        self.require_chat_template()
        texts = [m.content for m in messages]
        rendered = self._render(messages, texts, template_args)
        if not self._spell_specials(texts):
            ids = _encode(self._whole, rendered)
            # more than the template wrote: a normaliser made one out of a message
            if sum(map(self._special_ids.__contains__, ids)) <= len(self._specials.findall(rendered)):
                return ids
        return self._spliced_ids(messages, template_args, rendered)

    def _spell_specials(self, texts: Sequence[str]) -> bool:
        """Whether a special token stands in a text, or across texts that a template sets side by side."""
        joined = "".join(texts), "".join(text.strip() for text in texts)
        return any(self._specials.search(text) for text in joined)

    def text_ids(self, text: str) -> list[int]:
        """Ids of untrusted text that follows a special token: no BOS, no special tokens."""
        return _encode(self._plain_inner, text)

    def document_ids(self, text: str) -> list[int]:
        """Ids of untrusted text that stands for itself: BOS where the tokenizer has one, EOS at the end.

        Raises InputError when the tokenizer has no EOS.
        """
        if self.hf.eos_token_id is None:
            raise InputError("its tokenizer has no end-of-sequence token", where=self.hf.name_or_path)
        return [*self._bos, *_encode(self._plain, text), int(self.hf.eos_token_id)]

    def answer_ids(self, text: str, *, opened: bool = False) -> list[int]:
        """Ids of an assistant's turn, without what ends it: as `text_ids`, but the tags of the thinking that
        it begins with are the tokens that the model itself writes.

        opened: the prompt ended with the opening tag, which is not repeated.
        """
        if not self.begins_thinking(text):
            return self.text_ids(text.lstrip().removeprefix(DEFAULT.open) if opened else text)
        opens, closes = (self._special_id[tag] for tag in DEFAULT)
        space, _, body = text.partition(DEFAULT.open)
        thinking, closed, answer = body.partition(DEFAULT.close)
        ids = [] if opened else [*self.text_ids(space), opens]
        ids += self.text_ids(thinking)
        return [*ids, closes, *self.text_ids(answer)] if closed else ids

    def begins_thinking(self, text: str) -> bool:
        """Whether a turn begins with thinking between tags that the tokenizer has tokens for."""
        return text.lstrip().startswith(DEFAULT.open) and all(tag in self._special_id for tag in DEFAULT)

    @property
    def adds_bos(self) -> bool:
        """Whether plain text gets a BOS from this tokenizer."""
        return bool(self._bos)

    def span_ids(self, context: str, target: str) -> tuple[list[int], int]:
        """Ids of context + target, and the first that holds any of the target's text.

        Raises RowError when no token holds any of it.
        """
        encoding = _encoding(self._plain, context + target)
        for position, (start, end) in enumerate(encoding.offsets):
            if end > len(context) and end > start:
                return [*self._bos, *encoding.ids], position + len(self._bos)
        raise RowError("the text has no tokens")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        text: str = self._whole.decode(ids, skip_special_tokens=True)
        return text

    def _render(
        self, messages: Sequence[Message], texts: Sequence[str], template_args: dict[str, Any]
    ) -> str:
        turns = [{"role": m.role, "content": text} for m, text in zip(messages, texts, strict=True)]
        settings = {"add_generation_prompt": True, **self.template_args, **template_args}
        try:
            rendered: str = self.hf.apply_chat_template(turns, tokenize=False, **settings)
        except GavelError:
            raise
        except Exception as error:  # whatever a model's own template raises
            raise RowError(f"the chat template refuses this conversation: {_first_line(error)}") from None
        return rendered

    def _spliced_ids(
        self, messages: Sequence[Message], template_args: dict[str, Any], rendered: str
    ) -> list[int]:
        """Ids of `rendered` in which special tokens inside a message's text stay text."""
        spans = self._text_spans(messages, template_args, rendered)
        ids: list[int] = []
        start = 0
        for match in self._with_spaces.finditer(_blank(rendered, spans)):
            ids += _encode(self._plain_inner if ids else self._plain, rendered[start : match.start()])
            ids.append(self._special_id[match[match.lastindex or 0]])
            start = match.end()
        return ids + _encode(self._plain_inner if ids else self._plain, rendered[start:])

    def _text_spans(
        self, messages: Sequence[Message], template_args: dict[str, Any], rendered: str
    ) -> list[tuple[int, int]]:
        """Where in `rendered` each message's text lies: renders marks instead and fills them in."""
        marked = self._render(messages, [_MARK.format(i) for i in range(len(messages))], template_args)
        before, *rest = _MARKED.split(marked)  # literal, then (number of a message, literal) in turn
        spans = []
        cursor = len(before) if rendered.startswith(before) else len(rendered) + 1
        for number, literal in zip(rest[::2], rest[1::2], strict=True):
            text = messages[int(number)].content
            for form in (text, text.strip(), text.rstrip(), text.lstrip()):
                if rendered.startswith(form + literal, cursor):
                    spans.append((cursor, cursor + len(form)))
                    cursor += len(form) + len(literal)
                    break
            else:
                break
        if len(spans) == len(rest) // 2 and cursor == len(rendered):
            return spans
        raise RowError(
            "holds a special token, and the chat template changes the text: it cannot be kept apart"
        )


def _encode(backend: Any, text: str) -> list[int]:
    ids: list[int] = _encoding(backend, text).ids if text else []
    return ids


def _encoding(backend: Any, text: str) -> Any:
    try:
        return backend.encode(text, add_special_tokens=False)
    except (TypeError, UnicodeEncodeError):  # `tokenizers` says a str was none
        raise RowError("lone surrogates: the text is not valid Unicode") from None


def _adds_bos(tokenizer: Any) -> bool:
    """Whether plain text gets a BOS from this tokenizer."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def _blank(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """`text` with the spans overwritten, of the same length; what overwrites them is not a space."""
    parts, cursor = [], 0
    for start, end in spans:
        parts += [text[cursor:start], "\ufffc" * (end - start)]
        cursor = end
    return "".join(parts) + text[cursor:]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
