"""The embedded default: the shipped weights, the task language, and what the loop gains."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import demo
import demo.run
from demo.oracle import exact_match
from demo.run import HELD_OUT, MODELS, SAMPLES, Chosen, run_demo
from demo.tasks import FAMILIES, draw, pool_of
from gavel.errors import InputError
from gavel.records import Completion, Judgment
from gavel.rundir import RunDir, read_records

DEMO = Path(demo.__file__).parent
RECORDED = json.loads((DEMO / "accuracy.json").read_text())
NOISE = 2.0  # points; 4,400 samples at 41 % have a standard error of 0.75


def test_weights_are_small_and_safetensors() -> None:
    files = [f for f in MODELS.rglob("*") if f.is_file()]
    weights = [f for f in files if f.suffix == ".safetensors"]
    assert {f.parent.name for f in weights} == {"policy", "judge", "eval-judge"}
    assert sum(f.stat().st_size for f in weights) <= 8_000_000
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pkl")]


def test_pools_are_disjoint_and_every_family_is_there() -> None:
    pools = {pool: draw(pool, 1100) for pool in ("train", "round", "held-out")}  # type: ignore[arg-type]
    prompts = {pool: {task.prompt for task in tasks} for pool, tasks in pools.items()}
    assert all(len(found) == 1100 for found in prompts.values())
    assert not prompts["round"] & prompts["held-out"]
    assert not prompts["train"] & (prompts["round"] | prompts["held-out"])
    assert all(pool_of(prompt) == pool for pool, found in prompts.items() for prompt in found)
    assert {task.family for task in pools["held-out"]} == set(FAMILIES)
    assert draw("round", 50) == draw("round", 50)


def test_oracle() -> None:
    assert exact_match("Paris", " Paris\n")
    assert not exact_match("12", "1")
    assert not exact_match("Positive", "positive")


def test_nothing_but_the_table_and_the_measure_reads_the_oracle() -> None:
    root = DEMO.parent
    readers = set()
    for folder in ("gavel", "generate", "judge", "train", "rounds", "demo"):
        for file in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                named = isinstance(node, ast.ImportFrom) and node.module == "demo.oracle"
                if named or (isinstance(node, ast.Import) and any("oracle" in a.name for a in node.names)):
                    readers.add(file.relative_to(root).as_posix())
    assert readers == {"demo/table.py", "demo/measure.py"}


@pytest.mark.engine
@pytest.mark.parametrize("name", ["policy", "judge", "eval-judge"])
def test_shipped_weights_have_the_accuracies_of_the_readme(name: str) -> None:
    from demo.measure import measure  # it takes seconds, and no fast test needs it

    greedy = measure(MODELS / name)
    assert greedy.total == pytest.approx(RECORDED[name]["greedy"]["total"], abs=0.5)


@pytest.mark.engine
def test_shipped_policy_is_sampled_as_recorded() -> None:
    from demo.measure import measure

    sampled = measure(MODELS / "policy", samples=SAMPLES)
    assert sampled.count >= 4000
    assert sampled.total == pytest.approx(RECORDED["policy"]["sampled"]["total"], abs=NOISE)


@pytest.fixture(scope="module")
def lifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two rounds of the demo, and their figures."""
    root = tmp_path_factory.mktemp("demo") / "run"
    return root, run_demo(str(root), Chosen(rounds=2, prompts=1024))


@pytest.mark.engine
def test_two_rounds_lift_the_policy(lifted: tuple[Path, dict[str, Any]]) -> None:
    """And running the same again does nothing again."""
    root, result = lifted
    first, _, last = result["rounds"]
    assert [row["round"] for row in result["rounds"]] == [0, 1, 2]
    assert first["sampled_answers"] == HELD_OUT * SAMPLES >= 4000
    assert last["exact_match_sampled"] >= first["exact_match_sampled"] + 20
    assert last["exact_match_greedy"] >= first["exact_match_greedy"] - 2
    assert all(row["judge_accuracy"] > 90 and row["pairs"] > 500 for row in result["rounds"][1:])
    assert result["seconds"]["total"] > sum(v for k, v in result["seconds"].items() if k != "total") - 1
    assert json.loads(json.dumps(result)) == result

    before = _state(root)
    again = run_demo(str(root), Chosen(rounds=2, prompts=1024))
    assert again["rounds"] == result["rounds"]
    assert _state(root) == before
    with pytest.raises(InputError, match="other settings"):
        run_demo(str(root), Chosen(rounds=2, prompts=1024, shuffle_labels=True))


