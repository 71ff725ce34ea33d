"""What a run of rounds keeps by its files alone: what is redone, what was spent, what judges were made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rounds_made import small_table

from gavel.errors import CheckFailed, InputError
from gavel.rundir import RunDir
from rounds import redo
from rounds.budget import asked_of_judge, check_budget, judge_limits
from rounds.check import absolute
from rounds.config import Budget, JudgeConfig, RoundsConfig
from rounds.judges import asked_twice, gold_contents, judge_contents
from rounds.ledger import Events, Ledger, Made
from rounds.read_config import config_of
from rounds.standing import Line, plan_of, read_figures
from rounds.toml_table import to_toml

STAGES = ("sample", "judge", "pair", "train", "evaluate")


def configuration(folder: Path, **train: Any) -> RoundsConfig:
    """Of models that are not there: nothing here opens one."""
    names: Any = SimpleNamespace(lm="lm", other="other", half="half")
    table = small_table(names, folder)
    table["train"] |= train
    return config_of(table, "rounds.toml")


def written(path: Path, data: bytes = b"{}\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a run of three rounds that is over; of the weights the last round's stay, which are the
    best."""
    root = tmp_path / "run"
    stages: dict[str, Any] = {"prompts": {}, "00/evaluate": {}}
    for n in (1, 2, 3):
        folder = root / "rounds" / f"{n:02d}"
        for name in ("prompts.jsonl", "completions.jsonl", "judgments/j/judgments.jsonl",
                     "pairs/p/pairs.jsonl", "model/gavel.json", "reference/config.json"):  # fmt: skip
            written(folder / name, f"{n} {name}\n".encode())
        written(root / "evaluation" / f"{n:02d}" / "completions.jsonl", f"evaluated {n}\n".encode())
        own = {name: {} for name in ("generate", "judge/j", "pairs/p")}
        written(
            folder / "manifest.json", json.dumps({"format": 1, "stages": own, "passes": {"j": {}}}).encode()
        )
        stages |= {f"{n:02d}/{stage}": {} for stage in STAGES}
    for place in ("model", "reference"):
        written(root / "rounds" / "03" / place / "model.safetensors", b"weights")
    written(root / "evaluation" / "duels" / "prompts.jsonl")
    lines = [Line(round=0, model="lm", weights="0")]
    lines += [Line(round=n, model=f"rounds/{n:02d}/model", weights=str(n), best=n) for n in (1, 2, 3)]
    written(root / "figures.jsonl", b"".join(line.to_json() for line in lines))
    for entry in stages.values():
        entry |= {"settings": {}, "inputs": {}, "output": "x", "summary": {}, "seconds": 1.0}
    written(root / "manifest.json", json.dumps({"format": 1, "stages": stages}).encode())
    written(root / "config.toml", to_toml(dict(configuration(tmp_path).table)).encode())
    return root


