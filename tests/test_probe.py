"""What a dry run makes of its small round, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from judged_runs import judgment
from rounds_made import small_table

from gavel.rundir import JsonlWriter
from rounds.config import RoundsConfig
from rounds.probe import Asked, Measured, _asked, _small, scaled
from rounds.read_config import config_of

#: of 16 prompts, as many held out
FOUND = Measured(
    seconds={"sample": 4.0, "judge": 8.0, "pair": 0.1, "train": 3.0, "evaluate": 6.0, "first": 2.0},
    start=30.0, mode="keep", tokens=640, pairs=10, trained=10, train=2.5, model=10**9, records=10**6,
    labels=Asked(60, 6000, 16), second=Asked(40, 4000, 20, compares=True),
)  # fmt: skip


def config(tmp_path: Path, **tables: dict[str, Any]) -> RoundsConfig:
    """Three rounds of 160 prompts, 64 held out."""
    models: Any = SimpleNamespace(lm="policy", other="judge", half="second")
    table = small_table(models, tmp_path)
    table["prompts"] |= {"per_round": 160, "held_out": 64}
    table["evaluate"] |= {"pairs": 50}
    for name, entries in tables.items():
        table[name] |= entries
    return config_of(table, "test")


def estimated(whole: RoundsConfig, found: Measured = FOUND) -> dict[str, Any]:
    return scaled(whole, _small(whole, 160, 64), found, 160, 64)


def test_stages_grow_with_their_prompts(tmp_path: Path) -> None:
    said = estimated(config(tmp_path))
    assert (said["prompts_a_round"], said["completions_a_round"], said["pairs_a_round"]) == (160, 640, 100)
    assert (said["judge_calls"], said["judge_tokens"], said["sampled_tokens"]) == (1800, 180_000, 19_200)
    seconds = said["seconds_a_round"]
    assert (seconds["sample"], seconds["judge"], seconds["pair"]) == (40.0, 80.0, 1.0)


def test_the_second_judge_compares_twice_from_the_second_round_on(tmp_path: Path) -> None:
    """64 comparisons in round 1, 128 in rounds 2 and 3, and 50 pairs each: 470 duels of two calls."""
    said = estimated(config(tmp_path))
    assert (said["second_judge_calls"], said["second_judge_tokens"]) == (940, 94_000)
    # 2 s for 16 first answers, 4 s for the 20 duels of the small round
    assert said["seconds_a_round"]["evaluate"] == pytest.approx((3 * 2 * 4 + 4 * 470 / 20) / 3, rel=0.01)


def test_a_second_judge_that_scores_is_asked_of_new_answers_only(tmp_path: Path) -> None:
    scores = replace(FOUND, second=replace(FOUND.second, compares=False))
    assert estimated(config(tmp_path), scores)["second_judge_calls"] == 2 * (64 + 32 + 32 + 150)


def test_without_a_second_judge_it_is_not_asked(tmp_path: Path) -> None:
    said = estimated(config(tmp_path), replace(FOUND, second=Asked()))
    assert said["second_judge_calls"] == 0 and said["seconds_a_round"]["evaluate"] == 24.0


def test_replayed_pairs_are_trained_on_too(tmp_path: Path) -> None:
    """A fifth of all is a quarter of a round's own, from round 2 on."""
    plain = estimated(config(tmp_path, pairs={"replay": 0.0}))
    said = estimated(config(tmp_path))
    assert (plain["replayed_pairs"], said["replayed_pairs"]) == (0, 50)
    assert plain["seconds_a_round"]["train"] == 25.0
    assert said["seconds_a_round"]["train"] == pytest.approx(25.0 * 350 / 300, rel=0.01)
    most = estimated(config(tmp_path, pairs={"replay": 0.6}))
    assert most["replayed_pairs"] == 100 + 150, "round 2 has 100 to take of the 150 that it would"


def test_ppo_has_its_iterations_beside_the_reward_models_epochs(tmp_path: Path) -> None:
    """One iteration took 3 s; of 160 prompts with two completions each 20 in a batch there are 16, twice."""
    whole = config(tmp_path)
    table = dict(whole.table) | {
        "train": {"method": "ppo", "reference": "first", "epochs": 2, "n": 2, "batch-size": 20,
                  "reward": {"epochs": 3}}
    }  # fmt: skip
    said = estimated(config_of(table, "test"))["seconds_a_round"]
    assert said["ppo"] == 3.0 * 160 * 2 / 20 * 2
    assert said["train"] == pytest.approx(2.5 * 350 / 10 * 3 / 3, rel=0.01)


def test_a_quick_run_takes_some_time(tmp_path: Path) -> None:
    quick = replace(
        FOUND, seconds=dict.fromkeys(FOUND.seconds, 1e-5), start=0.0, train=1e-5, model=9, records=9
    )
    said = estimated(config(tmp_path), quick)
    assert 0 < said["hours"] < 1e-6 and 0 < said["disk_gb"] < 1e-5


def test_engines_that_are_restarted_start_in_each_round(tmp_path: Path) -> None:
    kept, anew = (estimated(config(tmp_path), replace(FOUND, mode=mode)) for mode in ("keep", "restart"))
    assert anew["hours"] - kept["hours"] == pytest.approx(60 / 3600, rel=0.1)


def test_what_a_judge_was_asked_is_read_from_its_judgments(tmp_path: Path) -> None:
    file = tmp_path / "judgments.jsonl"
    with JsonlWriter(file) as writer:
        writer.append(judgment("p", 0, "a", 1.0, usage={"prompt_tokens": 30}))
        writer.append(judgment("p", 1, "a", 1.0))  # of the same text
        writer.append(judgment("q", 0, "a", 1.0, usage={"prompt_tokens": 12, "calls": 3}))
    assert _asked([file]) == Asked(4, 42, 2, compares=False)
    with JsonlWriter(file) as writer:
        writer.append(
            judgment("q", 1, "a", None, completion_ids=("q-c0", "q-c1"), usage={"prompt_tokens": 1})
        )
    assert _asked([file]) == Asked(5, 43, 2, compares=True)
