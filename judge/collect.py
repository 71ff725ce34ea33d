"""The one loop that asks a judge: engine calls, resume, failures and records for every method."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from gavel.command import say
from gavel.errors import InputError, RowError
from gavel.packed import pack_logprobs
from gavel.protocols import Capability, Engine, Refused, Sampled, SampleRequest, Tokenizer, require
from gavel.records import Completion, Judgment, Message, Prompt, content_of, digest
from gavel.rundir import read_lines
from judge.method import Call, Item, Method, OwnMethod, Reply, Request, Verdict

_SAID = 20  # failures named one by one; the rest is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where to stop asking: after so many calls, or before a call that would take the prompt tokens
    over so many; None for no limit. What is left is asked when the same command runs again."""

    calls: int | None = None
    tokens: int | None = None

    def after(self, counts: Counter[str]) -> Limits:
        """What is left of them when so much was asked."""
        return Limits(
            calls=None if self.calls is None else self.calls - counts["calls"],
            tokens=None if self.tokens is None else self.tokens - counts["tokens"],
        )

    def reached(self, counts: Counter[str], more_calls: int, more_tokens: int) -> bool:
        return (self.calls is not None and counts["calls"] + more_calls > self.calls) or (
            self.tokens is not None and counts["tokens"] + more_tokens > self.tokens
        )


UNLIMITED = Limits()


@dataclass(slots=True)
class _Open:
    """An item whose replies are still coming. twins: what the same replies answer too: completions of
    the same text, and further aspects where one request asks about all."""

    item: Item
    key: str
    twins: list[tuple[str, Item]]
    replies: list[Reply | None]
    refused: Refused | None = None
    unasked: str | None = None  # why it could not be asked
    missing: int = 0
    usage: Counter[str] = field(default_factory=Counter)


def collect(
    groups: Iterable[tuple[Prompt, list[Completion]]],
    method: Method,
    engine: Engine,
    *,
    done: Mapping[str, str | None],
    record: Callable[[Judgment], None],
    progress: Callable[[int], None] = lambda count: None,
    judged: Callable[[str], Sequence[Judgment]] = lambda prompt_id: (),
    limits: Limits = UNLIMITED,
) -> Counter[str]:
    """Asks `engine` about every item that is not in `done` and records each judgment as it comes.

    An item that cannot be asked or answered becomes a judgment with a reason. Completions of one
    prompt with the same text are asked about once, and each gets a judgment of its own.

    Args:
        groups: prompts with their completions.
        done: ids of judgments that are recorded already, each with its reason if it is unusable.
        record: appends one judgment.
        progress: told how many items are settled.
        judged: the recorded judgments of a prompt, which an adaptive method goes on from.

    Returns: counts of "judged" and "reused" judgments, of "unusable" and "reused_unusable" ones among
        them, of "failed" ones that are not recorded and a rerun asks for again, of those "left" by the
        limits, and of engine "calls", prompt "tokens" and "completion_tokens".
    """
    require(engine, *method.needs, task=f"judging by {method.name}")
    tokenizer = tokenizer_of(engine)
    basis = digest(*identity(method, engine).values())
    counts: Counter[str] = Counter()
    pending: dict[str, _Open] = {}
    unasked: list[_Open] = []  # written by the loop below, never while requests are made

    def settle(entry: _Open) -> None:
        for key, item in [(entry.key, entry.item), *entry.twins]:
            verdict = _verdict(method, item, entry)
            name = key if entry.refused is None else _refusal(key, engine)
            record(_judgment(name, item, verdict, method, engine, entry, paid=key == entry.key))
            counts["judged"] += 1
            counts["unusable"] += verdict.reason is not None
            progress(1)

    def give_up(entry: _Open, reason: str) -> None:
        counts["failed"] += 1 + len(entry.twins)
        progress(1 + len(entry.twins))
        if counts["failed"] <= _SAID:
            say(f"prompt {entry.item.prompt.id}: no judgment, {reason}")

    def requests() -> Iterator[Any]:
        for prompt, completions in groups:
            for entry in _entries(
                prompt, completions, method, engine, basis, done, counts, progress, judged(prompt.id)
            ):
                try:
                    asked = method.render(entry.item, tokenizer)
                except RowError as error:
                    entry.unasked = error.what
                    unasked.append(entry)
                    continue
                if not asked:
                    unasked.append(entry)
                    continue
                sizes = [size_of(request) for request in asked]
                if counts["left"] or limits.reached(counts, len(asked), sum(sizes)):
                    counts["left"] += 1 + len(entry.twins)
                    continue
                entry.replies, entry.missing = [None] * len(asked), len(asked)
                pending[entry.key] = entry
                counts["calls"] += len(asked)
                if len(asked) > 1:
                    entry.usage["calls"] = len(asked)
                counts["tokens"] += sum(sizes)
                for number, (request, size) in enumerate(zip(asked, sizes, strict=True)):
                    entry.usage["prompt_tokens"] += size
                    yield replace(request, key=f"{entry.key}/{number}")

    call: Callable[[Iterable[Any]], Iterator[Any]] = getattr(engine, method.call.value)
    for reply in call(requests()) if method.needs else requests():
        key, number = reply.key.split("/")
        entry = pending[key]
        entry.missing -= 1
        if isinstance(reply, Refused):
            entry.refused = reply
        else:
            entry.replies[int(number)] = reply = _as_kept(reply)
            spent = reply.usage.get("completion_tokens", 0) if isinstance(reply, Sampled) else 0
            if spent:
                entry.usage["completion_tokens"] += spent
                counts["completion_tokens"] += spent
        if entry.missing == 0:
            del pending[key]
            if entry.refused is not None and entry.refused.transient:
                give_up(entry, entry.refused.reason)
            else:
                settle(entry)
        while unasked:
            settle(unasked.pop())
    while unasked:
        settle(unasked.pop())
    return counts


