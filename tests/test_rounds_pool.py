"""The prompts of all rounds and those held out from them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny

from gavel.engines import EngineConfig
from gavel.errors import InputError
from rounds.config import PromptsConfig
from rounds.pool import Pool
from rounds.read_config import config_of
from rounds.toml_table import Table

FAKE = EngineConfig(model="fake", engine="fake")


def source(folder: Path, rows: list[dict[str, Any]], name: str = "prompts.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(prompts: Any) -> list[str]:
    return [prompt.messages[-1].content for prompt in prompts]


def test_no_round_asks_what_is_held_out_whatever_its_id(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": f"question {i % 10}"} for i in range(100)]
    pool = Pool.draw(PromptsConfig(source=source(tmp_path, rows), per_round=5, held_out=4), 0, FAKE)
    assert len(set(asked(pool.held_out))) == len(pool.held_out) == 4
    assert not set(asked(pool.held_out)) & set(asked(pool.rounds))
    assert len(pool.rounds) == 60, "the other six questions, ten times each"


def test_a_question_held_out_with_a_reference_answer_is_the_same_question(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}"} for i in range(20)]
    apart = [row | {"reference": "yes"} for row in rows[:5]]
    config = PromptsConfig(source=source(tmp_path, rows), per_round=5, held_out=5,
                           held_out_source=source(tmp_path, apart, "apart.jsonl"))  # fmt: skip
    pool = Pool.draw(config, 0, FAKE)
    assert len(pool.rounds) == 15 and not set(asked(pool.held_out)) & set(asked(pool.rounds))


def test_prompts_that_all_ask_what_is_held_out_leave_none(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": "the same"} for i in range(9)]
    with pytest.raises(InputError, match="9 prompts, 1 of them held out, leave none"):
        Pool.draw(PromptsConfig(source=source(tmp_path, rows), per_round=1, held_out=3), 0, FAKE)


def test_keys_may_be_written_with_either_line() -> None:
    table = Table({"per-round": 4, "held_out": 2, "per-hour": 1}, "rounds.toml, [prompts]")
    assert (table.take("per_round", int), table.take("held_out", int)) == (4, 2)
    assert table.has("per_hour") and table.peek("per_hour", 0) == 1
    with pytest.raises(InputError, match='unknown key "per-hour"'):
        table.end()


def test_the_file_that_the_docs_show_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gold.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "rounds.md").read_text("utf-8")
    shown = page.split("```toml\n")[1].split("```")[0]
    config = config_of(tomllib.loads(shown), "docs/rounds.md")
    assert (config.rounds, config.train.reference, config.budget.judge_calls) == (3, "first", 200_000)
    assert [gate.most for gate in config.gates if gate.figure == "length_ratio_first"] == [1.3]


def test_a_key_that_is_missed_names_the_one_that_may_be_meant() -> None:
    table = Table({"referance": "first"}, "rounds.toml, [train]")
    with pytest.raises(InputError) as missed:
        table.take("reference", str, among=("first", "previous"))
    assert missed.value.hint == 'Is "referance" meant for it?'


@pytest.mark.parametrize("allowed", [0.01, 2])
def test_prompts_longer_than_the_context_are_told_at_the_start(
    tiny: Tiny, tmp_path: Path, allowed: float
) -> None:
    rows = [{"prompt": f"question {i}"} for i in range(20)] + [{"prompt": f"{i} " * 400} for i in range(2)]
    config = PromptsConfig(source=source(tmp_path, rows), per_round=5, held_out=4, max_bad_rows=allowed)
    policy = EngineConfig(model=tiny.lm, engine="transformers", context=128)
    if allowed < 1:
        with pytest.raises(
            InputError, match=r"2 of 22 rows cannot be used.*longer than the context"
        ) as caught:
            Pool.draw(config, 0, policy)
        assert "[prompts] max_bad_rows = 2" in str(caught.value.hint)
    else:
        pool = Pool.draw(config, 0, policy)
        assert len(pool.rounds) + len(pool.held_out) == 20
        assert all(len(text) < 20 for text in [*asked(pool.rounds), *asked(pool.held_out)])


def test_prompts_that_were_changed_in_the_run_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}"} for i in range(9)]
    made = Pool.draw(PromptsConfig(source=source(tmp_path, rows), per_round=1, held_out=3), 0, FAKE)
    root = tmp_path / "run"
    root.mkdir()
    content = made.take_in(root).output
    assert asked(Pool.read(root, content).held_out) == asked(made.held_out)
    text = (root / "held_out.jsonl").read_text()
    (root / "held_out.jsonl").write_text(text.replace("question", "answer", 1))
    with pytest.raises(InputError, match="no longer what the run took in"):
        Pool.read(root, content)
    (root / "held_out.jsonl").unlink()
    with pytest.raises(InputError, match="no longer what the run took in"):
        Pool.read(root, content)


def test_a_column_that_nothing_tells_is_asked_for_in_the_files_own_words(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Pool.draw(PromptsConfig(source=source(tmp_path, [{"asked": "what?"}]), held_out=1), 0, FAKE)
    assert '[prompts]: map = {prompt = "COLUMN"}' in str(caught.value)
