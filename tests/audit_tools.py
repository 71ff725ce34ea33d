"""Rows to audit, and what a report says of them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prose(seed: object, words: int = 30) -> str:
    """Made-up words drawn by a seed: texts of two seeds share next to nothing."""
    draw = random.Random(str(seed))
    return " ".join("".join(draw.choices("abdefgiklmnoprstuz", k=draw.randint(3, 9))) for _ in range(words))


def clean(i: int) -> dict[str, Any]:
    """A row with no fault; of an odd row the longer text is chosen."""
    return {"prompt": prose(("p", i), 15), "chosen": prose(("c", i), 40)[: 150 + 10 * (i % 2)],
            "rejected": prose(("r", i), 40)[:155]}  # fmt: skip


def ab(i: int, label: Any) -> dict[str, Any]:
    row = clean(i)
    return {
        "prompt": row["prompt"],
        "response_a": row["chosen"],
        "response_b": row["rejected"],
        "label": label,
    }


def writer(folder: Path) -> Callable[..., str]:
    """Writes rows, or lines as they are, to a file of the folder."""

    def made(*rows: Any, name: str = "pairs.jsonl") -> str:
        path = folder / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return str(path)

    return made


def found(report: dict[str, Any], *names: str) -> dict[str, int | None]:
    return {name: report["findings"][name]["count"] for name in names or report["findings"]}


def places(report: dict[str, Any], name: str) -> list[list[str]]:
    return [[place.rpartition(":")[2] for place in group] for group in report["findings"][name]["places"]]
