"""Replies written by someone who set out to mislead the reader, each with what a careful person reads.

A row may accept other outcomes beside the expected one; `unread` marks a plain verdict that the reader
is known to miss. No row may ever be read as a verdict that nobody gave.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gavel.templates import load
from judge.recorded import read_verdict
from judge.replies import Reading, read_json_label, read_json_rating, read_label, read_ranking, read_rating

ROWS = [json.loads(line) for line in Path(__file__).with_name("reply_probes.jsonl").open()]
ABC = ("A", "B", "C")


def label(labels: tuple[str, ...], preset: str | None = None) -> Callable[..., Reading[Any]]:
    pattern = load("pairwise", preset).texts["pattern"] if preset else None
    return partial(read_label, labels=labels, pattern=pattern)


def rating(high: int, preset: str | None = None) -> Callable[..., Reading[Any]]:
    pattern = load("rating", preset).texts["pattern"] if preset else None
    return partial(read_rating, low=1, high=high, pattern=pattern)


READERS: dict[str, Callable[..., Reading[Any]]] = {
    "mt": label(ABC, "mt-bench"),
    "prom": label(("A", "B"), "prometheus"),
    "llm": label(("a", "b"), "llmbar"),
    "dflt": label(ABC, "default"),
    "bare": label(ABC),
    "mM": label(("m", "M")),
    "json": partial(read_json_label, field="verdict", labels=ABC),
    "rmt": rating(10, "mt-bench"),
    "rdflt": rating(5, "single"),
    "rprom": rating(5, "prometheus"),
    "rbare": rating(5),
    "rjson": partial(read_json_rating, field="rating", low=1, high=5),
    "rank": partial(read_ranking, labels=ABC),
    "rec": partial(read_verdict, rule="last"),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}: {row['reply'][:60]}")
def test_probe(row: dict[str, Any]) -> None:
    shown = [row["shown"]] if "shown" in row else []
    read = READERS[row["kind"]](row["reply"], quoted=shown).value
    found = json.loads(json.dumps(read))  # tuples as the file has them
    allowed = [row["expected"], *row.get("accepted", [])]
    if row.get("unread"):
        assert found is None, "it is read now: take the mark away"
    else:
        assert found in allowed
