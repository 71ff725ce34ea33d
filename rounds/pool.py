"""The prompts of all rounds and those held out from them, fixed once for a run.

ROOT/prompts.jsonl holds those that rounds sample from, in the order in which they are taken;
ROOT/held_out.jsonl those of the evaluation. The source is read once: it may change or go away afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gavel.command import say
from gavel.errors import InputError
from gavel.records import Prompt, content_of, encode
from gavel.rows import BadRows
from gavel.rundir import read_records, write_atomic
from gavel.sources import read_prompts
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
    def draw(cls, config: PromptsConfig, seed: int) -> Pool:
        """Reads the sources. Raises InputError where they cannot be read or hold too few prompts."""
        prompts = _read(config.source, config)
        if config.shuffle:
            random.Random(seed).shuffle(prompts)
        if config.held_out_source is None:
            if len(prompts) <= config.held_out:
                few = f"{len(prompts):,} prompts, {config.held_out:,} of them held out, leave none"
                raise InputError(few, where=f"[prompts], held_out ({config.source})")  # fmt: skip
            return cls(prompts[config.held_out :], prompts[: config.held_out])
        held_out = _read(config.held_out_source, config)[: config.held_out]
        asked = {content_of(prompt) for prompt in held_out}
        kept = [prompt for prompt in prompts if content_of(prompt) not in asked]
        if len(kept) < len(prompts):
            say(f"prompts left out of the rounds because they are held out: {len(prompts) - len(kept):,}")
        return cls(kept, held_out)

    @classmethod
    def take_in(cls, root: Path, config: PromptsConfig, seed: int, rounds: int) -> Made:
        """Writes them down."""
        pool = cls.draw(config, seed)
        pool.check(config, rounds)
        for name, prompts in ((_POOL, pool.rounds), (_HELD_OUT, pool.held_out)):
            write_atomic(root / name, b"".join(map(encode, prompts)))
        output = ledger.content_of(root / _POOL, root / _HELD_OUT)
        return Made(output, {"prompts": len(pool.rounds), "held_out": len(pool.held_out)})

    @classmethod
    def read(cls, root: Path) -> Pool:
        return cls(*(list(read_records(root / name, Prompt)) for name in (_POOL, _HELD_OUT)))

    def check(self, config: PromptsConfig, rounds: int) -> None:
        """Raises InputError where they do not suffice for all rounds."""
        if config.per_round is None:
            return
        wanted = config.per_round * (1 if config.reuse else rounds)
        if len(self.rounds) < wanted:
            times = "" if config.reuse else f"{rounds} rounds of "
            raise InputError(
                f"{times}{config.per_round:,} prompts are more than the {len(self.rounds):,} there are",
                where="[prompts], per_round", hint="Lower it, or set reuse = true.",
            )  # fmt: skip

    def of_round(self, number: int, config: PromptsConfig) -> Sequence[Prompt]:
        """A round's prompts. number: from 1."""
        if config.per_round is None:
            return self.rounds
        start = 0 if config.reuse else (number - 1) * config.per_round
        return self.rounds[start : start + config.per_round]


def _read(source: str, config: PromptsConfig) -> list[Prompt]:
    bad = BadRows(config.max_bad_rows)
    found = list(read_prompts(source, config.mapping, bad))
    bad.check()
    return found
