"""`datasets` directories, directories of Parquet files and (local) hub repositories as sources."""

import json
from pathlib import Path

import pytest

from gavel.errors import InputError
from gavel.sources import BadRows, read_prompts, read_rows

ROWS = [{"prompt": f"q{i}", "messages": [{"role": "user", "content": "x"}]} for i in range(600)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("saved")
    whole = datasets.Dataset.from_list(ROWS)
    whole.filter(lambda row: row["prompt"] != "q0").save_to_disk(str(root / "one"))
    datasets.DatasetDict({"train": whole, "test": whole.select(range(3))}).save_to_disk(str(root / "dict"))
    datasets.DatasetDict({"a": whole.select(range(2)), "b": whole}).save_to_disk(str(root / "unnamed"))
    return root


def read(src: object) -> list[str]:
    return [row.data["prompt"] for row in read_rows(str(src), BadRows())]


def test_save_to_disk(saved: Path) -> None:
    assert read(saved / "one") == [row["prompt"] for row in ROWS[1:]]
    assert read(saved / "dict") == [row["prompt"] for row in ROWS]
    assert read(saved / "dict" / "test") == ["q0", "q1", "q2"]
    first = next(read_rows(str(saved / "dict"), BadRows()))
    assert first.data == ROWS[0]
    assert first.where == f"{saved}/dict/train, row 1"
    with pytest.raises(InputError, match="splits a, b"):
        read(saved / "unnamed")


def test_damaged_dataset(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "data.arrow").write_bytes(b"no arrow file at all")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "state.json").write_text("[")
    with pytest.raises(InputError, match=r"state\.json"):
        read(tmp_path)


def test_directory_of_parquet_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    for part in range(3):
        name = f"train-{part:05}-of-00003.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS[part * 200 : part * 200 + 200]), tmp_path / "data" / name)
    assert read(tmp_path) == [row["prompt"] for row in ROWS]
    last = list(read_rows(str(tmp_path), BadRows()))[-1]
    assert last.where == f"{tmp_path}/data/train-00002-of-00003.parquet, row 200"
    assert last.number == 600
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="several splits: test, train"):
        read(tmp_path)


def test_other_directories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a dataset nor Parquet"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="run directory"):
        read(tmp_path)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split, n in (("train", 5), ("test", 3)):
        lines = [json.dumps({"prompt": f"{split} {i}"}) for i in range(n)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    assert len(read(f"hub:{tmp_path}")) == 5
    assert read(f"hub:{tmp_path}:test") == ["test 0", "test 1", "test 2"]
    prompts = list(read_prompts(f"hub:{tmp_path}:test", {}, BadRows()))
    assert prompts[2].messages[0].content == "test 2"
    with pytest.raises(InputError, match="nope"):
        read(f"hub:{tmp_path}:nope")
    with pytest.raises(InputError, match="names no dataset"):
        read("hub:")