def tokenizer_of(engine: Engine) -> Tokenizer | None:
    """None for an engine that takes messages."""
    return engine.tokenizer if Capability.TOKENS in engine.capabilities else None


def identity(method: Method, engine: Engine) -> dict[str, str]:
    """What shapes every judgment of a method by an engine, whatever it is asked about."""
    tokenizer = tokenizer_of(engine)
    return {
        "method": method.name,
        "settings": method.fingerprint,
        "parser": method.parser,
        "weights": engine.weights,
        "dtype": engine.dtype,
        "tokenizer": tokenizer.version if tokenizer else "",
    }


class _Recorded(msgspec.Struct):
    """What `recorded` reads of a judgment."""

    id: str
    reason: str | None = None


def recorded(path: Path) -> dict[str, str | None]:
    """The ids of the judgments in a file, each with its reason if it is unusable: the resume index,
    about 180 bytes a record."""
    decoder = msgspec.json.Decoder(_Recorded)
    found = (decoder.decode(line) for _, _, line in read_lines(path))
    return {judgment.id: judgment.reason for judgment in found}


def _entries(
    prompt: Prompt,
    completions: list[Completion],
    method: Method,
    engine: Engine,
    basis: str,
    done: Mapping[str, str | None],
    counts: Counter[str],
    progress: Callable[[int], None],
    judged: Sequence[Judgment],
) -> list[_Open]:
    """What is still to be asked about one prompt, items that one request answers together."""
    content = content_of(prompt)
    entries: dict[tuple[Any, ...], _Open] = {}
    for item in method.items(prompt, completions, judged):
        key = judgment_id(basis, method, item, content)
        request = ("" if method.one_prompt else item.aspect, item.texts, _read_as(method, item))
        if (known := key if key in done else _refusal(key, engine)) in done:
            counts["reused"] += 1
            counts["reused_unusable"] += done[known] is not None
            progress(1)
        elif (same := entries.get(request)) is not None:
            same.twins.append((key, item))
        else:
            entries[request] = _Open(item, key, [], [])
    return list(entries.values())


