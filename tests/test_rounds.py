"""`gavel rounds`: the whole loop on a fake engine and a tiny policy that is really trained."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran, Tiny
from rounds_made import small_table, write_prompts

from gavel.errors import InputError
from rounds.standing import read_figures
from rounds.toml_table import to_toml

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]

Gavel = Callable[..., Ran]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write(table: dict[str, Any], folder: Path) -> Path:
    path = folder / "rounds.toml"
    path.write_text(to_toml(table))
    return path


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds that is over."""
    from rounds.loop import run_rounds
    from rounds.read_config import read_config

    folder = tmp_path_factory.mktemp("finished")
    table = small_table(tiny, folder, rounds=2)
    run = folder / "run"
    run_rounds(run, read_config(str(write(table, folder))))
    shutil.copy(folder / "rounds.toml", run / "config.toml")
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """That run, moved to another directory."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def test_a_moved_run_is_over_and_nothing_is_asked_again(copied: Path, gavel: Gavel) -> None:
    before = {p: p.read_bytes() for p in copied.rglob("*.jsonl") if p.name != "events.jsonl"}
    done = gavel("rounds", "resume", copied, "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert [line["round"] for line in said["rounds"]] == [0, 1, 2]
    assert said["words"].startswith("Use ")
    assert {p: p.read_bytes() for p in before} == before
    assert "starting" not in done.err


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--model", "M", "--engine", "fake", "--prompts", "PROMPTS", "--out", "RUN"],
        ["judge", "PROMPTS", "--judge", "M", "--engine", "fake", "--out", "RUN"],
        ["judge", "RUN", "--judge", "M", "--engine", "fake"],
        ["pairs", "RUN"],
        ["agreement", "PAIRS", "--judge", "M", "--engine", "fake", "--out", "RUN"],
        ["winrate", "PROMPTS", "PROMPTS", "--judge", "M", "--engine", "fake", "--out", "RUN"],
        ["train", "dpo", "--model", "LM", "--data", "RUN", "--out", "OUT"],
        ["train", "sft", "--model", "LM", "--data", "RUN", "--out", "OUT"],
    ],
)
def test_a_single_stage_leaves_a_directory_of_rounds_alone(
    tiny: Tiny, copied: Path, tmp_path: Path, gavel: Gavel, command: list[str]
) -> None:
    (tmp_path / "new.jsonl").write_text('{"prompt": "one more", "response": "no"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "one more", "chosen": "yes", "rejected": "no"}\n')
    meant = {"RUN": copied, "PROMPTS": tmp_path / "new.jsonl", "PAIRS": tmp_path / "pairs.jsonl",
             "LM": tiny.lm, "OUT": tmp_path / "out"}  # fmt: skip
    before = {p: p.read_bytes() for p in copied.rglob("*.jsonl")}
    done = gavel(*(meant.get(word, word) for word in command))
    assert done.code == 2 and f"{copied}: holds rounds" in done.err, done.err
    assert str(copied / "rounds" / "01") in done.err
    assert {p: p.read_bytes() for p in copied.rglob("*.jsonl")} == before


def test_rounds_leave_a_run_directory_alone(finished: Path, tmp_path: Path, gavel: Gavel) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "rounds" / "01", run)
    before = (run / "prompts.jsonl").read_bytes()
    for more in ([], ["--dry-run"]):
        done = gavel("rounds", "start", finished / "config.toml", "--out", run, *more)
        assert done.code == 2 and "is a run directory, not one of rounds" in done.err, done.err
    assert (run / "prompts.jsonl").read_bytes() == before and not (run / "config.toml").exists()


def test_more_rounds_go_on_from_a_finished_run(copied: Path, gavel: Gavel) -> None:
    config = copied / "config.toml"
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 3", 1))
    done = gavel("rounds", "resume", copied, "--json")
    assert done.code == 0, done.err
    assert [line["round"] for line in json.loads(done.out)["rounds"]] == [0, 1, 2, 3]
    assert (copied / "rounds" / "03" / "model" / "model.safetensors").exists()


def test_fewer_rounds_than_are_over_are_refused(copied: Path, gavel: Gavel) -> None:
    """Else the last words would pass over what was trained."""
    config, before = copied / "config.toml", (copied / "figures.jsonl").read_bytes()
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 1", 1))
    refused = gavel("rounds", "resume", copied)
    assert refused.code == 2 and "2 rounds are over, more than rounds = 1" in refused.err
    assert (copied / "figures.jsonl").read_bytes() == before
    redone = gavel("rounds", "resume", copied, "--from", "01/evaluate", "--json")
    assert redone.code == 0, redone.err
    assert [line["round"] for line in json.loads(redone.out)["rounds"]] == [0, 1]


def test_rounds_take_new_prompts_and_none_that_is_held_out(finished: Path) -> None:
    asked = [{r["id"] for r in rows_of(finished / "rounds" / n / "prompts.jsonl")} for n in ("01", "02")]
    held_out = {row["id"] for row in rows_of(finished / "held_out.jsonl")}
    assert [len(a) for a in asked] == [8, 8] and len(held_out) == 8
    assert not asked[0] & asked[1] and not (asked[0] | asked[1]) & held_out


def test_a_round_starts_from_the_one_before_and_replays_its_pairs(finished: Path) -> None:
    lines = read_figures(finished)
    assert lines[1].start == lines[0].model and lines[2].start == "rounds/01/model"
    trained = json.loads((finished / "rounds" / "02" / "model" / "gavel.json").read_bytes())
    own = len((finished / "rounds" / "02" / "pairs" / "gptscore-other-best-worst" / "pairs.jsonl")
              .read_bytes().splitlines())  # fmt: skip
    assert trained["plan"]["pairs"] == own + round(own * 0.2 / 0.8)
    assert trained["plan"]["weights"] == lines[1].weights


def test_changing_a_finished_stage_is_refused_with_what_differs(copied: Path, gavel: Gavel) -> None:
    config = copied / "config.toml"
    config.write_text(config.read_text().replace("max-tokens = 16", "max-tokens = 12", 1))
    done = gavel("rounds", "resume", copied)
    assert done.code == 2
    assert "stage 00/evaluate was done with other settings" in done.err
    assert "max_tokens: was 16, now 12" in done.err and "--from" in done.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max-tokens = 16", "max-tokens = 12", "stage 00/evaluate was done"),
        ("learning-rate = 0.001", "learning-rate = 0.002", "stage 01/train was done"),
        ("per_round = 8", "per_round = 4", "per_round: was 8, now 4"),
        ("per_round = 8", "per_round = 8\nreuse = true", "reuse: was False, now True"),
        ("rounds = 2", "rounds = 9", "9 rounds of 8 prompts are more than the 32 there are"),
    ],
)
def test_a_start_that_is_refused_leaves_the_run_its_configuration(
    copied: Path, tmp_path: Path, gavel: Gavel, old: str, new: str, said: str
) -> None:
    """Whichever stage it is refused at; nothing else is changed either."""
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file() and p.name != ".lock"}
    other = tmp_path / "other.toml"
    other.write_text((copied / "config.toml").read_text().replace(old, new, 1))
    refused = gavel("rounds", "start", other, "--out", copied)
    assert refused.code == 2 and said in refused.err
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file() and p.name != ".lock"} == before
    assert gavel("rounds", "resume", copied).code == 0


def test_start_redoes_by_another_configuration(copied: Path, tmp_path: Path, gavel: Gavel) -> None:
    other = tmp_path / "other.toml"
    text = (copied / "config.toml").read_text()
    other.write_text(text.replace("learning-rate = 0.001", "learning-rate = 0.002", 1))
    refused = gavel("rounds", "start", other, "--out", copied, "--from", "02/train")
    assert refused.code == 2 and "stage 01/train was done" in refused.err
    assert not (copied / "redone").exists()
    done = gavel("rounds", "start", other, "--out", copied, "--from", "1/train")
    assert done.code == 0, done.err
    assert [line.learning_rate for line in read_figures(copied)] == [None, 0.002, 0.002]
    assert "learning-rate = 0.002" in (copied / "config.toml").read_text()
    assert "learning-rate = 0.001" in (copied / "redone" / "01" / "config.toml").read_text()
    dry = gavel("rounds", "start", other, "--out", copied, "--from", "1/train", "--dry-run")
    assert dry.code == 2 and "--dry-run, --from" in dry.err


def test_a_redo_that_was_stopped_is_asked_for_again(copied: Path, gavel: Gavel) -> None:
    """Where the run already stands before that stage there is nothing more to set aside."""
    from gavel.rundir import RunDir
    from rounds.read_config import read_config
    from rounds.redo import set_aside

    with RunDir.open(copied) as run:
        set_aside(run, "02/train", read_config(str(copied / "config.toml")), read_figures(copied)[:2])
    done = gavel("rounds", "resume", copied, "--from", "02/train")
    assert done.code == 0, done.err
    assert [p.name for p in (copied / "redone").iterdir()] == ["01"]
    assert [line.round for line in read_figures(copied)] == [0, 1, 2]


def test_a_run_goes_on_without_the_source_of_its_prompts(finished: Path, copied: Path, gavel: Gavel) -> None:
    source, away = finished.parent / "prompts.jsonl", finished.parent / "away"
    source.rename(away)
    try:
        started = gavel("rounds", "start", copied / "config.toml", "--out", copied)
        resumed = gavel("rounds", "resume", copied)
    finally:
        away.rename(source)
    assert started.code == 0, started.err
    assert resumed.code == 0, resumed.err


def test_a_redo_that_needs_freed_weights_is_refused_before_anything_is_moved(
    copied: Path, gavel: Gavel
) -> None:
    weights = copied / "rounds" / "01" / "model" / "model.safetensors"
    weights.rename(copied / "away")
    refused = gavel("rounds", "resume", copied, "--from", "02/judge")
    assert refused.code == 2 and "needs weights that were freed" in refused.err
    assert "02/evaluate" in refused.err and "01/train" in refused.err
    assert not (copied / "redone").exists() and (copied / "rounds" / "02" / "judgments").exists()
    done = gavel("rounds", "resume", copied, "--from", "02/evaluate")
    assert done.code == 0, done.err


def test_a_redo_that_by_other_gates_needs_freed_weights_is_refused_before_anything_is_moved(
    tiny: Tiny, tmp_path: Path, gavel: Gavel
) -> None:
    """Round 1 was rolled back, so that its weights were freed; by other gates round 2 begins from them."""
    table = small_table(tiny, tmp_path, rounds=2)
    table["gates"] |= {"length_mean": {"max": 0, "action": "roll_back"}}
    table["keep"] = {}
    run = tmp_path / "run"
    assert gavel("rounds", "start", write(table, tmp_path), "--out", run).code == 0
    assert [line.decision for line in read_figures(run)] == ["go_on", "roll_back", "roll_back"]
    del table["gates"]["length_mean"]
    refused = gavel("rounds", "start", write(table, tmp_path), "--out", run, "--from", "02/sample")
    assert refused.code == 2 and "needs weights that were freed" in refused.err
    assert "01/train" in refused.err and not (run / "redone").exists()
    assert gavel("rounds", "resume", run).code == 0, "it stands as it was"


def test_other_gold_labels_under_the_same_name_are_refused(tiny: Tiny, tmp_path: Path, gavel: Gavel) -> None:
    table = small_table(tiny, tmp_path, rounds=1)
    gold = tmp_path / "gold.jsonl"
    rows = [{"prompt": f"what is {i}?", "chosen": f"it is {i}", "rejected": "no"} for i in range(4)]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table["judge"] |= {"gold": str(gold), "min_accuracy": 0.0, "min_order_agreement": 0.0}
    run = tmp_path / "run"
    done = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert done.code == 0, done.err
    stages = json.loads((run / "manifest.json").read_bytes())["stages"]
    judged, evaluated = stages["01/judge"]["inputs"], stages["01/evaluate"]["inputs"]
    assert {f"gold {gold}", f"weights of {tiny.other}", f"tokenizer of {tiny.other}"} <= judged.keys()
    assert f"weights of {tiny.half}" in evaluated
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    refused = gavel("rounds", "resume", run)
    assert refused.code == 2 and f"made from gold {gold}: was " in refused.err


def test_another_tokenizer_of_the_policy_under_the_same_name_is_refused(
    tiny: Tiny, tmp_path: Path, gavel: Gavel
) -> None:
    table = small_table(tiny, tmp_path, rounds=1)
    table["policy"]["model"] = table["policy"]["tokenizer"] = str(tmp_path / "policy")
    shutil.copytree(tiny.lm, tmp_path / "policy")
    run = tmp_path / "run"
    assert gavel("rounds", "start", write(table, tmp_path), "--out", run).code == 0
    shutil.move(tmp_path / "policy", tmp_path / "moved")
    config = tmp_path / "policy" / "tokenizer_config.json"
    shutil.copytree(tmp_path / "moved", tmp_path / "policy")
    config.write_text(config.read_text().replace("{", '{"another": 1,', 1))
    refused = gavel("rounds", "resume", run)
    assert refused.code == 2 and "made from tokenizer: was" in refused.err


def test_redoing_from_a_stage_keeps_the_old_beside_it(copied: Path, gavel: Gavel) -> None:
    config = copied / "config.toml"
    config.write_text(config.read_text().replace("learning-rate = 0.001", "learning-rate = 0.002", 1))
    refused = gavel("rounds", "resume", copied)
    assert refused.code == 2 and "learning_rate: was 0.001, now 0.002" in refused.err
    old = (copied / "rounds" / "01" / "model" / "model.safetensors").read_bytes()
    kept = {n: (copied / "rounds" / "01" / n).read_bytes() for n in ("completions.jsonl", "prompts.jsonl")}
    done = gavel("rounds", "resume", copied, "--from", "01/train", "--json")
    assert done.code == 0, done.err
    assert (copied / "redone" / "01" / "rounds" / "01" / "model" / "model.safetensors").read_bytes() == old
    assert (copied / "rounds" / "01" / "model" / "model.safetensors").read_bytes() != old
    assert {n: (copied / "rounds" / "01" / n).read_bytes() for n in kept} == kept
    assert [line.learning_rate for line in read_figures(copied)] == [None, 0.002, 0.002]
    unknown = gavel("rounds", "resume", copied, "--from", "07/train")
    assert unknown.code == 2 and "was not begun" in unknown.err


def test_status_says_where_a_run_is(copied: Path, gavel: Gavel) -> None:
    done = json.loads(gavel("rounds", "status", copied, "--json").out)
    assert (done["state"], done["round"], done["stage"]) == ("over", 2, None)
    # as it was while round 2 was being judged
    figures = (copied / "figures.jsonl").read_bytes().splitlines(keepends=True)
    (copied / "figures.jsonl").write_bytes(b"".join(figures[:2]))
    events = (copied / "events.jsonl").read_bytes().splitlines(keepends=True)
    last = next(i for i, line in enumerate(events) if b'"begin", "stage": "02/judge"' in line)
    (copied / "events.jsonl").write_bytes(b"".join(events[: last + 1]))
    stopped = json.loads(gavel("rounds", "status", copied, "--json").out)
    assert (stopped["state"], stopped["round"], stopped["stage"]) == ("stopped", 2, "02/judge")
    assert stopped["progress"]["of"] == "judgments" and stopped["progress"]["done"] == 32
    shown = gavel("rounds", "status", copied)
    assert "02/judge, round 2 of 2" in shown.out and "failures  none" in shown.out
    assert f"gavel rounds resume {copied} goes on" in shown.out
    nothing = gavel("rounds", "status", copied / "rounds")
    assert nothing.code == 2 and "holds no rounds" in nothing.err


@pytest.mark.parametrize("reference", ["first", "ema"])
def test_the_reference_policy_is_the_one_that_was_asked_for(
    tiny: Tiny, tmp_path: Path, gavel: Gavel, reference: str
) -> None:
    import torch
    from safetensors.torch import load_file

    from gavel.weights import weights_version

    table = small_table(tiny, tmp_path, rounds=2)
    table["train"] |= {"reference": reference, "ema": 0.25}
    run = tmp_path / "run"
    done = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert done.code == 0, done.err
    plan = json.loads((run / "rounds" / "02" / "model" / "gavel.json").read_bytes())["plan"]
    if reference == "first":
        assert plan["reference_weights"] == weights_version(tiny.lm)
        return
    folder = run / "rounds" / "02" / "reference"
    assert plan["reference_weights"] == weights_version(str(folder))
    first, second, mean = (load_file(f"{path}/model.safetensors") for path in
                           (tiny.lm, run / "rounds" / "01" / "model", folder))  # fmt: skip
    for name in mean:
        assert torch.allclose(mean[name], 0.25 * first[name] + 0.75 * second[name], atol=1e-6)


def test_candidates_may_be_joined_by_references_and_an_earlier_best(
    tiny: Tiny, tmp_path: Path, gavel: Gavel
) -> None:
    table = small_table(tiny, tmp_path, rounds=2)
    rows = [{"prompt": f"what is {i}?", "reference": f"it is {i}"} for i in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table["prompts"] |= {"reuse": True}
    table["sample"] |= {"reference_answer": True, "earlier_best": True}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    found = rows_of(tmp_path / "run" / "rounds" / "02" / "completions.jsonl")
    assert sum(c.get("model") == "reference answer" for c in found) >= 8
    assert len(found) == 8 * 4 + 8 + sum(c["index"] == 8 for c in found)
    first = {row["id"] for row in rows_of(tmp_path / "run" / "rounds" / "01" / "completions.jsonl")}
    assert {c["id"] for c in found if c["index"] == 8} <= first


def test_a_reference_answer_that_is_too_long_for_the_policy_ends_no_run(
    tiny: Tiny, tmp_path: Path, gavel: Gavel
) -> None:
    """The judge takes it, so that it comes to be in pairs."""
    table = small_table(tiny, tmp_path, rounds=1)
    rows = [{"prompt": f"what is {i}?", "reference": f"it is {i} " * (30 if i % 2 else 1)} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = shutil.copytree(tiny.lm, tmp_path / "policy")
    config = json.loads((policy / "config.json").read_bytes())
    (policy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    table["policy"] |= {"model": str(policy), "max-model-len": 64}
    table["sample"] |= {"reference_answer": True}
    table["pairs"] |= {"strategy": "all"}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "pairs that are not trained on: longer than" in done.err


def test_judging_while_sampling_changes_no_result(
    finished: Path, tiny: Tiny, tmp_path: Path, gavel: Gavel
) -> None:
    table = small_table(tiny, finished.parent, rounds=2)
    table["sample"] |= {"overlap": True}
    run = tmp_path / "run"
    done = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert done.code == 0, done.err
    for name in ("rounds/01/completions.jsonl", "rounds/02/pairs/gptscore-other-best-worst/pairs.jsonl"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    judged = "rounds/01/judgments/gptscore-other/judgments.jsonl"
    mine, theirs = rows_of(run / judged), rows_of(finished / judged)
    assert sorted(r["id"] for r in mine) == sorted(r["id"] for r in theirs)
    mine, theirs = (json.loads((path / "manifest.json").read_bytes())["stages"] for path in (run, finished))
    assert mine["01/judge"]["summary"]["calls"] == 0, "all was asked while sampling"
    for what in ("calls", "tokens"):
        assert mine["01/sample"]["summary"][f"judge_{what}"] == theirs["01/judge"]["summary"][what] > 0
    for what in ("tokens", "cut_off", "completions"):
        assert mine["01/sample"]["summary"][what] == theirs["01/sample"]["summary"][what] > 0
    table["judge"] |= {"method": "pairwise", "pairs": "tournament"}
    del table["judge"]["form"]
    refused = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "other")
    assert refused.code == 2 and "overlap" in refused.err


def test_engines_that_are_restarted_change_no_result(
    finished: Path, tiny: Tiny, tmp_path: Path, gavel: Gavel
) -> None:
    """Each lives only while it is used; the records still name the policy as the configuration does."""
    table = small_table(tiny, finished.parent, rounds=2) | {"engines": "restart"}
    run = tmp_path / "run"
    done = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert done.code == 0, done.err
    assert done.err.count("starting the policy's engine") >= 4
    for path in finished.rglob("*.jsonl"):
        if path.name not in ("events.jsonl", "figures.jsonl", "metrics.jsonl"):
            assert (run / path.relative_to(finished)).read_bytes() == path.read_bytes(), path


def test_a_spent_budget_stops_and_a_larger_one_goes_on(tiny: Tiny, tmp_path: Path, gavel: Gavel) -> None:
    table = small_table(tiny, tmp_path, rounds=2)
    table["budget"] = {"judge_calls": 40}
    run = tmp_path / "run"
    stopped = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert stopped.code == 1 and "the budget of the judge is spent" in stopped.err
    assert "(round 1)" in stopped.out or "as it was before the rounds" in stopped.out, "the last words so far"
    assert [line.round for line in read_figures(run)] == [0, 1]
    judged = {path: path.read_bytes() for path in run.glob("rounds/*/judgments/*/judgments.jsonl")}
    assert len(judged) == 2, "it stopped in a pass"
    again = gavel("rounds", "resume", run)
    assert again.code == 1 and "the budget of the judge is spent" in again.err
    assert {path: path.read_bytes() for path in judged} == judged, "the same budget buys nothing more"
    assert "failures  none" in gavel("rounds", "status", run).out, "it did as it was told"
    table["budget"] = {"judge_calls": 400}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert done.code == 0, done.err
    assert [line.round for line in read_figures(run)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pairs": {"min-margin": 1e9}}, "no pair came out"),
        ({"train": {"max-length": 4}}, "there is nothing to train on"),
    ],
)
def test_a_round_with_too_little_to_train_on_ends_the_run_in_words(
    tiny: Tiny, tmp_path: Path, gavel: Gavel, change: dict[str, Any], why: str
) -> None:
    """Whether no pair came out or none is left to train on: the round is recorded, and resuming says so."""
    table = small_table(tiny, tmp_path)
    for name, entries in change.items():
        table[name] |= entries
    run = tmp_path / "run"
    ended = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert ended.code == 1, ended.err
    assert f"Use {tiny.lm}, as it was before the rounds" in ended.out.replace("\n", " ")
    assert f"round 1, stop: {why}" in ended.err
    (before, last) = read_figures(run)
    assert (last.decision, last.model, last.weights) == ("stop", before.model, before.weights)
    again = gavel("rounds", "resume", run)
    assert (again.code, again.out) == (1, ended.out)
    assert json.loads(gavel("rounds", "status", run, "--json").out)["state"] == "over"
    assert gavel("report", run, "--out", tmp_path / "page.html").code == 0
    assert why in (tmp_path / "page.html").read_text()


def test_gates_that_were_changed_speak_anew_of_rounds_that_are_over(copied: Path, gavel: Gavel) -> None:
    """A softened gate lets the run go on, and the figures say by which gates it did."""
    from gavel.command import read_toml

    path = copied / "config.toml"
    table = read_toml(str(path), "")
    gate = {"max": 1e-6, "action": "stop"}
    path.write_text(to_toml(table | {"gates": {"defaults": False, "length_mean": gate}}))
    stopped = gavel("rounds", "resume", copied)
    assert stopped.code == 1
    assert "round 1: by the gates as they are now it is the last, before it goes on" in stopped.err
    assert [line.decision for line in read_figures(copied)] == ["go_on", "stop"]
    path.write_text(to_toml(table | {"gates": {"defaults": False, "length_mean": gate | {"action": "warn"}}}))
    done = gavel("rounds", "resume", copied)
    assert done.code == 0, done.err
    assert "round 1: by the gates as they are now it goes on, before it is the last" in done.err
    lines = read_figures(copied)
    assert [line.decision for line in lines] == ["go_on", "go_on", "go_on"]
    assert all(line.gates[0]["tripped"] for line in lines[1:])


def test_weights_that_nothing_needs_are_freed(tiny: Tiny, tmp_path: Path, gavel: Gavel) -> None:
    table = small_table(tiny, tmp_path)
    del table["keep"]
    table["evaluate"] = {"judge": False}  # then the last round is the best
    done = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    kept = [
        n
        for n in (1, 2, 3)
        if (tmp_path / "run" / "rounds" / f"0{n}" / "model" / "model.safetensors").exists()
    ]
    assert kept == [3]
    assert (tmp_path / "run" / "rounds" / "01" / "model" / "metrics.jsonl").exists()
    assert gavel("rounds", "resume", tmp_path / "run").code == 0


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("train", "reference"), None, 'lacks "reference"'),
        (("train", "reference"), "second", "must be one of first, previous, ema"),
        (("train", "bata"), 0.2, 'unknown key "bata"'),
        (("train", "batch-size"), 64, "a round has at most 8 pairs, fewer than one batch of 64"),
        (("policy", "model"), "nowhere", "nowhere"),
        (("judge", "gold"), "nowhere.jsonl", "there is no such file"),
        (("judge", "method"), "gptscores", "unknown method"),
        (("prompts", "per_round"), 20, "more than the 32 there are beside the 8 held out\n"),
        (("prompts", "source"), "nowhere.jsonl", "nowhere.jsonl"),
        (("prompts", "map"), {"prompt": "question"}, "question"),
        (("sample", "earlier_best"), True, "reuse = true"),
        (("sample", "reference_answer"), True, "no prompt has a reference answer"),
        (("judge",), {"method": "implicit", "model": "some"}, "needs the policy and its reference"),
        (("judge",), {"method": "panel"}, "needs a file with its judges"),
        (("sample", "n"), "four", "'four' is not a whole number"),
        (("gates", "win_rate_frist"), {"min": 50}, "win_rate_first"),
        (("evaluate", "judge"), None, "lacks [evaluate.judge]"),
        (("keep", "evry"), 2, 'unknown key "evry"'),
        (("train", "reward"), {"epochs": 1}, 'trained with method = "ppo" only'),
        (("trian",), {"reference": "first"}, 'unknown key "trian"\n  Did you mean "train"?'),
        (("evaluate", "jugde"), False, 'unknown key "jugde"\n  Did you mean "judge"?'),
        (("rounds",), 0, "must be at least 1"),
        (("policy", "adapter"), "some", "rounds begin from whole weights"),
        (("pairs", "aspect"), ["nope"], "the judge is not asked about 'nope'"),
        (("train", "label-smoothing"), "measured", "the flip rate is not measured"),
        (("train", "soft-labels"), True, "not how probably"),
        (("sample", "temperature"), 0.0, "no pair would come"),
        (("train",), {"reference": "first", "loss": {"hinge": 1}, "label-smoothing": "measured"}, "hinge"),
    ],
)
def test_everything_is_checked_before_the_first_token(
    tiny: Tiny, tmp_path: Path, gavel: Gavel, place: tuple[str, ...], value: Any, said: str
) -> None:
    table = copy.deepcopy(small_table(tiny, tmp_path))
    inner = table
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner.pop(place[-1], None)
    if value is not None:
        inner[place[-1]] = value
    run = tmp_path / "run"
    done = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert done.code == 2 and said in done.err, done.err
    assert "Traceback" not in done.err
    assert not run.exists()


@pytest.mark.parametrize("table", ["judge", "evaluate.judge"])
@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"engine-arg": {"fail-evry": 1}}, "engine_arg: unknown fail-evry"),
        ({"engine": "server", "base-url": "http://127.0.0.1:9/v1"}, "127.0.0.1:9"),
        ({"method": "reward", "engine": "transformers"}, "judging by reward needs a reward model"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_told_before_anything_is_sampled_for_it(
    tiny: Tiny, tmp_path: Path, gavel: Gavel, table: str, judge: dict[str, Any], said: str
) -> None:
    whole = small_table(tiny, tmp_path)
    part = whole["judge"] if table == "judge" else whole["evaluate"]["judge"]
    if "method" in judge:
        del part["form"]
    part |= judge
    done = gavel("rounds", "start", write(whole, tmp_path), "--out", tmp_path / "run")
    assert done.code in (1, 2) and said in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_a_reward_model_that_is_to_write_is_told_before_anything_is_sampled(
    tiny: Tiny, tmp_path: Path, gavel: Gavel
) -> None:
    table = small_table(tiny, tmp_path)
    table["judge"] |= {"model": tiny.reward, "engine": "transformers"}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "run")
    assert done.code == 2 and "judging by gptscore needs a language model" in done.err, done.err
    assert "[judge], model" in done.err and not (tmp_path / "run").exists()


def test_the_policy_is_no_server(tiny: Tiny, tmp_path: Path, gavel: Gavel) -> None:
    table = small_table(tiny, tmp_path)
    table["policy"] = {"model": "tiny", "tokenizer": tiny.lm, "base-url": "http://127.0.0.1:9/v1"}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "run")
    assert done.code == 2 and "a server takes no new weights" in done.err


def test_a_dry_run_that_has_too_little_to_train_on_says_so(tiny: Tiny, tmp_path: Path, gavel: Gavel) -> None:
    table = small_table(tiny, tmp_path)
    table["pairs"] |= {"min-margin": 1e9}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "run", "--dry-run")
    assert done.code == 1 and "the small round ended before its training" in done.err
    assert "Traceback" not in done.err


def test_a_batch_may_be_as_large_as_a_strategy_allows(tiny: Tiny, tmp_path: Path) -> None:
    from rounds.check import check
    from rounds.read_config import config_of

    table = small_table(tiny, tmp_path)
    table["pairs"]["strategy"] = "all"
    table["train"]["batch-size"] = 8 * 6
    check(config_of(table, "rounds.toml"))
    table["train"]["batch-size"] += 1
    with pytest.raises(InputError, match="at most 48 pairs"):
        check(config_of(table, "rounds.toml"))


@pytest.mark.parametrize(
    ("second", "policy", "said"),
    [
        ("half", "lm", ""),
        ("other", "lm", "the evaluation judge is the labelling judge"),
        ("half", "other", "other is the model that is judged"),
        ("lm", "lm", "lm is the model that is judged"),
    ],
)
def test_a_judge_that_is_no_other_is_warned_of(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str, policy: str, said: str
) -> None:
    """Whatever else its options say."""
    from rounds.check import check
    from rounds.read_config import config_of

    table = small_table(tiny, tmp_path)
    table["policy"]["model"] = getattr(tiny, policy)
    table["evaluate"]["judge"] |= {"model": getattr(tiny, second), "form": "question"}
    check(config_of(table, "rounds.toml"))
    warned = capsys.readouterr().err
    assert said in warned if said else "judge" not in warned
    if said.endswith("judged"):
        table["judge"]["self-judge"] = table["evaluate"]["judge"]["self-judge"] = True
        check(config_of(table, "rounds.toml"))
        assert "--self-judge)" in capsys.readouterr().err


@pytest.mark.parametrize("overlap", [False, True])
def test_a_dry_run_measures_and_leaves_nothing(
    tiny: Tiny, tmp_path: Path, gavel: Gavel, overlap: bool
) -> None:
    table = small_table(tiny, tmp_path)
    write_prompts(tmp_path / "prompts.jsonl", 100)
    table["prompts"] |= {"per_round": 24, "held_out": 20}
    table["sample"] |= {"overlap": overlap}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", tmp_path / "run", "--dry-run", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["rounds"] == 3 and said["completions_a_round"] == 96
    assert 0.5 * 96 * 3 <= said["judge_calls"] <= 96 * 3  # equal texts are asked about once
    assert 96 * 3 <= said["sampled_tokens"] <= 96 * 3 * 16 and said["judge_tokens"] > said["judge_calls"]
    # one that scores sees both answers of a prompt, and of 8 pairs of each round; later the new one's alone
    assert said["second_judge_calls"] == pytest.approx(2 * (20 + 10 + 10 + 3 * 8), rel=0.1)
    # a fifth of the pairs are earlier rounds'
    assert said["replayed_pairs"] == pytest.approx(2 * said["pairs_a_round"] / 4, abs=1)
    assert said["hours"] > 0 and said["disk_gb"] > 0 and said["engines"] == "keep"
    assert not (tmp_path / "run").exists()
