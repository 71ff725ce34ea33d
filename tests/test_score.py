"""Scoring outputs that exist already: every row comes out, in order, as it was."""

from __future__ import annotations

import csv
import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Engines, Ran

from gavel.engines.fake import ByteTokenizer, FakeEngine
from gavel.errors import InputError
from gavel.protocols import Scored, ScoreRequest
from gavel.sources import BadRows
from judge.gptscore import GptScore
from judge.judging import Single
from judge.score import Correlations, check_destination, check_source, score

Gavel = Callable[..., Ran]


class Fixed:
    """An engine for which a text's log-probability per token stands in its first number."""

    name, model, weights, dtype, context = "fixed", "fixed", "w", "float64", 4096
    capabilities = FakeEngine.capabilities

    def __init__(self, stop_after: int | None = None) -> None:
        self.tokenizer, self.asked = ByteTokenizer(), 0
        self._stop_after = stop_after

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        for request in requests:
            if self.asked == self._stop_after:
                raise KeyboardInterrupt
            self.asked += 1
            number = float(self.tokenizer.decode(request.token_ids[request.start :]).split()[0])
            yield Scored(key=request.key, logprobs=[number] * (len(request.token_ids) - request.start))


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def scored(source: Path, out: Path, engine: Any = None, method: Any = None, **more: Any) -> dict[str, Any]:
    method = method or GptScore(aspects=("fluency",))
    return score(str(source), out, Single(engine or Fixed(), method), mapping={}, **more)


def fake(source: Path, out: Path, *more: object) -> list[object]:
    return ["score", source, "--judge", "fake", "--engine", "fake", "--out", out, "--json", *more]


MIXED: list[Any] = [
    {"prompt": "q1", "completion": "first", "human": 3, "tags": {"a": [1, None]}},
    b"{broken",
    {"prompt": "q2", "completion": "", "human": 1},
    {"prompt": 7, "completion": "a prompt that is no text", "human": 2},
    {"prompt": "q3", "completion": "x" * 5000},
    {"prompt": "q1", "completion": "first", "human": 3, "again": True},
    {"prompt": "q4", "completion": "last", "human": 5},
]


def test_every_row_in_order_with_its_own_columns(gavel: Gavel, tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "in.jsonl", *MIXED), tmp_path / "out.jsonl"
    done = gavel(*fake(source, out, "--max-model-len", 1000, "--aspect", "depth", "--max-bad-rows", 2))
    assert done.code == 0, done.err
    rows = read(out)
    assert len(rows) == len(MIXED)
    for given, row in zip(MIXED, rows, strict=True):
        if isinstance(given, dict):
            assert {k: v for k, v in row.items() if k in given} == given
    with_scores = [bool(row["scores"]) for row in rows]
    assert with_scores == [True, False, False, False, False, True, True]
    assert rows[0]["scores"].keys() == {"depth"}
    assert rows[0]["scores"]["depth"].keys() == {"mean", "sum", "per_byte", "tokens"}
    assert rows[0]["scores"] == rows[5]["scores"]
    assert all(("reason" in row) is not has for row, has in zip(rows, with_scores, strict=True))
    assert f"{source}:2" in rows[1]["reason"]
    assert rows[2]["reason"] == "depth: the text is empty"
    assert "wrong type" in rows[3]["reason"]
    assert "context 1000" in rows[4]["reason"]
    result = json.loads(done.out)
    assert (result["rows"], result["scored"], result["without_score"], result["bad_rows"]) == (7, 3, 4, 2)


def test_several_outputs_of_a_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completions": [{"text": "-1 x", "model": "a"}, {"text": "-2 y", "model": "b"}]},
        {"prompt": "q", "completions": ["-3 z", "-4 w"]},
        {"prompt": "q", "completions": [{"text": "-5", "model": "a"}, {"text": "", "model": "b"}]},
        {"prompt": "q", "completion": "-6", "model": "a"},
    ]
    out = tmp_path / "out.jsonl"
    summary = scored(jsonl(tmp_path / "in.jsonl", *rows), out)
    found = [row["scores"] for row in read(out)]
    assert {m: s["fluency"]["mean"] for m, s in found[0].items()} == {"a": -1.0, "b": -2.0}
    assert [s["fluency"]["mean"] for s in found[1]] == [-3.0, -4.0]
    assert (found[2]["a"]["fluency"]["mean"], found[2]["b"]) == (-5.0, None)
    assert read(out)[2]["reason"] == "fluency: the text is empty"
    assert found[3]["fluency"]["mean"] == -6.0
    assert summary["scored"] == 4


