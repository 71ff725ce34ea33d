"""What the methods that show candidates to a judge have in common: a preset put into words, the request
that goes out, and the reading of the likeliest tokens.

A preset is a template of ``prompts/<kind>/forms.toml`` whose further settings say how its reply is
read. Every candidate, instruction and reference stands between marks that none of their texts holds
(`gavel.templates.guard`). The mark is made of the prompt, so that all questions about one prompt begin
alike and an engine's prefix cache serves them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from gavel.errors import InputError, RowError
from gavel.protocols import Capability, Sampled, SampleRequest, Tokenizer
from gavel.records import Message, Prompt, Sampling, content_of
from gavel.special_tokens import defused
from gavel.templates import Template, as_text, guard, load
from gavel.thinking import DEFAULT, split_thinking
from judge.method import Item, Reply

TOP_LOGPROBS = 20  # what OpenAI's and vLLM's servers give at the most


class Reads(StrEnum):
    """How a verdict is read from a reply."""

    LOGPROBS = "logprobs"  # from the probabilities of the first token
    CHOICE = "choice"  # the reply is constrained to the labels
    JSON = "json"  # the reply is constrained to a JSON object: rationale, then verdict
    TEXT = "text"  # a free reply that ends in a verdict


_NEEDS = {
    Reads.LOGPROBS: frozenset({Capability.SAMPLE, Capability.LOGPROBS}),
    Reads.CHOICE: frozenset({Capability.SAMPLE, Capability.CHOICE}),
    Reads.JSON: frozenset({Capability.SAMPLE, Capability.JSON_SCHEMA}),
    Reads.TEXT: frozenset({Capability.SAMPLE}),
}
_MAX_TOKENS = {Reads.LOGPROBS: 1, Reads.CHOICE: 16, Reads.JSON: 1024, Reads.TEXT: 1024}


@dataclass(frozen=True)
class Preset:
    """A template with the settings that its replies are read by."""

    template: Template
    reads: Reads
    max_tokens: int

    @property
    def needs(self) -> frozenset[Capability]:
        return _NEEDS[self.reads]

    def setting(self, name: str, default: Any = None) -> Any:
        return self.template.settings.get(name, default)

    def pattern(self, default: str | None = None) -> str | None:
        """The regular expression of a free reply's verdict."""
        return self.template.texts.get("pattern", default) if self.reads is Reads.TEXT else None


def preset(
    kind: str, name: str, *, verdict: str | None, max_tokens: int | None, forms_file: str | None
) -> Preset:
    """A preset by name, its reading chosen by `verdict` (None: the preset's own).

    Raises InputError for an unknown preset or reading, or a pattern that is no regular expression.
    """
    template = load(kind, name, forms_file)
    wanted = verdict or template.texts.get("verdict", Reads.LOGPROBS)
    known = template.settings.get("verdicts", list(Reads))
    if wanted not in known:
        raise InputError(
            f"the preset {name!r} is not read by {wanted!r}",
            where="--verdict",
            hint=f"It is read by {', '.join(known)}.",
        )
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"must be at least 1, not {max_tokens}", where="--max-reply-tokens")
    try:
        re.compile(template.texts.get("pattern", ""))
    except re.error as error:
        raise InputError(f"its pattern is no regular expression: {error}", where=template.where) from None
    reads = Reads(wanted)
    return Preset(template, reads, max_tokens or _MAX_TOKENS[reads])


def reference_of(prompt: Prompt, wanted: bool | None) -> str:
    """The reference answer to show, "" for none. wanted: None shows one where the prompt has it.

    Raises RowError where one is wanted and the prompt has none.
    """
    if wanted is False or not prompt.references:
        if wanted:
            raise RowError("a reference answer is wanted, and the prompt has none")
        return ""
    return prompt.references[0]


def shown(item: Item, reference: str) -> dict[str, Any]:
    """The variables that quote untrusted text, with the guard around them."""
    instruction = as_text(item.prompt.messages)
    return {
        "instruction": instruction,
        "reference": reference,
        "guard": guard(content_of(item.prompt), instruction, reference, *item.texts),
    }


def rendered(
    template: Template, variables: Mapping[str, Any], tokenizer: Tokenizer | None, plain: bool | None
) -> Sequence[int] | tuple[Message, ...]:
    """What is sent: token ids, or messages for an engine without a tokenizer of ours.

    plain: one text without a chat template; None: where the model has no template.
    """
    if tokenizer is None:
        if plain:
            raise InputError("this engine takes messages only", where="--plain")
        return tuple(Message(m.role, defused(m.content)) for m in template.render(**variables))
    if plain or (plain is None and not tokenizer.has_chat_template):
        parts = [part for part in ("system", "context") if part in template.texts]
        text = "\n\n".join(template.text(part, **variables) for part in parts)
        return tokenizer.span_ids("", text)[0]
    return tokenizer.chat_ids(template.render(**variables))


def request(
    asked: Preset,
    prompt: Sequence[int] | tuple[Message, ...],
    labels: Sequence[str],
    schema: dict[str, Any] | None = None,
) -> SampleRequest:
    """The request that gets the reply a preset reads; greedy, so that it repeats."""
    reads = asked.reads
    return SampleRequest(
        key="",
        prompt=prompt,
        sampling=_greedy(asked.max_tokens),
        seed=0,
        choice=tuple(labels) if reads is Reads.CHOICE else (),
        json_schema=schema if reads is Reads.JSON else None,
        top_logprobs=TOP_LOGPROBS if reads is Reads.LOGPROBS else 0,
    )


def reasoned(**verdict: Any) -> dict[str, Any]:
    """The JSON Schema of a reply with a rationale and then the verdict's fields, each a schema: reasons
    come first, so that the verdict can rest on them."""
    properties = {"rationale": {"type": "string"}, **verdict}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@cache
def _greedy(max_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=max_tokens)


def sampled(replies: Sequence[Reply]) -> Sampled:
    """The one reply of a method that samples."""
    (reply,) = replies
    assert isinstance(reply, Sampled), "Call.SAMPLE"
    return reply


def answer_of(reply: Sampled) -> str:
    """What a reply says after its thinking. Raises RowError for a thinking that never ended."""
    if reply.thinking is not None:
        return reply.text
    thinking, text = split_thinking(reply.text, DEFAULT, opened=False)
    if thinking is not None and not text:
        raise RowError("the thinking never ended" if DEFAULT.close not in reply.text else "no answer")
    return text


def weigh(reply: Sampled, labels: Iterable[str]) -> tuple[dict[str, float], float]:
    """The probability of each label at the reply's first token, and their sum, the mass on labels.

    A label missing from the likeliest tokens counts 0; tokens that differ by white space are added.

    Raises RowError when none is there.
    """
    if not reply.top_logprobs:
        raise RowError("the judge returned no log-probabilities")
    found = dict.fromkeys(labels, 0.0)
    for token, logprob in reply.top_logprobs[0].items():
        if (label := token.strip()) in found:
            found[label] += math.exp(logprob)
    mass = math.fsum(found.values())
    if mass <= 0:
        raise RowError(f"none of {', '.join(found)} is among the judge's likeliest tokens")
    return found, mass
