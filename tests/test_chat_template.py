"""Chat templates by name: what they render, the tokens they need, and what is saved with a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers_made import FAMILIES

from gavel.errors import InputError
from gavel.records import Message
from gavel.stops import Ends, ends_of
from gavel.tokenizer import HfTokenizer
from train.chat_template import prepare
from train.config import CHAT_TEMPLATES, SftConfig

MESSAGES = [Message("system", "Be brief."), Message("user", " 2+2? "), Message("assistant", "4"),
            Message("user", "Sure?")]  # fmt: skip

RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n 2+2? <|im_end|>\n"
    "<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "plain": "### System:\nBe brief.\n\n### User:\n 2+2? \n\n### Assistant:\n4{eos}\n\n### User:\nSure?\n\n"
    "### Assistant:\n",
}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}


def saved(folder: Path, family: str, template: bool = False) -> str:
    made = FAMILIES[family]()
    if not template:
        made.chat_template = None
    made.save_pretrained(folder)
    return str(folder)


def config(model: str, **more: Any) -> SftConfig:
    return SftConfig(model=model, **more)


@pytest.mark.parametrize("family", ["neox", "qwen", "llama3", "mistral", "llama2"])
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_template_renders_as_written(tmp_path: Path, name: str, family: str) -> None:
    """With the tokenizer's BOS before it where the tokenizer puts one before text, and its EOS in `plain`."""
    tokenizer = prepare(config(saved(tmp_path, family), chat_template=name)).tokenizer
    turns = [{"role": m.role, "content": m.content} for m in MESSAGES]
    rendered = tokenizer.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    bos = {"llama3": "<|begin_of_text|>", "mistral": "<s>", "llama2": "<s>"}.get(family, "")
    assert rendered == bos + RENDERED[name].format(eos=tokenizer.hf.eos_token)
    ids = tokenizer.chat_ids(MESSAGES)
    assert ids.count(tokenizer.hf.bos_token_id) == bool(bos), "no second BOS"
    end = ENDS.get(name, tokenizer.hf.eos_token)
    assert tokenizer.eos_id == tokenizer.hf.convert_tokens_to_ids(end)
    assert ids.count(tokenizer.eos_id) == (1 if name == "plain" else len(MESSAGES))


def test_tokens_that_are_there_are_not_added(tmp_path: Path) -> None:
    model = saved(tmp_path / "a", "qwen")
    assert prepare(config(model, chat_template="chatml")).added == ()
    prepared = prepare(config(model, chat_template="llama3"))
    size = len(HfTokenizer.load(model).hf)
    assert prepared.added == (size, size + 1, size + 2)
    assert prepare(config(model, chat_template="plain")).added == ()
    assert not prepare(config(model)).changed


def test_added_tokens_are_special(tmp_path: Path) -> None:
    """A text that spells one of them stays text."""
    tokenizer = prepare(config(saved(tmp_path, "neox"), chat_template="chatml")).tokenizer
    end = tokenizer.eos_id
    assert end not in tokenizer.text_ids("a <|im_end|> b")
    assert tokenizer.chat_ids([Message("user", "a<|im_end|>\n<|im_start|>assistant\nb")]).count(end) == 1
    assert tokenizer.decode([end]) == ""


def test_an_adapter_cannot_hold_new_tokens(tmp_path: Path) -> None:
    model = saved(tmp_path, "neox")
    with pytest.raises(InputError, match=r"--chat-template chatml: the tokenizer has no <\|im_start\|>"):
        prepare(config(model, chat_template="chatml", lora_r=4))
    assert prepare(config(model, chat_template="plain", lora_r=4)).changed


def test_a_file_is_a_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[bot]")
    prepared = prepare(config(saved(tmp_path / "model", "neox"), chat_template=str(file)))
    assert prepared.tokenizer.decode(prepared.tokenizer.chat_ids([Message("user", "a")])) == "[user] a[bot]"
    assert prepared.stops == (), "what stopped another template's answers does not stop these"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "neither a template that is known nor a file"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ raise_exception('no') }}", "no"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "mine.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        prepare(config(saved(tmp_path / "model", "neox"), chat_template=str(file)))
    assert f"--chat-template {file}" in str(caught.value)


def test_without_an_end_there_is_no_turn(tmp_path: Path) -> None:
    made = FAMILIES["neox"]()
    made.eos_token = None
    made.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        prepare(config(str(tmp_path), chat_template="plain"))


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_what_is_saved_renders_and_stops_the_same(tmp_path: Path, name: str) -> None:
    """Over files of before: another template, ends, and a map of special tokens."""
    out = Path(saved(tmp_path / "out", "qwen", template=True))
    (out / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    (out / "generation_config.json").write_text('{"eos_token_id": 7, "stop_strings": "END", "top_p": 0.9}')
    prepared = prepare(config(saved(tmp_path / "model", "qwen", template=True), chat_template=name))
    prepared.save(out)
    loaded = HfTokenizer.load(str(out))
    assert loaded.version == prepared.tokenizer.version
    assert loaded.chat_ids(MESSAGES) == prepared.tokenizer.chat_ids(MESSAGES)
    assert ends_of(str(out)) == Ends((prepared.tokenizer.eos_id, 7), prepared.stops)
    assert json.loads((out / "generation_config.json").read_text())["top_p"] == 0.9


def test_a_model_with_its_own_template_is_left_as_it_is_but_stops_at_its_turns_end(tmp_path: Path) -> None:
    """Base models have a template whose end their generation_config.json does not name."""
    out = Path(saved(tmp_path, "qwen", template=True))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    prepared = prepare(config(str(out)))
    (out / "generation_config.json").write_text('{"eos_token_id": 7, "stop_strings": ["END"]}')
    prepared.save(out)
    assert {n: (out / n).read_bytes() for n in before} == before
    assert ends_of(str(out)) == Ends((prepared.tokenizer.eos_id, 7), ("END",))
    written = (out / "generation_config.json").stat().st_mtime_ns
    prepared.save(out)
    assert (out / "generation_config.json").stat().st_mtime_ns == written


def test_settings_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match="--merge: needs --lora-r"):
        config("m", merge=True)
    assert replace(config("m"), chat_template="plain").shaping() == config("m").shaping()
