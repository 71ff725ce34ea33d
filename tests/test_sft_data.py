"""Demonstrations as token ids: what an engine would see and sample, and which ids are trained."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_made import FAMILIES

from gavel.demonstrations import Demonstration, Kind
from gavel.errors import InputError, RowError, RunDirError
from gavel.packed import pack_ids
from gavel.records import Completion, Judgment, Message, Prompt, digest, prompt_id
from gavel.rows import BadRows, Row
from gavel.rundir import JsonlWriter, RunDir
from gavel.tokenizer import HfTokenizer
from train.rows import Encoder
from train.sft_data import IGNORED, SftRow, conversation_rows, pack, read_best, read_rows, rows_version

CHAT = (
    Message("user", "what is it?"), Message("assistant", "It's the end"),
    Message("user", "the lazy dog"), Message("assistant", "sleeps"),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, HfTokenizer]:
    return {name: HfTokenizer(made()) for name, made in FAMILIES.items()}


def answers(row: SftRow) -> list[list[int]]:
    return [row.ids[start:end].tolist() for start, end in row.spans]


# conversations


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_follows_what_the_engine_sees(tokenizers: dict[str, HfTokenizer], family: str) -> None:
    tokenizer = tokenizers[family]
    rows = conversation_rows(CHAT, tokenizer, "f:1")
    spans = [(row, start, end) for row in rows for start, end in row.spans]
    assert len(spans) == 2
    for (row, start, end), place in zip(spans, (1, 3), strict=True):
        assert row.ids[:start].tolist() == tokenizer.chat_ids(CHAT[:place])
        assert row.ids[end - 1] == tokenizer.eos_id
        assert tokenizer.decode(row.ids[start:end].tolist()).strip() == CHAT[place].content
    assert all(row.ids.tolist().count(tokenizer.hf.bos_token_id) <= 1 for row in rows)


def test_an_answer_is_what_the_template_makes_of_it(tokenizers: dict[str, HfTokenizer]) -> None:
    """With the space that it puts before, without the spaces that it trims."""
    mistral, llama3 = tokenizers["mistral"], tokenizers["llama3"]
    (row,) = conversation_rows([Message("user", "q"), Message("assistant", "It's")], mistral, "f:1")
    assert mistral.hf.convert_ids_to_tokens(answers(row)[0]) == ["▁It's", "</s>"]
    assert mistral.hf.convert_ids_to_tokens(mistral.text_ids("It's"))[0] != "▁It's"
    both = [
        answers(conversation_rows([Message("user", "q"), Message("assistant", text)], llama3, "f:1")[0])
        for text in ("It's", " It's \n")
    ]
    assert both[0] == both[1] and "It's" in llama3.decode(both[0][0])


def test_turns_share_a_row_where_the_template_lets_them(tokenizers: dict[str, HfTokenizer]) -> None:
    """The made Qwen's template puts an empty thinking before an answer, and leaves it out of the history."""
    for family in ("llama3", "llama2", "mistral", "phi3"):
        (row,) = conversation_rows(CHAT, tokenizers[family], "f:1")
        assert row.trained == sum(len(a) for a in answers(row)) and len(row.spans) == 2
    apart = conversation_rows(CHAT, tokenizers["qwen"], "f:1")
    assert [len(row.spans) for row in apart] == [1, 1]
    assert len({row.row_id for row in apart}) == 2
    think = tokenizers["qwen"].hf.convert_tokens_to_ids("<think>")
    assert [row.ids.tolist().count(think) for row in apart] == [1, 1]


SPELLED = "</s> <|im_end|> <|eot_id|><|end|> <end_of_turn> <|endoftext|> [INST] <|begin_of_text|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_text_stay_text(tokenizers: dict[str, HfTokenizer], family: str) -> None:
    """Of the user and of the assistant: the only special tokens are those of a plain conversation."""
    tokenizer = tokenizers[family]

    def specials(user: str, assistant: str) -> list[int]:
        (row,) = conversation_rows([Message("user", user), Message("assistant", assistant)], tokenizer, "f:1")
        return [i for i in row.ids if i in tokenizer.hf.added_tokens_decoder and i not in spaces]

    spaces = {i for i, t in tokenizer.hf.added_tokens_decoder.items() if not t.content.strip()}
    spaces.add(tokenizer.hf.unk_token_id)
    assert specials(f"a{SPELLED}b", f"a{SPELLED}b") == specials("ab", "ab")