def _read_as(method: Method, item: Item) -> tuple[Any, ...]:
    """What a method reads of completions beside their texts: whether there is an end to score; a reward model
    the ids that were sampled."""
    if method.call is Call.SCORE:
        return tuple(c.finish_reason == "length" for c in item.completions)
    if method.call is not Call.REWARD:
        return ()
    return tuple((c.token_ids, c.prompt_hash, c.finish_reason) for c in item.completions)


def judgment_id(basis: str, method: Method, item: Item, content: str | None = None) -> str:
    """The content address of a judgment. basis: digest of `identity`'s values; content: of the prompt."""
    content = content or content_of(item.prompt)
    ids = [c.id for c in item.completions]
    return digest("judgment", basis, method.template(item.aspect), item.aspect, content, item.texts, ids)


def _refusal(key: str, engine: Engine) -> str:
    """The id of a judgment that the engine refused: most often the text was too long for its context, so
    another context asks again."""
    return digest("refused", key, engine.context)


def _as_kept(reply: Reply) -> Reply:
    """A reply with its likeliest tokens as a record keeps them, so that reading it again reads the same."""
    if not isinstance(reply, Sampled) or not reply.top_logprobs:
        return reply
    return replace(reply, top_logprobs=[{token: round(lp, 6) for token, lp in reply.top_logprobs[0].items()}])


def _verdict(method: Method, item: Item, entry: _Open) -> Verdict:
    if entry.refused is not None or entry.unasked is not None:
        return Verdict(reason=entry.refused.reason if entry.refused else entry.unasked)
    return read(method, item, [r for r in entry.replies if r is not None])


def read(method: Method, item: Item, replies: Sequence[Reply]) -> Verdict:
    """What a method reads from replies; one that says nothing is a verdict with a reason.

    Raises InputError where a user's own method fails."""
    try:
        verdict = method.parse(item, replies)
    except RowError as error:
        return Verdict(reason=error.what)
    except Exception as error:
        if not isinstance(method, OwnMethod):
            raise
        raise InputError(
            f"its own code failed: {type(error).__name__}: {error}",
            where=f"method {method.name}, prompt {item.prompt.id}",
            hint="Raise gavel.errors.RowError where there is nothing to say.",
        ) from error
    numbers = [*verdict.measures.values(), *([] if verdict.score is None else [verdict.score])]
    if not all(map(math.isfinite, numbers)):
        return replace(
            verdict, verdict=None, score=None, measures={}, reason="the judge's numbers are not finite"
        )
    if verdict.verdict is None and verdict.score is None and verdict.reason is None:
        return replace(verdict, reason="no verdict")
    return verdict


def _judgment(
    key: str, item: Item, verdict: Verdict, method: Method, engine: Engine, entry: _Open, *, paid: bool
) -> Judgment:
    """paid: whether the usage stands here, of the judgments that one request answers."""
    reply = next((r for r in entry.replies if isinstance(r, Sampled)), None)
    top = reply.top_logprobs[0] if reply and reply.top_logprobs else {}
    return Judgment(
        id=key,
        prompt_id=item.prompt.id,
        completion_ids=tuple(c.id for c in item.completions),
        method=method.name,
        aspect=item.aspect,
        judge=engine.model,
        weights=engine.weights,
        template=method.template(item.aspect),
        parser=method.parser,
        raw=reply.text if reply else None,
        verdict=verdict.verdict,
        score=verdict.score,
        measures=verdict.measures,
        reason=verdict.reason,
        logprobs=pack_logprobs(verdict.logprobs) if verdict.logprobs is not None else None,
        usage=dict(entry.usage) if paid else {},
        finish_reason=reply.finish_reason if reply else None,
        thinking=reply.thinking if reply else None,
        top_logprobs=top,
    )


def size_of(request: Request) -> int:
    """Prompt tokens of a request; of messages for a server, a guess of four characters each."""
    if not isinstance(request, SampleRequest):
        return len(request.token_ids)
    if request.prompt and isinstance(request.prompt[0], Message):
        return sum(len(m.content) for m in request.prompt if isinstance(m, Message)) // 4
    return len(request.prompt)
