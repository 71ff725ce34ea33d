"""The one loop that asks a judge: engine calls, resume, failures and records for every method."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from gavel.command import say
from gavel.errors import RowError
from gavel.packed import pack_logprobs
from gavel.protocols import Engine, Refused, require
from gavel.records import Completion, Judgment, Prompt, digest
from gavel.rundir import read_lines
from judge.method import Item, Method, Reply, Request, Verdict

_SAID = 20  # failures named one by one; the rest is counted


@dataclass(slots=True)
class _Open:
    """An item whose replies are still coming. twins: completions of the same text, judged with it."""

    item: Item
    key: str
    twins: list[tuple[str, Item]]
    replies: list[Reply | None]
    refused: Refused | None = None
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
) -> Counter[str]:
    """Asks `engine` about every item that is not in `done` and records each judgment as it comes.

    An item that cannot be asked or answered becomes a judgment with a reason. Completions of one
    prompt with the same text are asked about once, and each gets a judgment of its own.

    Args:
        groups: prompts with their completions.
        done: ids of judgments that are recorded already, each with its reason if it is unusable.
        record: appends one judgment.
        progress: told how many items are settled.

    Returns: counts of "judged" and "reused" judgments, of "unusable" ones among both, of "failed" ones
        that are not recorded and a rerun asks for again, and of engine "calls" and "tokens".
    """
    require(engine, *method.needs, task=f"judging by {method.name}")
    tokenizer = engine.tokenizer
    basis = digest(*identity(method, engine).values())
    counts: Counter[str] = Counter()
    pending: dict[str, _Open] = {}
    unasked: list[tuple[_Open, Verdict]] = []  # written by the loop below, never while requests are made

    def settle(entry: _Open, verdict: Verdict) -> None:
        for key, item in [(entry.key, entry.item), *entry.twins]:
            usage = dict(entry.usage) if key == entry.key else {}
            name = key if entry.refused is None else _refusal(key, engine)
            record(_judgment(name, item, verdict, method, engine, usage))
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
            for entry in _entries(prompt, completions, method, engine, basis, done, counts, progress):
                try:
                    asked = method.render(entry.item, tokenizer)
                except RowError as error:
                    unasked.append((entry, Verdict(reason=error.what)))
                    continue
                if not asked:
                    unasked.append((entry, _verdict(method, entry)))
                    continue
                entry.replies, entry.missing = [None] * len(asked), len(asked)
                pending[entry.key] = entry
                for number, request in enumerate(asked):
                    counts["calls"] += 1
                    counts["tokens"] += _size(request)
                    entry.usage["prompt_tokens"] += _size(request)
                    yield replace(request, key=f"{entry.key}/{number}")

    call: Callable[[Iterable[Any]], Iterator[Any]] = getattr(engine, method.call.value)
    for reply in call(requests()):
        key, number = reply.key.split("/")
        entry = pending[key]
        entry.missing -= 1
        if isinstance(reply, Refused):
            entry.refused = reply
        else:
            entry.replies[int(number)] = reply
        if entry.missing == 0:
            del pending[key]
            if entry.refused is not None and entry.refused.transient:
                give_up(entry, entry.refused.reason)
            else:
                settle(entry, _verdict(method, entry))
        while unasked:
            settle(*unasked.pop())
    while unasked:
        settle(*unasked.pop())
    return counts


def identity(method: Method, engine: Engine) -> dict[str, str]:
    """What shapes every judgment of a method by an engine, whatever it is asked about."""
    return {
        "method": method.name,
        "settings": method.fingerprint,
        "parser": method.parser,
        "weights": engine.weights,
        "dtype": engine.dtype,
        "tokenizer": engine.tokenizer.version,
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
) -> list[_Open]:
    """What is still to be asked about one prompt, items of the same texts together."""
    content = digest(prompt.messages, prompt.references)
    entries: dict[tuple[str, tuple[str, ...]], _Open] = {}
    for item in method.items(prompt, completions):
        texts = tuple(c.text for c in item.completions)
        ids = [c.id for c in item.completions]
        key = digest("judgment", basis, method.template(item.aspect), item.aspect, content, texts, ids)
        if (known := key if key in done else _refusal(key, engine)) in done:
            counts["reused"] += 1
            counts["unusable"] += done[known] is not None
            progress(1)
        elif (same := entries.get((item.aspect, texts))) is not None:
            same.twins.append((key, item))
        else:
            entries[item.aspect, texts] = _Open(item, key, [], [])
    return list(entries.values())


def _refusal(key: str, engine: Engine) -> str:
    """The id of a judgment that the engine refused: most often the text was too long for its context, so
    another context asks again."""
    return digest("refused", key, engine.context)


def _verdict(method: Method, entry: _Open) -> Verdict:
    if entry.refused is not None:
        return Verdict(reason=entry.refused.reason)
    try:
        verdict = method.parse(entry.item, [r for r in entry.replies if r is not None])
    except RowError as error:
        return Verdict(reason=error.what)
    numbers = [*verdict.measures.values(), *([] if verdict.score is None else [verdict.score])]
    if not all(map(math.isfinite, numbers)):
        return replace(verdict, score=None, measures={}, reason="the judge's numbers are not finite")
    if verdict.verdict is None and verdict.score is None and verdict.reason is None:
        return replace(verdict, reason="no verdict")
    return verdict


def _judgment(
    key: str, item: Item, verdict: Verdict, method: Method, engine: Engine, usage: dict[str, int]
) -> Judgment:
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
        raw=verdict.raw,
        verdict=verdict.verdict,
        score=verdict.score,
        measures=verdict.measures,
        reason=verdict.reason,
        logprobs=pack_logprobs(verdict.logprobs) if verdict.logprobs is not None else None,
        usage=usage,
    )


def _size(request: Request) -> int:
    return len(request.prompt if hasattr(request, "prompt") else request.token_ids)
