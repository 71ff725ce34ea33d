"""The rows of an export in each format: the one place that knows the columns that trainers read."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

from gavel.records import Completion, PreferencePair, Prompt
from gavel.rundir import Index, RunDir
from gavel.scores import distinct_prompts

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

_BATCH = 1000  # rows written at a time


class Format(StrEnum):
    """The columns of an export."""

    TRL = "trl"
    KTO = "kto"
    REWARD = "reward"


class Count:
    """Passes rows on and counts them."""

    def __init__(self, source: Iterable[Row]) -> None:
        self._source, self.seen = source, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            self.seen += 1
            yield row

    def batches(self) -> Iterator[list[Row]]:
        source = iter(self)
        while batch := list(islice(source, _BATCH)):
            yield batch


def rows(run: RunDir, name: str, export_format: Format) -> Iterator[Row]:
    """The rows of an export in the order of the prompts."""
    as_rows = {Format.TRL: _trl_rows, Format.KTO: _kto_rows, Format.REWARD: _reward_rows}[export_format]
    with (
        contextlib.closing(Index(run.pairs_path(name))) as all_pairs,
        contextlib.closing(Index(run.completions_path)) as completions,
    ):
        for prompt in distinct_prompts(run):
            pairs = all_pairs.read(prompt.id, PreferencePair)
            if pairs:
                texts = {c.id: c.text for c in completions.read(prompt.id, Completion)}
                yield from as_rows(prompt, pairs, texts)


def _trl_rows(prompt: Prompt, pairs: list[PreferencePair], texts: dict[str, str]) -> Iterator[Row]:
    messages = _messages(prompt)
    for pair in pairs:
        chosen, rejected = _answer(texts[pair.chosen_id]), _answer(texts[pair.rejected_id])
        yield {"prompt": messages, "chosen": chosen, "rejected": rejected, **_facts(pair)}


def _reward_rows(prompt: Prompt, pairs: list[PreferencePair], texts: dict[str, str]) -> Iterator[Row]:
    messages = _messages(prompt)
    for pair in pairs:
        chosen, rejected = _answer(texts[pair.chosen_id]), _answer(texts[pair.rejected_id])
        yield {"chosen": messages + chosen, "rejected": messages + rejected, **_facts(pair)}


def _kto_rows(prompt: Prompt, pairs: list[PreferencePair], texts: dict[str, str]) -> Iterator[Row]:
    """Each completion once: one that won some pairs and lost others must not carry both labels."""
    won: Counter[str] = Counter()
    scores: dict[str, float] = {}
    for pair in pairs:
        won[pair.chosen_id] += 1
        won[pair.rejected_id] -= 1
        scores |= {pair.chosen_id: pair.chosen_score, pair.rejected_id: pair.rejected_score}
    messages = _messages(prompt)
    for completion_id, balance in won.items():
        if balance:
            yield {
                "prompt": messages,
                "completion": _answer(texts[completion_id]),
                "label": balance > 0,
                "prompt_id": prompt.id,
                "completion_id": completion_id,
                "score": scores[completion_id],
            }


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _facts(pair: PreferencePair) -> Row:
    fields = ("prompt_id", "chosen_id", "rejected_id", "margin", "p_chosen", "chosen_score", "rejected_score")
    return {field: getattr(pair, field) for field in fields}


def schema(export_format: str) -> pa.Schema:
    """Arrow schema of an export."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    ids = [(name, pa.string()) for name in ("prompt_id", "chosen_id", "rejected_id")]
    numbers = [(name, pa.float64()) for name in ("margin", "p_chosen", "chosen_score", "rejected_score")]
    columns = {
        "trl": [("prompt", messages), ("chosen", messages), ("rejected", messages), *ids, *numbers],
        "kto": [
            ("prompt", messages),
            ("completion", messages),
            ("label", pa.bool_()),
            ("prompt_id", pa.string()),
            ("completion_id", pa.string()),
            ("score", pa.float64()),
        ],
        "reward": [("chosen", messages), ("rejected", messages), *ids, *numbers],
    }
    return pa.schema(columns[export_format])
