"""The sampling stage: prompts of a run directory to completions.

`take_in` reads a source whole and records its prompts; `generate` renders, samples and appends.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gavel.command import say
from gavel.errors import CheckFailed, RowError
from gavel.packed import pack_ids, pack_logprobs
from gavel.progress import Progress
from gavel.protocols import Capability, Engine, Refused, Sampled, SampleRequest, require
from gavel.records import Completion, Prompt, Sampling, digest, seed_for
from gavel.rundir import JsonlWriter, RunDir, count_lines, read_records
from gavel.sources import BadRows
from gavel.thinking import DEFAULT, Tags, split_thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """n: completions per prompt. seed: of the run; each request's own is `records.seed_for`."""

    n: int = 8
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    tags: Tags = DEFAULT


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request in flight needs to become a Completion."""

    prompt_id: str
    prompt_hash: str
    index: int
    seed: int
    opened: bool


def take_in(run: RunDir, read: Callable[[BadRows], Iterable[Prompt]], bad: BadRows) -> list[str]:
    """Records prompts that the run does not hold yet; returns the ids of all that were given.

    The source is read twice: nothing is written before all of it was seen, so bad input changes
    nothing.

    Args:
        read: starts to read the source.

    Raises InputError when the run holds another prompt under the same given id, or too many rows
    cannot be used.
    """
    known = run.known_prompts()
    ids = []
    for prompt in read(bad):
        ids.append(prompt.id)
        run.refuse_other(known, prompt)
    bad.check()
    with JsonlWriter(run.prompts_path) as writer:
        for prompt in read(BadRows.quiet()):
            if prompt.id not in known:
                writer.append(prompt)
    return ids


def generate(
    run: RunDir,
    engine: Engine,
    config: GenerateConfig,
    *,
    ids: Iterable[str] | None = None,
    bad: BadRows | None = None,
    places: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Samples what the run does not hold yet and returns a summary; arguments and errors as `stream`."""
    sampling = stream(run, engine, config, ids=ids, bad=bad, places=places)
    while True:
        try:
            next(sampling)
        except StopIteration as done:
            summary: dict[str, Any] = done.value
            return summary


def stream(
    run: RunDir,
    engine: Engine,
    config: GenerateConfig,
    *,
    ids: Iterable[str] | None = None,
    bad: BadRows | None = None,
    places: Mapping[str, str] | None = None,
) -> Generator[Completion, None, dict[str, Any]]:
    """Samples what the run does not hold yet, yields each completion once it is recorded, returns a summary.

    Args:
        run: open for writing, with prompts taken in.
        engine: must sample; with token ids and log-probabilities the completions can be trained on
            exactly.
        ids: the prompts to sample for, None for all of the run.
        bad: counts prompts that cannot be sampled (longer than the context, say).
        places: prompt id → where it stands in its source, for messages.

    Raises:
        CapabilityError: the engine cannot sample.
        InputError: more unusable prompts than `bad` allows.
        CheckFailed: the engine refused every request.
    """
    require(engine, Capability.SAMPLE, task="gavel generate")
    started = time.monotonic()
    wanted = None if ids is None else set(ids)
    done = run.ids(run.completions_path)
    prompts = (p for p in read_records(run.prompts_path, Prompt) if wanted is None or p.id in wanted)
    total = len(wanted) if wanted is not None else count_lines([run.prompts_path])
    bad = bad if bad is not None else BadRows()
    asked: dict[str, _Asked] = {}
    counts: Counter[str] = Counter()

    def todo() -> Iterator[SampleRequest]:
        for prompt in prompts:
            try:
                ask = _requests(prompt, engine, config)
            except RowError as error:
                bad.add(RowError(error.what, where=(places or {}).get(prompt.id, f"prompt {prompt.id}")))
                bad.check(max(bad.total, total))
                counts["prompts skipped"] += 1
                continue
            for request, about in ask:
                if request.key in done:
                    counts["reused"] += 1
                    progress.advance()
                    continue
                asked[request.key] = about
                yield request

    run.reopen_stage("generate")
    with JsonlWriter(run.completions_path) as writer, Progress("sampling", total * config.n) as progress:
        for reply in engine.sample(todo()):
            about = asked.pop(reply.key)
            progress.advance()
            if isinstance(reply, Refused):
                counts["failed"] += 1
                _report(about.prompt_id, reply.reason, counts["failed"])
                continue
            completion = _completion(reply, about, engine, config)
            writer.append(completion)
            counts["sampled"] += 1
            counts["tokens"] += len(reply.token_ids or ())
            counts["cut off"] += reply.finish_reason == "length"
            yield completion
    summary = _summary(counts, total, time.monotonic() - started, engine, config)
    run.finish_stage("generate", summary)
    if counts["failed"] and not counts["sampled"] + counts["reused"]:
        raise CheckFailed("every request failed", where=f"model {engine.model}")
    return summary


