"""The prompts of all rounds and those held out from them, fixed once for a run.

ROOT/prompts.jsonl holds those that rounds sample from, in the order in which they are taken;
ROOT/held_out.jsonl those of the evaluation. The source is read once: it may change or go away afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gavel.command import say
from gavel.engines import EngineConfig
from gavel.errors import InputError, RowError
from gavel.records import Prompt, encode
from gavel.rundir import read_records, write_atomic
from gavel.sources import read_prompts
from generate.stage import check_room
from rounds import ledger
from rounds.config import PromptsConfig
from rounds.ledger import Made

_POOL, _HELD_OUT = "prompts.jsonl", "held_out.jsonl"


@dataclass(frozen=True)
class Pool:
    """rounds: what rounds take, in order. held_out: what none of them does."""

    rounds: Sequence[Prompt]
    held_out: Sequence[Prompt]

    @staticmethod
    def settings(config: PromptsConfig, seed: int) -> dict[str, Any]:
        """What decides which prompts there are, and their order."""
        return {
            "source": config.source,
            "held_out": config.held_out,
            "held_out_source": config.held_out_source,
            "map": dict(config.mapping),
            "seed": seed if config.shuffle else None,
        }

    @classmethod
    def draw(cls, given: PromptsConfig, seed: int, policy: EngineConfig) -> Pool:
        """Reads the sources. Prompts that the policy cannot take count as rows that cannot be used.

        Raises InputError where they cannot be read or hold too few prompts.
        """
        check = _fitting(policy)
        prompts = _read(given.source, given, check)
        if given.shuffle:
            random.Random(seed).shuffle(prompts)
        apart = prompts if given.held_out_source is None else _read(given.held_out_source, given, check)
        held_out = _first_unlike(apart, given.held_out)
        asked = set(map(_question, held_out))
        kept = [prompt for prompt in prompts if _question(prompt) not in asked]
        again = len(prompts) - len(kept) - (len(held_out) if apart is prompts else 0)
        if not kept:
            few = f"{len(prompts):,} prompts, {len(held_out):,} of them held out, leave none"
            raise InputError(few, where=f"[prompts], held_out ({given.source})")
        if again:
            say(f"prompts left out of the rounds because the same is asked in held-out ones: {again:,}")
        return cls(kept, held_out)

    def take_in(self, root: Path) -> Made:
        """Writes them down."""
        for name, prompts in ((_POOL, self.rounds), (_HELD_OUT, self.held_out)):
            write_atomic(root / name, b"".join(map(encode, prompts)))
        output = ledger.content_of(root / _POOL, root / _HELD_OUT)
        return Made(output, {"prompts": len(self.rounds), "held_out": len(self.held_out)})

    @classmethod
    def read(cls, root: Path, content: str) -> Pool:
        """Those of a run. content: what `take_in` came to. Raises InputError where they are others by now."""
        paths = [root / name for name in (_POOL, _HELD_OUT)]
        if not all(path.exists() for path in paths) or ledger.content_of(*paths) != content:
            raise InputError(
                f"{_POOL} or {_HELD_OUT} is no longer what the run took in", where=str(root),
                hint="Put it back, or begin another run with a new --out: all rounds share the prompts.",
            )  # fmt: skip
        return cls(*(list(read_records(path, Prompt)) for path in paths))

    def check(self, config: PromptsConfig, rounds: int) -> None:
        """Raises InputError where they do not suffice for all rounds."""
        if config.per_round is None:
            return
        wanted = config.per_round * (1 if config.reuse else rounds)
        if len(self.rounds) < wanted:
            times = "" if config.reuse else f"{rounds} rounds of "
            there = f"{len(self.rounds):,} there are"
            if config.held_out_source is None:
                there += f" beside the {len(self.held_out):,} held out"
            raise InputError(
                f"{times}{config.per_round:,} prompts are more than the {there}",
                where="[prompts], per_round", hint="Lower it, or set reuse = true.",
            )  # fmt: skip

    def of_round(self, number: int, config: PromptsConfig) -> Sequence[Prompt]:
        """A round's prompts. number: from 1."""
        if config.per_round is None:
            return self.rounds
        start = 0 if config.reuse else (number - 1) * config.per_round
        return self.rounds[start : start + config.per_round]


def _question(prompt: Prompt) -> bytes:
    """What a policy sees of a prompt: ids and reference answers may differ where nothing else does."""
    return msgspec.json.encode(prompt.messages)


def _first_unlike(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first so many prompts that ask different things."""
    found: dict[bytes, Prompt] = {}
    for prompt in prompts:
        if len(found) == count:
            break
        found.setdefault(_question(prompt), prompt)
    return list(found.values())


def _read(source: str, config: PromptsConfig, check: Callable[[Prompt], None]) -> list[Prompt]:
    bad, found = config.bad_rows(), []
    try:
        for prompt in read_prompts(source, config.mapping, bad):
            try:
                check(prompt)
            except RowError as error:
                bad.add(RowError(error.what, where=f"prompt {prompt.id}"))
            else:
                found.append(prompt)
    except InputError as error:
        if error.hint and "--map" in str(error):
            error.hint += ' Here it is a key of [prompts]: map = {prompt = "COLUMN"}.'
        raise
    bad.check()
    return found


def _fitting(policy: EngineConfig) -> Callable[[Prompt], None]:
    """A check that raises RowError for a prompt which leaves the policy no token to answer with; none for a
    fake policy without tokenizer."""
    kind = policy.resolved()
    if kind == "fake" and policy.tokenizer is None:
        return lambda prompt: None
    from gavel.tokenizer import HfTokenizer
    from train.models import context_of

    tokenizer = HfTokenizer.load(policy.tokenizer_path, trust_remote_code=policy.trust_remote_code,
                                 template_args=policy.template_args)  # fmt: skip
    context = policy.context or (
        context_of(policy.model, policy.trust_remote_code) if kind != "fake" else None
    )

    def check(prompt: Prompt) -> None:
        if context is not None:
            check_room(len(tokenizer.chat_ids(prompt.messages)), context)

    return check