def state(root: Path) -> dict[str, bytes]:
    """All that a run holds, but for when things happened."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*"))
            if p.is_file() and p.name not in (".lock", "events.jsonl")}  # fmt: skip


def set_aside(root: Path, stage: str, config: RoundsConfig) -> Path:
    with RunDir.open(root) as run:
        return redo.set_aside(run, stage, config, lines_before(root, stage))


def lines_before(root: Path, stage: str) -> list[Line]:
    return read_figures(root)[: redo.parse(stage)[0]]


def test_what_is_redone_is_set_aside_and_what_came_before_stays(run: Path, tmp_path: Path) -> None:
    before = state(run)
    aside = set_aside(run, "01/pair", configuration(tmp_path, beta=0.3))
    now, old = state(run), state(aside)
    assert {name for name in now if name.startswith("rounds/")} == {
        f"rounds/01/{name}"
        for name in ("manifest.json", "prompts.jsonl", "completions.jsonl", "judgments/j/judgments.jsonl")
    }
    moved = [name for name in before if name.startswith(("rounds/", "evaluation/0"))]
    assert all(old[name] == before[name] for name in moved)
    assert all(old[name] == before[name] for name in ("manifest.json", "figures.jsonl", "config.toml"))
    assert now["evaluation/duels/prompts.jsonl"] == before["evaluation/duels/prompts.jsonl"]
    assert [line.round for line in read_figures(run)] == [0]
    assert "beta = 0.3" in (run / "config.toml").read_text()
    manifest = RunDir(run).manifest()
    assert list(manifest["stages"]) == ["prompts", "00/evaluate", "01/sample", "01/judge"]
    assert "redo" not in manifest
    assert list(RunDir(run / "rounds" / "01").manifest()["stages"]) == ["generate", "judge/j"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_redo_that_fails_at_any_step_loses_nothing(run: Path, tmp_path: Path, how: str) -> None:
    """Whoever opens the run next finds it as it was or as it is to be, and the redo can be repeated."""
    config = configuration(tmp_path)
    config_text, before = (run / "config.toml").read_bytes(), state(run)
    calm = Path(shutil.copytree(run, tmp_path / "calm"))
    set_aside(calm, "01/pair", config)
    expected = state(calm)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "redo_driver.py"), run, tmp_path / "failed", "01/pair", how],
        env=os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    steps = int(done.stdout)
    assert steps > 20
    ended = {"before": 0, "after": 0}
    for step in range(1, steps + 1):
        root = tmp_path / "failed" / str(step)
        if how == "full" and not RunDir(root).manifest().get("redo"):
            assert not (root / "redone" / ".part").exists(), "it takes up room"
        with RunDir.open(root) as opened:
            redo.finish(opened)
        found = state(root)
        assert found in (before, expected), f"step {step}"
        ended["before" if found == before else "after"] += 1
        said = {event["what"] for event in Events(root / "events.jsonl").read()}
        assert said == (set() if found == before else {"redo"}), f"step {step}"
        assert (root / "config.toml").read_bytes() == config_text
        if found == before:
            set_aside(root, "01/pair", config)
            assert state(root) == expected, f"step {step}"
    assert min(ended.values()) > 5


def test_an_interrupted_redo_goes_on_when_the_run_is_opened(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a redo brings, its configuration, comes with it."""
    rename = Path.rename

    def refuse(old: Path, new: Path) -> Path:
        if new.name == "02":
            raise OSError(5, "Input/output error")
        return rename(old, new)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match="Input/output error"):
        set_aside(run, "01/judge", configuration(tmp_path, **{"learning-rate": 1e-5}))
    monkeypatch.undo()
    redo.settle(run)
    assert "1e-05" in (run / "config.toml").read_text()
    assert sorted(p.name for p in (run / "rounds").iterdir()) == ["01"]
    assert sorted(p.name for p in (run / "redone" / "01" / "rounds").iterdir()) == ["01", "02", "03"]
    assert [line.round for line in read_figures(run)] == [0]


@pytest.fixture
def thinned(run: Path) -> Path:
    """The same run, which has the weights of round 1 too, but of no reference."""
    written(run / "rounds" / "01" / "model" / "model.safetensors", b"weights")
    (run / "rounds" / "03" / "reference" / "model.safetensors").unlink()
    return run


@pytest.mark.parametrize(
    ("stage", "reference", "missing"),
    [
        ("02/sample", "previous", None),
        ("02/judge", "previous", None),
        ("02/train", "first", None),
        ("02/train", "ema", "rounds/01/reference"),
        ("02/evaluate", "previous", "rounds/02/model"),
        ("03/judge", "previous", "rounds/02/model"),
        ("03/train", "first", "rounds/02/model"),
        ("03/evaluate", "ema", None),
        ("01/train", "ema", None),
        ("00/evaluate", "previous", None),
    ],
)
def test_a_redo_that_needs_freed_weights_changes_nothing(
    thinned: Path, tmp_path: Path, stage: str, reference: str, missing: str | None
) -> None:
    """And says what can be redone."""
    before, config = state(thinned), configuration(tmp_path, reference=reference)
    if missing is None:
        assert set_aside(thinned, stage, config).name == "01"
        return
    with pytest.raises(InputError, match="were freed") as refused:
        set_aside(thinned, stage, config)
    assert refused.value.what.endswith(str(thinned / missing))
    assert refused.value.hint is not None and "01/train" in refused.value.hint
    assert stage not in refused.value.hint
    assert state(thinned) == before


