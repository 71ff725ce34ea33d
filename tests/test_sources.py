"""Every well-known layout, every row of the error table, real files."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gavel.columns import KNOWN
from gavel.errors import InputError, RowError
from gavel.foreign import OutputsForm, PreferenceForm, PromptForm, schema_of
from gavel.records import Message, Prompt, decode, digest, encode, prompt_id
from gavel.sources import (
    BadRows,
    OutputReader,
    PreferenceReader,
    PromptReader,
    Row,
    read_outputs,
    read_preferences,
    read_prompts,
)

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
PARTS = {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}
SYSTEM = {"role": "system", "content": "Be brief."}
WRONG = {"role": "assistant", "content": "5"}


def quiet(limit: float = 1000) -> BadRows:
    return BadRows(limit, say=lambda message: None)


@pytest.fixture
def source(tmp_path: Path) -> Any:
    def write(*rows: Any) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return str(path)

    return write


def said(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2+2?"}, [("user", "2+2?")]),
        ({"prompt": [SYSTEM, USER]}, [("system", "Be brief."), ("user", "2+2?")]),
        ({"prompt": [USER, ANSWER, USER]}, [("user", "2+2?"), ("assistant", "4"), ("user", "2+2?")]),
        ({"prompt": None, "question": "2+2?"}, [("user", "2+2?")]),
        ({"question": "2+2?", "answer": "4"}, [("user", "2+2?")]),
        ({"query": "2+2?"}, [("user", "2+2?")]),
        ({"messages": [USER]}, [("user", "2+2?")]),
        ({"messages": json.dumps([USER])}, [("user", "2+2?")]),
        ({"prompt": "2+2?", "messages": [USER, ANSWER]}, [("user", "2+2?")]),
        ({"instruction": "Add.", "input": "2 2", "output": "4"}, [("user", "Add.\n\n2 2")]),
        ({"instruction": "Add.", "input": "", "output": "4"}, [("user", "Add.")]),
        ({"instruction": "Add.", "output": "4", "generator": "m"}, [("user", "Add.")]),
        ({"system": "Be brief.", "question": "2+2?"}, [("system", "Be brief."), ("user", "2+2?")]),
        ({"system": "other", "messages": [SYSTEM, USER]}, [("system", "Be brief."), ("user", "2+2?")]),
        ({"conversations": SHAREGPT}, [("user", "2+2?")]),
        ({"conversation": [USER, ANSWER]}, [("user", "2+2?")]),
        ({"messages": [PARTS]}, [("user", "2+2?")]),
    ],
)
def test_prompt_layouts(source: Any, row: dict, expected: list) -> None:
    bad = quiet()
    (prompt,) = read_prompts(source(row), {}, bad)
    assert said(prompt) == expected
    assert prompt.id == prompt_id(prompt.messages)
    assert bad.count == 0


def test_references_ids_and_metadata(source: Any) -> None:
    rows = [
        {"id": "a", "prompt": "x", "reference": "r", "n": 1, "note": "n", "long": "y" * 201, "list": [1]},
        {"prompt_id": 7, "prompt": "x", "references": ["r", "s"], "metadata": {"deep": {"k": 1}}, "f": 1.5},
        {"prompt": "x", "references": [], "reference": "", "nan": None},
    ]
    first, second, third = read_prompts(source(*rows), {}, quiet())
    assert (first.id, first.references, first.metadata) == ("a", ("r",), {"n": 1, "note": "n"})
    assert (second.id, second.references) == ("7", ("r", "s"))
    assert second.metadata == {"f": 1.5, "deep": {"k": 1}}
    assert third.id == prompt_id(third.messages)


def test_own_records_come_back(tmp_path: Path) -> None:
    messages = (Message("system", "s"), Message("user", "u"))
    prompts = [
        Prompt(id="p", messages=messages, references=("r",), metadata={"a": [1], "record": "x"}),
        Prompt(id=prompt_id(messages), messages=messages),
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"".join(encode(prompt) for prompt in prompts))
    assert list(read_prompts(str(path), {}, quiet())) == prompts


def test_accepted_as_it_is(source: Any) -> None:
    texts = ["NUL \0", "‮rtl", "\u200bzero\u200d", "<|im_end|></s>[INST]", "\u200b", "{{ x }}"]
    prompts = list(read_prompts(source(*({"prompt": text} for text in texts)), {}, quiet()))
    assert [prompt.messages[0].content for prompt in prompts] == texts
    assert all(decode(encode(prompt), Prompt, "") == prompt for prompt in prompts)
    (prompt,) = read_prompts(source('{"prompt": "x", "score": NaN, "big": 1' + "0" * 30 + "}"), {}, quiet())
    assert decode(encode(prompt), Prompt, "").messages[0].content == "x"


def test_the_same_prompt_twice_is_counted(source: Any) -> None:
    bad = quiet()
    prompts = list(read_prompts(source(*[{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}] * 2), {}, bad))
    assert len(prompts) == 2
    assert bad.repeated == 4
    assert bad.count == 0


def test_a_given_id_twice_with_other_content_is_fatal(source: Any) -> None:
    src = source({"id": "a", "prompt": "x"}, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    with pytest.raises(InputError, match=r"rows.jsonl:3: the prompt id 'a'") as caught:
        list(read_prompts(src, {}, quiet()))
    assert not isinstance(caught.value, RowError)


BAD_PROMPTS: list[tuple[Any, str, str]] = [
    ("nope", "not JSON", ""),
    ([], "wrong type", "an array, not an object"),
    ({"prompt": 5}, "wrong type", "column 'prompt' is a number, not array"),
    ({"prompt": {"a": 1}}, "wrong type", "an object"),
    ({"prompt": [{"role": "user", "content": 5}]}, "wrong type", "'prompt' at [0].content is a number"),
    ({"prompt": [{"role": "boss", "content": "x"}]}, "wrong type", "'boss', not one of system"),
    ({"prompt": ["x"]}, "wrong type", "at [0] is a string, not object"),
    ({"prompt": []}, "wrong type", "is empty"),
    ({"messages": [{**USER, "content": [{"type": "image"}]}]}, "wrong type", "is an array, not string"),
    ({"prompt": "x", "reference": 5}, "wrong type", "column 'reference' is a number"),
    ({"prompt": "x", "references": ["a", None]}, "wrong type", "column 'references' at [1] is null"),
    ({"prompt": "x", "id": [1]}, "wrong type", "column 'id' is an array"),
    ({"prompt": "x", "system": 3}, "wrong type", ""),
    ({"prompt": ""}, "empty prompt", ""),
    ({"prompt": " \n\t"}, "empty prompt", ""),
    ({"prompt": None}, "empty prompt", "null"),
    ({"messages": [USER, {"role": "user", "content": ""}]}, "empty prompt", ""),
    ({"messages": [USER, ANSWER]}, "no question", "the assistant's, not the user's"),
    ('{"prompt": "\\ud83d"}', "not valid Unicode", "lone surrogate '\\ud83d'"),
    ('{"prompt": "x", "other": {"deep": ["\\udc00"]}}', "not valid Unicode", ""),
    ({"other": "x"}, "missing column", "none for the prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "says"), BAD_PROMPTS)
def test_bad_prompts_are_skipped_with_their_place(source: Any, row: Any, reason: str, says: str) -> None:
    bad = quiet()
    prompts = list(read_prompts(source({"prompt": "good"}, row, {"prompt": "fine"}), {}, bad))
    assert [prompt.messages[0].content for prompt in prompts] == ["good", "fine"]
    assert bad.reasons == {reason: 1}
    assert bad.total == 3
    assert says in bad.first[0].what
    assert str(bad.first[0].where).endswith("rows.jsonl:2")


def test_no_usable_columns(source: Any) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(source({"source": "x", "target": "y"}, {"more": 1}), {}, quiet())
    assert "found: more, source, target" in str(caught.value)
    assert "--map prompt=COLUMN" in str(caught.value)
    with pytest.raises(InputError, match="--map completion=COLUMN"):
        read_outputs(source({"prompt": "x"}), {}, quiet())
    with pytest.raises(InputError, match="--map chosen=COLUMN"):
        read_preferences(source({"prompt": "x", "completion": "y"}), {}, quiet())
    with pytest.raises(
        InputError, match=r"no column 'sorce' \(--map prompt=sorce\)(.|\n)*Did you mean 'source'"
    ):
        read_prompts(source({"source": "x"}), {"prompt": "sorce"}, quiet())
    with pytest.raises(InputError, match=r'nothing is called(.|\n)*Did you mean "prompt"'):
        read_prompts(source({"source": "x"}), {"promt": "source"}, quiet())
    with pytest.raises(InputError, match="no such file"):
        read_outputs("/none.jsonl", {}, quiet())


def test_map(source: Any) -> None:
    row = {"src": "a", "more": "b", "deep": {"x": [{"y": "c"}, None]}, "dotted.name": "d", "prompt": "unused"}
    for column, expected in (("src", "a"), ("deep.x.0.y", "c"), ("dotted.name", "d")):
        (prompt,) = read_prompts(source(row), {"prompt": column}, quiet())
        assert said(prompt) == [("user", expected)]
    (prompt,) = read_prompts(
        source(row), {"prompt": "src", "input": "more", "reference": "deep.x.0.y"}, quiet()
    )
    assert (said(prompt), prompt.references) == ([("user", "a\n\nb")], ("c",))
    bad = quiet()
    rows = [row, {**row, "deep": 1}, {**row, "deep": {"x": [{"y": None}]}}]
    assert len(list(read_prompts(source(*rows), {"prompt": "deep.x.0.y"}, bad))) == 1
    assert bad.reasons == {"missing column": 1, "empty prompt": 1}
    (output,) = read_outputs(source(row), {"prompt": "src", "output": "more"}, quiet())
    assert output.completions[0].text == "b"


RATED = {"model": "a", "response": "4", "overall_score": 8.5, "annotations": {"x": 1}}
UF = {"instruction": "2+2?", "models": ["a", "b"], "completions": [RATED, {"model": "b", "response": "5"}]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2+2?", "completion": "4"}, [(None, "4")]),
        ({"prompt": [USER], "completion": [ANSWER]}, [(None, "4")]),
        ({"messages": [USER, ANSWER]}, [(None, "4")]),
        ({"prompt": "2+2?", "messages": [USER, ANSWER]}, [(None, "4")]),
        ({"prompt": [USER, ANSWER], "model": "m"}, [("m", "4")]),
        ({"question": "2+2?", "answer": ""}, [(None, "")]),
        ({"instruction": "2+2?", "input": "", "output": "4"}, [(None, "4")]),
        ({"instruction": "2+2?", "output": "4", "generator": "gpt4"}, [("gpt4", "4")]),
        ({"instruction": "2+2?", "outputs": {"a": "4", "b": "5", "c": None}}, [("a", "4"), ("b", "5")]),
        ({"prompt": "2+2?", "responses": ["4", "4"], "model": "m"}, [("m", "4"), ("m", "4")]),
        ({"prompt": "2+2?", "completions": json.dumps(["4", "5"])}, [(None, "4"), (None, "5")]),
        ({"prompt": "2+2?", "completions": "[not json"}, [(None, "[not json")]),
        ({"prompt": "2+2?", "completion": '["4"]'}, [(None, '["4"]')]),
        (UF, [("a", "4"), ("b", "5")]),
        (
            {"conversations": SHAREGPT},
            [(None, "4")],
        ),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, [(None, "4"), (None, "5")]),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WRONG]}, [(None, "4"), (None, "5")]),
        ({"prompt": "2+2?", "response_a": "4", "response_b": "5", "label": "a"}, [(None, "4"), (None, "5")]),
    ],
)
def test_output_layouts(source: Any, row: dict, expected: list) -> None:
    bad = quiet()
    (output,) = read_outputs(source(row), {}, bad)
    assert said(output.prompt) == [("user", "2+2?")]
    assert [(c.model, c.text) for c in output.completions] == expected
    assert [c.index for c in output.completions] == list(range(len(expected)))
    assert output.row.data == row
    assert bad.count == 0


def test_output_ids(source: Any) -> None:
    rows = [{"prompt": "q", "completion": "x", "model": m} for m in ("a", "a", "b")]
    outputs = list(read_outputs(source(*rows, UF), {}, quiet()))
    completions = [c for output in outputs for c in output.completions]
    assert len({output.prompt.id for output in outputs[:3]}) == 1
    assert [c.index for c in completions] == [0, 1, 2, 0, 1]
    assert len({c.id for c in completions}) == 5
    assert completions[1].id == digest("output", outputs[0].prompt.id, "a", 1, "x")
    assert [c for o in read_outputs(source(*rows, UF), {}, quiet()) for c in o.completions] == completions
    assert completions[3].metadata == {"overall_score": 8.5}
    assert completions[0].token_ids is None


def test_a_row_id_is_no_prompt_id_in_outputs(source: Any) -> None:
    rows = [{"id": 1, "prompt": "q", "output": "a", "quality": 3.0}, {"id": 2, "prompt": "q", "output": "b"}]
    first, second = read_outputs(source(*rows), {}, quiet())
    assert first.prompt == second.prompt
    assert first.completions[0].metadata == {"quality": 3.0}
    clash = [{"prompt_id": "p", "prompt": q, "output": "a"} for q in "xy"]
    with pytest.raises(InputError, match=r"rows.jsonl:2: the prompt id 'p'"):
        list(read_outputs(source(*clash), {}, quiet()))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "completion": 5}, "wrong type"),
        ({"prompt": "q", "completion": None}, "empty completion"),
        ({"prompt": "q", "completions": []}, "wrong type"),
        ({"prompt": "q", "completions": ["a", None]}, "wrong type"),
        ({"prompt": "q", "completions": None}, "empty completions"),
        ({"prompt": "q", "completions": [{"model": 5, "text": "x"}]}, "wrong type"),
        ({"prompt": "q", "completion": [USER, ANSWER]}, "several turns"),
        ({"messages": [USER]}, "no output"),
        ({"prompt": "", "completion": "x"}, "empty prompt"),
        ({"completion": "x"}, "missing column"),
        ({"messages": [ANSWER]}, "wrong type"),
    ],
)
def test_bad_outputs(source: Any, row: dict, reason: str) -> None:
    bad = quiet()
    assert len(list(read_outputs(source({"prompt": "q", "completion": "good"}, row), {}, bad))) == 1
    assert bad.reasons == {reason: 1}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]},
        {"chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
        {"prompt": "2+2?", "chosen": [USER, ANSWER], "rejected": [USER, WRONG]},
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
        {"prompt": "2+2?", "response_a": "4", "response_b": "5", "winner": "model_a"},
        {"instruction": "2+2?", "output_1": "5", "output_2": "4", "preference": 2},
        {"question": "2+2?", "chosen": "4", "rejected": "5", "score_chosen": 3, "score_rejected": 1},
    ],
)
def test_preference_layouts(source: Any, row: dict) -> None:
    bad = quiet()
    (found,) = read_preferences(source(row), {}, bad)
    assert said(found.prompt) == [("user", "2+2?")]
    assert (found.chosen, found.rejected) == ("4", "5")
    assert found.margin == (2 if "score_chosen" in row else None)
    assert bad.count == 0


def test_an_export_carries_the_ids_of_its_rows(source: Any) -> None:
    row = {"prompt_id": "p", "prompt": [SYSTEM, USER], "chosen": [ANSWER], "rejected": [WRONG],
           "chosen_id": "c", "rejected_id": "r", "margin": "0.5", "p_chosen": 0.9}  # fmt: skip
    (found,) = read_preferences(source(row), {}, quiet())
    assert found.prompt.id == "p"
    assert (found.chosen_id, found.rejected_id, found.margin, found.p_chosen) == ("c", "r", 0.5, 0.9)


def test_ties_are_counted_and_bad_preferences_skipped(source: Any) -> None:
    pair = {"prompt": "q", "response_a": "x", "response_b": "y"}
    rows = [{**pair, "label": label} for label in ("a", "tie", "b", "c", None, True)]
    rows += [
        {"prompt": "q", "chosen": "x", "rejected": None},
        {"prompt": "q", "chosen": "x", "rejected": [ANSWER]},
        {"chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, WRONG]},
        {"chosen": [USER], "rejected": [USER]},
        {"prompt": "q", "chosen": "x", "rejected": "y", "p_chosen": 1.5},
        {"prompt": "q", "chosen": "x", "rejected": "y", "margin": "wide"},
    ]
    bad = quiet()
    found = list(read_preferences(source(*rows), {}, bad))
    assert [(row.chosen, row.rejected) for row in found] == [("x", "y"), ("y", "x")]
    assert bad.ties == 1
    assert bad.reasons == {"unknown label": 2, "empty label": 1, "empty rejected": 1, "wrong type": 3,
                           "different prompts": 1, "no output": 1}  # fmt: skip


KEYS = st.sampled_from(["role", "content", "from", "value", "text", "model", "x"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "a", "tie", "[", "{}", '[{"role": "user", "content": "x"}]']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = sorted({name for names in KNOWN.values() for name in names})


@settings(max_examples=120, deadline=None)
@given(data=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), anything, max_size=6))
@pytest.mark.parametrize("reader", [PromptReader, OutputReader, PreferenceReader])
def test_any_row_is_read_or_refused(reader: Any, data: dict) -> None:
    for mapping in ({}, {"prompt": "x.0.text", "completion": "text"}):
        try:
            found = reader(mapping)(Row("file:1", data, 1))
        except InputError as error:
            assert isinstance(error, RowError)
            assert error.where == "file:1"
        else:
            assert found is None or found


def turn() -> Any:
    roles = st.sampled_from(["system", "user", "assistant", "tool", "developer", "boss", 1, None])
    return st.fixed_dictionaries(
        {}, optional={"role": roles, "content": st.text(max_size=3) | st.none() | st.just(1)}
    )


text = st.text(max_size=3) | st.none() | st.integers()
number = st.none() | st.floats(allow_nan=False) | st.integers(-3, 3) | st.text(max_size=2) | st.booleans()
output = st.fixed_dictionaries({}, optional={"text": text, "model": text})
FORMS: dict[type, dict[str, Any]] = {
    PromptForm: {
        "messages": st.lists(turn(), max_size=2) | text,
        "references": st.lists(text, max_size=2) | text,
        "id": text,
    },
    OutputsForm: {"completions": st.lists(output, max_size=2)},
    PreferenceForm: {
        "chosen": text,
        "rejected": text,
        "chosen_id": text,
        "margin": number,
        "p_chosen": number,
    },
}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
@pytest.mark.parametrize("form", list(FORMS))
def test_the_quick_check_and_the_schema_agree(form: type, draw: Any) -> None:
    fields = draw.draw(st.fixed_dictionaries({}, optional=FORMS[form]))
    try:
        msgspec.convert(fields, form)
        passes = True
    except msgspec.ValidationError:
        passes = False
    assert schema_of(form).is_valid(fields) == passes


DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared test data is not at {DATA}")


@needs_data
def test_real_files() -> None:
    bad = quiet(0)
    prompts = list(read_prompts(str(DATA / "alpaca_eval/prompts.jsonl.gz"), {}, bad))
    assert (len(prompts), bad.repeated) == (805, 0)
    assert prompts[0].metadata == {"index": 0, "dataset": "helpful_base"}
    outputs = list(read_outputs(str(DATA / "alpaca_eval/prompts.jsonl.gz"), {}, bad))
    assert [len(output.completions) for output in outputs] == [4] * 805
    assert {output.prompt.id for output in outputs} == {prompt.id for prompt in prompts}
    mapped = list(read_outputs(str(DATA / "alpaca_eval/prompts.jsonl.gz"),
                               {"completion": "outputs.gpt4_1106_preview"}, bad))  # fmt: skip
    assert [len(output.completions) for output in mapped] == [1] * 805
    bagel = list(read_outputs(str(DATA / "gptscore/bagel.jsonl.gz"), {"prompt": "source"}, bad))
    assert len(bagel) == 404
    assert all(output.prompt.references for output in bagel)
    assert len(list(read_preferences(str(DATA / "hh/harmless-test-sample.jsonl.gz"), {}, bad))) == 500
    for name, n in (("natural", 100), ("gptinst", 92), ("gptout", 47)):
        src = str(DATA / f"llmbar/{name}.jsonl.gz")
        assert len(list(read_preferences(src, {}, bad))) == n
        assert {len(output.completions) for output in read_outputs(src, {}, bad)} == {2}
    assert bad.count == 0


def test_importing_is_light() -> None:
    import subprocess

    heavy = "torch", "transformers", "datasets", "pyarrow", "pandas", "numpy", "jsonschema", "jinja2"
    code = f"import sys, gavel.sources, gavel.templates; print([m for m in {heavy!r} if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
