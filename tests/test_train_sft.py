"""Supervised fine-tuning of a tiny model: what is optimised, and what comes out."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from training_tools import (
    ASSISTANT,
    BOS,
    CONTEXT,
    EOS,
    HYBRIDS,
    USER,
    VOCAB,
    assert_adapter_and_merged_agree,
    assert_one_trajectory,
    interrupted_after,
    one_outcome,
    same_weights,
    small,
    steps_of,
    tiny_model,
)

from gavel.errors import InputError
from train.config import SftConfig
from train.sft_data import IGNORED, SftRow, pack

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]

Command = Callable[..., Ran]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def answered(count: int, seed: int = 0) -> list[SftRow]:
    """Conversations of one or two turns; the answer to a question that ends with wN is wN wN+1."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        ids, spans = [BOS], []
        for _ in range(draw.randrange(1, 3)):
            asked = [draw.randrange(10, 20) for _ in range(draw.randrange(1, 7))]
            ids += [USER, *asked, ASSISTANT]
            answer = [asked[-1], asked[-1] + 1, EOS]
            spans.append((len(ids), len(ids) + len(answer)))
            ids += answer
        rows.append(SftRow(ids=array("i", ids), spans=tuple(spans), row_id=str(i), where=f"f:{i + 1}"))
    return rows


def texts(count: int, size: int = 24, seed: int = 0) -> list[SftRow]:
    """Packed documents of very different lengths."""
    draw = random.Random(seed)
    documents = (
        ([BOS, *(draw.randrange(5, VOCAB) for _ in range(draw.randrange(1, 40))), EOS], f"f:{i}")
        for i in range(1000)
    )
    packed = pack(documents, size)
    return [next(packed) for _ in range(count)]


def settings(model: str, **changes: Any) -> SftConfig:
    base = {"model": model, "learning_rate": 1e-3, "batch_size": 8, "log_steps": 1, "scheduler": "constant",
            "precision": "fp32"}  # fmt: skip
    return SftConfig(**(base | changes))


def nll(model: str | Path, row: SftRow) -> list[float]:
    """Of each trained token; one part at a time, without padding, packing or TRL."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found, at = [], 0
    for length in row.lengths:
        ids, labels = (torch.tensor([list(x)[at : at + length]]) for x in (row.ids, row.labels))
        with torch.no_grad():
            table = -net(ids).logits[0, :-1].log_softmax(-1)  # (T - 1, V)
        picked = table.gather(1, ids[0, 1:, None])[:, 0]
        found += picked[labels[0, 1:] != IGNORED].tolist()
        at += length
    return found


def trainer_of(model: str, rows: list[SftRow], folder: Path) -> Any:
    import torch

    from gavel.tokenizer import HfTokenizer
    from train.models import load
    from train.output import Output
    from train.sft import ExactSFTTrainer, _arguments

    config = settings(model, batch_size=len(rows), micro_batch=len(rows))
    return ExactSFTTrainer(
        rows, "fp32", load(model, torch.float32), args=_arguments(config, "fp32", Output(folder)),
        processing_class=HfTokenizer.load(model).hf,
    )  # fmt: skip


def gradients(trainer: Any, batch: dict[str, Any]) -> list[Any]:
    import torch

    trainer.totals = trainer.counts(batch).tolist()
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch | {"row": torch.arange(len(batch["labels"]))}).backward()
    return [p.grad.clone() for p in trainer.model.parameters()]


# what is optimised


@pytest.mark.parametrize("rows", [answered(6), texts(6)], ids=["chat", "packed"])
def test_the_loss_is_the_hand_worked_number(model: str, tmp_path: Path, rows: list[SftRow]) -> None:
    """The mean over the trained tokens of the whole batch, in micro-batches with unlike numbers of them;
    packed documents are as if each stood alone."""
    from train.sft import train_sft

    summary = train_sft(settings(model, batch_size=6, micro_batch=2), rows, tmp_path / "out")
    losses = [x for row in rows for x in nll(model, row)]
    (step,) = steps_of(tmp_path / "out")
    assert step["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert summary["trained_tokens"] == len(losses) == sum(row.trained for row in rows)
    assert (summary["rows"], summary["tokens"]) == (6, sum(row.length for row in rows))


def test_it_is_trls_loss_on_the_same_ids(model: str, tmp_path: Path) -> None:
    """Where a batch is one micro-batch, TRL's own trainer takes the same step."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    from train.sft import train_sft

    rows = answered(8)
    train_sft(settings(model, micro_batch=8, optim="adamw_torch"), rows, tmp_path / "out")
    data = {"input_ids": [list(row.ids) for row in rows], "labels": [list(row.labels) for row in rows]}
    plain = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, attention_dropout=0.0),
        TrlConfig(
            output_dir=str(tmp_path / "trl"), learning_rate=1e-3, per_device_train_batch_size=8,
            num_train_epochs=1, lr_scheduler_type="constant", optim="adamw_torch", weight_decay=0.0,
            logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_dict(data),
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    plain.train()
    (step,) = steps_of(tmp_path / "out")
    first = plain.state.log_history[0]
    assert step["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert step["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    plain.model.save_pretrained(tmp_path / "trl")
    assert one_outcome(tmp_path / "out", tmp_path / "trl")


@pytest.mark.parametrize("rows", [answered(29), texts(29)], ids=["chat", "packed"])
def test_micro_batches_change_nothing(model: str, tmp_path: Path, rows: list[SftRow]) -> None:
    """1 × 8, 8 × 1 and 4 × 2 give one trajectory, the short batch at the end included."""
    from train.sft import train_sft

    for micro in (8, 1, 4):
        train_sft(settings(model, micro_batch=micro, epochs=2), rows, tmp_path / str(micro))
    for micro in (1, 4):
        assert_one_trajectory(tmp_path / str(micro), tmp_path / "8")


def test_what_is_not_trained_gets_no_gradient(model: str, tmp_path: Path) -> None:
    """Neither pad slots nor what follows the last trained token change anything, and a prompt is not
    predicted: other labels there would be."""
    import torch

    rows = [replace(row, ids=row.ids + array("i", [12] * 3)) for row in answered(4)]
    trainer = trainer_of(model, rows, tmp_path)
    batch = trainer.micro_batch(range(len(rows)))
    plain = gradients(trainer, batch)
    assert (batch["attention_mask"] == 0).any()
    garbage = dict(batch, input_ids=batch["input_ids"].clone())
    for i, row in enumerate(rows):
        garbage["input_ids"][i, row.spans[-1][1] :] = 33
    assert (garbage["input_ids"] != batch["input_ids"]).any()
    for a, b in zip(plain, gradients(trainer, garbage), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7)
    assert (batch["labels"] != IGNORED).sum() == sum(row.trained for row in rows)
    trained_prompt = dict(batch, labels=batch["input_ids"])
    changed = gradients(trainer, trained_prompt)
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, changed, strict=True))


