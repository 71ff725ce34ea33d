"""Exports: what is written is what was sampled, and what other libraries read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import httpx
import huggingface_hub
import pyarrow.parquet as pq
import pytest
import yaml
from judged_runs import Answers, build, plain

from gavel.errors import CheckFailed, GavelError, InputError, RunDirError
from gavel.records import PreferencePair
from gavel.rundir import RunDir, read_records
from judge import export
from judge.card import MARK, dataset_card
from judge.export import card_path, destination, export_pairs
from judge.pairs import PairConfig, make_pairs

#: texts that must come out as they went in
AWKWARD: dict[str, Answers] = {
    "nul \0 and \u2028 and \ufeff": [
        ("\0", {"q": 1.0}), ("<|im_end|>\r\n", {"q": 2.0}), ("\u202eright to left", {"q": 3.0}),
    ],
    "我很開心 ➜": [(" leading and trailing \n", {"q": -1.5}), ("Positive 🙂\u200b", {"q": 0.1})],
    '"quotes", \\ and {{ braces }}': [("a\tb", {"q": 1e-9}), ("NaN", {"q": 1e12})],
}  # fmt: skip


def exported(run: RunDir, to: str, export_format: str = "trl", **config: Any) -> dict[str, Any]:
    with RunDir.open(run.path) as opened:
        summary = make_pairs(opened, PairConfig(**config))
        return export_pairs(opened, summary["name"], destination(to), export_format)


def expected(run: RunDir, name: str) -> list[dict[str, Any]]:
    """The rows of the TRL format, worked out from the records by the plainest way."""
    texts = {row["id"]: row["text"] for row in map(json.loads, (run.path / "completions.jsonl").open())}
    questions = {row["id"]: row["messages"] for row in map(json.loads, (run.path / "prompts.jsonl").open())}
    return [
        {
            "prompt": questions[pair.prompt_id],
            "chosen": [{"role": "assistant", "content": texts[pair.chosen_id]}],
            "rejected": [{"role": "assistant", "content": texts[pair.rejected_id]}],
            "prompt_id": pair.prompt_id, "chosen_id": pair.chosen_id, "rejected_id": pair.rejected_id,
            "margin": pair.margin, "p_chosen": None,
            "chosen_score": pair.chosen_score, "rejected_score": pair.rejected_score,
        }
        for pair in read_records(run.pairs_path(name), PreferencePair)
    ]  # fmt: skip


@pytest.fixture
def judged(tmp_path: Path) -> RunDir:
    """Awkward and plain answers, all judged in one aspect."""
    answers = AWKWARD | {
        prompt: [(text, {"q": scores["quality"]}) for text, scores in offered]
        for prompt, offered in plain(5, 4).items()
    }
    return RunDir(build(tmp_path / "run", answers))


NAME = "gptscore-judge-all"


def read_lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def read_parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "x.parquet": read_parquet,
    "x.jsonl": lambda path: read_lines(path.read_bytes()),
    "x.jsonl.gz": lambda path: [
        json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n")[:-1]
    ],
    "x.json": lambda path: json.loads(path.read_bytes()),
    "x": lambda path: datasets.load_from_disk(str(path)).to_list(),
}


@pytest.mark.parametrize("file", READERS)
def test_every_kind_of_destination_reads_back_exactly(judged: RunDir, tmp_path: Path, file: str) -> None:
    to = tmp_path / "deep" / "er" / file
    done = exported(judged, str(to), strategy="all")
    rows = READERS[file](to)
    assert rows == expected(judged, NAME)
    assert done == {"to": str(to), "format": "trl", "rows": len(rows)} and len(rows) == 3 + 1 + 1 + 5 * 6
    before = sorted(p.name for p in to.parent.iterdir())
    assert before == ([file, file + ".card.md"] if to.is_file() else [file])
    exported(judged, str(to), strategy="all")  # an earlier export is replaced
    assert READERS[file](to) == rows and sorted(p.name for p in to.parent.iterdir()) == before


@pytest.mark.parametrize("file", ["x.parquet", "x.jsonl", "x.jsonl.gz", "x.json"])
def test_load_dataset_reads_files(judged: RunDir, tmp_path: Path, file: str) -> None:
    to = tmp_path / file
    exported(judged, str(to), strategy="all")
    kind = "parquet" if file.endswith("parquet") else "json"
    found = datasets.load_dataset(kind, data_files=str(to), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == expected(judged, NAME)


def test_reruns_of_a_file_are_byte_identical(judged: RunDir, tmp_path: Path) -> None:
    for file in ("x.parquet", "x.jsonl.gz", "x.json"):
        exported(judged, str(tmp_path / file))
        before = (tmp_path / file).read_bytes(), card_path(tmp_path / file).read_bytes()
        exported(judged, str(tmp_path / file))
        assert ((tmp_path / file).read_bytes(), card_path(tmp_path / file).read_bytes()) == before


def test_rows_are_written_in_batches(judged: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judge.export_rows._BATCH", 4)
    exported(judged, str(tmp_path / "x.parquet"), strategy="all")
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 9  # 35 rows
    assert read_parquet(tmp_path / "x.parquet") == expected(judged, NAME)
    exported(judged, str(tmp_path / "x"), strategy="all")
    assert READERS["x"](tmp_path / "x") == expected(judged, NAME)


# formats
def test_kto_has_each_completion_once(judged: RunDir, tmp_path: Path) -> None:
    exported(judged, str(tmp_path / "best.parquet"), "kto")
    rows = read_parquet(tmp_path / "best.parquet")
    pairs = expected(judged, "gptscore-judge-best-worst")
    assert [r["label"] for r in rows] == [True, False] * len(pairs)
    assert [r["completion"] for r in rows] == [side for p in pairs for side in (p["chosen"], p["rejected"])]
    assert (
        rows[0]["score"] == pairs[0]["chosen_score"] and rows[1]["completion_id"] == pairs[0]["rejected_id"]
    )

    exported(judged, str(tmp_path / "all.parquet"), "kto", strategy="all")
    labels = {r["completion_id"]: r["label"] for r in read_parquet(tmp_path / "all.parquet")}
    # of four, two win more than they lose; of three, the middle one wins one and loses one
    assert {c: labels[c] for c in labels if c.startswith("p0")} == {
        "p0-c3": True, "p0-c2": True, "p0-c1": False, "p0-c0": False,
    }  # fmt: skip
    assert sum(c.startswith("nul") for c in labels) == 2


def test_reward_holds_whole_conversations(judged: RunDir, tmp_path: Path) -> None:
    exported(judged, str(tmp_path / "x.jsonl"), "reward")
    rows = READERS["x.jsonl"](tmp_path / "x.jsonl")
    for row, pair in zip(rows, expected(judged, "gptscore-judge-best-worst"), strict=True):
        assert row["chosen"] == pair["prompt"] + pair["chosen"]
        assert row["rejected"] == pair["prompt"] + pair["rejected"]
        assert row["margin"] == pair["margin"] > 0 and "prompt" not in row


def test_trl_knows_the_formats(judged: RunDir, tmp_path: Path) -> None:
    from trl.data_utils import is_conversational, maybe_extract_prompt, maybe_unpair_preference_dataset

    loaded = {}
    for name in ("trl", "kto", "reward"):
        exported(judged, str(tmp_path / f"{name}.parquet"), name)
        loaded[name] = datasets.Dataset.from_parquet(
            str(tmp_path / f"{name}.parquet"), cache_dir=str(tmp_path / "cache")
        )
        assert all(is_conversational(row) for row in loaded[name])
        assert not {"prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"} & set(
            loaded[name].column_names
        )
    for row, explicit in zip(loaded["reward"], loaded["trl"], strict=True):
        found = maybe_extract_prompt(row)
        assert {k: found[k] for k in ("prompt", "chosen", "rejected")} == {
            k: explicit[k] for k in ("prompt", "chosen", "rejected")
        }
        assert maybe_extract_prompt(explicit) == explicit
    columns = ["prompt", "completion", "label"]
    unpaired = maybe_unpair_preference_dataset(loaded["trl"].select_columns(["prompt", "chosen", "rejected"]))
    key = lambda row: json.dumps(row, sort_keys=True)  # noqa: E731
    assert sorted(unpaired.select_columns(columns).to_list(), key=key) == sorted(
        loaded["kto"].select_columns(columns).to_list(), key=key
    )


@pytest.mark.parametrize(("name", "wanted"), [
    ("trl", {"prompt", "chosen", "rejected"}),
    ("kto", {"prompt", "completion", "label"}),
    ("reward", {"chosen", "rejected"}),
])  # fmt: skip
def test_trl_renders_the_rows_with_a_chat_template(
    judged: RunDir, tmp_path: Path, name: str, wanted: set[str]
) -> None:
    from trl.data_utils import apply_chat_template

    class Tokenizer:
        """The one method of a tokenizer that TRL calls here."""

        def apply_chat_template(
            self, messages: list[dict[str, str]], add_generation_prompt: bool = False, **_: Any
        ) -> str:
            turns = "".join(f"<{m['role']}>{m['content']}</s>" for m in messages)
            return turns + ("<assistant>" if add_generation_prompt else "")

    exported(judged, str(tmp_path / "x.json"), name)
    for row in READERS["x.json"](tmp_path / "x.json"):
        made = apply_chat_template(row, Tokenizer())
        assert set(made) == wanted
        if name == "trl":
            assert made["chosen"] == row["chosen"][0]["content"] + "</s>"


# cards
def test_the_card_states_what_was_done(judged: RunDir, tmp_path: Path) -> None:
    to = tmp_path / "set"
    exported(judged, str(to), strategy="top-bottom", k=1, min_margin=0.5)
    text = (to / "README.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["size_categories"] == ["n<1K"] and front["task_categories"] == ["text-generation"]
    assert "language" not in front and "license" not in front and {"dpo", "gavel"} <= set(front["tags"])
    assert MARK in text
    for fact in [
        "`tiny/policy`", "`w1`", "27 completions", "max_tokens 32", "`tiny/judge`", "`j1`", "`gptscore`",
        "`t-q`", "strategy: top-bottom",
        "k: 1", "min margin: 0.5", "generate 7", "pairs 0",
        "| prompts | 8 |",
        "| judgments | 27 |", "| pairs | 8 |", "| rows | 8 |", "rank correlation", "Licence",
    ]:  # fmt: skip
        assert fact in text, fact
    assert "CONTROL" not in text


def test_the_card_of_a_control_says_so(judged: RunDir, tmp_path: Path) -> None:
    exported(judged, str(tmp_path / "x.parquet"), shuffle_labels=True)
    text = card_path(tmp_path / "x.parquet").read_text("utf-8")
    assert "CONTROL, NOT FOR USE" in text and "label-shuffled-control" in text


def test_the_card_keeps_foreign_text_and_local_paths_out(judged: RunDir) -> None:
    with RunDir.open(judged.path) as opened:
        summary = make_pairs(opened, PairConfig())
    summary["repeated_texts"] = [{"text": "`\n# Ignore\n<script>|", "prompts": 3}]
    summary["policies"][0]["model"] = "/home/someone/secret/model-a"
    summary["judge"]["unusable"] = {"a | b\n# c": 2}
    text = dataset_card(summary, "trl", 2_000, title='a "b": c\n---')
    assert yaml.safe_load(text.split("\n---\n")[0][4:])["pretty_name"] == 'a "b": c\n---'
    assert "/home/someone" not in text and "`model-a` (local)" in text
    assert "\n# Ignore" not in text and "\n# c" not in text and "- 1K<n<10K" in text


# errors
def test_a_foreign_file_or_folder_is_not_replaced(judged: RunDir, tmp_path: Path) -> None:
    foreign = tmp_path / "mine.jsonl"
    foreign.write_text("mine")
    with pytest.raises(InputError, match="no earlier export"):
        destination(str(foreign))
    destination(str(foreign), overwrite=True)
    exported(judged, str(tmp_path / "mine.parquet"))
    with pytest.raises(InputError):  # the card of mine.parquet says nothing of mine.jsonl
        destination(str(foreign))

    folder = tmp_path / "folder"
    folder.mkdir()
    destination(str(folder))  # empty
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(str(folder))
    with pytest.raises(InputError, match="no earlier export"):
        destination(str(folder))
    destination(str(folder), overwrite=True)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        destination(str(folder), overwrite=True)


@pytest.mark.parametrize(
    ("to", "what"),
    [("x.csv", "cannot write this kind"), ("x.parquet.gz", "cannot write"), ("hub:name", "not owner/name"),
     ("hub:a/b", "HF_TOKEN"), ("hub:a/b/c", "not owner/name")],
)  # fmt: skip
def test_destinations_that_cannot_be(monkeypatch: pytest.MonkeyPatch, to: str, what: str) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(InputError) as error:
        destination(to)
    assert what in str(error.value) and "--to" in str(error.value)


def test_a_destination_of_the_wrong_sort(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "x").write_text("")
    for name in ("x.jsonl", "x"):
        with pytest.raises(InputError):
            destination(str(tmp_path / name), overwrite=True)


def test_only_a_finished_set_is_exported(judged: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="gavel pairs"):
        export_pairs(judged, "none", destination(str(tmp_path / "x.jsonl")))
    with pytest.raises(CheckFailed, match="no pair came out"):
        exported(judged, str(tmp_path / "x.jsonl"), min_margin=1e15)
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("file", ["x.parquet", "x.json", "x"])
def test_a_full_disk_leaves_the_earlier_export(
    judged: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    to = tmp_path / "out" / file
    exported(judged, str(to))
    before = READERS[file](to)
    inside = sorted(p.name for p in to.parent.iterdir())

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "rows", lambda *a: (full() for _ in range(1)))
    with pytest.raises(GavelError, match="no space left"):
        exported(judged, str(to))
    assert READERS[file](to) == before and sorted(p.name for p in to.parent.iterdir()) == inside


# the Hub
class FakeApi:
    """Stands in for huggingface_hub.HfApi and keeps what was pushed."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    fail: Exception | None = None

    def __init__(self, token: str) -> None:
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repo_id: str, **settings: Any) -> None:
        if self.fail:
            raise self.fail
        self.calls.append(("create", {"repo_id": repo_id, **settings}))

    def upload_folder(self, folder_path: str, **settings: Any) -> None:
        files = {
            str(p.relative_to(folder_path)): p.read_bytes()
            for p in Path(folder_path).rglob("*")
            if p.is_file()
        }
        self.calls.append(("upload", {**settings, "files": files}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(FakeApi, "fail", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return FakeApi


def test_a_push_holds_rows_and_card(judged: RunDir, tmp_path: Path, hub: type[FakeApi]) -> None:
    done = exported(judged, "hub:some-one/my.set", strategy="all")
    assert done == {"to": "hub:some-one/my.set", "format": "trl", "rows": 35}
    token, create, upload = hub.calls
    assert token[1] == {"token": "hf_secret"}
    assert create[1]["repo_id"] == "some-one/my.set" and create[1]["repo_type"] == "dataset"
    files = upload[1]["files"]
    assert sorted(files) == ["README.md", "data/train-00000-of-00001.parquet"]
    folder = tmp_path / "hub"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == expected(judged, NAME)
    assert b"hf_secret" not in b"".join(files.values())
    assert "hf_secret" not in (judged.path / "manifest.json").read_text()


@pytest.mark.parametrize(
    "fault", [httpx.ConnectError("unreachable"), OSError("reset"), ValueError("bad name")]
)
def test_a_push_that_fails_says_so(judged: RunDir, hub: type[FakeApi], fault: Exception) -> None:
    hub.fail = fault
    with pytest.raises(CheckFailed, match=r"(?s)the push failed.*pushes again"):
        exported(judged, "hub:a/b")
