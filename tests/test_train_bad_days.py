"""Training that runs out of numbers, of memory, or of data: for every trainer."""

from __future__ import annotations

import errno
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from training_tools import one_outcome, planted, same_weights, steps_of, tiny_model

from gavel.errors import CheckFailed, InputError
from train.config import RewardConfig, SftConfig, TrainConfig
from train.config_dpo import DpoConfig
from train.output import Output

pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Kind:
    """A trainer: how it is called, a configuration for a model, and rows to train on."""

    train: Callable[[Any, list[Any], Path], dict[str, Any]]
    config: Callable[..., TrainConfig]
    rows: Callable[[int], list[Any]] = planted


def shown(count: int) -> list[Any]:
    """The chosen completions of the planted pairs, as demonstrations."""
    from train.sft_data import SftRow

    return [
        SftRow(
            ids=array("i", [*pair.prompt_ids, *pair.chosen_ids]), row_id=pair.pair_id, where=pair.where,
            spans=((len(pair.prompt_ids), len(pair.prompt_ids) + len(pair.chosen_ids)),),
        )
        for pair in planted(count)
    ]  # fmt: skip


@pytest.fixture(params=["sft", "dpo", "reward"])
def kind(request: pytest.FixtureRequest) -> Kind:
    common = {"learning_rate": 1e-3, "batch_size": 8, "log_steps": 1, "scheduler": "constant",
              "precision": "fp32"}  # fmt: skip
    if request.param == "sft":
        from train.sft import train_sft

        return Kind(train_sft, lambda model, **more: SftConfig(model=model, **(common | more)), shown)
    if request.param == "dpo":
        from train.dpo import train_dpo

        return Kind(train_dpo, lambda model, **more: DpoConfig(model=model, **(common | more)))
    from train.reward import train_reward

    return Kind(
        train_reward, lambda model, **more: RewardConfig(model=model, held_out=0.0, **(common | more))
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def fails_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes something happen to the loss of a micro-batch once so many steps are done."""
    import train.exact

    original = train.exact.ExactRows.finite

    def plant(step: int, happen: Callable[[Any, Any], Any]) -> None:
        def finite(self: Any, loss: Any, places: Any) -> Any:
            changed = happen(self, loss) if self.state.global_step == step else loss
            return original(self, changed, places)

        monkeypatch.setattr(train.exact.ExactRows, "finite", finite)

    return plant


def steps_kept(out: Path) -> list[str]:
    return sorted(marker.parent.name for marker in (out / "checkpoints").glob("*/whole"))


def test_a_loss_that_is_no_number_names_its_rows_and_keeps_the_step_before(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any
) -> None:
    rows = kind.rows(32)
    fails_at(2, lambda trainer, loss: loss * math.nan)
    with pytest.raises(CheckFailed) as caught:
        kind.train(kind.config(model, micro_batch=4), rows, tmp_path / "out")
    said = str(caught.value)
    assert "the loss is nan at step 3" in said and "checkpoint-2" in said and "--learning-rate" in said
    named = [row for row in rows if row.name in said]
    assert len(named) == 4, "the micro-batch"
    assert steps_kept(tmp_path / "out") == ["checkpoint-2"]
    assert not (tmp_path / "out" / "config.json").exists()


def test_what_is_kept_is_the_state_before(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cured, the same command goes on from there to the weights of an undisturbed run."""
    rows, config = kind.rows(40), kind.config(model, micro_batch=4)
    kind.train(config, rows, tmp_path / "straight")
    fails_at(3, lambda trainer, loss: loss * math.inf)
    with pytest.raises(CheckFailed, match="the loss is inf at step 4"):
        kind.train(config, rows, tmp_path / "out")
    monkeypatch.undo()
    kind.train(config, rows, tmp_path / "out")
    assert same_weights(tmp_path / "straight", tmp_path / "out")
    assert [s["step"] for s in steps_of(tmp_path / "out")] == [1, 2, 3, 4, 5]


def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any
) -> None:
    """A finite loss, an infinite gradient: the square root of zero."""
    from safetensors.torch import load_file

    rows = kind.rows(32)
    fails_at(1, lambda trainer, loss: loss + (loss - loss).abs().sqrt())
    with pytest.raises(CheckFailed) as caught:
        kind.train(kind.config(model), rows, tmp_path / "out")
    said = str(caught.value)
    assert f"the gradient's norm is nan at step 2, in {rows[0].noun}" in said
    assert sum(row.name in said for row in rows) == 8, "the batch"
    kept = load_file(tmp_path / "out" / "checkpoints" / "checkpoint-1" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in kept.values())