def test_packed_documents_do_not_see_one_another(model: str, tmp_path: Path) -> None:
    """With other tokens in the first document, the gradient of the second stays as it is."""
    import torch

    second = [BOS, 12, 13, 14, EOS]
    of = []
    for first in ([BOS, 20, 21, EOS], [BOS, 30, 31, EOS]):
        row = SftRow(ids=array("i", [*first, *second]), spans=((4, 9),), starts=(0, 4), row_id="r")
        trainer = trainer_of(model, [row], tmp_path)
        of.append(gradients(trainer, trainer.micro_batch([0])))
    for a, b in zip(*of, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [*HYBRIDS.items(), ("mamba", {"state_size": 8}), ("bloom", {"n_layer": 2, "n_head": 4}),
     ("gpt_oss", {"num_local_experts": 4})],
)  # fmt: skip
def test_a_model_that_does_not_keep_packed_documents_apart_is_refused(
    model: str, tmp_path: Path, kind: str, fields: dict[str, Any], precision: str
) -> None:
    """Convolutions, recurrent states, and attention whose mask is not made from positions."""
    from gavel.tokenizer import HfTokenizer
    from train.sft import train_sft

    small(kind, **fields).save_pretrained(tmp_path / "it")
    HfTokenizer.load(model).hf.save_pretrained(tmp_path / "it")
    config = settings(str(tmp_path / "it"), batch_size=2, precision=precision)
    with pytest.raises(InputError, match="--pack: in a packed row of this model sequences see one another"):
        train_sft(config, texts(2), tmp_path / "out")
    alone = pack((([BOS, 10 + i, 11, EOS], f"f:{i}") for i in range(2)), 24, together=False)
    if kind == "lfm2":
        assert train_sft(config, list(alone), tmp_path / "out")["steps"] == 1


# what comes of it