def test_thinking_is_trained_as_the_tokens_that_a_model_writes(tokenizers: dict[str, HfTokenizer]) -> None:
    tokenizer = tokenizers["qwen"]
    opens, closes = tokenizer.hf.convert_tokens_to_ids(["<think>", "</think>"])
    ids = tokenizer.answer_ids("<think>\n2+2 </think>4 <think>")
    assert ids[0] == opens and ids.count(closes) == 1 and ids.count(opens) == 1
    assert tokenizer.hf.decode(ids) == "<think>\n2+2 </think>4 <think>"
    opened = tokenizer.answer_ids("<think>\n2+2 </think>4", opened=True)
    assert opened.count(opens) == 0 and tokenizer.hf.decode(opened) == "\n2+2 </think>4"
    unclosed = tokenizer.answer_ids("<think>2+2")
    assert (unclosed[0], closes in unclosed) == (opens, False)
    assert tokenizer.answer_ids("4 <think>") == tokenizer.text_ids("4 <think>"), "in passing it is text"
    assert tokenizers["llama3"].answer_ids("<think>a</think>") == tokenizers["llama3"].text_ids(
        "<think>a</think>"
    ), "no such tokens"


def test_an_opening_tag_in_the_prompt_is_not_repeated() -> None:
    made = FAMILIES["qwen"]()
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = HfTokenizer(made)
    messages = [Message("user", "q"), Message("assistant", "<think>hm</think>a")]
    (row,) = conversation_rows(messages, tokenizer, "f:1")
    assert tokenizer.hf.decode(answers(row)[0]) == "hm</think>a<|im_end|>"
    with pytest.raises(RowError, match="without thinking"):
        conversation_rows([messages[0], Message("assistant", "a")], tokenizer, "f:1")
    words = FAMILIES["neox"]()  # has no tokens for the tags
    words.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<|assistant|><think>"
    (row,) = conversation_rows(messages, HfTokenizer(words), "f:1")
    assert words.decode(answers(row)[0][:-1]) == "hm</think>a"


def test_what_no_engine_would_be_asked_for_is_context(tokenizers: dict[str, HfTokenizer]) -> None:
    """A greeting before the first question, an empty turn, a system prompt, a tool's reply."""
    tokenizer = tokenizers["neox"]
    messages = [Message("system", "s"), Message("assistant", "Hello!"), Message("user", "q"),
                Message("assistant", " "), Message("tool", "4"), Message("assistant", "four")]  # fmt: skip
    (row,) = conversation_rows(messages, tokenizer, "f:1")
    assert answers(row) == [[*tokenizer.text_ids("four"), tokenizer.eos_id]]
    assert row.ids[: row.spans[0][0]].tolist() == tokenizer.chat_ids(messages[:-1])
    assert conversation_rows(messages[:4], tokenizer, "f:1") == []


def test_labels_are_the_trained_ids_at_their_places() -> None:
    row = SftRow(ids=array("i", [5, 6, 7, 8, 9]), spans=((1, 3), (4, 5)), row_id="r")
    assert row.labels.tolist() == [IGNORED, 6, 7, IGNORED, 9] and row.trained == 3 and row.fault is None
    text = SftRow(ids=array("i", [5, 6, 7, 8, 9]), spans=((0, 5),), starts=(0, 2), row_id="r")
    assert text.labels.tolist() == [IGNORED, 6, IGNORED, 8, 9] and text.trained == 3
    assert text.lengths == [2, 3] and text.is_text and not row.is_text
    assert SftRow(ids=array("i", [5]), spans=((0, 1),), row_id="r").fault == "none of its tokens is trained"


def test_the_version_knows_what_is_trained() -> None:
    ids = array("i", [5, 6, 7, 8])
    rows = [SftRow(ids=ids, spans=((1, 4),), row_id="r"), SftRow(ids=ids, spans=((2, 4),), row_id="r"),
            SftRow(ids=ids, spans=((1, 2), (3, 4)), row_id="r"),
            SftRow(ids=ids, spans=((1, 4),), starts=(0, 2), row_id="r")]  # fmt: skip
    assert len({rows_version([row]) for row in rows}) == len(rows)
    assert rows_version(rows) != rows_version(rows[::-1])