@pytest.mark.parametrize("stage", ["train", "02/tain", "x/train", "prompts"])
def test_what_is_no_stage_of_a_round_is_refused(stage: str) -> None:
    with pytest.raises(InputError, match="is no stage of a round"):
        redo.parse(stage)


# what was spent
def judged(root: Path, place: str, *rows: dict[str, Any]) -> None:
    written(root / place / "judgments" / "j" / "judgments.jsonl",
            b"".join(json.dumps(row).encode() + b"\n" for row in rows))  # fmt: skip


def test_what_was_asked_is_counted_by_what_is_on_record(tmp_path: Path) -> None:
    """Of a pass that never ended too, and of one that was set aside; what was copied back counts once."""
    one = {"id": "a", "usage": {"prompt_tokens": 10}}
    two = {"id": "b", "usage": {"prompt_tokens": 5, "calls": 2, "completion_tokens": 7}}
    twin = {"id": "c"}  # answered by another's reply
    judged(tmp_path, "rounds/01", one, two, twin)
    judged(tmp_path, "rounds/02", one)  # the same question in another round was asked again
    judged(tmp_path, "redone/01/rounds/01", one, two, {"id": "d", "usage": {"prompt_tokens": 100}})
    judged(tmp_path, "rounds/02/model/rollouts/000001", one)  # no label
    assert asked_of_judge(tmp_path) == (1 + 2 + 1 + 1, 10 + 5 + 10 + 100)
    limits = judge_limits(tmp_path, Budget(judge_calls=6, judge_tokens=100))
    assert (limits.calls, limits.tokens) == (1, 0)
    limits = judge_limits(tmp_path, Budget(judge_calls=6))
    assert (limits.calls, limits.tokens) == (1, None)


def test_a_call_for_each_request_is_on_record(tmp_path: Path) -> None:
    from gavel.engines import EngineConfig, open_engine
    from gavel.records import Completion, Judgment, Message, Prompt
    from judge.collect import collect
    from judge.methods import make_method

    prompt = Prompt(id="p", messages=(Message("user", "hi"),), references=("hello",))
    texts = [Completion(id=t, prompt_id="p", index=i, text=t) for i, t in enumerate(("one", "two"))]
    kept: list[Judgment] = []
    method = make_method("gptscore", {"form": "rewrite", "direction": "harmonic"})
    with open_engine(EngineConfig(model="any", engine="fake")) as engine:
        counts = collect([(prompt, texts)], method, engine, done={}, record=kept.append)
    assert counts["calls"] == 4 == sum(judgment.usage["calls"] for judgment in kept)
    assert counts["tokens"] == sum(judgment.usage["prompt_tokens"] for judgment in kept)


def test_hours_of_attempts_that_did_not_end_count(tmp_path: Path) -> None:
    start, events = datetime(2025, 1, 1, tzinfo=UTC), Events(tmp_path / "events.jsonl")

    def at(hours: float, what: str, **about: Any) -> bytes:
        said = {"at": (start + timedelta(hours=hours)).isoformat(), "what": what, **about}
        return json.dumps(said).encode() + b"\n"

    lines = [
        at(0, "begin", stage="01/sample"), at(1, "end", stage="01/sample", seconds=3600),
        at(1, "begin", stage="01/judge"), at(3, "start engine", name="judge", seconds=1),  # and killed
        at(9, "begin", stage="01/judge"), at(10, "failed", stage="01/judge", seconds=3600),
        at(11, "begin", stage="01/judge"),
    ]  # fmt: skip
    written(tmp_path / "events.jsonl", b"".join(lines))
    assert events.seconds() == 4 * 3600
    check_budget(tmp_path, Budget(hours=4.1), events)
    with pytest.raises(CheckFailed, match="4 hours is spent"):
        check_budget(tmp_path, Budget(hours=4), events)


