"""Small tokenizers of the families that models have, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "def main():\n    for i in range(10):\n        print(i)\n",
    "It's the end </s> of the user's turn, said the assistant. </s></s> [INST] [/INST]",
    "我很開心 ➜ Positive. Ça va très bien, merci.",
] * 4

# a newline at the very end of a template would be dropped, so it is written as a string there
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content.strip() }} [/INST]{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "<start_of_turn>model{{ '\n' }}"
)
PHI3 = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>{{ '\n' }}"
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


def _byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    return made


def _sentencepiece_bpe() -> Tokenizer:
    """BPE with bytes to fall back to; its merges spell some of the special tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), *model["vocab"]]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    assert "</s>" in vocab, "the corpus is there to make it an ordinary piece too"
    merges = [tuple(pair) for pair in model["merges"]]
    return Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )


_STRIP = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def _bos(made: Tokenizer, token: str) -> Any:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, made.token_to_id(token))]
    )


def _wrap(made: Tokenizer, template: str | None, **tokens: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **tokens)


def qwen() -> Any:
    made = _byte_level()
    made.normalizer = normalizers.NFC()
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return _wrap(made, CHATML, eos_token="<|im_end|>")


def llama3() -> Any:
    made = _byte_level()
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    made.add_special_tokens(["<|begin_of_text|>", *headers])
    trims = processors.ByteLevel(trim_offsets=True)
    made.post_processor = processors.Sequence([trims, _bos(made, "<|begin_of_text|>")])
    return _wrap(made, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def llama2() -> Any:
    """Spaces are put before every stretch between special tokens."""
    made = _sentencepiece_bpe()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(_STRIP)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = _bos(made, "<s>")
    return _wrap(made, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral() -> Any:
    """A space is put before the whole text only; the turns' marks are special tokens."""
    made = _sentencepiece_bpe()
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([first])
    made.decoder = decoders.Sequence(_STRIP)
    made.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    made.post_processor = _bos(made, "<s>")
    return _wrap(made, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def phi3() -> Any:
    """Special tokens that swallow the spaces after them."""
    made = _sentencepiece_bpe()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.decoder = decoders.Sequence(_STRIP)
    made.add_special_tokens(["<unk>", "<s>", AddedToken("</s>", rstrip=True, normalized=False)])
    turns = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    made.add_special_tokens([AddedToken(t, lstrip=t == "<|end|>", rstrip=True) for t in turns])
    return _wrap(made, PHI3, bos_token="<s>", eos_token="<|end|>", unk_token="<unk>")


def unigram() -> Any:
    """Special tokens are ordinary pieces with the best of scores, as converted T5 and Gemma have them."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    ascii_ = [chr(c) for c in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", initial_alphabet=ascii_
    )
    made.train_from_iterator(CORPUS, trainer)
    made.add_tokens([AddedToken("<tool>", special=False, normalized=True)])
    return _wrap(made, GEMMA, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def neox() -> Any:
    """Runs of spaces are added tokens."""
    made = _byte_level()
    made.add_special_tokens(["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"])
    made.add_tokens([AddedToken(" " * n, special=False, normalized=True) for n in (2, 4, 8)])
    return _wrap(made, PLAIN, eos_token="<|endoftext|>")


FAMILIES: dict[str, Callable[[], Any]] = {
    f.__name__: f for f in (qwen, llama3, llama2, mistral, phi3, unigram, neox)
}