# raw text

documents = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20), max_size=12)


@given(documents, st.integers(2, 17))
@settings(max_examples=200)
def test_packing_keeps_every_token_once(given_: list[list[int]], size: int) -> None:
    rows = list(pack(((ids, f"f:{i}") for i, ids in enumerate(given_)), size))
    assert [i for row in rows for i in row.ids] == [i for ids in given_ for i in ids]
    assert all(row.length == size for row in rows[:-1]) and all(0 < row.length <= size for row in rows)
    # a part begins where a document begins or a row does, and nowhere else
    begins, at = set(), 0
    for ids in given_:
        begins.add(at)
        at += len(ids)
    for number, row in enumerate(rows):
        first = number * size
        assert set(row.starts) == {0} | {b - first for b in begins if first <= b < first + row.length}
        assert list(row.starts) == sorted(set(row.starts)) and sum(row.lengths) == row.length


def test_a_row_of_text_says_where_it_comes_from() -> None:
    rows = list(pack([([1, 2, 3], "f:1"), ([4, 5, 6], "f:2"), ([7], "f:3")], 4))
    assert [row.where for row in rows] == ["f:1 to f:2", "f:2 to f:3"]
    assert [row.ids.tolist() for row in rows] == [[1, 2, 3, 4], [5, 6, 7]]
    assert [row.labels.tolist() for row in rows] == [[IGNORED, 2, 3, IGNORED], [IGNORED, 6, IGNORED]]


def texts(*given_: str) -> list[Demonstration]:
    return [Demonstration(Row(f"f:{i}", {}, i), text=text) for i, text in enumerate(given_, 1)]


def read_text(
    tokenizer: HfTokenizer, shown: list[Demonstration], **limits: int | None
) -> tuple[list[SftRow], Encoder]:
    encoder = Encoder(tokenizer, **limits)  # type: ignore[arg-type]
    return read_rows(shown, Kind.TEXT, encoder, BadRows(0)), encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_is_whole_with_its_ends(tokenizers: dict[str, HfTokenizer], family: str) -> None:
    """The tokenizer's BOS where it has one, its EOS, and no special token from the text."""
    tokenizer, text = tokenizers[family], f"The quick {SPELLED} dog"
    (row,), _ = read_text(tokenizer, texts(text))
    hf = tokenizer.hf
    bos = [hf.bos_token_id] if family in ("llama3", "llama2", "mistral") else []
    assert row.ids.tolist()[: len(bos)] == bos and row.ids[-1] == hf.eos_token_id
    inner = row.ids.tolist()[len(bos) : -1]
    spaces = {i for i, t in hf.added_tokens_decoder.items() if not t.content.strip()} | {hf.unk_token_id}
    assert not set(inner) & (set(hf.added_tokens_decoder) - spaces)
    if family not in ("unigram", "phi3"):  # lossy by themselves
        assert tokenizer.decode(inner) == text


def test_rows_of_text_are_as_long_as_they_may_be(tokenizers: dict[str, HfTokenizer]) -> None:
    tokenizer = tokenizers["neox"]
    shown = texts("dog " * 3000, "", " \n", "cat")
    whole = len(tokenizer.document_ids("dog " * 3000)) + len(tokenizer.document_ids("cat"))
    for limits, size in (
        ({}, 2048), ({"context": 64}, 64), ({"context": 64, "max_length": 32}, 32),
        ({"context": 64, "max_length": 999}, 64), ({"context": 4096, "max_length": 3000}, 3000),
    ):  # fmt: skip
        rows, encoder = read_text(tokenizer, shown, **limits)
        assert rows[0].length == size and sum(row.length for row in rows) == whole
        assert +encoder.left_out == {"empty text": 2}


def test_a_last_row_of_one_token_is_left_out(tokenizers: dict[str, HfTokenizer]) -> None:
    tokenizer = tokenizers["neox"]
    length = len(tokenizer.document_ids("the dog and the fox"))
    rows, encoder = read_text(tokenizer, texts("the dog and the fox"), max_length=length - 1)
    assert len(rows) == 1 and +encoder.left_out == {"rows of one token": 1}


