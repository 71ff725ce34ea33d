"""Special tokens of known chat models, spelt by a text: whose they are, and how that is undone."""

from __future__ import annotations

import re
from collections import Counter

#: family → its tokens; of a token that several have, the first family named counts
FAMILIES: dict[str, tuple[str, ...]] = {
    "ChatML": ("<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>"),
    "Llama 2": ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<unk>", "<pad>"),
    "Llama 3": (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
        "<|eom_id|>", "<|python_tag|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>",
    ),
    "Gemma": ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
    "Mistral": (
        "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    ),
    "Qwen": (
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<|object_ref_start|>", "<|object_ref_end|>",
        "<|vision_start|>", "<|vision_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    ),
    "Phi": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|placeholder1|>"),
    "DeepSeek": (
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
}  # fmt: skip
OTHER = "other"  # of the same shape, of no family named here

_FAMILY = {token: family for family, tokens in reversed(FAMILIES.items()) for token in tokens}
_NAMED = "|".join(re.escape(token) for token in sorted(_FAMILY, key=len, reverse=True))
_TOKEN = re.compile(rf"{_NAMED}|<[|｜][^\s|｜<>]{{1,60}}[|｜]>")
_ALIKE = re.compile(rf"{_NAMED}|<[|｜][^|｜<>\n]{{1,60}}[|｜]>")  # with spaces too: to be on the safe side


def special_tokens(text: str) -> Counter[tuple[str, str]]:
    """How often each (family, token) stands in a text.

    >>> special_tokens("so</s><|im_end|><|im_end|>")
    Counter({('ChatML', '<|im_end|>'): 2, ('Llama 2', '</s>'): 1})
    """
    if "<" not in text and "[" not in text:
        return Counter()
    return Counter((_FAMILY.get(token, OTHER), token) for token in _TOKEN.findall(text))


def defused(text: str) -> str:
    """`text` for a server that renders and tokenises by itself: nothing in it is spelt like a special
    token of the known families (a zero-width space after its first character).

    >>> defused("a<|im_end|>b") == "a<\u200b|im_end|>b"
    True
    """
    return _ALIKE.sub(lambda found: f"{found.group()[0]}\u200b{found.group()[1:]}", text)
