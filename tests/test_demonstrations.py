"""What the rows of a source are: texts, instructions or conversations, told apart by their columns."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gavel.demonstrations import Kind, read_demonstrations
from gavel.errors import InputError
from gavel.records import Message
from gavel.rows import BadRows


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(
    src: str, kind: Kind | None = None, bad: BadRows | None = None, **mapping: str
) -> tuple[Kind, list[Any]]:
    found, _, shown = read_demonstrations(src, mapping, bad or BadRows(0), kind)
    return found, [d.text if d.text is not None else [(m.role, m.content) for m in d.messages] for d in shown]


CHAT = [("user", "2+2?"), ("assistant", "4"), ("user", "sure?"), ("assistant", "yes")]

ROWS: list[tuple[dict[str, Any], Kind, Any]] = [
    ({"text": "Call me Ishmael."}, Kind.TEXT, "Call me Ishmael."),
    ({"id": 7, "url": "u", "title": "April", "text": "April is a month."}, Kind.TEXT, "April is a month."),
    ({"instruction": "Translate to French", "input": "dog", "output": "chien"}, Kind.INSTRUCTION,
     [("user", "Translate to French\n\ndog"), ("assistant", "chien")]),
    ({"instruction": "Say hi", "input": "", "output": "hi"}, Kind.INSTRUCTION,
     [("user", "Say hi"), ("assistant", "hi")]),
    ({"question": "2+2?", "answer": "4"}, Kind.INSTRUCTION, [("user", "2+2?"), ("assistant", "4")]),
    ({"prompt": "2+2?", "completion": "4"}, Kind.INSTRUCTION, [("user", "2+2?"), ("assistant", "4")]),
    ({"system_prompt": "Be brief.", "question": "2+2?", "response": "4"}, Kind.INSTRUCTION,
     [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4")]),
    ({"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]},
     Kind.INSTRUCTION, [("user", "2+2?"), ("assistant", "4")]),
    ({"messages": [{"role": "user", "content": "2+2?"}], "response": "4"}, Kind.INSTRUCTION,
     [("user", "2+2?"), ("assistant", "4")]),
    ({"messages": [{"role": r, "content": c} for r, c in CHAT]}, Kind.CHAT, CHAT),
    ({"prompt": "2+2?", "prompt_id": "a", "messages": [{"role": r, "content": c} for r, c in CHAT]},
     Kind.CHAT, CHAT),
    ({"id": "x_0", "conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": c}
                                     for r, c in CHAT]}, Kind.CHAT, CHAT),
    ({"system": "Be brief.",
      "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
     Kind.CHAT, [("system", "Be brief."), *CHAT[:2]]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "shown"), ROWS)
def test_each_kind_is_recognised(tmp_path: Path, row: dict[str, Any], kind: Kind, shown: Any) -> None:
    assert read(write(tmp_path / "a.jsonl", row, row)) == (kind, [shown, shown])


def test_turns_after_the_last_answer_are_left_off(tmp_path: Path) -> None:
    row = {"messages": [{"role": r, "content": c} for r, c in CHAT[:3]]}
    assert read(write(tmp_path / "a.jsonl", row)) == (Kind.CHAT, [CHAT[:2]])


def test_several_answers_are_several_demonstrations(tmp_path: Path) -> None:
    src = write(tmp_path / "a.jsonl", {"prompt": "q", "responses": ["a", "b"]})
    expected = [[("user", "q"), ("assistant", answer)] for answer in ("a", "b")]
    assert read(src) == (Kind.INSTRUCTION, expected)


AMBIGUOUS = {"instruction": "Say hi", "input": "", "output": "hi", "text": "### Instruction: Say hi ..."}


def test_what_could_be_two_things_is_not_guessed(tmp_path: Path) -> None:
    src = write(tmp_path / "alpaca.jsonl", AMBIGUOUS)
    with pytest.raises(InputError) as caught:
        read(src)
    said = str(caught.value)
    assert "text (column 'text') or instruction (columns 'instruction' and 'output')" in said
    assert "--kind text or --kind instruction" in said
    assert read(src, Kind.TEXT)[1] == [AMBIGUOUS["text"]]
    assert read(src, Kind.INSTRUCTION)[1] == [[("user", "Say hi"), ("assistant", "hi")]]
    mixed = write(tmp_path / "mixed.jsonl", {"text": "a"}, {"question": "q", "answer": "a"})
    with pytest.raises(InputError, match="could be text"):
        read(mixed)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"body": "a"}, "--map text=COLUMN"),
        ({"question": "a"}, "--map completion=COLUMN"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "--map completion=COLUMN"),
        ({"messages": [{"role": "user", "content": "q"}]}, "--map completion=COLUMN"),
    ],
)
def test_rows_that_show_nothing_are_refused(tmp_path: Path, row: dict[str, Any], named: str) -> None:
    """Preferences too: what was rejected is not to be learned."""
    with pytest.raises(InputError) as caught:
        read(write(tmp_path / "a.jsonl", row))
    assert "no usable columns" in str(caught.value) and named in str(caught.value)


def test_mapped_columns_count(tmp_path: Path) -> None:
    src = write(tmp_path / "a.jsonl", {"q": "2+2?", "chosen": "4", "rejected": "5"})
    assert read(src, prompt="q", completion="chosen") == (Kind.INSTRUCTION, [CHAT[:2]])
    assert read(write(tmp_path / "b.jsonl", {"body": "x"}), text="body") == (Kind.TEXT, ["x"])


BAD: list[tuple[Kind, dict[str, Any], str]] = [
    (Kind.CHAT, {"messages": [{"role": "user", "content": "q"}]}, "no answer: no turn of 'messages'"),
    (Kind.CHAT, {"messages": [{"role": "boss", "content": "q"}]}, "not one of system"),
    (Kind.CHAT, {"messages": [{"role": "user", "content": None}]}, "not string"),
    (Kind.CHAT, {"messages": []}, "is empty"),
    (Kind.TEXT, {"text": 7}, "is no string"),
    (Kind.TEXT, {"text": None}, "empty text: the column is null"),
    (Kind.INSTRUCTION, {"question": "q", "answer": None}, "empty completion"),
    (Kind.INSTRUCTION, {"question": " ", "answer": "a"}, "empty prompt"),
    (Kind.INSTRUCTION, {"question": "q", "answer": 4}, "is a number, not string"),
]


@pytest.mark.parametrize(("kind", "row", "reason"), BAD)
def test_a_bad_row_is_named_and_the_rest_goes_on(
    tmp_path: Path, kind: Kind, row: dict[str, Any], reason: str
) -> None:
    good = next(r for r, k, _ in ROWS if k is kind)
    said: list[str] = []
    bad = BadRows(1, say=said.append)
    assert len(read(write(tmp_path / "a.jsonl", good, row, good), kind, bad)[1]) == 2
    bad.check()
    assert bad.count == 1 and reason in said[0] and f"{tmp_path}/a.jsonl:2" in said[0]


def test_files_of_text(tmp_path: Path) -> None:
    """A file is one document, a directory of them several; also zipped, with a mark of byte order or not."""
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\n".encode())
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write(b"three")
    assert read(str(tmp_path / "a.txt")) == (Kind.TEXT, ["one\r\ntwo\n"])
    assert read(str(tmp_path / "b.txt.gz")) == (Kind.TEXT, ["three"])
    (tmp_path / "c.txt").write_text("four")
    assert read(str(tmp_path)) == (Kind.TEXT, ["one\r\ntwo\n", "four"])
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match="is UTF-16"):
        read(str(tmp_path / "d.txt"))
    (tmp_path / "e.txt").write_bytes(b"a\xffb")
    bad = BadRows(0, say=lambda message: None)
    with pytest.raises(InputError, match="not UTF-8: byte 2"):
        read(str(tmp_path / "e.txt"), bad=bad)
        bad.check()


def test_conversations_in_a_csv(tmp_path: Path) -> None:
    with open(tmp_path / "a.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "messages"])
        table.writerow(["1", json.dumps([{"role": r, "content": c} for r, c in CHAT])])
    assert read(str(tmp_path / "a.csv")) == (Kind.CHAT, [CHAT])


def test_messages_are_records(tmp_path: Path) -> None:
    _, _, shown = read_demonstrations(
        write(tmp_path / "a.jsonl", {"question": "q", "answer": "a"}), {}, BadRows(0)
    )
    (one,) = shown
    assert one.messages == (Message("user", "q"), Message("assistant", "a")) and one.row.where.endswith(":1")


def test_the_options_are_the_kinds() -> None:
    from train.cli_sft import _KINDS

    assert list(_KINDS) == ["auto", *Kind]