# what cannot be trained on


def test_what_is_left_out_is_counted(tokenizers: dict[str, HfTokenizer]) -> None:
    tokenizer = tokenizers["llama3"]
    shown = [
        Demonstration(Row(f"f:{i}", {}, i), messages=(Message("user", "q"), Message("assistant", text)))
        for i, text in enumerate(("a", " ", "dog " * 60, "dog " * 400), 1)
    ]
    said: list[str] = []
    encoder, bad = Encoder(tokenizer, context=256, max_length=64), BadRows(1, say=said.append)
    rows = read_rows(shown, Kind.CHAT, encoder, bad)
    assert [row.where for row in rows] == ["f:1"]
    assert encoder.left_out == {"empty completion": 1, "longer than --max-length": 2}
    assert bad.count == 0
    encoder = Encoder(tokenizer, context=256)
    assert [row.where for row in read_rows(shown, Kind.CHAT, encoder, bad)] == ["f:1", "f:3"]
    assert bad.count == 1 and "f:4" in said[0] and "the model's context is 256" in said[0]


def test_a_conversation_that_the_template_refuses_is_a_bad_row() -> None:
    made = FAMILIES["neox"]()
    made.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    )
    made.chat_template += "{% endif %}{{ m.content }}{% endfor %}<|assistant|>"
    tokenizer, said = HfTokenizer(made), list[str]()
    messages = (Message("system", "s"), *CHAT[:2])
    shown = [Demonstration(Row(f"f:{i}", {}, i), messages=m) for i, m in enumerate((messages, CHAT), 1)]
    bad = BadRows(1, say=said.append)
    assert {r.where for r in read_rows(shown, Kind.CHAT, Encoder(tokenizer), bad)} == {"f:2"}
    assert "no system" in said[0] and "f:1" in said[0]


# the best of a run


def asked(text: str) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(id=prompt_id(messages), messages=messages)


def run_of(
    folder: Path,
    tokenizer: HfTokenizer,
    scored: dict[str, Sequence[tuple[str, float | None, str]]],
    **more: Any,
) -> RunDir:
    """Prompt → its completions as (text, score, finish reason), each judged in the pass "p"."""
    run = RunDir(folder)
    judgments = []
    with JsonlWriter(run.prompts_path) as prompts, JsonlWriter(run.completions_path) as completions:
        for text, found in scored.items():
            prompt = asked(text)
            prompts.append(prompt)
            for index, (answer, score, finish) in enumerate(found):
                ids = [*tokenizer.text_ids(f"!{answer}"), *([tokenizer.eos_id] if finish == "stop" else [])]
                made = Completion(
                    id=f"{text}{index}", prompt_id=prompt.id, index=index, text=answer, finish_reason=finish,
                    token_ids=pack_ids(ids),
                    prompt_hash=digest("prompt_ids", tokenizer.chat_ids(prompt.messages)), **more,
                )  # fmt: skip
                completions.append(made)
                judgments.append(judged(prompt.id, (made.id,), score=score))
    write_pass(run, "p", judgments)
    return run


def judged(prompt: str, ids: tuple[str, ...], aspect: str = "a", **said: Any) -> Judgment:
    reason = None if {"score", "verdict"} & {k for k, v in said.items() if v is not None} else "no score"
    return Judgment(
        id=digest(prompt, ids, aspect), prompt_id=prompt, completion_ids=ids, method="m", aspect=aspect,
        judge="j", weights="w", template="t", parser="1", reason=reason, **said,
    )  # fmt: skip


def write_pass(run: RunDir, name: str, judgments: list[Judgment]) -> None:
    with JsonlWriter(run.judgments_path(name)) as writer:
        for judgment in judgments:
            writer.append(judgment)


def best(run: RunDir, tokenizer: HfTokenizer, *args: Any) -> tuple[dict[str, SftRow], Encoder]:
    encoder = Encoder(tokenizer, context=512)
    return {row.row_id: row for row in read_best(run, encoder, BadRows(0), *args)}, encoder


