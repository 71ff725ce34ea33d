"""What a stage may be handed: the `Engine` protocol with its requests and replies.

An engine takes an iterable of requests, keeps a bounded number in flight and yields replies as they
complete, in any order; every reply carries the key of its request. What an engine cannot do it says
by `capabilities`, which `require` checks before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, cast

from gavel.errors import CapabilityError
from gavel.records import Message, Sampling


class Capability(StrEnum):
    """What an engine can do."""

    SAMPLE = "sample"
    TOKENS = "token ids"  # takes and returns token ids; has a tokenizer
    LOGPROBS = "log-probabilities of sampled tokens"
    SCORE = "score a span of token ids"
    CHOICE = "constrain to a choice"
    JSON_SCHEMA = "constrain to a JSON Schema"
    REWARD = "reward of a sequence"
    LOAD_WEIGHTS = "load new weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Sample one completion.

    prompt: rendered token ids, or messages for an engine without Capability.TOKENS.
    choice: the reply must be one of these strings. json_schema: the reply must be JSON of this shape.
    top_logprobs: how many alternatives to return at each position.
    """

    key: str
    prompt: Sequence[int] | tuple[Message, ...]
    sampling: Sampling
    seed: int
    choice: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    top_logprobs: int = 0

    @property
    def prompt_ids(self) -> Sequence[int]:
        """The rendered prompt, for an engine with Capability.TOKENS."""
        assert not self.prompt or isinstance(self.prompt[0], int), "a stage renders for this engine"
        return cast(Sequence[int], self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A completion.

    text: without special tokens. thinking: a reasoning model's, where the server keeps it apart from
    the text itself. token_ids, logprobs: of equal length, EOS included when it was
    sampled; None where the engine has none. top_logprobs: for each position, token text → logprob.
    """

    key: str
    text: str
    token_ids: Sequence[int] | None
    logprobs: Sequence[float] | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    top_logprobs: Sequence[dict[str, float]] = ()
    usage: dict[str, int] = field(default_factory=dict)
    thinking: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Score token_ids[start:] given what precedes; 1 <= start < len(token_ids)."""

    key: str
    token_ids: Sequence[int]
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Raw natural log-probabilities of token_ids[start:], temperature 1."""

    key: str
    logprobs: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRequest:
    """Reward of a whole sequence by a sequence-classification model with one label."""

    key: str
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded:
    """The raw score of the head, no activation applied."""

    key: str
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A request that the engine answered with no: this row's failure, not the run's.

    transient: it might be answered another time (a server that was too busy), so it is not recorded
    and a rerun asks again.
    """

    key: str
    reason: str
    transient: bool = False


class Tokenizer(Protocol):
    """Text to token ids and back; untrusted text never becomes a special token."""

    @property
    def version(self) -> str:
        """Hash of vocabulary and chat template."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends an assistant's turn: what the chat template puts after it, else EOS."""
        ...

    @property
    def has_chat_template(self) -> bool: ...

    def chat_ids(self, messages: Sequence[Message], **template_args: Any) -> list[int]:
        """Ids of a conversation by the chat template, ready for the assistant's turn.

        Special tokens come from the template alone: in a message they stay text.
        """
        ...

    def text_ids(self, text: str) -> list[int]:
        """Ids of untrusted text alone: no BOS, no special tokens."""
        ...

    def begins_thinking(self, text: str) -> bool:
        """Whether a turn begins with thinking between tags that there are tokens for."""
        ...

    def answer_ids(self, text: str, *, opened: bool = False) -> list[int]:
        """Ids of an assistant's turn without what ends it: as `text_ids`, but for the tags of its thinking.

        opened: the prompt ended with the opening tag, which is not repeated.
        """
        ...

    def span_ids(self, context: str, target: str) -> tuple[list[int], int]:
        """Ids of context + target tokenised together (with BOS where the tokenizer has one), and
        where the target's span starts: the first token that holds any of its text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        ...


class Engine(Protocol):
    """A model that samples, scores or rewards.

    model: as the user named it. weights: version of its weights, adapter included. dtype: of its
    arithmetic, "" where it is not known. context: the longest sequence in tokens, prompt and
    completion together.
    """

    name: str
    model: str
    weights: str
    dtype: str
    context: int
    capabilities: frozenset[Capability]

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises CapabilityError without Capability.TOKENS."""
        ...

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]: ...

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored | Refused]: ...

    def reward(self, requests: Iterable[RewardRequest]) -> Iterator[Rewarded | Refused]: ...

    def load_weights(self, path: str) -> None:
        """Swaps in the weights of a model directory of the same architecture; caches are reset and
        `weights` changes."""
        ...

    def close(self) -> None:
        """Frees the model. Idempotent."""
        ...


def require(engine: Engine, *needed: Capability, task: str) -> None:
    """Raises CapabilityError when `engine` lacks any of `needed` for `task`."""
    has, where = engine.capabilities, f"model {engine.model}"
    missing = [c.value for c in needed if c not in has]
    if Capability.REWARD in needed and missing:
        raise CapabilityError(
            f"gives no rewards, which {task} needs", where=where,
            hint="A reward model is a sequence-classification model, such as gavel train reward makes; "
            "a language model judges by another --method.",
        )  # fmt: skip
    if missing and Capability.REWARD in has and Capability.SAMPLE not in has:
        raise CapabilityError(
            f"is a reward model, and {task} needs a language model", where=where,
            hint="Give another model; a reward model judges with --method reward.",
        )  # fmt: skip
    if missing:
        raise CapabilityError(
            f"the {engine.name} engine cannot {', '.join(missing)}, which {task} needs", where=where,
            hint="Choose another engine with --engine (vllm can do all that its model can).",
        )  # fmt: skip