def test_a_planted_answer_is_learned(model: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from train.sft import train_sft

    rows = answered(256)
    config = settings(model, epochs=10, learning_rate=5e-3, scheduler="linear", batch_size=16)
    train_sft(config, rows, tmp_path / "out")
    losses = [step["loss"] for step in steps_of(tmp_path / "out")]
    assert losses[-1] < 0.2 * losses[0]
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    right = 0
    for row in answered(32, seed=1):
        start, end = row.spans[0]
        prompt = torch.tensor([list(row.ids[:start])])
        said = net.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
        right += said[0, start:].tolist() == list(row.ids[start:end])
    assert right >= 28, right


def test_text_is_learned(model: str, tmp_path: Path) -> None:
    """Pretraining: w10 w11 w12 … over and over."""
    from train.sft import train_sft

    documents = [([BOS, *range(10 + i % 5, 30 + i % 3), EOS], f"f:{i}") for i in range(128)]
    rows = list(pack(documents, 48))
    train_sft(settings(model, epochs=4, learning_rate=5e-3, batch_size=4), rows, tmp_path / "out")
    losses = [step["loss"] for step in steps_of(tmp_path / "out")]
    assert losses[-1] < 0.25 * losses[0]
    # what ends an answer is none of raw text's business
    written = (tmp_path / "out" / "generation_config.json").read_bytes()
    assert written == (Path(model) / "generation_config.json").read_bytes()


def test_stopped_and_run_again_it_ends_the_same(model: str, tmp_path: Path) -> None:
    from train.sft import train_sft

    config, rows = settings(model, save_steps=2, chat_template="chatml"), answered(64)
    train_sft(config, rows, tmp_path / "whole")
    with interrupted_after(5):
        train_sft(config, rows, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    summary = train_sft(config, rows, tmp_path / "out")
    assert summary["steps"] == 8
    assert same_weights(tmp_path / "whole", tmp_path / "out"), "new tokens included"
    assert train_sft(config, rows, tmp_path / "out") == summary, "finished: nothing to do"


def test_other_work_in_the_directory_is_refused(model: str, tmp_path: Path) -> None:
    from train.sft import train_sft

    rows, config = answered(8), settings(model)
    train_sft(config, rows, tmp_path / "out")
    start, end = rows[0].spans[0]
    with pytest.raises(InputError, match="data: was"):
        train_sft(config, [replace(rows[0], spans=((start + 1, end),)), *rows[1:]], tmp_path / "out")
    with pytest.raises(InputError, match="data: was"):
        train_sft(replace(config, chat_template="plain"), rows, tmp_path / "out")
    with pytest.raises(InputError, match=r"config.learning_rate: was"):
        train_sft(replace(config, learning_rate=1e-2), rows, tmp_path / "out")
    long = replace(rows[0], ids=rows[0].ids + array("i", [12] * CONTEXT))
    with pytest.raises(InputError, match=r"f:1: \d+ tokens, the model's context is 64"):
        train_sft(config, [long, *rows], tmp_path / "long")
    with pytest.raises(InputError, match="f:1: none of its tokens is trained"):
        train_sft(config, [replace(rows[0], spans=()), *rows], tmp_path / "none")
    with pytest.raises(InputError, match="7 rows to train on are fewer than one batch of 8"):
        train_sft(config, rows[:7], tmp_path / "few")


def test_lora_trains_and_reloads(model: str, tmp_path: Path) -> None:

    from gavel.stops import ends_of
    from train.sft import train_sft

    rows = answered(24)
    config = settings(model, lora_r=4, learning_rate=1e-2, chat_template="plain")
    train_sft(config, rows, tmp_path / "adapter")
    train_sft(replace(config, merge=True), rows, tmp_path / "merged")
    assert_adapter_and_merged_agree(model, tmp_path / "adapter", tmp_path / "merged")
    for name in ("adapter", "merged"):
        assert ends_of(str(tmp_path / name)).strings == ("\n### User:",)
        assert "### Assistant" in (tmp_path / name / "chat_template.jinja").read_text()


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_begin_as_the_mean_of_the_old(tmp_path: Path, tied: bool) -> None:
    import torch
    from tiny_models import llama_config, save_tokenizer
    from transformers import LlamaForCausalLM

    from train import models
    from train.chat_template import prepare

    save_tokenizer(tmp_path, chat=False)
    settings_ = llama_config()
    settings_.tie_word_embeddings = tied
    LlamaForCausalLM(settings_).save_pretrained(tmp_path)
    prepared = prepare(SftConfig(model=str(tmp_path), chat_template="chatml"))
    loaded = models.load(str(tmp_path), torch.float32)
    net, used = loaded.model, prepared.added[0]
    before = [table.weight.detach().clone() for table in (net.get_input_embeddings(), net.lm_head)]
    assert used < len(before[0]), "spare rows, one of which the first new token gets"
    models.grow(loaded, prepared.added)
    models.grow(loaded, (*prepared.added, 330))
    for table, old in zip((net.get_input_embeddings(), net.lm_head), before, strict=True):
        mean = old[:used].mean(dim=0)
        assert table.weight.shape[0] == 331 == loaded.config.vocab_size
        for new in (*prepared.added, 330):
            assert torch.allclose(table.weight[new], mean, atol=1e-6)
        assert torch.equal(table.weight[:used], old[:used])
    assert (net.lm_head.weight is net.get_input_embeddings().weight) is tied