@pytest.mark.engine
def test_shuffled_labels_teach_nothing(lifted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """From the samples and judgments of the round that does lift the policy: the labels alone are others."""
    root = tmp_path / "run"
    ours, theirs = root / "rounds" / "01", lifted[0] / "rounds" / "01"
    with RunDir.open(root), RunDir.open(ours):
        for name in ("00-sampled", "00-greedy"):
            shutil.copytree(lifted[0] / "demo" / name, root / "demo" / name)
        shutil.copytree(theirs / "judgments", ours / "judgments")
        for name in ("prompts.jsonl", "completions.jsonl"):
            shutil.copy(theirs / name, ours)
    result = run_demo(str(root), Chosen(rounds=1, prompts=1024, shuffle_labels=True))
    for file in (theirs / "completions.jsonl", *theirs.glob("judgments/*/judgments.jsonl")):
        assert (ours / file.relative_to(theirs)).read_bytes() == file.read_bytes(), "nothing was asked again"
    pairs = [
        run.pairs_path(name).read_text() for run in (RunDir(ours), RunDir(theirs)) for name in run.pair_sets()
    ]
    assert len(pairs) == 2 and pairs[0] != pairs[1]
    first, last = result["rounds"]
    assert last["sampled_answers"] >= 4000
    assert last["exact_match_sampled"] <= first["exact_match_sampled"] + 4
    assert 40 < last["judge_accuracy"] < 60


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo without its models: fake engines, and no gates, which would stop such rounds."""
    from rounds.read_config import config_of

    plain = demo.run.settings

    def settings(out: Path, chosen: Chosen) -> Any:
        table = dict(plain(out, chosen).table)
        table["policy"] |= {"engine": "fake", "tokenizer": table["policy"]["model"]}
        for judge in (table["judge"], table["evaluate"]["judge"]):
            judge["engine"] = "fake"
        table["train"] |= {"batch-size": 8, "micro-batch": 8, "epochs": 1}
        return config_of(table | {"gates": {"defaults": False}}, "the demo")

    monkeypatch.setattr(demo.run, "settings", settings)
    monkeypatch.setattr(demo.run, "HELD_OUT", 300)
    monkeypatch.setattr(demo.run, "ROOM", 64)


@pytest.mark.engine
@pytest.mark.usefixtures("faked", "one_thread")
def test_a_demo_can_be_moved_and_given_more_rounds(tmp_path: Path) -> None:
    one, moved = tmp_path / "one", tmp_path / "moved"
    run_demo(str(one), Chosen(rounds=1, prompts=32))
    first = (one / "rounds" / "01" / "completions.jsonl").read_bytes()
    one.rename(moved)
    assert len(run_demo(str(moved), Chosen(rounds=2, prompts=32))["rounds"]) == 3
    assert (moved / "rounds" / "01" / "completions.jsonl").read_bytes() == first
    config = (moved / "config.toml").read_bytes()
    with pytest.raises(InputError, match="took in 64 prompts, enough for 2 rounds") as refused:
        run_demo(str(moved), Chosen(rounds=3, prompts=32))
    assert refused.value.where is not None and "--rounds 3" in refused.value.where
    assert (moved / "config.toml").read_bytes() == config


def _state(root: Path) -> dict[str, bytes]:
    """Every record and weight of a demo, by its path."""
    kinds = ("*.jsonl", "*.safetensors")
    found = {f.relative_to(root).as_posix(): f.read_bytes() for kind in kinds for f in root.rglob(kind)
             if f.name != "events.jsonl"}  # fmt: skip
    run = RunDir(root / "rounds" / "01")
    completions = [c.id for c in read_records(run.completions_path, Completion)]
    judged = [j.id for j in read_records(run.judgments_path(run.judging_passes()[0]), Judgment)]
    assert len(set(completions)) == len(completions) == len(set(judged)) == len(judged)
    return found
