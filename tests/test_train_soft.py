"""Soft labels: what the loss is, where its targets come from, and that training heeds them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_train_data import answered, asked, encoder, strict, write
from training_tools import (
    assert_one_trajectory,
    assert_pad_slots_do_not_count,
    gradients,
    logps,
    planted,
    same_weights,
    settings,
    steps_of,
    tiny_model,
    trainer_of,
    weights_of,
    with_reference,
)

from gavel.cli import train
from gavel.errors import GavelError, InputError
from gavel.records import PreferencePair
from gavel.rundir import RunDir
from gavel.sources import read_preferences as read_source
from train.config_dpo import LOSSES, SMOOTHED, DpoConfig
from train.data import data_version, flip_rate, read_preferences, read_run


def soft_loss(z: Any, p: Any) -> Any:
    """As the trainer makes it: TRL's loss and what the target adds."""
    from torch.nn.functional import logsigmoid

    from train.soft import flip_term

    return -logsigmoid(z) + flip_term(z, p)


# the loss alone


@pytest.mark.parametrize(
    ("z", "p", "loss"),
    [
        (0.0, 0.5, 0.693147), (0.0, 0.73, 0.693147), (0.0, 1.0, 0.693147),  # log 2, whatever p is
        (1.0, 0.5, 0.813262),  # 0.5 · 0.313262 + 0.5 · 1.313262
        (1.0, 0.73, 0.583262),  # 0.73 · 0.313262 + 0.27 · 1.313262
        (1.0, 1.0, 0.313262),
        (-2.0, 0.5, 1.126928),  # 0.5 · 2.126928 + 0.5 · 0.126928
        (-2.0, 0.73, 1.586928),  # 0.73 · 2.126928 + 0.27 · 0.126928
        (-2.0, 1.0, 2.126928),
        (-2.0, 0.0, 0.126928),
    ],
)  # fmt: skip
def test_the_loss_is_the_hand_worked_number(z: float, p: float, loss: float) -> None:
    import torch

    found = soft_loss(torch.tensor([z]), torch.tensor([p]))
    assert found.item() == pytest.approx(loss, abs=2e-6)


@given(st.floats(-30, 30), st.floats(0, 1))
def test_the_loss_is_the_mixture_of_both_labels(z: float, p: float) -> None:
    """Against the definition, and its gradient σ(z) − p."""
    import torch

    logits = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    loss = soft_loss(logits, torch.tensor([p], dtype=torch.float64))
    loss.backward()
    mixed = p * math.log1p(math.exp(-z)) + (1 - p) * math.log1p(math.exp(z))
    assert loss.item() == pytest.approx(mixed, rel=1e-9, abs=1e-9)
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(1 / (1 + math.exp(-z)) - p, abs=1e-12)


@given(st.floats(0.001, 0.999))
def test_the_gradient_is_zero_at_the_optimum(p: float) -> None:
    import torch

    logits = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64, requires_grad=True)
    soft_loss(logits, torch.tensor([p], dtype=torch.float64)).backward()
    assert logits.grad is not None and abs(logits.grad.item()) < 1e-14


def test_a_certain_label_is_plain_dpo_bit_for_bit() -> None:
    import torch
    from torch.nn.functional import logsigmoid

    values = torch.cat([torch.randn(1000, generator=torch.manual_seed(0)) * 10, torch.tensor([0, 1e4, -1e4])])
    soft, plain = values.clone().requires_grad_(), values.clone().requires_grad_()
    one, other = soft_loss(soft, torch.ones_like(values)), -logsigmoid(plain)
    one.mean().backward(), other.mean().backward()
    assert torch.equal(one, other)
    assert soft.grad is not None and plain.grad is not None and torch.equal(soft.grad, plain.grad)


def test_logits_are_differences_of_log_ratios() -> None:
    """Two pairs with unlike lengths; a column in front, as virtual tokens of an adapter leave it."""
    import torch

    from train.soft import logits_of

    log_probs = torch.tensor([[9.0, 0, -1, -2], [9, 0, -3, 0], [9, -1, -1, -1], [9, 0, 0, -5]])
    batch = {
        "completion_mask": torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]]),
        "ref_chosen_logps": torch.tensor([-4.0, -3.0]),
        "ref_rejected_logps": torch.tensor([-3.0, -4.0]),
    }
    # ratios: chosen −3 + 4 = 1 and −3 + 3 = 0, rejected −3 + 3 = 0 and −5 + 4 = −1
    assert logits_of("sigmoid", log_probs, batch, 0.5).tolist() == [0.5, 0.5]
    assert logits_of("sigmoid_norm", log_probs, batch, 0.5).tolist() == [0.25, 0.5]


