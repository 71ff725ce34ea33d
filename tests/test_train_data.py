"""Preference pairs as token ids: the sampled ones, and only those."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gavel.errors import InputError, RunDirError
from gavel.packed import pack_ids
from gavel.records import Completion, Message, PreferencePair, Prompt, digest, prompt_id
from gavel.rows import BadRows
from gavel.rundir import JsonlWriter, RunDir, is_run
from gavel.sources import read_preferences as read_source
from train.config_dpo import DpoConfig
from train.data import Encoder, data_version, read_preferences, read_run, run_beside
from train.output import Output

EOS = 1


class Letters:
    """One token per character; a conversation is framed by 2 and 3."""

    version = "letters"
    eos_id = EOS

    def chat_ids(self, messages: Sequence[Message], **template_args: Any) -> list[int]:
        return [2, *(i for m in messages for i in self.text_ids(m.content)), 3]

    def text_ids(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def begins_thinking(self, text: str) -> bool:
        return False

    def answer_ids(self, text: str, *, opened: bool = False) -> list[int]:
        return self.text_ids(text)

    def span_ids(self, context: str, target: str) -> tuple[list[int], int]:
        return self.text_ids(context + target), len(context)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i > 3)


def asked(text: str) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(id=prompt_id(messages), messages=messages)


def answered(
    prompt: Prompt, index: int, text: str, finish: str | None = "stop", **changes: Any
) -> Completion:
    """As `gavel generate` records it; token ids that the tokenizer would not give: 99 in front."""
    ids = [99, *(ord(c) for c in text), *([EOS] if finish == "stop" else [])]
    sampled = {
        "token_ids": pack_ids(ids), "prompt_hash": digest("prompt_ids", Letters().chat_ids(prompt.messages)),
        "logprobs_mode": "raw", "logprob_sum": -1.0 - index, "weights": "w1", "finish_reason": finish,
    }  # fmt: skip
    return Completion(
        id=f"{prompt.id}-{index}", prompt_id=prompt.id, index=index, text=text, **(sampled | changes)
    )


def write(path: Path, *records: Any) -> None:
    with JsonlWriter(path) as writer:
        for record in records:
            writer.append(record)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two prompts; the second prompt's rejected answer was cut off."""
    made = RunDir(tmp_path / "run")
    first, second = asked("one"), asked("two")
    write(made.prompts_path, first, second)
    answers = [answered(first, 0, "good"), answered(first, 1, "bad"), answered(second, 0, "yes"),
               answered(second, 1, "cut", "length")]  # fmt: skip
    write(made.completions_path, *answers)
    write(made.pairs_path("best"), *(
        PreferencePair(id=f"p{i}", prompt_id=a.prompt_id, chosen_id=a.id, rejected_id=b.id, margin=0.5,
                       chosen_score=1.0, rejected_score=0.5, p_chosen=0.9)
        for i, (a, b) in enumerate([(answers[0], answers[1]), (answers[2], answers[3])])
    ))  # fmt: skip
    return made


def encoder(**changes: Any) -> Encoder:
    return Encoder(Letters(), **({"weights": "w1", "context": 100} | changes))


def strict() -> BadRows:
    return BadRows(0.0, say=lambda message: None)


def test_a_run_gives_the_sampled_ids(run: RunDir) -> None:
    reading, bad = encoder(), strict()
    rows = read_run(run, reading, bad)
    first, second = rows
    assert list(first.prompt_ids) == [2, *map(ord, "one"), 3]
    assert list(first.chosen_ids) == [99, *map(ord, "good"), EOS]
    assert list(second.rejected_ids) == [99, *map(ord, "cut")]
    assert (first.ref_chosen_logp, first.ref_rejected_logp) == (-1.0, -2.0)
    assert (first.margin, first.p_chosen, first.pair_id) == (0.5, 0.9, "p0")
    assert second.where.endswith("pairs/best/pairs.jsonl:2")
    assert (bad.total, bad.count) == (2, 0)
    assert reading.completions == {"sampled": 4}


@pytest.mark.parametrize(
    ("weights", "changes"),
    [("w2", {}), (None, {}), ("w1", {"logprobs_mode": "processed"}), ("w1", {"weights": None})],
)
def test_only_the_starting_models_raw_logprobs_are_its_reference(
    tmp_path: Path, weights: str | None, changes: dict[str, Any]
) -> None:
    run, prompt = RunDir(tmp_path), asked("q")
    answers = [answered(prompt, i, text, **changes) for i, text in enumerate(["a", "b"])]
    write(run.prompts_path, prompt)
    write(run.completions_path, *answers)
    pair = PreferencePair(id="p", prompt_id=prompt.id, chosen_id=answers[0].id, rejected_id=answers[1].id,
                          margin=1.0, chosen_score=1.0, rejected_score=0.0)  # fmt: skip
    write(run.pairs_path("x"), pair)
    (row,) = read_run(run, encoder(weights=weights), strict())
    assert row.ref_chosen_logp is None and row.ref_rejected_logp is None