def check_room(size: int, context: int) -> None:
    """Raises RowError for a prompt of so many tokens that leaves no token to answer with."""
    if size >= context:
        raise RowError(f"longer than the context: {size:,} tokens, {context:,} allowed")


def _requests(prompt: Prompt, engine: Engine, config: GenerateConfig) -> list[tuple[SampleRequest, _Asked]]:
    """One request per completion index. Raises RowError for a prompt that does not fit."""
    opened = False
    if Capability.TOKENS in engine.capabilities:
        rendered: Any = engine.tokenizer.chat_ids(prompt.messages)
        check_room(len(rendered), engine.context)
        prompt_hash = digest("prompt_ids", rendered)
        opened = engine.tokenizer.decode(rendered[-8:]).rstrip().endswith(config.tags.open)
        tokenizer = engine.tokenizer.version
    else:
        rendered, prompt_hash, tokenizer = prompt.messages, None, None
    # a context that cuts the answer short shapes it, one that leaves it room does not
    room = min(config.sampling.max_tokens, engine.context - len(rendered) if tokenizer else engine.context)
    shape = (engine.weights, engine.dtype, tokenizer, config.sampling, room, config.tags)
    basis = digest(shape, prompt_hash or prompt.messages, prompt.id)
    pairs = []
    for index in range(config.n):
        seed = seed_for(config.seed, prompt.id, index)
        key = digest("completion", basis, index, seed)
        request = SampleRequest(key=key, prompt=rendered, sampling=config.sampling, seed=seed)
        pairs.append((request, _Asked(prompt.id, prompt_hash or "", index, seed, opened)))
    return pairs


def _completion(reply: Sampled, about: _Asked, engine: Engine, config: GenerateConfig) -> Completion:
    thinking, text = reply.thinking, reply.text
    if thinking is None:
        thinking, text = split_thinking(text, config.tags, opened=about.opened)
    has_tokens = reply.token_ids is not None
    return Completion(
        id=reply.key,
        prompt_id=about.prompt_id,
        index=about.index,
        text=text,
        thinking=thinking,
        token_ids=pack_ids(reply.token_ids) if reply.token_ids is not None else None,
        prompt_hash=about.prompt_hash if has_tokens else None,
        logprobs=pack_logprobs(reply.logprobs) if reply.logprobs is not None else None,
        logprobs_mode=config.sampling.logprobs_mode if reply.logprobs is not None else None,
        logprob_sum=sum(reply.logprobs) if reply.logprobs is not None else None,
        finish_reason=reply.finish_reason,
        stop_reason=reply.stop_reason,
        model=engine.model,
        weights=engine.weights,
        sampling=config.sampling,
        seed=about.seed,
    )


def _summary(
    counts: Counter[str], prompts: int, seconds: float, engine: Engine, config: GenerateConfig
) -> dict[str, Any]:
    sampled = counts["sampled"]
    return {
        "prompts": prompts,
        "completions": sampled + counts["reused"],
        "sampled": sampled,
        "reused": counts["reused"],
        "prompts_skipped": counts["prompts skipped"],
        "failed": counts["failed"],
        "cut_off": counts["cut off"],
        "tokens": counts["tokens"],
        "seconds": round(seconds, 2),
        "tokens_per_second": round(counts["tokens"] / seconds, 1) if seconds else 0.0,
        "model": engine.model,
        "weights": engine.weights,
        "n": config.n,
        "seed": config.seed,
        "sampling": msgspec.to_builtins(config.sampling),
    }


def _report(prompt_id: str, reason: str, so_far: int) -> None:
    if so_far <= 20:
        say(f"prompt {prompt_id}: {reason}")
