"""A deterministic engine without a model: for tests, dry runs and a first look.

Tokens are UTF-8 bytes, or those of a tokenizer that is named. What it samples, scores and rewards is a pure
function of the request and of its weights version, so a run repeats byte for byte. Its judgments mean
nothing, on purpose.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gavel.engines import EngineConfig
from gavel.errors import InputError
from gavel.protocols import (
    Capability,
    Engine,
    Refused,
    Rewarded,
    RewardRequest,
    Sampled,
    SampleRequest,
    Scored,
    ScoreRequest,
    Tokenizer,
)
from gavel.records import Message, digest

USER, ASSISTANT, SYSTEM, EOS = 256, 257, 258, 259
_ROLES = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
_WORDS = "yes no one two three red blue the a of to is not very good bad 很 好 answer".split()


def open(config: EngineConfig) -> Engine:
    """Opens any name as a model. engine_args: `fail_every` refuses every n-th key (by hash).

    Raises InputError for another engine_arg.
    """
    settings = {"fail_every": 0} | config.engine_args
    if unknown := settings.keys() - {"fail_every"}:
        raise InputError(
            f"unknown {', '.join(sorted(unknown))}",
            where="--engine-arg",
            hint="The fake engine knows fail_every.",
        )
    if not isinstance(settings["fail_every"], int) or settings["fail_every"] < 0:
        raise InputError("fail_every is a whole number, 0 for never", where="--engine-arg")
    return FakeEngine(
        config.model,
        adapter=config.adapter,
        context=config.context or 4096,
        tokenizer=_tokenizer(config),
        fail_every=settings["fail_every"],
    )


class ByteTokenizer:
    """UTF-8 bytes and four special ids. Implements `gavel.protocols.Tokenizer`."""

    version = "bytes/1"
    eos_id = EOS
    has_chat_template = True

    def chat_ids(self, messages: Sequence[Message], **template_args: Any) -> list[int]:
        ids: list[int] = []
        for message in messages:
            ids += [_ROLES.get(message.role, USER), *message.content.encode()]
        return [*ids, ASSISTANT] if template_args.get("add_generation_prompt", True) else ids

    def text_ids(self, text: str) -> list[int]:
        return list(text.encode())

    def begins_thinking(self, text: str) -> bool:
        return False

    def answer_ids(self, text: str, *, opened: bool = False) -> list[int]:
        return self.text_ids(text)

    def span_ids(self, context: str, target: str) -> tuple[list[int], int]:
        before = context.encode()
        return [SYSTEM, *before, *target.encode()], len(before) + 1

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class FakeEngine:
    """Implements `gavel.protocols.Engine` with every capability."""

    name = "fake"
    capabilities = frozenset(Capability)
    dtype = "float64"

    def __init__(
        self, model: str = "fake", *, adapter: str | None = None, context: int = 4096,
        tokenizer: Tokenizer | None = None, fail_every: int = 0,
    ) -> None:  # fmt: skip
        self.model = model
        self.context = context
        self.weights = _version(model) if adapter is None else digest("fake", model, adapter)
        self.tokenizer = tokenizer or ByteTokenizer()
        self._fail_every = fail_every

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]:
        """A few words chosen by hash; constraints are kept."""
        for request in requests:
            yield self._refused(request.key, len(request.prompt), 1) or self._sample(request)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored | Refused]:
        """Log-probabilities in (-3, 0) chosen by hash of the whole context before each token."""
        for request in requests:
            refused = self._refused(request.key, len(request.token_ids), 0)
            yield refused or Scored(
                key=request.key, logprobs=self._logprobs(request.token_ids, request.start)
            )

    def reward(self, requests: Iterable[RewardRequest]) -> Iterator[Rewarded | Refused]:
        """A number in (-1, 1) chosen by hash."""
        for request in requests:
            refused = self._refused(request.key, len(request.token_ids), 0)
            reward = 2 * self._unit("reward", list(request.token_ids)) - 1
            yield refused or Rewarded(key=request.key, reward=reward)

    def load_weights(self, path: str) -> None:
        """Other weights, other answers; where a path holds none the path itself counts."""
        self.weights = _version(path)

    def close(self) -> None:
        """Nothing to free."""

    def _refused(self, key: str, size: int, room: int) -> Refused | None:
        if size + room > self.context:
            return Refused(key=key, reason=f"{size} tokens, context {self.context}")
        if self._fail_every and int(digest(key)[:8], 16) % self._fail_every == 0:
            return Refused(key=key, reason="refused on purpose (fail_every)")
        return None

    def _sample(self, request: SampleRequest) -> Sampled:
        prompt = self._prompt_ids(request)
        state = digest(self.weights, prompt, request.seed if request.sampling.temperature else 0)
        if request.choice:
            text = request.choice[int(state[:8], 16) % len(request.choice)]
        elif request.json_schema is not None:
            text = json.dumps(_instance(request.json_schema, state), ensure_ascii=False)
        else:
            count = 1 + int(state[:2], 16) % 6
            text = " ".join(_WORDS[int(state[2 * i + 2 : 2 * i + 4], 16) % len(_WORDS)] for i in range(count))
        ids = [*self.tokenizer.text_ids(text), self.tokenizer.eos_id]
        limit = min(request.sampling.max_tokens, self.context - len(prompt))
        cut = len(ids) > limit
        ids = ids[:limit]
        text = self.tokenizer.decode(ids)
        hit = min((s for s in request.sampling.stop if s in text), key=text.find, default=None)
        if hit is not None:  # sampling ends with the stop string, which is not part of the text
            end = text.find(hit)
            ids, text, cut = self.tokenizer.text_ids(text[: end + len(hit)]), text[:end], False
        logprobs = self._logprobs([*prompt, *ids], len(prompt))
        return Sampled(
            key=request.key,
            text=text,
            token_ids=ids,
            logprobs=logprobs,
            finish_reason="length" if cut else "stop",
            stop_reason=hit,
            top_logprobs=[{self.tokenizer.decode([i]): lp} for i, lp in zip(ids, logprobs, strict=True)]
            if request.top_logprobs
            else (),
            usage={"prompt_tokens": len(prompt), "completion_tokens": len(ids)},
        )

    def _prompt_ids(self, request: SampleRequest) -> list[int]:
        messages = [m for m in request.prompt if isinstance(m, Message)]
        return self.tokenizer.chat_ids(messages) if messages else list(request.prompt_ids)

    def _logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        running = hashlib.blake2b(self.weights.encode(), digest_size=8)
        found = []
        for position, token in enumerate(ids):
            running.update(token.to_bytes(4, "little"))
            if position >= start:
                found.append(math.log(0.05 + 0.94 * _fraction(running.digest())))
        return found

    def _unit(self, *parts: Any) -> float:
        return int(digest(self.weights, *parts)[:12], 16) / 16**12


def _tokenizer(config: EngineConfig) -> Tokenizer | None:
    if config.tokenizer is None:
        return None
    from gavel.tokenizer import HfTokenizer

    return HfTokenizer.load(config.tokenizer, trust_remote_code=config.trust_remote_code,
                            template_args=config.template_args)  # fmt: skip


def _version(model: str) -> str:
    if not any(Path(model).glob("*.safetensors")):
        return digest("fake", model)
    from gavel.weights import weights_version

    return weights_version(model)


def _fraction(raw: bytes) -> float:
    return int.from_bytes(raw, "little") / 2**64


def _instance(schema: dict[str, Any], state: str) -> Any:
    """A value of a JSON Schema, chosen by hash; the parts of the language that templates use."""
    pick = int(digest(state, schema)[:8], 16)
    if "enum" in schema:
        return schema["enum"][pick % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _instance(part, state + name) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        count = schema.get("minItems", 1)
        return [_instance(schema.get("items", {}), f"{state}{i}") for i in range(count)]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 10)
        return low + pick % (int(high - low) + 1)
    if kind == "boolean":
        return pick % 2 == 0
    return _WORDS[pick % len(_WORDS)]