@pytest.mark.parametrize(("finish", "eos"), [("stop", [EOS]), (None, [EOS]), ("length", [])])
def test_text_from_elsewhere_ends_unless_cut_off(
    run: RunDir, tmp_path: Path, finish: str | None, eos: list[int]
) -> None:
    prompt = asked("one")
    bare = [Completion(id=f"{prompt.id}-{i}", prompt_id=prompt.id, index=i, text=text, finish_reason=finish)
            for i, text in enumerate(["good", "bad"])]  # fmt: skip
    other = RunDir(tmp_path / "other")
    write(other.prompts_path, prompt)
    write(other.completions_path, *bare)
    other.pairs_path("best").parent.mkdir(parents=True)
    other.pairs_path("best").write_bytes(run.pairs_path("best").read_bytes().splitlines(keepends=True)[0])
    (row,) = read_run(other, encoder(), strict())
    assert list(row.chosen_ids) == [*map(ord, "good"), *eos]
    assert row.ref_chosen_logp is None


def test_another_tokenizer_is_refused(run: RunDir) -> None:
    class Shifted(Letters):
        def text_ids(self, text: str) -> list[int]:
            return [ord(c) + 1 for c in text]

    with pytest.raises(
        InputError, match=r"pairs.jsonl:1: this model's tokenizer renders the prompt to other"
    ):
        read_run(run, Encoder(Shifted()), strict())


def test_what_cannot_be_trained_on_is_counted(run: RunDir, tmp_path: Path) -> None:
    bad = strict()
    assert len(read_run(run, encoder(context=10), bad)) == 1  # "one" + "good" has 11 tokens
    with pytest.raises(InputError, match=r"pairs.jsonl:1: 11 tokens, the model's context is 10"):
        bad.check()
    reading = encoder(max_length=10)
    assert len(read_run(run, reading, strict())) == 1
    assert reading.left_out == {"longer than --max-length": 1}

    prompt = asked("one")
    write(run.completions_path, answered(prompt, 2, "good"), answered(prompt, 3, "", token_ids=pack_ids([])))
    extra = [(0, 2, "same"), (0, 3, "empty"), (0, 9, "missing")]
    write(run.pairs_path("best"), *(
        PreferencePair(id=name, prompt_id=prompt.id, chosen_id=f"{prompt.id}-{a}",
                       rejected_id=f"{prompt.id}-{b}", margin=1.0, chosen_score=1.0, rejected_score=0.0)
        for a, b, name in extra
    ))  # fmt: skip
    reading, bad = encoder(), strict()
    assert [r.pair_id for r in read_run(run, reading, bad)] == ["p0", "p1"]
    assert reading.left_out == {"chosen = rejected": 1, "empty completion": 1}
    assert "is not in completions.jsonl" in bad.first[0].what


def test_pairs_are_chosen_by_name(run: RunDir) -> None:
    with pytest.raises(InputError, match="no pairs named 'worst'") as caught:
        read_run(run, encoder(), strict(), "worst")
    assert "best" in str(caught.value)
    with pytest.raises(InputError, match="has no preference pairs"):
        read_run(RunDir(run.path / "nowhere"), encoder(), strict())


