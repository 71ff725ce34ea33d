"""The `server` engine: any OpenAI-compatible endpoint, `vllm serve` first of all.

With a tokenizer prompts go as token ids to /completions and everything comes back token-exact, which
vLLM offers. Without one they go as messages to /chat/completions, which everybody offers.

Left out: loading weights (no common API) and rewards from other servers than vLLM. Log-probabilities
are the server's: vLLM returns raw ones unless it was started with another --logprobs-mode.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from gavel.engines import EngineConfig, openai_api
from gavel.engines.openai_api import ModelCard, ModelList
from gavel.engines.transport import Ask, Transport
from gavel.errors import CapabilityError, EngineError, InputError
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
from gavel.records import Message, Sampling, digest
from gavel.stops import ends_of, stopping

Q = TypeVar("Q", SampleRequest, ScoreRequest, RewardRequest)
A = TypeVar("A")

#: `context` where neither the server nor the caller says one: nothing is too long, as far as we know
UNKNOWN_CONTEXT = 1 << 30

#: engine_args → the type of their values
_ARGUMENTS: dict[str, type] = {"api_key_env": str, "in_flight": int, "timeout_s": float, "max_tries": int,
                               "backoff_s": float}  # fmt: skip


def open(config: EngineConfig) -> Engine:
    """The engine for `--base-url`; engine_args are ServerEngine's further arguments.

    Raises: as ServerEngine does, and InputError for an option that a server does not take.
    """
    if config.adapter is not None:
        raise InputError(
            "a server loads its adapters itself",
            where="--adapter",
            hint="Give the name under which the server serves the adapter as the model.",
        )
    if unknown := set(config.engine_args) - _ARGUMENTS.keys():
        raise InputError(
            f"unknown {', '.join(sorted(unknown))}",
            where="--engine-arg",
            hint=f"The server engine knows {', '.join(sorted(_ARGUMENTS))}.",
        )
    for name, value in config.engine_args.items():
        _check_argument(name, value)
    tokenizer: Tokenizer | None = None
    if config.tokenizer is not None:
        from gavel.tokenizer import HfTokenizer  # imports transformers, which a chat need not wait for

        tokenizer = HfTokenizer.load(
            config.tokenizer,
            trust_remote_code=config.trust_remote_code,
            template_args=config.template_args,
        )
    return ServerEngine(
        config.base_url or "",
        config.model,
        tokenizer=tokenizer,
        stops=ends_of(config.tokenizer).strings if config.tokenizer is not None else (),
        context=config.context,
        logprobs_mode=config.logprobs_mode,
        template_args=config.template_args,
        **config.engine_args,
    )


class ServerEngine:
    """An engine behind HTTP.

    Args:
        base_url: such as http://localhost:8000/v1. model: a name that the server lists.
        api_key_env: the environment variable that holds the API key, if the server wants one. The key
            itself is kept in memory only: never recorded, never in a message.
        tokenizer: the served model's own; with it the engine has Capability.TOKENS.
        stops: strings that end every answer; without any, those that the served model's directory keeps,
            if the server names one that is on this machine.
        context: longest sequence in tokens; asked of the server (vLLM says it) when None.
        logprobs_mode: what the server's --logprobs-mode is, "raw" (vLLM's default) or "processed".
        template_args: for the chat template, where the server applies it.
        in_flight: how many requests may be unanswered, or answered and not yet recorded, at a time.
        timeout_s, max_tries, backoff_s: see `gavel.engines.transport.Transport`.

    `weights` is only what the server tells: its name for the model, with vLLM's path of it (root),
    else its date of creation. Other weights under the same name and path are not noticed.

    Raises:
        InputError: base_url is not an address, or holds a password.
        EngineError: the server cannot be reached, refuses the key, or does not serve `model`.
    """

    name = "server"
    dtype = ""  # no server tells

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        tokenizer: Tokenizer | None = None,
        stops: Sequence[str] = (),
        context: int | None = None,
        in_flight: int = 256,
        timeout_s: float = 600.0,
        max_tries: int = 6,
        backoff_s: float = 0.5,
        logprobs_mode: str = "raw",
        template_args: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._logprobs_mode, self._template_args = logprobs_mode, template_args or {}
        self._url = _checked(base_url)
        api_key = os.environ.get(api_key_env, "").strip()
        state = "was refused" if api_key else "is not set"
        self._transport = Transport(
            self._url,
            api_key,
            key_hint=f"{api_key_env} {state}: put the server's key there.",
            in_flight=max(1, in_flight),
            timeout_s=timeout_s,
            max_tries=max(1, max_tries),
            backoff_s=backoff_s,
        )
        try:
            card, parent = self._find_model()
            self._vllm = card.owned_by == "vllm" or card.max_model_len is not None
            self.weights = _version(card, parent, self._vllm)
            if tokenizer is None and self._template_args:  # the server renders with them, unseen
                self.weights += f":template:{digest(self._template_args)}"
            self._stops = tuple(stops) or (ends_of(card.root).strings if card.root else ())
            if self._stops:
                self.weights += f":ends:{digest(self._stops)}"
            told = card.max_model_len or (parent.max_model_len if parent else None)
            self.context = context or told or UNKNOWN_CONTEXT
            self.capabilities = self._find_capabilities()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"ServerEngine({self._url!r}, {self.model!r})"

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise self._cannot(Capability.TOKENS)
        return self._tokenizer

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]:
        """Yields completions as they come.

        Without Capability.TOKENS a server other than vLLM is asked for logprobs only where
        `top_logprobs` is.

        Raises:
            CapabilityError: processed log-probabilities, or a constraint that the server does not know.
            EngineError: the server is gone or refuses the key.
        """
        self._need(Capability.SAMPLE)
        body: Callable[[SampleRequest], bytes]
        read: Callable[[SampleRequest, bytes], Sampled]
        if self._tokenizer is not None:
            path, read = "/completions", openai_api.read_completion
            body = partial(openai_api.completion_body, self.model, context=self.context)
        else:
            path, read = "/chat/completions", openai_api.read_chat
            is_openai = (urlsplit(self._url).hostname or "").endswith("openai.com")
            limit_field = "max_completion_tokens" if is_openai else "max_tokens"
            body = partial(
                openai_api.chat_body,
                self.model,
                context=self.context,
                vllm=self._vllm,
                limit_field=limit_field,
                template_args=self._template_args,
            )
        asks = self._asks(stopping(requests, self._stops), self._checking(body), read)
        replies = self._transport.ask(self._url + path, asks)
        with contextlib.closing(replies):
            for reply in replies:
                if self._tokenizer is not None and isinstance(reply, Sampled):
                    yield openai_api.with_texts(reply, self._tokenizer)
                else:
                    yield reply

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored | Refused]:
        """Yields log-probabilities of spans as they come; a sequence must be shorter than `context`."""
        self._need(Capability.SCORE)
        asks = self._asks(
            requests, lambda r: openai_api.score_body(self.model, r.token_ids), openai_api.read_score
        )
        yield from self._transport.ask(f"{self._url}/completions", asks)

    def reward(self, requests: Iterable[RewardRequest]) -> Iterator[Rewarded | Refused]:
        """Yields raw scores as they come, from `vllm serve` of a classification model."""
        self._need(Capability.REWARD)
        asks = self._asks(
            requests,
            lambda r: openai_api.reward_body(self.model, r.token_ids),
            lambda r, payload: openai_api.read_reward(r.key, payload),
        )
        yield from self._transport.ask(self._classify_url, asks)

    def load_weights(self, path: str) -> None:
        """Raises CapabilityError: OpenAI-compatible servers have no common way to do it."""
        raise self._cannot(Capability.LOAD_WEIGHTS)

    def close(self) -> None:
        """Cancels what is in flight. Idempotent."""
        self._transport.close()

    def __enter__(self) -> ServerEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _asks(
        self, requests: Iterable[Q], body: Callable[[Q], bytes], read: Callable[[Q, bytes], A]
    ) -> Iterator[Ask[A] | Refused]:
        for request in requests:
            length = self._length(request)
            if length > self.context:
                reason = f"needs {length} tokens, the context is {self.context}"
                yield Refused(key=request.key, reason=reason)
                continue
            try:
                yield Ask(request.key, body(request), partial(read, request))
            except UnicodeEncodeError:
                yield Refused(key=request.key, reason="text that is not valid Unicode")

    def _length(self, request: SampleRequest | ScoreRequest | RewardRequest) -> int:
        """Tokens that the server will need at least; vLLM samples one even where it only scores."""
        if isinstance(request, RewardRequest):
            return len(request.token_ids)
        if isinstance(request, ScoreRequest):
            return len(request.token_ids) + 1
        return len(request.prompt) + 1 if self._tokenizer is not None else 0

    def _checking(self, body: Callable[[SampleRequest], bytes]) -> Callable[[SampleRequest], bytes]:
        """`body` for requests that this server can serve."""

        def checked(request: SampleRequest) -> bytes:
            if request.choice:
                self._need(Capability.CHOICE)
            if request.prompt and isinstance(request.prompt[0], Message) is (self._tokenizer is not None):
                raise self._cannot(Capability.TOKENS)
            wanted = request.sampling.logprobs_mode
            if wanted != self._logprobs_mode and not _is_plain(request.sampling):
                raise CapabilityError(
                    f"the server returns {self._logprobs_mode} log-probabilities, not {wanted} ones",
                    where=f"model {self.model}",
                    hint=f"Start it with --logprobs-mode {wanted}_logprobs and open the engine so, too.",
                )
            return body(request)

        return checked

    def _find_model(self) -> tuple[ModelCard, ModelCard | None]:
        """The model's card and, of an adapter, its base model's."""
        status, payload = self._transport.get(f"{self._url}/models")
        try:
            if status != 200:
                raise ValueError
            cards = {card.id: card for card in msgspec.json.decode(payload, type=ModelList).data}
        except ValueError:
            raise EngineError(
                f"this is not an OpenAI-compatible API (GET /models answers HTTP {status})",
                where=self._url,
                hint="The address usually ends in /v1, as in http://localhost:8000/v1.",
            ) from None
        card = cards.get(self.model)
        if card is None:
            served = ", ".join(sorted(cards)[:8]) + (", …" if len(cards) > 8 else "")
            raise EngineError(
                f'the server does not serve "{self.model}"',
                where=self._url,
                hint=f"It serves: {served or 'nothing'}.",
            )
        return card, cards.get(card.parent or "")

    def _find_capabilities(self) -> frozenset[Capability]:
        has = {Capability.SAMPLE, Capability.LOGPROBS, Capability.JSON_SCHEMA}
        if self._tokenizer is None:
            return frozenset(has | {Capability.CHOICE} if self._vllm else has)
        self._classify_url = f"{self._url.removesuffix('/v1')}/classify"
        # vLLM has this route only where it serves a classification model, which cannot sample
        if self._vllm and self._transport.get(self._classify_url)[0] == 405:
            return frozenset({Capability.TOKENS, Capability.REWARD})
        return frozenset(has | {Capability.CHOICE, Capability.TOKENS, Capability.SCORE})

    def _need(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise self._cannot(capability)

    def _cannot(self, capability: Capability) -> CapabilityError:
        hint = "Choose another engine with --engine (vllm and transformers can do all)."
        if capability in (Capability.TOKENS, Capability.SCORE):
            hint = "It can with the model's own tokenizer, on vLLM. " + hint
        return CapabilityError(
            f"the server engine cannot {capability.value} here",
            where=f"model {self.model} at {self._url}",
            hint=hint,
        )


def _check_argument(name: str, value: Any) -> None:
    """Raises InputError for an engine_arg of a wrong type, or a number below 0."""
    kind = _ARGUMENTS[name]
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if isinstance(value, bool) or not fits or (kind is not str and value < 0):
        wanted = {str: "a string", int: "a whole number", float: "a number of seconds"}[kind]
        raise InputError(f"{name}={value} is not {wanted}", where="--engine-arg")


def _checked(base_url: str) -> str:
    """The address without a trailing slash. A password in it would end up in messages and records."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            "is not an http(s) address",
            where="--base-url",
            hint="For example http://localhost:8000/v1.",
        )
    if parts.username or parts.password or parts.query:
        raise InputError(
            "an address must hold no user, password or query",
            where="--base-url",
            hint="Put the API key into the environment instead.",
        )
    return base_url.rstrip("/")


def _version(card: ModelCard, parent: ModelCard | None, vllm: bool) -> str:
    # vLLM's `created` is the time of asking
    told = [card.root, parent.root if parent else None, None if vllm else card.created]
    return ":".join(["server", card.id, *(str(part) for part in told if part)])


def _is_plain(sampling: Sampling) -> bool:
    """Whether the distribution sampled from is the model's own, so that raw and processed agree."""
    return (
        sampling.temperature == 1
        and sampling.top_p == 1
        and sampling.top_k <= 0
        and sampling.min_p == 0
        and sampling.repetition_penalty == 1
        and sampling.min_tokens == 0
    )
