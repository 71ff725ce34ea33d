"""The OpenAI-compatible wire format: requests to JSON bodies, JSON replies to what an engine yields.

Pure functions. A reply that is cut off raises msgspec.DecodeError; one of another shape, or one that
answers something else, raises BadReply or msgspec.ValidationError. vLLM's own fields
(`return_token_ids`, `prompt_logprobs`, `structured_outputs`, `use_activation`) are as of vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from gavel.protocols import Refused, Rewarded, Sampled, SampleRequest, Scored, ScoreRequest, Tokenizer
from gavel.records import Sampling


class BadReply(Exception):
    """A whole reply that does not answer the request; asking again would bring the same."""


class ModelCard(msgspec.Struct):
    """One entry of GET /models. max_model_len, root, parent: vLLM's."""

    id: str
    created: int | None = None
    owned_by: str | None = None
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Logprob(msgspec.Struct):
    logprob: float


class _TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_TokenLogprob] | None = None


class _Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _ChatLogprobs(msgspec.Struct):
    content: list[_TokenLogprob] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None  # vLLM's name for it; reasoning_content is the older one
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[dict[str, _Logprob] | None] | None = None


class _ChatChoice(msgspec.Struct):
    message: _Message
    token_ids: list[int] | None = None
    logprobs: _ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Chat(msgspec.Struct):
    choices: list[_ChatChoice]
    usage: _Usage | None = None


class _Class(msgspec.Struct):
    probs: list[float]


class _Classes(msgspec.Struct):
    data: list[_Class]


_encode = msgspec.json.Encoder().encode
_completion = msgspec.json.Decoder(_Completion).decode
_chat = msgspec.json.Decoder(_Chat).decode
_classes = msgspec.json.Decoder(_Classes).decode
_any = msgspec.json.Decoder().decode


# requests
def completion_body(model: str, request: SampleRequest, context: int) -> bytes:
    """POST /completions on a rendered prompt: vLLM samples with its token ids and logprobs returned."""
    sampling = request.sampling
    body = {
        "model": model,
        "prompt": _ids(request.prompt),
        "add_special_tokens": False,  # ids are sent as they are; said in case a proxy decodes them
        "seed": request.seed,
        "max_tokens": min(sampling.max_tokens, context),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": sampling.stop,
        "logprobs": request.top_logprobs,
        "return_token_ids": True,
        **_vllm_sampling(sampling),
    }
    if request.top_logprobs:
        body["return_tokens_as_token_ids"] = True  # texts of tokens repeat, ids do not
    if request.choice:
        body["structured_outputs"] = {"choice": request.choice}
    elif request.json_schema is not None:
        body["structured_outputs"] = {"json": request.json_schema}
    return _encode(body)


def chat_body(
    model: str,
    request: SampleRequest,
    context: int,
    *,
    vllm: bool,
    limit_field: str,
    template_args: dict[str, Any],
) -> bytes:
    """POST /chat/completions on messages.

    vllm: the server knows vLLM's own fields. limit_field: what it calls the limit of new tokens.
    template_args: for the chat template, vLLM's too.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": request.prompt,
        "seed": request.seed,
        limit_field: min(sampling.max_tokens, context),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.stop:
        body["stop"] = sampling.stop
    if vllm:
        body |= _vllm_sampling(sampling) | {"return_token_ids": True}
    else:  # fields that OpenAI itself refuses go out only where they were asked for
        body |= {k: v for k, v in _vllm_sampling(sampling).items() if v != _NEUTRAL[k]}
    if template_args:
        body["chat_template_kwargs"] = template_args
    if vllm or request.top_logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = request.top_logprobs
    if request.choice:
        body["structured_outputs"] = {"choice": request.choice}
    elif request.json_schema is not None:
        schema = {"name": "reply", "schema": request.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return _encode(body)


def score_body(model: str, token_ids: Sequence[int]) -> bytes:
    """POST /completions for the log-probabilities of the prompt itself; one token is sampled in vain."""
    return _encode(
        {
            "model": model,
            "prompt": _ids(token_ids),
            "add_special_tokens": False,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
    )


def reward_body(model: str, token_ids: Sequence[int]) -> bytes:
    """POST /classify for the head's raw score."""
    return _encode(
        {"model": model, "input": _ids(token_ids), "add_special_tokens": False, "use_activation": False}
    )


def _vllm_sampling(sampling: Sampling) -> dict[str, Any]:
    """Sent even where neutral: vLLM fills gaps from the model's generation_config.json."""
    return {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "min_tokens": sampling.min_tokens,
        "repetition_penalty": sampling.repetition_penalty,
    }


_NEUTRAL = _vllm_sampling(Sampling())


def _ids(ids: Sequence[Any]) -> Sequence[int]:
    return ids if isinstance(ids, list | tuple) else [int(i) for i in ids]


