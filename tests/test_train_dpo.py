"""DPO on a tiny model: what is trained on, what is optimised, and that it survives bad days."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]

PAD, BOS, EOS, USER, ASSISTANT = range(5)
VOCAB = 40
CONTEXT = 64


def tiny_model(folder: Path, seed: int = 0) -> str:
    """A random Llama of two layers with a word-level tokenizer of its own."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<user>", "<assistant>"] + [f"w{i}" for i in range(VOCAB - 5)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w0",
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    tokenizer.chat_template = (
        "<s> {% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS, attention_dropout=0.1, initializer_range=0.3,
    ))  # fmt: skip
    model.generation_config.eos_token_id = [EOS, ASSISTANT]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def planted(count: int, seed: int = 0) -> list[Any]:
    """Pairs of uneven length in which w5 (id 10) is preferred to w6 (id 11)."""
    import random

    from train.data import PairRow

    draw = random.Random(seed)
    rows = []
    for i in range(count):
        tail = [draw.randrange(12, VOCAB) for _ in range(draw.randrange(0, 6))]
        other = [draw.randrange(12, VOCAB) for _ in range(draw.randrange(0, 6))]
        asked = [draw.randrange(12, VOCAB) for _ in range(draw.randrange(1, 9))]
        rows.append(PairRow(
            prompt_ids=[BOS, USER, *asked, ASSISTANT],
            chosen_ids=[10, *tail, EOS], rejected_ids=[11, *other, EOS], pair_id=str(i), where=f"f:{i + 1}",
        ))  # fmt: skip
    return rows


def settings(model: str, **changes: Any) -> Any:
    from train.config import DpoConfig

    base = {"model": model, "learning_rate": 1e-3, "loss": {"sigmoid": 1.0, "sft": 1.0}, "batch_size": 8,
            "log_steps": 1, "scheduler": "constant", "precision": "fp32"}  # fmt: skip
    return DpoConfig(**(base | changes))


def logps(model: str, rows: list[Any]) -> list[tuple[float, float]]:
    """Summed log-probabilities (chosen, rejected), one sequence at a time: no padding, no TRL."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for row in rows:
        sums = []
        for ids in (row.chosen_ids, row.rejected_ids):
            whole = torch.tensor([[*row.prompt_ids, *ids]])
            with torch.no_grad():
                table = net(whole).logits[0, :-1].log_softmax(-1)  # (T - 1, V)
            picked = table.gather(1, whole[0, 1:, None])[:, 0]
            sums.append(picked[len(row.prompt_ids) - 1 :].sum().item())
        found.append((sums[0], sums[1]))
    return found


def with_reference(model: str, rows: list[Any], shift: float = 0.0) -> list[Any]:
    return [
        replace(row, ref_chosen_logp=c + shift, ref_rejected_logp=r + shift)
        for row, (c, r) in zip(rows, logps(model, rows), strict=True)
    ]


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights_of(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(out.glob("*.safetensors")))


def same_weights(a: Path, b: Path, atol: float = 0.0) -> bool:
    import torch

    left, right = weights_of(a), weights_of(b)
    return left.keys() == right.keys() and all(
        torch.allclose(left[k], right[k], rtol=0, atol=atol) for k in left
    )


def assert_adapter_and_merged_agree(model: str, adapter: Path, merged: Path) -> None:
    """An adapter, the same beside the merged model, and that model say one thing, and not the base's."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[BOS, USER, 12, ASSISTANT, 10, 13]])
    base, whole = (AutoModelForCausalLM.from_pretrained(m)(ids).logits for m in (model, merged))
    adapted, beside = (
        AutoPeftModelForCausalLM.from_pretrained(p)(ids).logits for p in (adapter, merged / "adapter")
    )
    assert (adapted - base).abs().max() > 0.01
    assert torch.allclose(adapted, whole, atol=1e-4) and torch.allclose(adapted, beside, atol=1e-4)


@contextlib.contextmanager
def interrupted_after(step: int) -> Iterator[None]:
    """Within, a training is stopped as by Ctrl-C once a step is logged."""
    from train.callbacks import Metrics

    original = Metrics.on_log

    def dies(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        original(self, args, state, *rest, **more)
        if state.global_step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metrics, "on_log", dies)
        with pytest.raises(KeyboardInterrupt):
            yield


def assert_one_trajectory(one: Path, other: Path) -> None:
    """Two trainings took the same steps, up to the order of sums."""
    steps, expected = steps_of(one), steps_of(other)
    assert [s["loss"] for s in steps] == pytest.approx([s["loss"] for s in expected], rel=1e-5)
    assert [s["grad_norm"] for s in steps] == pytest.approx([s["grad_norm"] for s in expected], rel=1e-4)
    assert same_weights(one, other, atol=1e-5)