# settings and targets


def rows_of(*p: float | None) -> list[Any]:
    return [replace(row, p_chosen=value) for row, value in zip(planted(len(p)), p, strict=True)]


def test_targets_are_the_pairs_own_or_the_smoothed() -> None:
    from train.soft import targets

    rows = rows_of(0.9, None, 0.4)
    soft = targets(DpoConfig(model="m", soft_labels=True, label_smoothing=0.2), rows)
    assert soft is not None and soft.p == [0.9, 0.8, 0.4]
    assert soft.summary() == {"own": 2, "smoothed": 1, "mean_p_chosen": pytest.approx(0.7)}
    smoothed = targets(DpoConfig(model="m", label_smoothing=0.2), rows)
    assert smoothed is not None and (smoothed.p, smoothed.own) == ([0.8] * 3, 0)
    assert targets(DpoConfig(model="m"), rows) is None
    assert targets(DpoConfig(model="m", loss={"robust": 1.0}, label_smoothing=0.2), rows) is None


def test_a_pair_without_a_probability_is_an_error_with_a_way_out() -> None:
    from train.soft import targets

    config = DpoConfig(model="m", soft_labels=True)
    with pytest.raises(InputError, match=r"--soft-labels: 2 of 3 pairs have no prob.*the first is f:2") as no:
        targets(config, rows_of(0.9, None, None))
    assert "--label-smoothing" in str(no.value) and "pairwise" in str(no.value)
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(InputError, match=rf"f:2: p_chosen is {wrong}, not a probability"):
            targets(config, rows_of(0.9, wrong))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"label_smoothing": 0.5}, "--label-smoothing: must be in [0, 0.5), not 0.5"),
        ({"label_smoothing": -0.1}, "--label-smoothing: must be in"),
        ({"label_smoothing": math.nan}, "--label-smoothing: must be a finite number"),
        ({"label_smoothing": 0.1, "loss": {"hinge": 1.0}}, "--label-smoothing: the loss hinge does not read"),
        ({"label_smoothing": 0.1, "loss": {"sigmoid": 1, "ipo": 1}}, "--label-smoothing: the loss ipo does"),
        ({"label_smoothing": 0.1, "loss": {"sft": 1.0}}, "--label-smoothing: needs a --loss"),
        ({"soft_labels": True, "loss": {"robust": 1.0}}, "--soft-labels: the loss robust does not read it"),
        ({"soft_labels": True, "loss": {"sigmoid": 0.0, "sft": 1.0}}, "--soft-labels: needs a --loss"),
        ({"loss": {"exo_pair": 1.0}}, "--label-smoothing: must be above 0 for exo_pair"),
    ],
)
def test_what_a_loss_would_not_heed_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        DpoConfig(model="m", **changes)
    assert named in str(caught.value)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "sft"])
def test_every_loss_reads_the_smoothing_or_refuses_it(loss: str) -> None:
    """Whether TRL's own formula, or ours, has the number in it."""
    mix = {loss: 1.0, "sft": 0.5}
    if loss in SMOOTHED:
        assert DpoConfig(model="m", loss=mix, label_smoothing=0.1).label_smoothing == 0.1
    else:
        with pytest.raises(InputError, match=f"{loss} does not read it"):
            DpoConfig(model="m", loss=mix, label_smoothing=0.1)


def test_earlier_outputs_still_resume() -> None:
    """The plan of a run without soft labels is what it was; with them their probabilities count."""
    plain = DpoConfig(model="m").shaping()
    assert not {"soft_labels", "label_smoothing_in"} & plain.keys()
    assert DpoConfig(model="m", loss={"robust": 1.0}, label_smoothing=0.1).shaping().keys() == plain.keys()
    # gavel once ignored it here: what that made is something else
    assert DpoConfig(model="m", label_smoothing=0.1).shaping()["label_smoothing_in"] == ["sigmoid"]
    assert DpoConfig(model="m", soft_labels=True).shaping()["soft_labels"] is True

    certain, other = rows_of(0.9, 0.8), rows_of(0.9, 0.7)
    assert data_version(certain) == data_version(other) == data_version(rows_of(None, None))
    versions = {data_version(rows, soft_labels=True) for rows in (certain, other, rows_of(0.9, None))}
    assert len(versions | {data_version(certain)}) == 4


