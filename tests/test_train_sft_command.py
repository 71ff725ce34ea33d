"""`gavel train sft`: each kind of data, the best of a run, and engines that stop where the model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran, Tiny

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]

Command = Callable[..., Ran]


def run_sft(gavel: Command, model: str, data: Path, out: Path, *more: str) -> tuple[dict[str, Any], str]:
    line = ["train", "sft", "--model", model, "--data", data, "--out", out, "--batch-size", 2, "--json"]
    ran = gavel(*line, *more)
    assert ran.code == 0, ran.err
    return json.loads(ran.out), ran.err


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_trains_on_each_kind(gavel: Command, tiny: Tiny, tmp_path: Path) -> None:
    from gavel.tokenizer import HfTokenizer

    asked = [{"instruction": f"what is {i}", "input": "", "output": f"it is {i}"} for i in range(5)]
    chat = [
        {"conversations": [{"from": "human", "value": "the dog"}, {"from": "gpt", "value": "jumps"},
                           {"from": "human", "value": "the fox"}, {"from": "gpt", "value": "too"}]}
        for _ in range(4)
    ]  # fmt: skip
    summary, said = run_sft(gavel, tiny.lm, write(tmp_path / "a.jsonl", *asked), tmp_path / "a")
    assert (summary["kind"], summary["rows"], summary["steps"]) == ("instruction", 5, 3)
    assert "a.jsonl: instruction (columns 'instruction' and 'output'" in said
    assert f"5 rows of {summary['tokens']} tokens, {summary['trained_tokens']} of them trained" in said
    tokenizer = HfTokenizer.load(tiny.lm)
    assert summary["trained_tokens"] == sum(len(tokenizer.text_ids(row["output"])) + 1 for row in asked)
    summary, said = run_sft(gavel, tiny.lm, write(tmp_path / "c.jsonl", *chat), tmp_path / "c")
    assert (summary["kind"], summary["rows"], summary["completions"]) == ("chat", 4, {"tokenised": 8})
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    summary, said = run_sft(gavel, tiny.lm, tmp_path / "t.txt", tmp_path / "t", "--max-length", "64")
    assert (summary["kind"], summary["left_out"]) == ("text", {})
    document = len(tokenizer.document_ids((tmp_path / "t.txt").read_text()))
    assert (summary["tokens"], summary["rows"]) == (document, -(-document // 64))
    assert summary["trained_tokens"] == document - summary["rows"]


def test_the_command_trains_on_the_best_of_a_run(gavel: Command, tiny: Tiny, tmp_path: Path) -> None:
    """From the engine's samples to the ids that reach the trainer."""
    from gavel.packed import unpack_ids
    from gavel.records import Completion, Judgment
    from gavel.rundir import RunDir, read_records

    prompts = write(tmp_path / "p.jsonl", *({"prompt": f"the dog {i}"} for i in range(6)))
    generate = ["generate", "--model", tiny.lm, "--engine", "transformers", "--prompts", prompts, "-n", 4]
    assert gavel(*generate, "--max-tokens", 24, "--out", tmp_path / "run").code == 0
    judge = ["judge", tmp_path / "run", "--judge", tiny.other, "--engine", "transformers"]
    assert gavel(*judge, "--form", "direct").code == 0
    summary, _ = run_sft(gavel, tiny.lm, tmp_path / "run", tmp_path / "out")
    run = RunDir(tmp_path / "run")
    found = list(read_records(run.completions_path, Completion))
    score = {
        j.completion_ids[0]: j.score
        for j in read_records(run.judgments_path(run.judging_passes()[0]), Judgment)
    }
    whole = [c for c in found if c.finish_reason == "stop" and c.text.strip() and score.get(c.id) is not None]
    best = {c.prompt_id: c for c in sorted(whole, key=lambda c: (score[c.id], c.id))}
    assert 2 <= len(best) == summary["rows"] and summary["completions"] == {"sampled": len(best)}
    assert summary["trained_tokens"] == sum(len(unpack_ids(c.token_ids)) for c in best.values())
    cut = sum(c.finish_reason == "length" for c in found)
    assert summary["left_out"].get("completions cut off", 0) == cut and summary["kind"] == "best of a run"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kind", "chat"], "none of the 1 rows can be used: empty prompt|missing column|no answer"),
        (["--judgments", "x"], "--judgments: chooses among the completions of a run directory"),
        (["--min-score", "1"], "--min-score: chooses among the completions of a run directory"),
        (["--chat-template", "nonesuch"], "--chat-template nonesuch: neither a template that is"),
        (["--merge"], "--merge: needs --lora-r"),
        (["--batch-size", "2"], "--batch-size: 1 rows to train on are fewer than one batch of 2"),
        (["--max-length", "3"], "longer than --max-length"),
        (["--map", "prompt=q"], "no column 'q'"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_a_reason(
    gavel: Command, tiny: Tiny, tmp_path: Path, options: list[str], said: str
) -> None:
    import re

    data = write(tmp_path / "a.jsonl", {"question": "q", "answer": "a"})
    ran = gavel("train", "sft", "--model", tiny.lm, "--data", data, "--out", tmp_path / "out", *options)
    assert ran.code == 2 and re.search(said, ran.err), ran.err
    assert "Traceback" not in ran.err and not (tmp_path / "out").exists()


def test_a_base_model_needs_a_template(
    gavel: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import train.sft

    monkeypatch.setattr(train.sft, "prepare", None)  # the command has the tokenizer ready

    base = tmp_path / "base"
    shutil.copytree(tiny.lm, base)
    (base / "chat_template.jinja").unlink()
    data = write(tmp_path / "a.jsonl", {"question": "q", "answer": "a"}, {"question": "r", "answer": "b"})
    ran = gavel("train", "sft", "--model", base, "--data", data, "--out", tmp_path / "out")
    assert ran.code == 2 and "has no chat template" in ran.err and "--chat-template chatml" in ran.err
    run_sft(gavel, str(base), data, tmp_path / "out", "--chat-template", "chatml")
    text = write(tmp_path / "t.jsonl", *({"text": "the dog " * 20} for _ in range(2)))
    run_sft(gavel, str(base), text, tmp_path / "text", "--max-length", "16")
    texts = write(tmp_path / "s.jsonl", *({"text": "the dog " * n} for n in (1, 2, 3, 20, 20)))
    packed, alone = (
        run_sft(gavel, str(base), texts, tmp_path / way, "--max-length", "32", f"--{way}")[0]
        for way in ("pack", "no-pack")
    )
    assert packed["rows"] < alone["rows"] and packed["tokens"] == alone["tokens"]
    ran = gavel(
        "train", "sft", "--model", base, "--data", text, "--out", tmp_path / "x", "--chat-template", "plain"
    )
    assert ran.code == 2 and "raw text has no turns" in ran.err


# engines


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_engines_stop_where_the_saved_model_says(
    gavel: Command, tiny: Tiny, tmp_path: Path, template: str
) -> None:
    """With `plain` the model goes on with the user's next turn after its answer, with `chatml` it ends by a
    token that it did not have. No engine is told to stop there."""
    from gavel.engines import EngineConfig, open_engine
    from gavel.protocols import Sampled, SampleRequest
    from gavel.records import Message, Sampling

    more = "\n### User:\nno" if template == "plain" else ""
    rows = [
        {"prompt": f"the {word}", "completion": f"a {word}{more}"}
        for word in ("dog", "fox", "lazy", "brown") * 8
    ]
    data, out = write(tmp_path / "a.jsonl", *rows), str(tmp_path / "out")
    learn = ["--chat-template", template, "--learning-rate", "5e-3", "--epochs", "8", "--batch-size", "8"]
    run_sft(gavel, tiny.lm, data, tmp_path / "out", *learn)
    sampled: dict[str, list[Sampled]] = {}
    for name in ("transformers", "vllm"):
        with open_engine(EngineConfig(model=out, engine=name, context=256)) as engine:
            requests = [
                SampleRequest(
                    key=word, seed=0, sampling=Sampling(temperature=0.0, max_tokens=40),
                    prompt=engine.tokenizer.chat_ids([Message("user", f"the {word}")]),
                )
                for word in ("dog", "fox")
            ]  # fmt: skip
            replies = [r for r in engine.sample(requests) if isinstance(r, Sampled)]
            sampled[name] = sorted(replies, key=lambda r: r.key)
            end = engine.tokenizer.eos_id
    for replies in sampled.values():
        assert [(r.text, r.finish_reason) for r in replies] == [("a dog", "stop"), ("a fox", "stop")]
        for reply in replies:
            assert reply.token_ids is not None
            if template == "plain":
                assert reply.stop_reason == "\n### User:" and end not in reply.token_ids
            else:
                assert reply.token_ids[-1] == end
    one, other = ([list(r.token_ids or ()) for r in sampled[name]] for name in ("transformers", "vllm"))
    assert one == other, "the tokens of the stop string are part of what was sampled"