@pytest.mark.parametrize("sharing", ["prompts", "completions", "off"])
def test_the_sampled_ids_reach_the_model(
    model: str, tmp_path: Path, sharing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read where the model reads: every sequence whole, and nothing else."""
    import torch
    from transformers import LlamaModel

    from train.dpo import train_dpo

    seen: set[tuple[int, ...]] = set()
    original = LlamaModel.forward

    def spy(self: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        forest = kwargs.get("forest")
        if torch.is_grad_enabled() and forest is not None:
            read = [input_ids[0, places[places < input_ids.shape[1]]] for places in forest.seen]
            seen.update(tuple(ids.tolist()) for ids in read)
        elif torch.is_grad_enabled():
            seen.update(
                tuple(ids[mask == 1].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)
            )
        return original(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", spy)
    rows = planted(8)
    rows[3] = replace(rows[3], chosen_ids=[10, 20, 21])  # cut off: no EOS
    train_dpo(settings(model, reference="pass", sharing=sharing), rows, tmp_path / "out")
    whole = {(*r.prompt_ids, *ids) for r in rows for ids in (r.chosen_ids, r.rejected_ids)}
    # in a forest a completion's last token is predicted and not read, as nothing follows it
    assert seen == ({ids[:-1] for ids in whole} if sharing == "prompts" else whole)


def test_loss_is_the_hand_worked_number(model: str, tmp_path: Path) -> None:
    """The first step's loss, the reference set off by 0.5: both formulas written out here."""
    from train.dpo import train_dpo
    from train.unique import TOLERANCE

    rows = with_reference(model, planted(4))
    offset = [replace(r, ref_rejected_logp=r.ref_rejected_logp + 0.5) for r in rows]
    loss = {"sigmoid": 2.0, "sft": 0.5}
    config = settings(model, reference="samples", loss=loss, batch_size=4, micro_batch=2, beta=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOLERANCE, "fp32", 1.0)
        train_dpo(config, offset, tmp_path / "out")
    # at the start the policy is the reference: β·(0 − (−0.5)) for every pair
    sigmoid = math.log(1 + math.exp(-0.3 * 0.5))
    tokens = sum(len(r.chosen_ids) for r in rows)
    sft = -sum(r.ref_chosen_logp for r in rows) / tokens
    first = steps_of(tmp_path / "out")[0]
    assert first["loss"] == pytest.approx(2.0 * sigmoid + 0.5 * sft, rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.3 * 0.5, rel=1e-4)


def test_a_planted_preference_is_learned(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows = planted(64)
    summary = train_dpo(
        settings(model, epochs=4, loss={"sigmoid": 1.0}, learning_rate=3e-3), rows, tmp_path / "out"
    )
    fresh = planted(32, seed=1)
    before = [c - r for c, r in logps(model, fresh)]
    after = [c - r for c, r in logps(str(tmp_path / "out"), fresh)]
    assert sum(after) > sum(before) + 32
    assert sum(a > b for a, b in zip(after, before, strict=True)) >= 30
    assert summary["metrics"]["rewards/accuracies"] == 1.0
    assert summary["steps"] == 32


def test_reference_from_the_samples_equals_a_pass(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows = with_reference(model, planted(24))
    taken = train_dpo(settings(model), rows, tmp_path / "samples")
    passed = train_dpo(settings(model, reference="pass"), rows, tmp_path / "pass")
    assert (taken["reference"], passed["reference"]) == ("samples", "pass")
    assert taken["reference_audit"]["rows"] == 16
    assert taken["reference_audit"]["max_delta_per_token"] < 1e-5
    assert same_weights(tmp_path / "samples", tmp_path / "pass", atol=1e-5)


def test_an_audit_that_disagrees_falls_back_aloud(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gavel.errors import CheckFailed
    from train.dpo import train_dpo

    rows = planted(16)
    wrong = with_reference(model, rows, shift=1.0)
    summary = train_dpo(settings(model), wrong, tmp_path / "out")
    assert summary["reference"] == "pass"
    assert summary["reference_audit"]["mean_delta_per_token"] > 0.1
    captured = capsys.readouterr()
    assert "engine and trainer differ" in captured.err and captured.out == ""
    train_dpo(settings(model, reference="pass"), rows, tmp_path / "pass")
    assert same_weights(tmp_path / "out", tmp_path / "pass")
    with pytest.raises(CheckFailed, match="differ"):
        train_dpo(settings(model, reference="samples"), wrong, tmp_path / "strict")


def test_micro_batches_change_nothing(model: str, tmp_path: Path) -> None:
    """1 × 8, 8 × 1 and 4 × 2 give one trajectory, the short batch at the end included."""
    from train.dpo import train_dpo

    rows = planted(29)  # the last step has five pairs
    for micro in (8, 1, 4):
        train_dpo(settings(model, micro_batch=micro, epochs=2), rows, tmp_path / str(micro))
    for micro in (1, 4):
        assert_one_trajectory(tmp_path / str(micro), tmp_path / "8")


def trainer_of(config: Any, rows: list[Any], out: Path, targets: list[float] | None = None) -> Any:
    """A trainer that has not begun."""
    import torch

    from gavel.tokenizer import HfTokenizer
    from train import models
    from train.dpo import ExactDPOTrainer, _arguments
    from train.output import Output

    return ExactDPOTrainer(
        config, rows, "fp32", models.load(config.model, torch.float32), targets,
        args=_arguments(config, "fp32", Output(out)), processing_class=HfTokenizer.load(config.model).hf,
        peft_config=models.lora(config),
    )  # fmt: skip


def gradients(trainer: Any, places: list[int]) -> dict[str, Any]:
    """Of a step on these rows, in as many micro-batches as it takes."""
    size = trainer.args.train_batch_size
    drawn = [places[at : at + size] for at in range(0, len(places), size)]
    batches, _ = trainer.get_batch_samples(iter(drawn), len(drawn), trainer.args.device)
    trainer.model.zero_grad()
    for batch in batches:
        if len(batch["row"]):
            trainer.compute_loss(trainer.model, batch).backward()
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_pad_slots_do_not_count(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the slots of no token, no gradient changes."""
    import torch

    from train import forest, unique

    count = len(trainer.rows)
    plain = gradients(trainer, list(range(count)))
    assert any(g.abs().max() > 1e-3 for g in plain.values())
    # the embedding of the pad token is read nowhere that counts
    assert plain["model.embed_tokens.weight"][PAD].abs().max() == 0

    flat, pad = forest._flat, unique.pad_sequence

    def garbage(states: Any) -> Any:
        rows = flat(states)
        return torch.cat([rows[:-1], torch.randn_like(rows[-1:])])

    monkeypatch.setattr(forest, "_flat", garbage)
    monkeypatch.setattr(unique, "pad_sequence", lambda ids, **how: pad(ids, **how | {"padding_value": 33}))
    filled = gradients(trainer, list(range(count)))
    for name, gradient in plain.items():
        assert torch.equal(gradient, filled[name]), name


@pytest.mark.parametrize("sharing", ["prompts", "completions"])
def test_masked_positions_get_no_gradient(
    model: str, tmp_path: Path, sharing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model, batch_size=4, sharing=sharing)
    trainer = trainer_of(config, planted(4), tmp_path)
    assert trainer.sharing == sharing
    assert_pad_slots_do_not_count(trainer, monkeypatch)


def test_lora_trains_and_reloads(model: str, tmp_path: Path) -> None:

    from train.dpo import train_dpo

    rows = planted(24)
    config = settings(model, lora_r=4, learning_rate=1e-2)
    train_dpo(config, rows, tmp_path / "adapter")
    train_dpo(replace(config, merge=True), rows, tmp_path / "merged")
    assert_adapter_and_merged_agree(model, tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "adapter" / "tokenizer.json").exists()


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


_CHILD = """
import sys; sys.path.insert(0, {root!r}); sys.path.insert(0, {root!r} + "/tests")
from test_train_dpo import planted, settings
from train.dpo import train_dpo
import torch; torch.set_num_threads(1)
if __name__ == "__main__":
    train_dpo(settings({model!r}, epochs=12, save_steps=5), planted(24), {out!r})
"""


def test_sigkill_then_the_same_command(model: str, tmp_path: Path) -> None:
    """In processes of their own, of one thread each: what other tests leave in this one (engines, threads)
    changes the last bits."""
    root, out = str(Path(__file__).parents[1]), tmp_path / "killed"

    def start(where: Path) -> subprocess.Popen[bytes]:
        code = _CHILD.format(root=root, model=model, out=str(where))
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)

    child = start(out)
    deadline = time.monotonic() + 90
    while not list(out.glob("checkpoints/checkpoint-*/whole")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not (out / "config.json").exists()
    torn = out / "checkpoints" / "checkpoint-35"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    runs = [start(out), start(tmp_path / "straight")]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
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


def test_bf16_and_checkpointing_train(model: str, tmp_path: Path) -> None:
    import torch

    from train.dpo import train_dpo

    rows = with_reference(model, planted(16))
    summary = train_dpo(
        settings(model, precision="bf16", gradient_checkpointing=True), rows, tmp_path / "out"
    )
    assert summary["reference_audit"]["tolerance"] == 2e-2
    assert {t.dtype for t in weights_of(tmp_path / "out").values()} == {torch.bfloat16}


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
