"""DPO from the command to the saved model: whole, resumed, killed, refused."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import warm
from training_tools import (
    ASSISTANT,
    CONTEXT,
    EOS,
    planted,
    same_weights,
    settings,
    steps_of,
    tiny_model,
    with_reference,
)

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def test_the_saved_model_is_whole(model: str, tmp_path: Path) -> None:
    from gavel.tokenizer import HfTokenizer
    from train.dpo import train_dpo

    out = tmp_path / "out"
    summary = train_dpo(settings(model), planted(8), out)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).exists(), name
    config, source = (json.loads((Path(p) / "config.json").read_text()) for p in (out, model))
    assert {k: config[k] for k in source if "token_id" in k} == {
        k: source[k] for k in source if "token_id" in k
    }
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [EOS, ASSISTANT]
    assert HfTokenizer.load(str(out)).version == HfTokenizer.load(model).version
    assert {p.name for p in out.iterdir() if p.is_dir()} == set()
    assert json.loads((out / "gavel.json").read_text())["summary"] == summary


def test_stopping_and_resuming_reaches_the_same_weights(model: str, tmp_path: Path) -> None:
    """SIGTERM in the middle: a checkpoint, KeyboardInterrupt, and the same command goes on."""
    from train import callbacks
    from train.dpo import train_dpo

    rows, config = planted(29), settings(model, epochs=3, scheduler="linear", warmup=0.1)
    train_dpo(config, rows, tmp_path / "straight")

    original = callbacks.Checkpoints.on_step_end

    def stop_at_six(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Checkpoints, "on_step_end", stop_at_six)
        with pytest.raises(KeyboardInterrupt):
            train_dpo(config, rows, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "config.json").exists()
    assert [p.name for p in (tmp_path / "stopped" / "checkpoints").glob("*/whole")] == ["whole"]
    train_dpo(config, rows, tmp_path / "stopped")
    assert same_weights(tmp_path / "straight", tmp_path / "stopped")
    assert [s["loss"] for s in steps_of(tmp_path / "straight")] == [
        s["loss"] for s in steps_of(tmp_path / "stopped")
    ]


def train_long(model: str, out: Path) -> None:
    from train.dpo import train_dpo

    train_dpo(settings(model, epochs=12, save_steps=5), planted(24), out)


def test_sigkill_then_the_same_command(model: str, tmp_path: Path) -> None:
    """In processes of their own, of one thread each: what other tests leave in this one (engines, threads)
    changes the last bits."""
    out = tmp_path / "killed"
    child = warm.start(train_long, model, out)
    deadline = time.monotonic() + 90
    while not list(out.glob("checkpoints/checkpoint-*/whole")):
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    child.join()
    assert not (out / "config.json").exists()
    torn = out / "checkpoints" / "checkpoint-35"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    runs = [warm.start(train_long, model, where) for where in (out, tmp_path / "straight")]
    for run in runs:
        run.join(300)
    assert [run.exitcode for run in runs] == [0, 0]
    assert same_weights(out, tmp_path / "straight")
    assert [s["step"] for s in steps_of(out)] == list(range(1, 37))


def test_finished_is_not_redone_and_another_is_refused(model: str, tmp_path: Path) -> None:
    from gavel.errors import InputError
    from train.dpo import train_dpo

    rows, config, out = planted(8), settings(model), tmp_path / "out"
    first = train_dpo(config, rows, out)
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert train_dpo(replace(config, micro_batch=2), rows, out) == first
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"config.beta: was 0.1, now 0.2"):
        train_dpo(replace(config, beta=0.2), rows, out)
    with pytest.raises(InputError, match="data: was"):
        train_dpo(config, [*rows, rows[0]], out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"other files \(notes.txt\)"):
        train_dpo(config, rows, tmp_path / "mine")


def test_longer_than_the_context_is_refused(model: str, tmp_path: Path) -> None:
    from gavel.errors import InputError
    from train.dpo import train_dpo

    long = replace(planted(1)[0], chosen_ids=[10] * CONTEXT)
    with pytest.raises(InputError, match=r"f:1: \d+ tokens, the model's context is 64"):
        train_dpo(settings(model), [*planted(4), long], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(model: str, tmp_path: Path) -> None:
    from gavel.errors import CheckFailed
    from train.dpo import train_dpo

    rows = [replace(r, ref_chosen_logp=math.nan, ref_rejected_logp=0.0) for r in planted(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.reference.Audit.agrees", True)
        with pytest.raises(CheckFailed, match="the loss is nan at step 1"):
            train_dpo(settings(model), rows, tmp_path / "out")


def test_the_command_trains_on_a_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records as `gavel generate` and `gavel pairs` write them, to a summary in JSON."""
    from gavel.cli import train
    from gavel.packed import pack_ids
    from gavel.records import Completion, Message, PreferencePair, Prompt, digest
    from gavel.rundir import JsonlWriter, RunDir
    from gavel.tokenizer import HfTokenizer
    from gavel.weights import weights_version

    tokenizer, run, records = HfTokenizer.load(model), RunDir(tmp_path / "run"), {}
    rows = []
    for i, row in enumerate(planted(12)):
        messages = (Message("user", f"w{i} w7"),)
        rows.append(replace(row, prompt_ids=tokenizer.chat_ids(messages)))
        records[f"q{i}"] = Prompt(id=f"q{i}", messages=messages)
    for i, row in enumerate(with_reference(model, rows)):
        both = [(row.chosen_ids, row.ref_chosen_logp), (row.rejected_ids, row.ref_rejected_logp)]
        for j, (ids, logp) in enumerate(both):
            records[f"c{i}{j}"] = Completion(
                id=f"c{i}{j}", prompt_id=f"q{i}", index=j, text="", token_ids=pack_ids(ids),
                logprob_sum=logp, logprobs_mode="raw", weights=weights_version(model), finish_reason="stop",
                prompt_hash=digest("prompt_ids", list(row.prompt_ids)),
            )  # fmt: skip
        records[f"p{i}"] = PreferencePair(
            id=f"p{i}", prompt_id=f"q{i}", chosen_id=f"c{i}0", rejected_id=f"c{i}1", margin=1.0,
            chosen_score=1.0, rejected_score=0.0,
        )  # fmt: skip
    files = (
        (run.prompts_path, Prompt),
        (run.completions_path, Completion),
        (run.pairs_path("x"), PreferencePair),
    )
    for path, kind in files:
        with JsonlWriter(path) as writer:
            for record in records.values():
                if isinstance(record, kind):
                    writer.append(record)

    out = str(tmp_path / "out")
    line = ["dpo", "--model", model, "--data", str(run.path), "--out", out, "--json", "--loss", "sigmoid=1",
            "--loss", "sft=0.5", "--batch-size", "4", "--learning-rate", "1e-3"]  # fmt: skip
    train.main(line, standalone_mode=False)
    summary = json.loads(capsys.readouterr().out)
    assert (summary["pairs"], summary["steps"], summary["reference"]) == (12, 3, "samples")
    assert 0 <= summary["metrics"]["rewards/accuracies"] <= 1  # fewer steps than --log-steps
    assert summary["completions"] == {"sampled": 24} and summary["model"] == out
    assert summary["reference_audit"]["max_delta_per_token"] < 1e-5


def test_trackers_and_optimisers_are_checked_first(model: str, tmp_path: Path) -> None:
    from gavel.errors import InputError
    from train.dpo import train_dpo

    with pytest.raises(InputError, match="--report-to: unknown tracker"):
        train_dpo(settings(model, report_to=("nonesuch",)), planted(4), tmp_path / "a")
    with pytest.raises(InputError, match="--optim: unknown optimiser"):
        train_dpo(settings(model, optim="nonesuch"), planted(4), tmp_path / "b")
    with pytest.raises(InputError, match="no such model directory"):
        train_dpo(settings(str(tmp_path / "nothing")), planted(4), tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")
