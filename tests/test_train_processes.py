"""Two processes train as one: the same losses on the same batches, for every trainer; and their bad days."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran, Tiny
from training_tools import same_weights, steps_of
from warm import gavel_on

from gavel.errors import InputError
from train.config_dpo import DpoConfig
from train.config_ppo import PpoConfig

pytestmark = pytest.mark.engine

ASIDE = ("seconds/", "epoch", "sampler/probe", "val/ratio_var")  # the share of an epoch counts micro-batches
WORDS = "the quick brown fox jumps over the lazy dog what is the capital of france paris".split()


CONFIGURATIONS = Path(__file__).parents[1] / "docs" / "accelerate"
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / "cpu.yaml"), "-m"]


def run(*arguments: object, launcher: Sequence[str] = ("-m",)) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", *launcher, "gavel", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that share prompts and completions, demonstrations, prompts, texts; none fills its last batch."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    rows: dict[str, list[dict[str, str]]] = {"pairs": [], "shown": [], "prompts": [], "texts": []}
    for number in range(9):
        prompt = f"{text(8)} {number}"
        better, worse = [text(9) for _ in range(3)], [text(9) for _ in range(2)]
        rows["pairs"] += [{"prompt": prompt, "chosen": b, "rejected": worse[i % 2]}
                          for i, b in enumerate(better)]  # fmt: skip
        rows["shown"] += [{"instruction": prompt, "output": text(9)} for _ in range(3)]
        rows["prompts"].append({"prompt": prompt})
        rows["texts"].append({"text": " ".join([prompt, *better, *worse])})
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder


COMMON = ["--micro-batch", 2, "--log-steps", 1, "--precision", "fp32", "--learning-rate", 1e-3]


def command(kind: str, tiny: Tiny, data: Path) -> list[object]:
    start = ["train", kind, "--model", tiny.lm]
    if kind == "sft":
        return [*start, "--data", data / "shown.jsonl", "--batch-size", 8, *COMMON]
    if kind == "reward":
        return [*start, "--data", data / "pairs.jsonl", "--batch-size", 8, "--held-out", 0.2, *COMMON]
    if kind == "ppo":
        given = ["--prompts", data / "prompts.jsonl", "--judge", tiny.reward, "--engine", "transformers"]
        return [*start, *given, "--batch-size", 8, "-n", 2, "--max-tokens", 8, "--max-model-len", 128,
                *COMMON[:-1], 3e-5]  # fmt: skip
    more = ["--lora-r", 4, "--merge"] if kind == "dpo/lora" else []
    start[1] = "dpo"
    return [*start, "--data", data / "pairs.jsonl", "--batch-size", 8, *COMMON, *more]


@pytest.mark.parametrize("kind", ["sft", "dpo", "dpo/lora", "reward", "ppo"])
def test_two_processes_train_as_one(
    kind: str, tiny: Tiny, data: Path, tmp_path: Path, gavel: Callable[..., Ran]
) -> None:
    alone = gavel(*command(kind, tiny, data), "--out", tmp_path / "1", "--json")
    assert alone.code == 0, alone.err
    if kind == "sft":  # by accelerate, DPO by gavel itself, the others by hand in the same way
        done = run(*command(kind, tiny, data), "--out", tmp_path / "2", "--json", launcher=ACCELERATE)
        code, said, why = done.returncode, done.stdout, done.stderr
    elif kind == "dpo":
        done = run(*command(kind, tiny, data), "--processes", 2, "--out", tmp_path / "2", "--json")
        code, said, why = done.returncode, done.stdout, done.stderr
    else:
        code, said, why = gavel_on(2, tmp_path, *command(kind, tiny, data), "--out", tmp_path / "2", "--json")
    assert code == 0, why
    assert json.loads(said).keys() == json.loads(alone.out).keys(), "one of them speaks"
    one, two = steps_of(tmp_path / "1"), steps_of(tmp_path / "2")
    assert len(one) == len(two) > 1
    for a, b in zip(one, two, strict=True):
        figures = {k: v for k, v in a.items() if not k.startswith(ASIDE)}
        assert figures.keys() <= b.keys()
        for name, value in figures.items():
            close = {"rel": 0, "abs": 1e-5} if "loss" in name else {"rel": 1e-4, "abs": 1e-4}
            assert b[name] == pytest.approx(value, **close), name
    assert same_weights(tmp_path / "1", tmp_path / "2", atol=1e-4)


def spoil_the_other_at(call: int) -> None:
    """Makes a policy loss of the second process no number. call: of which micro-batch, counted from 1."""
    from train import ppo_terms

    original, calls = ppo_terms.policy_loss, []

    def spoiled(*args: Any) -> Any:
        calls.append(1)
        found = original(*args)
        return replace(found, total=found.total * math.nan) if len(calls) == call else found

    if os.environ["RANK"] == "1":
        ppo_terms.policy_loss = spoiled


@pytest.mark.parametrize(("call", "kept", "said"), [
    (3, "last-good", "Policy and critic of before this step are models in"),  # the second step
    (9, "checkpoint-1", "The state of iteration 1 is in"),  # the second iteration's first step
])  # fmt: skip
def test_a_loss_of_another_that_is_no_number_leaves_the_last_good_state(
    tiny: Tiny, data: Path, tmp_path: Path, call: int, kept: str, said: str
) -> None:
    """PPO: all processes find it, and save together."""
    out = tmp_path / "out"
    code, _, why = gavel_on(2, tmp_path, *command("ppo", tiny, data), "--ppo-epochs", 4, "--out", out,
                            before=partial(spoil_the_other_at, call))  # fmt: skip
    assert code == 1 and said in why and "policy loss nan" in why, why
    assert kept in {p.name for p in (out / "checkpoints").iterdir()}
    named = (out / "checkpoints" / "suspects.txt").read_text().splitlines()
    assert len(set(named)) == 8, "all of the step, whichever process has them"


def test_a_last_batch_smaller_than_the_processes_is_trained_once(
    tiny: Tiny, data: Path, tmp_path: Path, gavel: Callable[..., Ran]
) -> None:
    """27 pairs in batches of 26: the last step has one, and the second process nothing of its own."""
    common = ["train", "dpo", "--model", tiny.lm, "--data", data / "pairs.jsonl", "--batch-size", 26,
              "--log-steps", 1, "--learning-rate", 1e-3, "--precision", "fp32"]  # fmt: skip
    assert gavel(*common, "--out", tmp_path / "1").code == 0
    code, _, why = gavel_on(2, tmp_path, *common, "--out", tmp_path / "2")
    assert code == 0, why
    one, two = ([s["loss"] for s in steps_of(tmp_path / count)] for count in "12")
    assert len(one) == 2 and two == pytest.approx(one, rel=0, abs=1e-5)


def test_resumed_on_two_processes(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    """Killed once it has a checkpoint, the same command ends as the undisturbed run."""
    alone = [*command("dpo", tiny, data), "--epochs", 8, "--save-steps", 2]
    code, _, why = gavel_on(2, tmp_path, *alone, "--out", tmp_path / "straight")
    assert code == 0, why
    common = [*alone, "--processes", 2]
    again = [sys.executable, "-P", "-m", "gavel", *map(str, common), "--out", str(tmp_path / "out")]
    killed = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out" / "checkpoints").glob("*/whole")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = run(*common, "--out", tmp_path / "out")
    while (
        "in use by" in done.stderr and time.monotonic() < deadline
    ):  # the kernel ends them after their parent
        done = run(*common, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [s["step"] for s in steps_of(tmp_path / "out")] == list(range(1, 33))
    assert same_weights(tmp_path / "straight", tmp_path / "out", atol=1e-5)


def test_ctrl_c_leaves_a_checkpoint(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    """As a terminal sends it, to all of the process group at once."""
    again = [sys.executable, "-P", "-m", "gavel", *map(str, command("dpo", tiny, data)), "--processes", "2",
             "--epochs", "400", "--out", str(tmp_path / "out")]  # fmt: skip
    started = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)  # a step is taken
    os.killpg(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130 and "stopping after this step" in said, said
    assert len(list((tmp_path / "out" / "checkpoints").glob("*/whole"))) == 1


def test_what_goes_wrong_is_said_once(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    done = run(*command("dpo", tiny, data), "--processes", 3, "--out", tmp_path / "a")
    assert done.returncode == 2 and done.stderr.count("must be a multiple of --processes 3") == 1
    done = run(
        *command("dpo", tiny, data), "--processes", 2, "--model", tmp_path / "none", "--out", tmp_path / "b"
    )
    assert done.returncode == 2 and done.stderr.count("no such model directory") == 1


def test_the_failure_of_another_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails alone stops the first, which waits for it, and says why."""
    from gavel import processes
    from gavel.errors import CheckFailed

    real = subprocess.Popen
    script = ("import os, sys, time\n"
              "if os.environ['RANK'] == '1': sys.exit('the disk is on fire')\n"
              "time.sleep(60)\n")  # fmt: skip

    def started(command: Sequence[str], **how: Any) -> Any:
        return real([sys.executable, "-c", script], **how)

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(processes, "_GRACE_S", 0.5)
    with pytest.raises(CheckFailed, match="process 1 of 2 failed:\nthe disk is on fire"):
        processes.run_on(2, [])