def test_the_best_of_each_prompt_as_it_was_sampled(
    tmp_path: Path, tokenizers: dict[str, HfTokenizer]
) -> None:
    tokenizer = tokenizers["llama3"]
    run = run_of(tmp_path, tokenizer, {
        "q": [("a", 0.1, "stop"), ("b", 0.9, "stop"), ("c", 0.5, "stop")],
        "cut": [("a", 0.1, "stop"), ("b", 0.9, "length")],
        "tie": [("b", 0.5, "stop"), ("a", 0.5, "stop")],
        "none": [("a", None, "stop"), (" ", 1.0, "stop")],
        "alone": [("a", -3.0, "stop")],
    })  # fmt: skip
    rows, encoder = best(run, tokenizer)
    assert list(rows) == ["q1", "cut0", "tie0", "alone0"]
    row = rows["q1"]
    prompt = tokenizer.chat_ids(asked("q").messages)
    assert row.ids.tolist() == [*prompt, *tokenizer.text_ids("!b"), tokenizer.eos_id]
    assert row.spans == ((len(prompt), len(row.ids)),) and "completion q1" in row.where
    assert encoder.completions == {"sampled": 4}
    assert +encoder.left_out == {
        "completions cut off": 1,
        "unscored": 1,
        "prompts without a scored completion": 1,
    }
    above, encoder = best(run, tokenizer, None, 0.5)
    assert list(above) == ["q1", "tie0"] and encoder.left_out["prompts below --min-score"] == 2


def test_the_pass_that_is_asked_for_decides(tmp_path: Path, tokenizers: dict[str, HfTokenizer]) -> None:
    """A mean over aspects, and comparisons as strengths."""
    tokenizer = tokenizers["llama3"]
    run = run_of(tmp_path, tokenizer, {"q": [("a", 1.0, "stop"), ("b", 0.0, "stop"), ("c", 0.0, "stop")]})
    prompt = asked("q").id
    write_pass(run, "aspects", [
        judged(prompt, (f"q{i}",), aspect, score=score)
        for i, scores in enumerate([(0.5, 0.4), (0.0, 1.0), (0.9, 0.0)])
        for aspect, score in zip("ab", scores, strict=True)
    ])  # fmt: skip
    write_pass(run, "duels", [
        judged(prompt, pair, verdict=verdict, measures={"p_first": float(verdict == "first")})
        for pair, verdict in ((("q2", "q0"), "first"), (("q1", "q2"), "second"), (("q0", "q1"), "first"))
    ])  # fmt: skip
    for name, chosen in (("p", "q0"), ("aspects", "q1"), ("duels", "q2")):
        assert list(best(run, tokenizer, name)[0]) == [chosen]
    run.finish_stage("judge/aspects", {})
    run.finish_stage("judge/duels", {})
    run.finish_stage("judge/p", {})
    assert list(best(run, tokenizer)[0]) == ["q0"], "the newest"
    with pytest.raises(InputError, match=r"--judgments: no judging pass 'x'.*"):
        best(run, tokenizer, "x")


def test_another_tokenizer_than_the_samplers_is_refused(
    tmp_path: Path, tokenizers: dict[str, HfTokenizer]
) -> None:
    run = run_of(tmp_path, tokenizers["llama3"], {"q": [("a", 1.0, "stop")]})
    with pytest.raises(InputError, match="renders the prompt to other token ids"):
        best(run, tokenizers["qwen"])


def test_outputs_from_elsewhere_are_tokenised(tmp_path: Path, tokenizers: dict[str, HfTokenizer]) -> None:
    tokenizer = tokenizers["llama3"]
    run, prompt = RunDir(tmp_path), asked("q")
    with JsonlWriter(run.prompts_path) as writer:
        writer.append(prompt)
    with JsonlWriter(run.completions_path) as writer:
        writer.append(Completion(id="c", prompt_id=prompt.id, index=0, text="b"))
    with pytest.raises(RunDirError, match="holds no judgments yet"):
        best(run, tokenizer)
    write_pass(run, "p", [judged(prompt.id, ("c",), score=0.0)])
    rows, encoder = best(run, tokenizer)
    assert answers(rows["c"]) == [[*tokenizer.text_ids("b"), tokenizer.eos_id]]
    assert encoder.completions == {"tokenised": 1}