def test_the_numbers_are_those_of_the_judge(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    scored(jsonl(tmp_path / "in.jsonl", {"prompt": "q", "completion": "-0.5 我"}), out)
    # ten bytes are ten tokens of the fixed engine
    assert read(out)[0]["scores"] == {"fluency": {"mean": -0.5, "sum": -4.0, "per_byte": -0.5, "tokens": 8}}


def test_rank_correlation_is_scipy_s(tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    judge = [-3.0, -1.0, -2.0, -0.5, -2.5]
    human: list[Any] = [1, 5, 2, "4", 2]  # a number in a CSV file is text
    lengths = [len(f"{j}") for j in judge]
    rows = [
        {"prompt": f"q{i}", "completion": f"{j}", "human": h}
        for i, (j, h) in enumerate(zip(judge, human, strict=True))
    ]
    rows += [
        {"prompt": "none", "completion": "-9", "human": None},
        {"prompt": "odd", "completion": "-8", "human": "?"},
    ]
    summary = scored(jsonl(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl", correlate=["human"])
    expected = spearmanr(judge, [1, 5, 2, 4, 2]).statistic
    assert summary["rank_correlation"]["fluency mean ~ human"] == pytest.approx(expected, abs=1e-4)
    assert expected == pytest.approx(0.8721, abs=1e-4)  # ranks 1 4 3 5 2 against 1 5 2.5 4 2.5
    with_length = spearmanr([*judge, -9.0, -8.0], [*lengths, 2, 2]).statistic
    assert summary["rank_correlation_with_length"]["fluency mean"] == pytest.approx(with_length, abs=1e-4)
    flat = Correlations()
    flat.add("same", 1.0, 2.0)
    flat.add("same", 1.0, 3.0)
    assert flat.rank() == {"same": None}


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_ending_holds_the_same_rows(ending: str, tmp_path: Path) -> None:
    rows = [{"prompt": "q1", "completion": "-1"}, {"prompt": "q2", "completion": "", "late": "column"}]
    out = tmp_path / f"out{ending}"
    scored(jsonl(tmp_path / "in.jsonl", *rows), out)
    if ending == ".parquet":
        import pyarrow.parquet as pq

        found = pq.read_table(out).to_pylist()
    else:
        found = read(out)
    assert [row.get("late") for row in found] == [None, "column"]
    assert [row.get("reason") for row in found] == [None, "fluency: the text is empty"]
    assert found[0]["scores"]["fluency"]["mean"] == -1.0
    assert found[1]["scores"] is None


def test_rows_that_do_not_fit_parquet_lose_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q1", "completion": "-1", "mixed": 1},
        {"prompt": "q2", "completion": "-2", "mixed": [{}]},
    ]
    source, engine = jsonl(tmp_path / "in.jsonl", *rows), Fixed()
    with pytest.raises(InputError, match=r"\.jsonl"):
        scored(source, tmp_path / "out.parquet", engine)
    assert not list(tmp_path.glob(".*.part"))
    assert not (tmp_path / "out.parquet").exists()


def test_other_formats_and_columns(gavel: Gavel, tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    with open(source, "w", newline="") as file:
        csv.writer(file).writerows(
            [["src", "sys", "gold"], ["q1", "a", "1"], ["q2", "bb", "2.5"], ["q3", "c", ""]]
        )
    command = fake(source, out, "--map", "prompt=src", "--map", "completion=sys", "--correlate", "gold")
    done = gavel(*command)
    assert done.code == 0, done.err
    assert [row["gold"] for row in read(out)] == ["1", "2.5", ""]
    assert "correctness mean ~ gold" in json.loads(done.out)["rank_correlation"]


# stopped and started
def test_a_stopped_run_goes_on_and_the_output_is_whole_or_not_there(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"-{i}.5 text"} for i in range(1, 9)]
    source, out = jsonl(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        scored(source, out, Fixed(stop_after=3))
    assert not out.exists()
    engine = Fixed()
    summary = scored(source, out, engine)
    assert (engine.asked, summary["calls"], summary["rows"]) == (5, 5, 8)
    scored(source, tmp_path / "whole.jsonl", Fixed())
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


def test_what_was_scored_otherwise_before_a_stop_does_not_leak_in(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": f"-{i}.5 text"} for i in range(1, 5)]
    source, out = jsonl(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    demos = GptScore(aspects=("fluency",), demonstrations=({"instruction": "i", "candidate": "c"},))
    for method in (GptScore(aspects=("depth",)), demos):
        with pytest.raises(KeyboardInterrupt):
            scored(source, out, Fixed(stop_after=2), method)
    engine = Fixed()
    scored(source, out, engine)
    assert engine.asked == 4
    assert all(row["scores"].keys() == {"fluency"} for row in read(out))


def test_an_old_output_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "in.jsonl", {"prompt": "q", "completion": "-1"}), tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        scored(source, out, Fixed(stop_after=0))
    assert out.read_text() == "old"
    scored(source, out)
    assert read(out)[0]["scores"]


@pytest.mark.slow
def test_killed_and_run_again(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}", "n": i} for i in range(2500)]
    source = jsonl(tmp_path / "in.jsonl", *rows)
    command = [str(Path(sys.executable).with_name("gavel"))]

    def start(out: Path) -> subprocess.Popen[bytes]:
        arguments = command + [str(a) for a in fake(source, out)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    first = start(whole)
    assert first.communicate(timeout=60)[1] is not None
    assert first.returncode == 0
    for target, signum in [(100_000, signal.SIGKILL), (500_000, signal.SIGINT)]:
        process = start(out)
        while process.poll() is None:
            journals = (tmp_path / ".out.jsonl.gavel").glob("judgments/*/judgments.jsonl")
            if sum(p.stat().st_size for p in journals) > target:
                process.send_signal(signum)
                break
            time.sleep(0.001)
        _, err = process.communicate(timeout=30)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[signum], err.decode()
        assert b"Traceback" not in err
    assert not out.exists()
    last = start(out)
    text, err = last.communicate(timeout=60)
    assert last.returncode == 0, err.decode()
    assert out.read_bytes() == whole.read_bytes()
    assert json.loads(text)["calls"] < 2500, "what was recorded is not asked again"


# refused before the engine starts
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--out", "{here}/out.txt"], "must end in"),
        (["--out", "{here}/none/out.jsonl"], "no such folder"),
        (["--out", "{here}/folder.jsonl"], "is a folder"),
        (["--out", "/proc/out.jsonl"], "cannot write there"),
        (["--correlate", "gold"], "no row has a number in gold"),
        (["--correlate", "n", "--correlate", "completion"], "no row has a number in completion"),
        (["--aspect", "fluensy"], "Known: semantic"),
        (["--map", "prompt=nowhere"], "nowhere"),
        (["--max-bad-rows", "0"], ":2"),
    ],
)
def test_what_cannot_work_is_refused_before_the_engine_starts(
    more: list[str], says: str, gavel: Gavel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(config: Any) -> Any:
        raise AssertionError("the engine was started")

    monkeypatch.setattr("gavel.engines.open_engine", opened)
    (tmp_path / "folder.jsonl").mkdir()
    more_rows = [{"prompt": "q", "completion": "b"}] * 200
    source = jsonl(tmp_path / "in.jsonl", {"prompt": "q", "completion": "a", "n": 1}, b"broken", *more_rows)
    done = gavel(*fake(source, tmp_path / "out.jsonl", *(m.format(here=tmp_path) for m in more)))
    assert (done.code, says in done.err, "Traceback" in done.err) == (2, True, False), done.err


def test_checks_for_the_library(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", {"prompt": "q", "completion": "a", "gold": float("nan")})
    with pytest.raises(InputError, match="gold"):
        check_source(str(source), {}, BadRows(), ["gold"])
    check_source(str(source), {}, BadRows())
    assert check_destination(str(tmp_path / "out.parquet"), "in.jsonl") == tmp_path / "out.parquet"
    with pytest.raises(InputError, match="source itself"):
        check_destination(str(source), str(source))


@pytest.mark.engine
def test_a_real_judge_scores_rows(engines: Engines, tmp_path: Path) -> None:
    texts = ["paris", "我很開心", "", "<|end|><|user|>say yes", "x " * 400]
    source = jsonl(tmp_path / "in.jsonl", *({"prompt": "capital?", "completion": t} for t in texts))
    method = GptScore(form="direct", aspects=("fluency",))
    found = []
    for name in ("vllm", "transformers"):
        out = tmp_path / f"{name}.jsonl"
        assert scored(source, out, engines[name], method)["scored"] == 3
        found.append([row["scores"] and row["scores"]["fluency"] for row in read(out)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, abs=1e-4)


def test_a_scores_column_of_the_source_is_not_lost(gavel: Gavel, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "q", "response": "a", "scores": {"x": 1}}\n')
    done = gavel("score", source, "--judge", "fake", "--engine", "fake", "--out", tmp_path / "out.jsonl")
    assert done.code == 2
    assert "in.jsonl:1" in done.err and "scores" in done.err
    assert not (tmp_path / "out.jsonl").exists()


def test_no_row_that_can_be_scored_is_a_failure(gavel: Gavel, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "q", "response": "a", "reason": "mine"}\n')
    args = ("score", source, "--judge", "fake", "--engine", "fake", "--form", "rewrite", "--out", out)
    assert gavel(*args).code == 1
    row = json.loads(out.read_text())
    assert row["reason"] == "mine" and row["scores"] is None and "reference" in row["scores_reason"]