# where p and the flip rate come from


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory with one pair, whose p is 0.9."""
    made, prompt = RunDir(tmp_path / "run"), asked("one")
    answers = [answered(prompt, 0, "good"), answered(prompt, 1, "bad")]
    write(made.prompts_path, prompt)
    write(made.completions_path, *answers)
    write(made.pairs_path("best"), PreferencePair(
        id="p", prompt_id=prompt.id, chosen_id=answers[0].id, rejected_id=answers[1].id, margin=0.5,
        chosen_score=1.0, rejected_score=0.5, p_chosen=0.9,
    ))  # fmt: skip
    return made


def test_p_and_margin_come_from_runs_and_files(run: RunDir, tmp_path: Path) -> None:
    (row,) = read_run(run, encoder(), strict())
    assert (row.p_chosen, row.margin) == (0.9, 0.5)
    source = tmp_path / "foreign.jsonl"
    given_rows = [{"p_chosen": 0.75, "margin": 2}, {}, {"p_chosen": "0.6"}, {"p_chosen": 1.2}]
    text = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    source.write_text("".join(json.dumps(text | {"prompt": f"q{i}"} | row) + "\n"
                              for i, row in enumerate(given_rows)))  # fmt: skip
    bad = strict()
    rows = read_preferences(read_source(str(source), {}, bad), encoder(), bad)
    assert [(r.p_chosen, r.margin) for r in rows] == [(0.75, 2.0), (None, None), (0.6, None)]
    assert bad.count == 1 and bad.first[0].where.endswith(":4")


def test_the_flip_rate_is_the_manifests(run: RunDir) -> None:
    run.finish_stage("pairs/best", {"flip_rate": 0.12, "flip_rate_from": "orders"})
    assert flip_rate(run) == flip_rate(run, "best") == 0.12
    with pytest.raises(InputError, match="no pairs named 'worst'"):
        flip_rate(run, "worst")
    run.finish_stage("pairs/best", {"flip_rate": 0})
    assert flip_rate(run) == 0.0


@pytest.mark.parametrize(
    ("summary", "said"),
    [({"flip_rate": None}, "was not measured"), ({}, "was not measured"), (None, "was not measured"),
     ({"flip_rate": 0.5}, "is 0.5"), ({"flip_rate": -0.1}, "is -0.1"), ({"flip_rate": "low"}, "is low"),
     ({"flip_rate": True}, "is True")],
)  # fmt: skip
def test_a_flip_rate_that_is_none_says_how_to_measure_it(
    run: RunDir, summary: dict[str, Any] | None, said: str
) -> None:
    if summary is not None:
        run.finish_stage("pairs/best", summary)
    with pytest.raises(InputError, match=f"the flip rate of pairs best {said}") as caught:
        flip_rate(run)
    assert "--method pairwise" in str(caught.value) and "--gold FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [("measured", "was not measured"), ("some", "neither a number nor measured"), ("0.7", "must be in")],
)
def test_the_command_refuses_before_any_model_is_read(run: RunDir, value: str, said: str) -> None:
    line = ["dpo", "--model", "nothing", "--data", str(run.path), "--out", "out", "--label-smoothing", value]
    with pytest.raises(GavelError, match=said):
        train.main(line, standalone_mode=False)


def test_a_file_has_no_measured_flip_rate(tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "flip_rate": 0.1}\n')
    line = ["dpo", "--model", "m", "--data", str(source), "--out", "out", "--label-smoothing", "measured"]
    with pytest.raises(InputError, match="only a run directory knows its flip rate") as caught:
        train.main(line, standalone_mode=False)
    assert "--label-smoothing 0.08" in str(caught.value)


# training


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small gain nothing from threads
    yield tiny_model(tmp_path_factory.mktemp("tiny"))
    torch.set_num_threads(before)


def with_p(rows: list[Any], seed: int = 0) -> list[Any]:
    draw = random.Random(seed)
    return [replace(row, p_chosen=draw.uniform(0.3, 1.0)) for row in rows]


@pytest.mark.engine
def test_the_trainers_loss_is_the_hand_worked_number(model: str, tmp_path: Path) -> None:
    """The first step's, the references set off by 0.5, 1.0, …, so that every pair has a z of its own."""
    from train.dpo import train_dpo
    from train.unique import TOLERANCE

    p, offsets = [0.5, 0.73, 1.0, 0.9], [0.5, 1.0, 1.5, -2.0]
    rows = [replace(r, ref_rejected_logp=r.ref_rejected_logp + off, p_chosen=p)
            for r, off, p in zip(with_reference(model, planted(4)), offsets, p, strict=True)]  # fmt: skip
    z = [0.3 * off for off in offsets]
    sft = -sum(r.ref_chosen_logp for r in rows) / sum(len(r.chosen_ids) for r in rows)

    def plain(x: float) -> float:
        return math.log1p(math.exp(-x))

    soft = sum(q * plain(x) + (1 - q) * plain(-x) for q, x in zip(p, z, strict=True)) / 4
    smooth = sum(0.8 * plain(x) + 0.2 * plain(-x) for x in z) / 4
    robust = sum(0.8 * plain(x) - 0.2 * plain(-x) for x in z) / 4 / (1 - 2 * 0.2)
    cases: list[tuple[dict[str, Any], float]] = [
        ({"soft_labels": True, "loss": {"sigmoid": 2.0, "sft": 0.5}}, 2.0 * soft + 0.5 * sft),
        ({"label_smoothing": 0.2, "loss": {"sigmoid": 1.0}}, smooth),
        ({"label_smoothing": 0.2, "loss": {"robust": 1.0}}, robust),
        ({"label_smoothing": 0.2, "loss": {"sigmoid": 1.0, "robust": 0.5}}, smooth + 0.5 * robust),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOLERANCE, "fp32", 9.0)
        for number, (changes, expected) in enumerate(cases):
            config = settings(model, reference="samples", batch_size=4, micro_batch=2, beta=0.3, **changes)
            out = tmp_path / str(number)
            train_dpo(config, rows, out)
            assert steps_of(out)[0]["loss"] == pytest.approx(expected, rel=1e-5), changes