@pytest.mark.parametrize(("batch", "micro", "processes", "expected"), [
    (16, None, 1, 8), (16, None, 2, 8), (16, None, 4, 4), (12, None, 2, 6), (16, 4, 2, 4), (3, None, 3, 1),
])  # fmt: skip
def test_micro_batches_on_several(batch: int, micro: int | None, processes: int, expected: int) -> None:
    config = DpoConfig(model="m", batch_size=batch, micro_batch=micro)
    assert config.micro_batch_on(processes) == expected


@pytest.mark.parametrize(("micro", "steps", "processes", "expected"), [
    (None, 1, 1, 8), (None, 1, 4, 6), (24, 1, 2, 12), (4, 2, 3, 4), (4, 2, 8, None), (None, 4, 4, None),
])  # fmt: skip
def test_completions_on_several(micro: int | None, steps: int, processes: int, expected: int | None) -> None:
    """PPO: a process has no more of a forward pass than of the batch, and of each step as many as another."""
    config = PpoConfig(model="m", batch_size=24, micro_batch=micro, mini_batches=steps)
    if expected is not None:
        assert config.micro_batch_on(processes) == expected
        return
    with pytest.raises(InputError, match=f"each of {processes} processes"):
        config.micro_batch_on(processes)


def test_batches_that_cannot_be_divided() -> None:
    for settings, count in (({"batch_size": 9}, 2), ({"batch_size": 16, "micro_batch": 16}, 2)):
        with pytest.raises(InputError):
            DpoConfig(model="m", **settings).micro_batch_on(count)  # type: ignore[arg-type]