def test_the_time_of_what_was_set_aside_is_not_a_stages_own(tmp_path: Path) -> None:
    start = datetime.now(UTC) - timedelta(hours=2)
    events = [(0, "begin", {"stage": "01/judge"}), (60, "failed", {"stage": "01/judge", "seconds": 60.0}),
              (70, "begin", {"stage": "01/judge"}), (100, "start engine", {"name": "judge"}),  # and killed
              (4000, "redo", {"stage": "01/judge"})]  # fmt: skip
    lines = [{"at": (start + timedelta(seconds=s)).isoformat(), "what": w, **about} for s, w, about in events]
    with RunDir.open(tmp_path / "run") as run:
        written(run.path / "events.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        ledger = Ledger(run)
        assert ledger.events.seconds() == 90, "but it was spent"
        ledger.do("01/judge", {}, {}, lambda: Made("x", {}))
        assert ledger.entries()["01/judge"]["seconds"] < 10


# what a judge was made of
def judge_of(**options: Any) -> JudgeConfig:
    from gavel.command import options_of
    from judge.cli import judge

    model = options.pop("model", "judge")
    return JudgeConfig(model=model, options=options_of(judge, options, "[judge]", {"model", "out"}))


def model_in(folder: Path, content: bytes = b"1") -> Path:
    written(folder / "model.safetensors", content)
    written(folder / "config.json")
    written(folder / "tokenizer.json", content)
    return folder


RUBRIC = '[clear]\ndefinition = "{}"\n'

#: what changes → (options of the judge in a folder, the file that changes, its new content)
CHANGES: dict[str, Callable[[Path], tuple[dict[str, Any], Path, bytes]]] = {
    "weights": lambda f: ({"engine": "fake", "model": str(f / "judge")}, f / "judge/model.safetensors", b"2"),
    "tokenizer": lambda f: ({"engine": "fake", "model": str(f / "judge")}, f / "judge/tokenizer.json", b"2"),
    "rubric": lambda f: ({"engine": "fake", "method": "rating", "rubric": str(f / "rubric.toml")},
                         f / "rubric.toml", RUBRIC.format("other").encode()),
    "panel": lambda f: ({"model": None, "method": "panel", "panel": str(f / "panel.toml")},
                        f / "panel.toml", (f / "panel.toml").read_bytes() + b"# other\n"),
    "a panel's judge": lambda f: ({"model": None, "method": "panel", "panel": str(f / "panel.toml")},
                                  f / "judge/model.safetensors", b"2"),
    "a panel's rubric": lambda f: ({"model": None, "method": "panel", "panel": str(f / "panel.toml")},
                                   f / "rubric.toml", RUBRIC.format("other").encode()),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_content_of_a_judge_s_file_is_refused_by_its_name(tmp_path: Path, change: str) -> None:
    model_in(tmp_path / "judge")
    written(tmp_path / "rubric.toml", RUBRIC.format("one").encode())
    member = f'[[judge]]\nmodel = "{tmp_path / "judge"}"\nmethod = "rating"\nengine = "fake"\n'
    named = f'rubric = "{tmp_path / "rubric.toml"}"\n'
    written(tmp_path / "panel.toml", (member + named + member + 'name = "second"\n').encode())
    options, file, content = CHANGES[change](tmp_path)
    judge = judge_of(**options)
    with RunDir.open(tmp_path / "run") as run:
        ledger = Ledger(run)
        ledger.do("01/judge", {}, judge_contents(judge), lambda: Made("x", {}))
        ledger.do("01/judge", {}, judge_contents(judge), lambda: pytest.fail("it is done"))
        file.write_bytes(content)
        with pytest.raises(InputError, match="made from") as refused:
            ledger.do("01/judge", {}, judge_contents(judge), lambda: Made("x", {}))
    named_as = file.parent if file.parent.name == "judge" else file
    assert str(refused.value).count("made from") == 1 and str(named_as) in str(refused.value)


@pytest.mark.parametrize(("failed", "late"), [(0, 0), (40, 0), (40, 1), (40, 40)])
def test_a_few_judgments_may_be_missing_an_outage_is_not_taken_for_a_stage(failed: int, late: int) -> None:
    passes = iter([(100 - failed, failed), (100 - late, late)])

    def ask() -> dict[str, Any]:
        judgments, missing = next(passes)
        return {"judgments": judgments, "failed": missing, "calls": judgments, "tokens": 0}

    if late > 1:
        with pytest.raises(CheckFailed, match="no answer to 40 requests"):
            asked_twice(ask, "run")
        return
    summary = asked_twice(ask, "run")
    assert summary["judgments"] == 100 - late
    assert len(list(passes)) == (0 if failed else 1), "nothing is asked twice without need"


def test_a_judge_s_reference_is_a_path_a_trainer_s_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path)
    tables = {name: {"reference": "first"} for name in ("judge", "train")}
    found = absolute(tables | {"evaluate": {"judge": {"reference": "first"}}})
    place = {"reference": str(tmp_path / "first")}
    assert found == {"judge": place, "train": {"reference": "first"}, "evaluate": {"judge": place}}


@pytest.mark.parametrize("by", [{"engine": "server"}, {"base-url": "http://localhost:1/v1"}])
def test_a_server_s_model_is_a_name(
    by: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute({"judge": {"model": "judge"} | by})["judge"]["model"] == "judge"
    assert absolute({"judge": {"model": "judge"}})["judge"]["model"] == str(tmp_path / "judge")


def test_of_a_server_nothing_is_known_and_of_gold_labels_their_content(tmp_path: Path) -> None:
    assert judge_contents(judge_of(base_url="http://localhost:1/v1")) == {}
    gold = tmp_path / "gold.jsonl"
    written(gold, b"one\n")
    before = gold_contents(str(gold))
    written(gold, b"two\n")
    assert before.keys() == gold_contents(str(gold)).keys() == {f"gold {gold}"}
    assert before != gold_contents(str(gold))
    assert gold_contents(None) == gold_contents("hub:owner/name") == {}


def test_what_reward_models_start_from_is_known_by_its_content(tmp_path: Path) -> None:
    from rounds.training import Training

    start = model_in(tmp_path / "start")
    table = small_table(SimpleNamespace(lm="lm", other="other", half="half"), tmp_path)  # type: ignore[arg-type]
    table["train"] = {"method": "ppo", "reference": "first", "reward": {"model": str(start)}}
    inputs: list[dict[str, str]] = []

    def do(number: int, stage: str, settings: Any, made_from: dict[str, str], work: Any) -> Made:
        inputs.extend([made_from] if stage == "reward" else [])
        return Made("x", {})

    rounds: Any = SimpleNamespace(config=config_of(table, "rounds.toml"), root=tmp_path, do=do,
                                  learning_rate=lambda plan: 1e-6)  # fmt: skip
    lines = [Line(round=0, model="lm", weights="w")]
    for content in (b"1", b"1", b"2"):
        model_in(start, content)
        training = Training(rounds, plan_of(lines), lines, RunDir(tmp_path), [], Made("p", {"name": "p"}))
        training.train()
    assert inputs[0] == inputs[1] != inputs[2]


def test_other_prompts_need_another_run(tmp_path: Path) -> None:
    """--from does not redo what all rounds share, and is not said to."""
    with RunDir.open(tmp_path / "run") as run:
        ledger = Ledger(run)
        ledger.do("prompts", {"seed": 0}, {}, lambda: Made("x", {}))
        with pytest.raises(InputError, match="seed: was 0, now 1") as refused:
            ledger.do("prompts", {"seed": 1}, {}, lambda: Made("x", {}))
    assert refused.value.hint is not None and "new --out" in refused.value.hint
    assert "--from" not in refused.value.hint


def test_the_time_of_an_attempt_that_was_killed_counts_with_its_stage(tmp_path: Path) -> None:
    events = [
        {"at": "2026-01-01T00:00:00.000+00:00", "what": "begin", "stage": "01/judge"},
        {"at": "2026-01-01T00:01:00.000+00:00", "what": "start engine", "name": "judge"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    with RunDir.open(tmp_path / "run") as run:
        (tmp_path / "events.jsonl").rename(run.path / "events.jsonl")
        Ledger(run).do("01/judge", {}, {}, lambda: Made("x", {}))
        assert 60 <= Ledger(run).entries()["01/judge"]["seconds"] < 70