@pytest.mark.engine
def test_certain_soft_labels_train_plain_dpo_bit_for_bit(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows = [replace(row, p_chosen=1.0) for row in planted(24)]
    plain = train_dpo(settings(model), rows, tmp_path / "plain")
    soft = train_dpo(settings(model, soft_labels=True), rows, tmp_path / "soft")
    assert same_weights(tmp_path / "plain", tmp_path / "soft")
    assert plain["targets"] is None
    assert soft["targets"] == {"own": 24, "smoothed": 0, "mean_p_chosen": 1.0}


@pytest.mark.engine
def test_label_smoothing_is_one_target_for_all(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows = planted(24)
    loss = {"sigmoid": 0.5, "sigmoid_norm": 0.5}
    smoothed = settings(model, label_smoothing=0.25, loss=loss)
    own = settings(model, soft_labels=True, loss=loss)
    train_dpo(smoothed, rows, tmp_path / "smoothed")
    train_dpo(own, [replace(row, p_chosen=0.75) for row in rows], tmp_path / "soft")
    train_dpo(settings(model, loss=loss), rows, tmp_path / "plain")
    assert same_weights(tmp_path / "smoothed", tmp_path / "soft")
    assert not same_weights(tmp_path / "smoothed", tmp_path / "plain", atol=1e-4)


@pytest.mark.engine
def test_micro_batches_change_nothing(model: str, tmp_path: Path) -> None:
    """1 × 8 and 8 × 1, the short batch at the end included."""
    from train.dpo import train_dpo

    rows = with_p(planted(29))
    mix = {"sigmoid": 1.0, "sigmoid_norm": 0.5, "sft": 0.5}
    for micro in (8, 1):
        config = settings(model, micro_batch=micro, epochs=2, soft_labels=True, loss=mix)
        train_dpo(config, rows, tmp_path / str(micro))
    assert_one_trajectory(tmp_path / "1", tmp_path / "8")


@pytest.mark.engine
def test_a_coin_toss_moves_nothing(model: str, tmp_path: Path) -> None:
    """p = 0.5 for all pairs: the reference is the optimum. Plain gradient descent, since Adam would
    make a step of any rounding error."""
    import torch

    from train.dpo import train_dpo

    start = weights_of(Path(model))
    moved = {}
    for p in (0.5, 1.0):
        rows = [replace(row, p_chosen=p) for row in planted(16)]
        config = settings(model, soft_labels=True, loss={"sigmoid": 1.0}, optim="sgd", learning_rate=1.0)
        train_dpo(config, rows, tmp_path / str(p))
        after = weights_of(tmp_path / str(p))
        moved[p] = max(torch.max(torch.abs(after[k] - start[k])).item() for k in start)
    assert moved[0.5] < 1e-5
    assert moved[1.0] > 1e-2


@pytest.mark.engine
def test_training_ends_where_the_policy_has_the_targets(model: str, tmp_path: Path) -> None:
    """Three pairs that share nothing: β·h reaches log(p / (1 − p)), also where chosen is the worse one."""
    from train.data import PairRow
    from train.dpo import train_dpo

    p = [0.73, 0.9, 0.4]
    rows = [PairRow(prompt_ids=[1, 3, 20 + i, 4], chosen_ids=[10 + i, 2], rejected_ids=[30 + i, 2],
                    pair_id=str(i), p_chosen=p[i]) for i in range(3)]  # fmt: skip
    config = settings(model, soft_labels=True, loss={"sigmoid": 1.0}, batch_size=3, beta=0.5,
                      epochs=150, learning_rate=3e-3, scheduler="linear", log_steps=50)  # fmt: skip
    train_dpo(config, rows, tmp_path / "out")
    before, after = logps(model, rows), logps(str(tmp_path / "out"), rows)
    implied = [0.5 * ((c - r) - (c0 - r0)) for (c, r), (c0, r0) in zip(after, before, strict=True)]
    assert [1 / (1 + math.exp(-z)) for z in implied] == pytest.approx(p, abs=0.01)


@pytest.mark.engine
def test_masked_positions_get_no_gradient(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in a pad slot changes no gradient; the target of a pair does."""
    import torch

    config = settings(model, batch_size=4, soft_labels=True, loss={"sigmoid": 1.0})
    soft, other = (trainer_of(config, planted(4), tmp_path, [p] * 4) for p in (0.7, 0.2))
    assert_pad_slots_do_not_count(soft, monkeypatch)
    here, there = (gradients(trainer, [0, 1, 2, 3]) for trainer in (soft, other))
    assert not any(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.engine
def test_other_probabilities_are_another_plan(model: str, tmp_path: Path) -> None:
    from train.dpo import train_dpo

    rows, out = with_p(planted(8)), tmp_path / "out"
    config = settings(model, soft_labels=True)
    first = train_dpo(config, rows, out)
    assert train_dpo(config, rows, out) == first
    with pytest.raises(InputError, match="data: was"):
        train_dpo(config, with_p(rows, seed=1), out)
    with pytest.raises(InputError, match=r"config.soft_labels: was True"):
        train_dpo(replace(config, soft_labels=False), rows, out)
    with pytest.raises(InputError, match="--soft-labels: 8 of 8 pairs"):
        train_dpo(config, planted(8), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.engine
def test_the_command_trains_on_the_measured_flip_rate(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the manifest of a run; the pairs with a probability keep theirs."""
    from gavel.records import Completion, Message, Prompt

    run = RunDir(tmp_path / "run")
    for i in range(4):
        write(run.prompts_path, Prompt(id=f"q{i}", messages=(Message("user", f"w{i} w7"),)))
        write(run.completions_path, *(
            Completion(id=f"c{i}{j}", prompt_id=f"q{i}", index=j, text=f"w{10 + j} w{i}") for j in range(2)
        ))  # fmt: skip
        write(run.pairs_path("x"), PreferencePair(
            id=f"p{i}", prompt_id=f"q{i}", chosen_id=f"c{i}0", rejected_id=f"c{i}1", margin=1.0,
            chosen_score=1.0, rejected_score=0.0, p_chosen=0.6 if i else None,
        ))  # fmt: skip
    run.finish_stage("pairs/x", {"flip_rate": 0.2, "flip_rate_from": "orders"})
    line = ["dpo", "--model", model, "--data", str(run.path), "--out", str(tmp_path / "out"), "--json",
            "--batch-size", "4", "--label-smoothing", "measured", "--soft-labels"]  # fmt: skip
    train.main(line, standalone_mode=False)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["targets"] == {
        "own": 3, "smoothed": 1, "mean_p_chosen": pytest.approx((3 * 0.6 + 0.8) / 4),
    }  # fmt: skip
    assert "label smoothing 0.2: the measured flip rate" in captured.err