def test_more_rows_than_a_message_has_room_for_are_in_a_file(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = kind.rows(24)
    fails_at(1, lambda trainer, loss: loss + (loss - loss).abs().sqrt())
    config = kind.config(model, batch_size=12)
    with pytest.raises(CheckFailed) as caught:
        kind.train(config, rows, tmp_path / "out")
    said, listed = str(caught.value), tmp_path / "out" / "checkpoints" / "suspects.txt"
    named = listed.read_text().splitlines()
    assert len(named) == 12 and set(named) < {row.name for row in rows}
    assert [name for name in named if name in said] == named[:8] and "and 4 more" in said
    assert f"All 12 are in {listed}." in said and "The state of step 1 is in" in said
    monkeypatch.undo()
    kind.train(config, rows, tmp_path / "out")
    assert not listed.exists()


LOGGED = {"epochs": 2, "log_steps": 4, "micro_batch": 4}  # 8 steps, two log lines


def told(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name not in ("model", "seconds")}


@pytest.mark.parametrize("steps", [(3,), (1, 3, 6), (4,), (5,)], ids=str)
def test_a_run_that_was_stopped_logs_and_tells_what_an_undisturbed_one_does(
    kind: Kind, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    """Stopped between two lines of metrics.jsonl, or at one, even before the first is written."""
    from train.callbacks import Checkpoints

    rows, config = kind.rows(32), kind.config(model, **LOGGED)
    expected = kind.train(config, rows, tmp_path / "straight")
    assert expected["steps"] == 8 and expected["loss"] > 0 and expected["metrics"]
    original = Checkpoints.on_step_end
    for step in steps:

        def stop(self: Any, args: Any, state: Any, *more: Any, at: int = step, **given: Any) -> None:
            self.stop_requested = state.global_step == at
            original(self, args, state, *more, **given)

        monkeypatch.setattr(Checkpoints, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            kind.train(config, rows, tmp_path / "out")
    monkeypatch.undo()
    assert told(kind.train(config, rows, tmp_path / "out")) == told(expected)
    assert steps_of(tmp_path / "out") == steps_of(tmp_path / "straight")


def test_one_that_failed_inside_a_step_does_too(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the step had summed up before it failed does not count twice."""
    rows, config = kind.rows(32), kind.config(model, **LOGGED)
    expected = kind.train(config, rows, tmp_path / "straight")
    losses: list[float] = []

    def second(trainer: Any, loss: Any) -> Any:
        losses.append(loss.item())
        return loss * math.nan if len(losses) == 2 else loss

    fails_at(2, second)
    with pytest.raises(CheckFailed, match="the loss is nan at step 3"):
        kind.train(config, rows, tmp_path / "out")
    assert len(losses) == 2
    monkeypatch.undo()
    assert told(kind.train(config, rows, tmp_path / "out")) == told(expected)
    assert steps_of(tmp_path / "out") == steps_of(tmp_path / "straight")


def test_one_that_ended_while_the_model_was_saved_does_too(
    kind: Kind, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to train."""
    from train import callbacks
    from train.output import Output

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    rows, config = kind.rows(32), kind.config(model, **LOGGED)
    expected = kind.train(config, rows, tmp_path / "straight")
    monkeypatch.setattr(callbacks, "_LAST_CHECKPOINT_S", -1.0)
    monkeypatch.setattr(Output, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        kind.train(config, rows, tmp_path / "out")
    monkeypatch.undo()
    assert told(kind.train(config, rows, tmp_path / "out")) == told(expected)


def out_of_memory(above: int) -> Callable[[Any, Any], Any]:
    """As a GPU says it, for micro-batches above a size."""

    def happen(trainer: Any, loss: Any) -> Any:
        import torch

        if trainer.args.per_device_train_batch_size > above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    return happen


def test_out_of_memory_says_what_to_lower(kind: Kind, model: str, tmp_path: Path, fails_at: Any) -> None:
    fails_at(2, out_of_memory(above=1))
    with pytest.raises(InputError) as caught:
        kind.train(kind.config(model, micro_batch=4), kind.rows(32), tmp_path / "out")
    said = str(caught.value)
    assert said.startswith("--micro-batch 4: out of memory while training")
    assert "--micro-batch 2" in said and "--halve-micro-batch" in said and "--gradient-checkpointing" in said
    assert "The state of step 2 is in" in said
    # the smaller micro-batch goes on from there
    summary = kind.train(kind.config(model, micro_batch=1), kind.rows(32), tmp_path / "out")
    assert summary["steps"] == 4


@pytest.mark.parametrize("step", [0, 2])
def test_halved_it_goes_on_with_the_same_batches(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = kind.rows(32)
    kind.train(kind.config(model, micro_batch=8), rows, tmp_path / "straight")
    fails_at(step, out_of_memory(above=2))
    config = kind.config(model, micro_batch=8, halve_micro_batch=True)
    summary = kind.train(config, rows, tmp_path / "out")
    assert summary["steps"] == 4
    said = capsys.readouterr().err
    assert "a micro-batch of 8: going on with 4" in said and "a micro-batch of 4: going on with 2" in said
    assert [s["loss"] for s in steps_of(tmp_path / "out")] == pytest.approx(
        [s["loss"] for s in steps_of(tmp_path / "straight")], rel=1e-5
    )
    assert one_outcome(tmp_path / "straight", tmp_path / "out")


def test_one_pair_at_a_time_is_the_end_of_halving(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any
) -> None:
    fails_at(0, out_of_memory(above=0))
    config = kind.config(model, micro_batch=2, halve_micro_batch=True, gradient_checkpointing=True)
    with pytest.raises(InputError) as caught:
        kind.train(config, kind.rows(16), tmp_path / "out")
    said = str(caught.value)
    assert "--micro-batch 1: out of memory" in said and "--max-length" in said
    assert "--micro-batch 0" not in said and "--gradient-checkpointing" not in said


def test_nothing_is_advised_that_was_given(kind: Kind, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import group
    from train.memory import less_memory

    config = kind.config(model, micro_batch=4)
    assert "--halve-micro-batch" in less_memory(config, 2) and "--max-length to" in less_memory(config, 2)
    given = replace(config, halve_micro_batch=True, max_length=50, lora_r=4, gradient_checkpointing=True)
    assert less_memory(given, 2) == (
        "Try --micro-batch 2 (the batch stays 8), or --max-length below 50 to leave out the longest rows."
    )
    monkeypatch.setattr(group, "size", lambda: 2)
    assert "--halve-micro-batch" not in less_memory(config, 2), "which works with one process"


def test_several_processes_are_told_their_own_micro_batch(
    kind: Kind, model: str, tmp_path: Path, fails_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 8 on four processes: each has two rows, so that a micro-batch of 4 helps nobody."""
    from train import running

    def no_memory(config: Any, callbacks: Any) -> Any:
        raise MemoryError

    with running.begin("a test", kind.config(model), kind.rows(8), "data", tmp_path / "out") as begun:
        monkeypatch.setattr(running.group, "size", lambda: 4)
        monkeypatch.setattr(running.group, "rank", lambda: 0)
        monkeypatch.setattr(running.group, "of_main", lambda value: value)
        with pytest.raises(InputError) as caught:
            running.run(begun.config, begun.output, no_memory)
        said = str(caught.value)
        assert said.startswith("--micro-batch 2: out of memory") and "Try --micro-batch 1 " in said
    halving = kind.config(model, halve_micro_batch=True)
    with (
        pytest.raises(InputError, match="--halve-micro-batch: works with one process"),
        running.begin("a test", halving, kind.rows(8), "data", tmp_path / "other"),
    ):
        pass


def test_a_micro_batch_that_shapes_what_is_learned_is_in_the_plan(
    model: str, tmp_path: Path, fails_at: Any
) -> None:
    from train.dpo import train_dpo

    config = DpoConfig(model=model, loss={"aot": 1.0}, batch_size=8, micro_batch=4, precision="fp32")
    fails_at(2, out_of_memory(above=1))
    with pytest.raises(InputError) as caught:
        train_dpo(config, planted(32), tmp_path / "out")
    assert "Try --gradient-checkpointing" in str(caught.value), "half a micro-batch is another objective"
    with pytest.raises(InputError, match="micro_batch: was 4, now 2"):
        train_dpo(replace(config, micro_batch=2), planted(32), tmp_path / "out")


def test_another_error_is_no_lack_of_memory(kind: Kind, model: str, tmp_path: Path, fails_at: Any) -> None:
    def happen(trainer: Any, loss: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    fails_at(0, happen)
    with pytest.raises(RuntimeError, match="shapes"):
        kind.train(kind.config(model, halve_micro_batch=True), kind.rows(16), tmp_path / "out")


def test_memory_that_runs_out_in_the_optimiser_keeps_no_torn_weights(
    kind: Kind, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the optimiser had begun is thrown away: the checkpoint before counts."""
    import torch

    rows = kind.rows(32)
    kind.train(kind.config(model, save_steps=1), rows, tmp_path / "straight")
    original, calls = torch.optim.AdamW.step, []

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            with torch.no_grad():
                next(p for group in self.param_groups for p in group["params"]).fill_(7.0)
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    config = kind.config(model, save_steps=1, micro_batch=8, halve_micro_batch=True)
    kind.train(config, rows, tmp_path / "out")
    assert len(calls) == 3 + 2, "two steps, the one that failed, and two more"
    assert one_outcome(tmp_path / "straight", tmp_path / "out")


def test_fewer_pairs_than_a_batch_are_an_error(kind: Kind, model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"7 (pairs|rows) to train on are fewer than one batch of 8"):
        kind.train(kind.config(model), kind.rows(7), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_the_system_refuses_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with (
        pytest.raises(InputError, match="cannot make this directory: Read-only"),
        Output.open(tmp_path / "x"),
    ):
        pass


def test_held_out_pairs_do_not_fill_a_batch(model: str, tmp_path: Path) -> None:
    from train.reward import train_reward

    config = RewardConfig(model=model, batch_size=8, held_out=0.5, precision="fp32")
    with pytest.raises(InputError, match="fewer than one batch of 8"):
        train_reward(config, planted(10), tmp_path / "out")
    long = [replace(row, chosen_ids=[10] * 64) for row in planted(40)]
    with pytest.raises(InputError, match="the model's context is 64"):
        train_reward(config, long, tmp_path / "out")
