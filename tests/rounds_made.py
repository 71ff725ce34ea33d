"""Small configurations of rounds for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import Tiny


def write_prompts(path: Path, count: int, start: int = 0) -> Path:
    rows = [{"prompt": f"what is {i} and {i + 1}?"} for i in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def small_table(tiny: Tiny, folder: Path, engine: str = "fake", rounds: int = 3) -> dict[str, Any]:
    """Three rounds of eight prompts with real training of a tiny policy; by default engines are fake."""
    source = write_prompts(folder / "prompts.jsonl", 40)
    context = {"engine": engine, "max-model-len": 256}
    likelihood = {"method": "gptscore", "form": "direct", **context}
    fake = {"tokenizer": tiny.lm} if engine == "fake" else {}
    return {
        "rounds": rounds,
        "policy": {"model": tiny.lm, **context, **fake},
        "prompts": {"source": str(source), "per_round": 8, "held_out": 8},
        "sample": {"n": 4, "max-tokens": 16},
        "judge": {"model": tiny.other, **likelihood},
        "pairs": {"replay": 0.2},
        "train": {
            "reference": "previous",
            "batch-size": 4,
            "learning-rate": 1e-3,
            "save-steps": 1,
            "log-steps": 1,
        },
        "evaluate": {"pairs": 8, "judge": {"model": tiny.half, **likelihood}},
        "gates": {"defaults": False},
        "keep": {"every": 1},
    }
