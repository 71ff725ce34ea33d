"""Prompt → Completion → Judgment → PreferencePair: the only types that cross a stage.

Every record is one JSON line that says what it is (``"record": "completion/1"``). An older version
is upgraded on read, a newer one and unknown fields are refused with file and line. Records are
frozen; ids are content hashes (`digest`), so the same work has the same name in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from gavel.errors import RowError, RunDirError

ID_BYTES = 12


def digest(*parts: Any) -> str:
    """A content hash: 24 hex digits of BLAKE2b over the JSON of `parts` (dict keys sorted)."""
    blob = msgspec.json.encode(parts, order="sorted")
    return hashlib.blake2b(blob, digest_size=ID_BYTES).hexdigest()


def seed_for(run_seed: int, prompt_id: str, index: int) -> int:
    """The seed of one request: a 31-bit hash of run seed, prompt and completion index.

    vLLM itself seeds child i with seed + i, so child 1 of seed 1 would repeat child 0 of seed 2.
    """
    return int(digest("seed", run_seed, prompt_id, index)[:8], 16) & 0x7FFFFFFF


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: str
    content: str


class Record(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="record",
):
    """Base of the four records."""

    id: str


class Prompt(Record, frozen=True, kw_only=True, tag="prompt/1"):
    """What is asked. Produced by `gavel.sources`, consumed by every stage.

    id: `prompt_id(messages, references)` unless the source gives one.
    references: reference answers, untrusted text like the rest.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a completion is sampled; names and defaults as in vLLM's SamplingParams.

    stop: stop strings. logprobs_mode: "raw" (temperature 1, what DPO's reference needs) or
    "processed" (of the distribution sampled from, what PPO's importance weight needs).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs_mode: str = "raw"

    def __post_init__(self) -> None:
        # msgspec omits a default that is the same object, and 1 is written otherwise than 1.0: equal
        # settings must have equal digests, wherever they came from
        for name, default in _SAMPLING_DEFAULTS.items():
            value = getattr(self, name)
            if value == default:
                msgspec.structs.force_setattr(self, name, default)
            elif isinstance(default, float):
                msgspec.structs.force_setattr(self, name, float(value))


_SAMPLING_DEFAULTS = {f.name: f.default for f in msgspec.structs.fields(Sampling)}


class Completion(Record, frozen=True, kw_only=True, tag="completion/1"):
    """One answer to a prompt. Produced by `generate`, consumed by `judge` and `train`.

    id: the content address of its request, or a hash of the text for outputs from elsewhere.
    token_ids: `pack_ids` of the sampled ids, EOS included when it was sampled; None for outputs
        from elsewhere, as are all token fields.
    prompt_hash: `digest` of the rendered prompt ids; a trainer renders again and compares.
    logprobs: `pack_logprobs`, one per token id, natural log. logprob_sum: their exact sum.
    text: the answer without special tokens and without the thinking.
    finish_reason: "stop" (EOS or stop string) or "length" (cut off); None if not known.
    weights: version of the weights, adapter included.
    """

    prompt_id: str
    index: int
    text: str
    token_ids: str | None = None
    prompt_hash: str | None = None
    logprobs: str | None = None
    logprobs_mode: str | None = None
    logprob_sum: float | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    thinking: str | None = None
    model: str | None = None
    weights: str | None = None
    sampling: Sampling | None = None
    seed: int | None = None
    metadata: dict[str, Any] = {}


class Judgment(Record, frozen=True, kw_only=True, tag="judgment/2"):
    """One question put to a judge and what came of it. Produced by `judge`.

    completion_ids: the completions in the order shown.
    aspect: what was asked about. template: hash of the template that asked.
    raw: the judge's reply as it came, None where a method reads log-probabilities only; with
        finish_reason, thinking and top_logprobs it is all that a parser reads.
    verdict: a parsed decision; of two completions "first", "second" or "tie", of more their places in
        the order shown, best first ("2 > 1 = 3"). score: a number for one completion, higher is better.
    measures: further numbers; of a comparison "p_first", the probability that the first is better.
    reason: why there is neither verdict nor score; such a judgment never becomes a pair.
    logprobs: `pack_logprobs` of the tokens used. top_logprobs: token text → logprob where a verdict
        was read from the likeliest tokens.
    """

    prompt_id: str
    completion_ids: tuple[str, ...]
    method: str
    aspect: str
    judge: str
    weights: str
    template: str
    parser: str
    raw: str | None = None
    verdict: str | None = None
    score: float | None = None
    measures: dict[str, float] = {}
    reason: str | None = None
    logprobs: str | None = None
    usage: dict[str, int] = {}
    finish_reason: str | None = None
    thinking: str | None = None
    top_logprobs: dict[str, float] = {}


class PreferencePair(Record, frozen=True, kw_only=True, tag="pair/1"):
    """One completion preferred to another. Produced by `judge.pairs`, consumed by `train`.

    margin: score of chosen minus score of rejected, > 0.
    p_chosen: probability that chosen is better, None where the method gives none.
    judgment_ids: the judgments that it rests on.
    """

    prompt_id: str
    chosen_id: str
    rejected_id: str
    margin: float
    chosen_score: float
    rejected_score: float
    p_chosen: float | None = None
    judgment_ids: tuple[str, ...] = ()


def prompt_id(messages: tuple[Message, ...], references: tuple[str, ...] = ()) -> str:
    """The id of a prompt that was given none."""
    return digest("prompt", messages, references)


def content_of(prompt: Prompt) -> str:
    """A hash of what a prompt says, whatever its id."""
    return digest(prompt.messages, prompt.references)


R = TypeVar("R", bound=Record)

_encoder = msgspec.json.Encoder()
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}

#: record name → {old version: function that turns its dict into the next version's}
UPGRADES: dict[str, dict[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "judgment": {1: lambda row: row}  # version 2 added the last three fields
}


def encode(record: Record) -> bytes:
    """One JSON line, newline included; a number that is not finite becomes null.

    Raises RowError for text that is not valid Unicode.
    """
    try:
        return _encoder.encode(record) + b"\n"
    except UnicodeEncodeError as error:
        raise RowError(f"text that is not valid Unicode ({error.reason})", where=record.id) from None


def decode(line: bytes, kind: type[R], where: str) -> R:
    """Reads one line as a record of `kind`.

    Raises:
        RunDirError: of a newer version, with an unknown field or a wrong type; `where` is named.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        record: R = decoder.decode(line)
        return record
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        return _decode_other(line, kind, where, error)


def _decode_other(line: bytes, kind: type[R], where: str, error: Exception) -> R:
    """Upgrades an older version, explains anything else."""
    name, current = _tag(kind)
    try:
        row = msgspec.json.decode(line)
        tag = row["record"]
        found, _, number = tag.partition("/")
        version = int(number)
    except Exception:
        raise RunDirError(f"not a {name} record: {error}", where=where) from None
    if found != name:
        raise RunDirError(f"holds a {found} where a {name} is expected", where=where) from None
    if version > current:
        raise RunDirError(
            f"{name} of version {version}, this gavel reads up to {current}",
            where=where,
            hint="Update gavel to read it.",
        ) from None
    steps = UPGRADES.get(name, {})
    for old in range(version, current):
        if old not in steps:
            raise RunDirError(f"{name} of version {old} can no longer be read", where=where)
        try:
            row = steps[old](row)
        except (KeyError, TypeError, ValueError) as fault:
            raise RunDirError(f"not a valid {name} of version {old}: {fault!r}", where=where) from None
    row["record"] = f"{name}/{current}"
    try:
        return msgspec.convert(row, kind)
    except msgspec.ValidationError as again:
        raise RunDirError(f"not a valid {name} record: {again}", where=where) from None


def _tag(kind: type[Record]) -> tuple[str, int]:
    name, version = str(kind.__struct_config__.tag).split("/")
    return name, int(version)