# replies
def read_completion(request: SampleRequest, payload: bytes) -> Sampled:
    """The keys of top_logprobs are still "token_id:17", see `with_texts`.

    Raises BadReply without a choice, or without the token ids that only vLLM returns.
    """
    reply = _completion(payload)
    if not reply.choices:
        raise BadReply("a reply without choices")
    choice = reply.choices[0]
    if choice.token_ids is None or choice.logprobs is None:
        raise BadReply("a reply without token ids or logprobs")
    logprobs = choice.logprobs.token_logprobs
    if len(logprobs) != len(choice.token_ids):
        raise BadReply(f"{len(choice.token_ids)} token ids with {len(logprobs)} logprobs")
    top = (choice.logprobs.top_logprobs or ()) if request.top_logprobs else ()
    return Sampled(
        key=request.key,
        text=choice.text,
        token_ids=choice.token_ids,
        logprobs=[_number(value) for value in logprobs],
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        top_logprobs=[position or {} for position in top],
        usage=_counts(reply.usage),
    )


def read_chat(request: SampleRequest, payload: bytes) -> Sampled:
    """Token ids and logprobs are None where the server returns none. Raises BadReply."""
    reply = _chat(payload)
    if not reply.choices:
        raise BadReply("a reply without choices")
    choice = reply.choices[0]
    content = choice.logprobs.content if choice.logprobs else None
    ids = choice.token_ids
    if ids is not None and content is not None and len(ids) != len(content):
        ids = None  # such as a reasoning parser's: the ids hold the thinking, the logprobs do not
    top: list[dict[str, float]] = []
    if request.top_logprobs:
        top = [{t.token: t.logprob for t in reversed(c.top_logprobs or ())} for c in content or ()]
    return Sampled(
        key=request.key,
        text=choice.message.content or "",
        thinking=choice.message.reasoning or choice.message.reasoning_content,
        token_ids=ids,
        logprobs=None if content is None else [c.logprob for c in content],
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        top_logprobs=top,
        usage=_counts(reply.usage),
    )


def read_score(request: ScoreRequest, payload: bytes) -> Scored:
    """Raises BadReply without prompt_logprobs, or with those of other tokens."""
    reply = _completion(payload)
    found = reply.choices[0].prompt_logprobs if reply.choices else None
    if found is None:
        raise BadReply("a reply without prompt_logprobs, which gavel knows from vLLM only")
    if len(found) != len(request.token_ids):
        raise BadReply(f"{len(found)} prompt_logprobs for {len(request.token_ids)} tokens")
    logprobs = []
    for token_id, position in zip(request.token_ids[request.start :], found[request.start :], strict=True):
        entry = (position or {}).get(str(token_id))
        if entry is None:
            raise BadReply(f"prompt_logprobs without token {token_id}")
        logprobs.append(entry.logprob)
    return Scored(key=request.key, logprobs=logprobs)


def read_reward(key: str, payload: bytes) -> Rewarded | Refused:
    """A model with several labels has no single reward: refused."""
    reply = _classes(payload)
    if len(reply.data) != 1:
        raise BadReply(f"{len(reply.data)} scores for one sequence")
    scores = reply.data[0].probs
    if len(scores) != 1:
        return Refused(key=key, reason=f"the model has {len(scores)} labels, a reward model has one")
    return Rewarded(key=key, reward=scores[0])


def error_message(payload: bytes) -> str:
    """What an error reply says, in one line of at most 300 characters."""
    try:
        found = _any(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = payload.decode("utf-8", "replace")
    while isinstance(found, dict):  # {"error": {"message": …}}, {"message": …} or {"detail": …}
        found = next((found[k] for k in ("error", "message", "detail") if found.get(k)), str(found))
    text = " ".join(str(found).split())
    return text if len(text) <= 300 else text[:299] + "…"


def with_texts(reply: Sampled, tokenizer: Tokenizer) -> Sampled:
    """`reply` with its text decoded from whole ids (vLLM's own leaves out a last half character), and
    with the texts of tokens in top_logprobs. Apart from reading, because that happens in another
    thread than the caller's, and a tokenizer is for one thread at a time."""
    top = [_by_text(tokenizer, position) for position in reply.top_logprobs]
    if reply.token_ids is None or isinstance(reply.stop_reason, str):  # a stop string is cut off the text
        return replace(reply, top_logprobs=top)
    return replace(reply, text=tokenizer.decode(reply.token_ids), top_logprobs=top)


def _by_text(tokenizer: Tokenizer, position: dict[str, float]) -> dict[str, float]:
    """ "token_id:17" → logprob as text → logprob; of tokens with the same text the likeliest."""
    found: dict[str, float] = {}
    for token, logprob in position.items():
        _, sign, token_id = token.partition("token_id:")
        text = tokenizer.decode([int(token_id)]) if sign else token
        found[text] = max(logprob, found.get(text, logprob))
    return found


def _number(value: float | None) -> float:
    if value is None:
        raise BadReply("a sampled token without a logprob")
    return value


def _counts(usage: _Usage | None) -> dict[str, int]:
    if usage is None:
        return {}
    return {"prompt_tokens": usage.prompt_tokens or 0, "completion_tokens": usage.completion_tokens or 0}
