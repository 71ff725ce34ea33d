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


def test_more_rounds_go_on_from_a_finished_run(copied: Path, gavel: Gavel) -> None:
    config = copied / "config.toml"
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 3", 1))
    done = gavel("rounds", "resume", copied, "--json")
    assert done.code == 0, done.err
    assert [line["round"] for line in json.loads(done.out)["rounds"]] == [0, 1, 2, 3]
    assert (copied / "rounds" / "03" / "model" / "model.safetensors").exists()


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
    assert "02/judge, round 2 of 2" in shown.out and "failures" in shown.out
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
    assert [line.round for line in read_figures(run)] == [0, 1]
    table["budget"] = {"judge_calls": 400}
    done = gavel("rounds", "start", write(table, tmp_path), "--out", run)
    assert done.code == 0, done.err
    assert [line.round for line in read_figures(run)] == [0, 1, 2]


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
        (("prompts", "per_round"), 20, "more than the 32 there are"),
        (("prompts", "source"), "nowhere.jsonl", "nowhere.jsonl"),
        (("prompts", "map"), {"prompt": "question"}, "question"),
        (("sample", "n"), "four", "'four' is not a whole number"),
        (("gates", "win_rate_frist"), {"min": 50}, "win_rate_first"),
        (("evaluate", "judge"), None, "lacks [evaluate.judge]"),
        (("keep", "evry"), 2, 'unknown key "evry"'),
        (("rounds",), 0, "must be at least 1"),
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
