"""Answers that came as text: trained as the model's own template renders them, by every trainer alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers_made import FAMILIES

from gavel.errors import RowError
from gavel.protocols import RewardRequest
from gavel.records import Completion, Message, PreferencePair, Prompt, prompt_id
from gavel.rows import BadRows
from gavel.rundir import JsonlWriter, RunDir
from gavel.sources import read_preferences as read_source
from gavel.tokenizer import HfTokenizer
from gavel.turns import asked, turn_ids
from judge.method import Item
from judge.reward import Reward
from train.data import PairRow, read_preferences, read_run
from train.rows import Encoder
from train.sft_data import conversation_rows

QUESTION = (Message("user", "what is it?"),)
CHOSEN, REJECTED = " It's the end", "the lazy dog "
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, HfTokenizer]:
    return {name: HfTokenizer(made()) for name, made in FAMILIES.items()}


def from_file(folder: Path, tokenizer: HfTokenizer, bad: BadRows | None = None) -> list[PairRow]:
    source = folder / "pairs.jsonl"
    row = {"prompt": QUESTION[0].content, "chosen": CHOSEN, "rejected": REJECTED}
    source.write_text(json.dumps(row) + "\n")
    bad = bad or BadRows(0)
    return read_preferences(read_source(str(source), {}, bad), Encoder(tokenizer), bad)


def from_run(folder: Path, tokenizer: HfTokenizer, **changes: Any) -> list[PairRow]:
    """Of a run whose outputs came from elsewhere."""
    run, prompt = RunDir(folder), Prompt(id=prompt_id(QUESTION), messages=QUESTION)
    made = [
        Completion(id=name, prompt_id=prompt.id, index=index, text=text, **changes)
        for index, (name, text) in enumerate((("c", CHOSEN), ("r", REJECTED)))
    ]
    pair = PreferencePair(id="p", prompt_id=prompt.id, chosen_id="c", rejected_id="r", margin=1.0,
                          chosen_score=1.0, rejected_score=0.0)  # fmt: skip
    for path, records in ((run.prompts_path, [prompt]), (run.completions_path, made),
                          (run.pairs_path("best"), [pair])):  # fmt: skip
        with JsonlWriter(path) as writer:
            for record in records:
                writer.append(record)
    return read_run(run, Encoder(tokenizer), BadRows(0))


def demonstrated(tokenizer: HfTokenizer, text: str) -> tuple[list[int], list[int]]:
    """Prompt and answer as `gavel train sft` trains them."""
    (row,) = conversation_rows([*QUESTION, Message("assistant", text)], tokenizer, "f:1")
    ((start, end),) = row.spans
    return row.ids[:start].tolist(), row.ids[start:end].tolist()


@every_family
def test_a_pair_is_two_demonstrations(
    family: str, tokenizers: dict[str, HfTokenizer], tmp_path: Path
) -> None:
    tokenizer = tokenizers[family]
    for (row,) in (from_file(tmp_path, tokenizer), from_run(tmp_path / "run", tokenizer)):
        for ids, text in ((row.chosen_ids, CHOSEN), (row.rejected_ids, REJECTED)):
            assert (list(row.prompt_ids), list(ids)) == demonstrated(tokenizer, text)
            assert ids[-1] == tokenizer.eos_id


def test_an_answer_is_what_the_template_makes_of_it(
    tokenizers: dict[str, HfTokenizer], tmp_path: Path
) -> None:
    """With the space that Mistral's puts before, without those that Llama 3's trims, with its own end."""
    pieces = {}
    for family in ("mistral", "llama3", "phi3"):
        hf = tokenizers[family].hf
        (row,) = from_file(tmp_path, tokenizers[family])
        pieces[family] = hf.convert_ids_to_tokens(list(row.rejected_ids))
    assert pieces["mistral"][0].startswith("▁the") and pieces["mistral"][-1] == "</s>"
    assert pieces["phi3"][-1] == "<|end|>"
    llama3 = tokenizers["llama3"]
    plain = llama3.text_ids(REJECTED.strip())
    assert pieces["llama3"] == [*llama3.hf.convert_ids_to_tokens(plain), "<|eot_id|>"]
    assert llama3.text_ids(REJECTED) != plain


@every_family
def test_what_was_cut_off_has_no_end(family: str, tokenizers: dict[str, HfTokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers[family]
    (row,) = from_run(tmp_path, tokenizer, finish_reason="length")
    for ids, text in ((row.chosen_ids, CHOSEN), (row.rejected_ids, REJECTED)):
        assert list(ids) == demonstrated(tokenizer, text)[1][:-1]


def test_a_text_is_rendered_once_however_many_pairs_it_is_in(
    tokenizers: dict[str, HfTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []

    def counting(*args: Any, **settings: Any) -> Any:
        rendered.append(args[1])
        return turn_ids(*args, **settings)

    monkeypatch.setattr("train.answers.turn_ids", counting)
    from_run(tmp_path, tokenizers["qwen"])
    pairs = RunDir(tmp_path).pairs_path("best")
    again = pairs.read_text().replace('"p"', '"q"')
    pairs.write_text(pairs.read_text() + again)
    rendered.clear()
    assert len(read_run(RunDir(tmp_path), Encoder(tokenizers["qwen"]), BadRows(0))) == 2
    assert rendered == [CHOSEN, REJECTED]


@every_family
@pytest.mark.parametrize("finish", ["stop", "length", None])
def test_a_reward_model_judges_what_it_was_trained_on(
    family: str, finish: str | None, tokenizers: dict[str, HfTokenizer], tmp_path: Path
) -> None:
    tokenizer = tokenizers[family]
    (row,) = from_run(tmp_path, tokenizer, finish_reason=finish)
    prompt = Prompt(id=prompt_id(QUESTION), messages=QUESTION)
    for ids, text in ((row.chosen_ids, CHOSEN), (row.rejected_ids, REJECTED)):
        candidate = Completion(id="c", prompt_id=prompt.id, index=0, text=text, finish_reason=finish)
        (request,) = Reward().render(Item(prompt, (candidate,), "reward"), tokenizer)
        assert isinstance(request, RewardRequest)
        assert request.token_ids == [*row.prompt_ids, *ids]


def test_an_empty_text_is_left_out_and_counted(tokenizers: dict[str, HfTokenizer], tmp_path: Path) -> None:
    from_run(tmp_path, tokenizers["llama3"])
    completions, encoder = RunDir(tmp_path).completions_path, Encoder(tokenizers["llama3"])
    completions.write_text(completions.read_text().replace(REJECTED, " "))
    assert read_run(RunDir(tmp_path), encoder, BadRows(0)) == []
    assert encoder.left_out == {"empty completion": 1}


def test_an_answer_that_cannot_follow_its_prompt_is_a_bad_row(tmp_path: Path) -> None:
    made = FAMILIES["qwen"]()
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    said: list[str] = []
    bad = BadRows(1, say=said.append)
    assert from_file(tmp_path, HfTokenizer(made), bad) == []
    assert bad.count == 1 and "pairs.jsonl:1" in said[0] and "an answer without thinking" in said[0]
    assert bad.first[0].hint is not None and "enable_thinking=false" in bad.first[0].hint
    with pytest.raises(RowError, match="without thinking"):
        turn_ids(asked(QUESTION, HfTokenizer(made)), "a", HfTokenizer(made), ended=False)