def exported(path: Path, run: RunDir, **changes: Any) -> str:
    """A preference file as `gavel pairs --to` writes it."""
    ids = [json.loads(line)["id"] for line in run.completions_path.read_text().splitlines()]
    row = {
        "prompt": [{"role": "user", "content": "one"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "chosen_id": ids[0],
        "rejected_id": ids[1],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row | changes) + "\n")
    return str(path)


def test_an_export_beside_its_run_takes_the_sampled_ids(run: RunDir, tmp_path: Path) -> None:
    source = exported(run.path / "exports" / "pairs.jsonl", run)
    beside = run_beside(source)
    assert beside is not None and beside.path == run.path.absolute()
    bad = strict()
    (row,) = read_preferences(read_source(source, {}, bad), encoder(), bad, beside)
    assert list(row.chosen_ids) == [99, *map(ord, "good"), EOS] and row.ref_chosen_logp == -1.0

    (row,) = read_preferences(read_source(source, {}, bad), encoder(), bad)
    assert list(row.chosen_ids) == [*map(ord, "good"), EOS] and row.ref_chosen_logp is None

    edited = exported(tmp_path / "edited.jsonl", run, chosen=[{"role": "assistant", "content": "better"}])
    reading = encoder()
    (row,) = read_preferences(read_source(edited, {}, bad), reading, bad, run)
    assert list(row.chosen_ids) == [*map(ord, "better"), EOS]
    assert reading.completions == {"tokenised": 1, "sampled": 1}


def test_data_version_follows_ids_and_order(run: RunDir) -> None:
    rows = read_run(run, encoder(), strict())
    assert data_version(rows) == data_version([replace(r, ref_chosen_logp=None, where="") for r in rows])
    assert data_version(rows) != data_version(rows[::-1])
    other = [replace(row, margin=-1.0) for row in rows]
    assert data_version(rows) == data_version(other), "margins count where they are read"
    assert data_version(rows, margins=True) != data_version(other, margins=True)
    assert is_run(str(run.path)) and not is_run(str(run.prompts_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"sigmoyd": 1.0}}, "--loss: unknown loss sigmoyd"),
        ({"loss": {"sft": 0.0}}, "--loss: needs one loss"),
        ({"loss": {"sigmoid": -1.0}}, "--loss: the weight of sigmoid is -1, it must be finite"),
        ({"loss": {"sigmoid": 1.0, "sft": math.nan}}, "--loss: the weight of sft is nan"),
        ({"loss": {"sigmoid": math.inf}}, "--loss: the weight of sigmoid is inf"),
        ({"divergence_alpha": math.nan}, "--divergence-alpha: must be a finite number"),
        ({"learning_rate": math.nan}, "--learning-rate: must be a finite number"),
        ({"loss": {"sft": 0.5, "aot": 0.5}, "halve_micro_batch": True}, "--halve-micro-batch: aot and"),
        ({"batch_size": 8, "micro_batch": 3}, "--micro-batch: must divide --batch-size 8"),
        ({"beta": 0.0}, "--beta: must be above 0"),
        ({"merge": True}, "--merge: needs --lora-r"),
        ({"lora_alpha": 8.0}, "--lora-alpha: needs --lora-r"),
        ({"lora_targets": ("q_proj",)}, "--lora-target: needs --lora-r"),
        ({"seed": -1}, "--seed: must be in"),
        ({"seed": 2**32}, "--seed: must be in"),
        ({"loss": {"robust": 1.0}, "label_smoothing": 0.5}, "--label-smoothing"),
        ({"scheduler": "exponential"}, "--scheduler: must be one of"),
    ],
)
def test_settings_that_cannot_be_used_name_their_option(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        DpoConfig(model="m", **changes)
    assert named in str(caught.value)


@pytest.mark.parametrize(("batch", "micro"), [(16, 8), (12, 6), (7, 7), (11, 1), (1, 1)])
def test_micro_batch_is_the_largest_divisor_up_to_eight(batch: int, micro: int) -> None:
    assert DpoConfig(model="m", batch_size=batch).micro_batch_size == micro


def test_longer_than_is_wanted_is_left_out_also_beyond_the_context() -> None:
    bad = strict()
    shorter = encoder(context=10, max_length=8)
    assert [shorter.takes(length, "f:1", bad) for length in (8, 9, 11)] == [True, False, False]
    assert bad.count == 0 and shorter.left_out == {"longer than --max-length": 2}
    longer = encoder(context=10, max_length=20)
    with pytest.raises(InputError, match="11 tokens, the model's context is 10") as caught:
        longer.takes(11, "f:1", bad)
        bad.check()
    assert "--max-length 10" in str(caught.value)
    assert not longer.takes(21, "f:1", bad) and longer.left_out == {"longer than --max-length": 1}


def test_halves_that_change_nothing_else() -> None:
    def halved(processes: int, **settings: Any) -> int | None:
        return DpoConfig(model="m", **settings).halved_micro_batch_on(processes)

    assert halved(1, batch_size=12) == 3 and halved(2, batch_size=12) == 3 and halved(4, batch_size=12) == 1
    assert halved(1, micro_batch=1) is None
    assert halved(1, loss={"aot": 1.0}) is None and halved(1, loss={"aot": 0.0, "sigmoid": 1.0}) == 4


def test_an_output_keeps_whole_checkpoints_only(tmp_path: Path) -> None:
    with Output.open(tmp_path / "out") as output:
        output.begin({"a": 1})
        for step in (5, 10, 15):
            (output.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
            if step < 15:
                output.mark_whole(step)
        newest = output.newest_checkpoint()
        assert newest is not None and newest.name == "checkpoint-10"
        assert not (output.checkpoints / "checkpoint-15").exists()
        output.metrics_path.write_text('{"step": 9}\n{"step": 10}\n{"step": 11}\n{"st')
        output.rewind_metrics(10)
        assert output.metrics_path.read_text() == '{"step": 9}\n{"step": 10}\n'
        with pytest.raises(RunDirError, match="in use by process"), Output.open(tmp_path / "out"):
            pass


def test_a_checkpoint_that_lost_a_part_later_is_not_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off, or gone, after it was marked: the one before it counts. Markers of before name no files."""

    def made(output: Output, step: int) -> Path:
        folder = output.checkpoints / f"checkpoint-{step}"
        (folder / "shards").mkdir(parents=True)
        for name in ("model.safetensors", "shards/0.distcp"):
            (folder / name).write_text("weights")
        output.mark_whole(step)
        return folder

    with Output.open(tmp_path / "out") as output:
        output.begin({"a": 1})
        before = made(output, 5)
        for file, harm in (
            ("model.safetensors", lambda file: os.truncate(file, 3)), ("shards/0.distcp", Path.unlink),
            ("whole", lambda file: file.write_text('{"model')),
        ):  # fmt: skip
            newest = made(output, 10)
            assert output.newest_checkpoint() == newest and not capsys.readouterr().err
            harm(newest / file)
            assert output.newest_checkpoint() == before and not newest.exists()
            assert f"{newest} has lost a part" in capsys.readouterr().err
        (before / "whole").write_bytes(b"")
        (before / "model.safetensors").write_text("w")
        assert output.newest_checkpoint() == before


def test_checkpoints_that_a_kill_left_with_a_finished_model_are_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, **given: Any) -> None:
        raise KeyboardInterrupt

    with Output.open(tmp_path / "out") as output:
        output.begin({"a": 1})
        (output.checkpoints / "checkpoint-5").mkdir(parents=True)
        output.mark_whole(5)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("train.output.shutil.rmtree", killed)
            output.finish({"steps": 5})
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-5").exists()
    with Output.open(tmp_path / "out") as output:
        assert output.begin({"a": 1}) == {"steps": 5}
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_publishing_moves_the_configuration_last(tmp_path: Path) -> None:
    """A kill between two moves leaves nothing that loads."""
    with Output.open(tmp_path / "out") as output:
        output.begin({})

        def save(folder: Path) -> None:
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                (folder / name).write_text(name)

        moved: list[str] = []
        original = Path.replace

        def watched(self: Path, target: Path) -> Path:
            moved.append(self.name)
            return original(self, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", watched)
            output.publish(save)
        assert moved == ["model.safetensors", "tokenizer.json", "config.json"]
        assert {p.name for p in output.path.iterdir()} >= set(moved)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gavel.cli import train; from click.testing import CliRunner;"
        "r = CliRunner().invoke(train, ['dpo', '--help']); assert r.exit_code == 0, r.output;"
        "print({'torch', 'transformers', 'trl', 'datasets', 'numpy', 'peft'} & set(sys.modules))"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_plan_of_which_nothing_came_can_be_corrected(tmp_path: Path) -> None:
    from train.output import Output

    with Output.open(tmp_path / "out") as output:
        assert output.begin({"lr": 1}) is None
        assert output.begin({"lr": 2}) is None  # no checkpoint and no model yet
        (output.checkpoints / "checkpoint-5").mkdir(parents=True)
        output.mark_whole(5)
        with pytest.raises(InputError, match="lr"):
            output.begin({"lr": 3})


def test_what_differs_is_called_by_its_name(tmp_path: Path) -> None:
    """Hashes decide, names are for the message: a judge may move, and outputs of before had no names."""
    with Output.open(tmp_path / "out") as output:
        output.begin({"scorer": "0" * 24, "weights": "w"}, {"scorer": "gptscore by a"})
        (output.checkpoints / "checkpoint-5").mkdir(parents=True)
        output.mark_whole(5)
        assert output.begin({"scorer": "0" * 24, "weights": "w"}, {"scorer": "gptscore by moved/a"}) is None
        with pytest.raises(InputError, match=r"scorer: was gptscore by a \(00000000\), now rating by a \(11"):
            output.begin({"scorer": "1" * 24, "weights": "w"}, {"scorer": "rating by a"})
        with pytest.raises(InputError) as caught:
            output.begin({"scorer": "0" * 24, "weights": "x"}, {"scorer": "gptscore by b"})
        assert "weights: was w, now x" in caught.value.what and "scorer" not in caught.value.what
