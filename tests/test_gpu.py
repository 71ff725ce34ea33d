"""Training on a GPU; skipped where there is none."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from training_tools import planted, settings, steps_of, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.engine]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def rows(path: Path, count: int, kind: str) -> Path:
    """Pairs in which w5 is preferred, or what is preferred as demonstrations."""
    draw = random.Random(0)

    def words() -> str:
        return " ".join(f"w{draw.randrange(7, 35)}" for _ in range(draw.randrange(1, 7)))

    made = [{"prompt": words(), "chosen": f"w5 {words()}", "rejected": f"w6 {words()}"} for _ in range(count)]
    if kind == "sft":
        made = [{"instruction": row["prompt"], "output": row["chosen"]} for row in made]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize("kind", ["sft", "dpo", "dpo/lora", "reward"])
def test_a_gpu_takes_the_steps_of_a_cpu(kind: str, model: str, tmp_path: Path) -> None:
    """In float32, each in a process of its own."""
    data, steps = rows(tmp_path / "rows.jsonl", 64, kind), {}
    trainer, _, lora = kind.partition("/")
    for device in ("", "0"):
        out = tmp_path / (device or "cpu")
        command = [sys.executable, "-P", "-m", "gavel", "train", trainer, "--model", model, "--data", data,
                   "--out", out, "--batch-size", 8, "--log-steps", 1, "--precision", "fp32",
                   "--learning-rate", 1e-3, *(["--lora-r", 4] if lora else [])]  # fmt: skip
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": device}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        steps[device] = [step["loss"] for step in steps_of(out)]
    assert steps["0"] == pytest.approx(steps[""], rel=1e-3)


def test_bf16_learns_what_was_planted(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    train_dpo(settings(model, precision="bf16", epochs=5), planted(64), tmp_path / "out")
    last = steps_of(tmp_path / "out")[-1]
    assert last["rewards/accuracies"] > 0.9 and last["rewards/margins"] > 0
