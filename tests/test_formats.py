"""The same rows from every format, damaged files named, nothing read before it is asked for."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gavel.errors import InputError
from gavel.rows import BadRows
from gavel.sources import read_prompts, read_rows

SUFFIXES = [".jsonl", ".json", ".csv", ".parquet"]
ODD = [
    {"prompt": "2+2?", "completion": "4"},
    {"prompt": "NUL \0 inside\0", "completion": ""},
    {"prompt": "مرحبا ‮evil‬ \u200bzero\u200d width", "completion": "我很開心"},
    {"prompt": "<|im_end|>\n<|im_start|>system\n{{ x }}", "completion": "</s>[INST]"},
    {"prompt": 'quotes " and, commas\nand lines\r\nand \r returns', "completion": "\u2028\x85\x0b"},
    {"prompt": "long " + "x" * 200_000, "completion": "ok"},
]


def quiet(limit: float = 0.01) -> BadRows:
    return BadRows(limit, say=lambda message: None)


def written(rows: list[dict], path: Path) -> str:
    """Writes rows in the format that the path's suffix names."""
    kind = path.suffixes[0]
    plain = io.BytesIO()
    if kind == ".jsonl":
        plain.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    elif kind == ".json":
        plain.write(json.dumps(rows, indent=1).encode())
    elif kind == ".csv":
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
        plain.write(text.getvalue().encode())
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), plain)
    path.write_bytes(gzip.compress(plain.getvalue(), 1) if path.suffix == ".gz" else plain.getvalue())
    return str(path)


def datas(src: str, bad: BadRows | None = None) -> list[dict]:
    return [row.data for row in read_rows(src, bad or quiet())]


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, zipped: str) -> None:
    src = written(ODD, tmp_path / f"rows{suffix}{zipped}")
    rows = list(read_rows(src, quiet()))
    assert [row.data for row in rows] == ODD
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row.where.startswith(src) for row in rows)


texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"prompt": texts, "b": texts}), min_size=1, max_size=8))
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".jsonl.gz"])
def test_any_text_makes_the_round_trip(tmp_path: Path, suffix: str, rows: list[dict]) -> None:
    assert datas(written(rows, tmp_path / f"rows{suffix}")) == rows


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blob=st.binary(min_size=1, max_size=200))
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".jsonl.gz", ".json.gz", ".csv.gz"])
def test_any_bytes_are_rows_or_an_input_error(tmp_path: Path, suffix: str, blob: bytes) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(blob)
    try:
        datas(str(path))
    except InputError as error:
        assert str(path) in str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text('[]{}",:\\u0 \n1-eN', min_size=1, max_size=40))
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_broken_json_and_csv(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text(text)
    try:
        datas(str(path))
    except InputError as error:
        assert str(path) in str(error)


def test_json_array_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": 'é\\"\n' * i, "n": 123456789 * i, "x": [True, None, -1.5e-7]} for i in range(40)]
    src = written(rows, tmp_path / "rows.json")
    for size in (3, 7, 64, 1000):
        monkeypatch.setattr("gavel.formats.CHUNK", size)
        assert datas(src) == rows


def test_json_file_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert datas(str(path)) == [{"a": 1}, {"a": 2}]
    assert [row.where for row in read_rows(str(path), quiet())] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_byte_order_mark(tmp_path: Path, suffix: str) -> None:
    src = written([{"prompt": "a"}], tmp_path / f"rows{suffix}")
    Path(src).write_bytes(b"\xef\xbb\xbf" + Path(src).read_bytes())
    assert datas(src) == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.jsonl", b"", "empty"),
        ("rows.jsonl", b"\n \n", "no rows"),
        ("rows.json", b"[]", "no rows"),
        ("rows.csv", b"prompt\n", "no rows"),
        ("rows.jsonl.gz", gzip.compress(b"", mtime=0), "no rows"),
        ("rows.doc", b"hello", "not a file that gavel reads"),
        ("rows", b"hello", "not a file that gavel reads"),
        ("rows.jsonl", b"PK\x03\x04....", "a zip archive"),
        ("rows.csv", "prompt\na".encode("utf-16"), "UTF-16"),
        ("rows.jsonl.gz", b'{"prompt": "a"}', "is not a whole gzip file"),
        ("rows.parquet", b"PAR1 and no more", "not a Parquet file"),
        ("rows.json", b'{\n "prompt": "a"\n}', "neither an array of rows nor JSON Lines"),
        ("rows.json", b'[{"a": 1}', "cut off"),
        ("rows.json", b'[{"a": 1}\n,{"a" 2}, {"a": 3}, {"a": 3}]', "rows.json:2: not JSON"),
        ("rows.json", b'[{"a": 1}] more', "more after the array"),
        ("rows.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("rows.json", b"[" * 100_000, "nested too deeply"),
        ("rows.csv", b"a,b,a\n1,2,3\n", "'a' twice"),
        ("rows.csv", b'"a\n', "not CSV"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        datas(str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz", ".csv.gz", ".parquet.gz"])
def test_gzip_cut_off(tmp_path: Path, suffix: str) -> None:
    src = written(
        [{"prompt": json.dumps([i, str(i * 7919) * 5])} for i in range(5000)], tmp_path / f"rows{suffix}"
    )
    whole = Path(src).read_bytes()
    Path(src).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut off"):
        datas(src)
    Path(src).write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    with pytest.raises(InputError, match="not a whole gzip file: CRC"):
        datas(src)
    Path(src).write_bytes(whole[:10] + b"\xff" * 50)
    with pytest.raises(InputError, match="the gzip file is damaged"):
        datas(src)


def test_missing_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_rows(str(tmp_path / "none.jsonl"), quiet())
    with pytest.raises(InputError, match="hub:owner/name"):
        read_rows("owner/name", quiet())
    with pytest.raises(InputError, match="cannot be read"):
        read_rows("x" * 5000, quiet())


def test_bad_lines_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"a": 1}\nnot json\n[1, 2]\n{"a": "\\ud800"}\n{"a": "\xff"}\n{"a": NaN}\n'
        + b"[" * 100_000 + b'\n{"a": 1' + b"0" * 5000 + b'}\n{"a": "raw \0 nul"}\n{"\\udfff": 1}\n{"a": 2'
    )  # fmt: skip
    said: list[str] = []
    bad = BadRows(100, say=said.append)
    rows = list(read_rows(str(path), bad))
    assert [row.where.rpartition(":")[2] for row in rows] == ["1", "6", "9"]
    assert bad.total == 11
    assert bad.count == 8
    assert bad.reasons == {"not JSON": 4, "wrong type": 1, "not valid Unicode": 2, "not UTF-8": 1}
    assert f"{path}:2: not JSON" in said[0]
    assert "an array, not an object" in said[1]


def test_bad_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2\n3\n\n"two\nlines",x\n"x"y,1\n\xff,1\n5,6\n7,"open\nto\nthe end\n')
    bad = quiet(100)
    rows = list(read_rows(str(path), bad))
    assert [row.data["a"] for row in rows] == ["1", "two\nlines", "5"]
    assert [row.where.rpartition(":")[2] for row in rows] == ["2", "5", "9"]
    assert bad.reasons == {"wrong number of fields": 1, "not CSV": 2, "not UTF-8": 1}
    assert [error.where.rpartition(":")[2] for error in bad.first if error.where] == ["3", "7", "8", "10"]


def test_limits(tmp_path: Path) -> None:
    lines = ["{}"] * 199 + ["x"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    for limit, passes in ((0.01, True), (0.001, False), (0, False), (1, True), (5, True)):
        bad = quiet(limit)
        list(read_rows(str(path), bad))
        if passes:
            bad.check(200)
        else:
            with pytest.raises(
                InputError, match=r"1 of 200 rows cannot be used(.|\n)*rows.jsonl:200(.|\n)*--max-bad"
            ):
                bad.check()
    for wrong in (-1, 1.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--max-bad-rows"):
            BadRows(wrong)


def test_only_bad_rows_is_an_error_whatever_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("x\ny\n")
    with pytest.raises(InputError, match="none of the 2 rows can be used"):
        read_rows(str(path), quiet(100))


def test_few_rows_are_named_and_the_rest_counted() -> None:
    from gavel.errors import RowError

    said: list[str] = []
    bad = BadRows(1000, say=said.append)
    for i in range(50):
        bad.add(RowError("not JSON: x", where=f"f:{i}"))
    assert len(said) == 21
    assert len(bad.first) == 5
    assert bad.count == 50


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    read_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        data = super().readline(size)
        self.read_bytes += len(data)
        return data

    def __next__(self) -> bytes:
        return self.readline() or (_ for _ in ()).throw(StopIteration)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_the_first_row_does_not_read_the_file(suffix: str) -> None:
    from gavel.formats import READERS

    line = {".jsonl": b'{"a": "%s"}\n', ".json": b',{"a": "%s"}', ".csv": b'"%s"\n'}[suffix] % (b"x" * 1000)
    start = {".jsonl": b"", ".json": b'[{"a": 1}', ".csv": b"a\n"}[suffix]
    file = Counting(start + line * 20_000)
    rows = READERS[suffix](file, "f", quiet())
    next(rows)
    assert file.read_bytes < 200_000


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"prompt": "first"}\n')
        file.truncate(100 << 20)  # sparse: one line of 100 MB follows
    prompts = read_prompts(str(path), {}, quiet())
    assert next(prompts).messages[0].content == "first"


def test_parquet_of_many_row_groups_is_lazy(tmp_path: Path) -> None:
    src = written([{"prompt": f"q{i}"} for i in range(5000)], tmp_path / "rows.parquet")
    bad = quiet()
    rows = read_rows(src, bad)
    assert next(rows).where == f"{src}, row 1"
    assert bad.total == 1


def test_parquet_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"good", b"\xff\xfe", b"fine"])
    column = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"prompt": column}), tmp_path / "rows.parquet")
    bad = quiet(1)
    assert [d["prompt"] for d in datas(str(tmp_path / "rows.parquet"), bad)] == ["good", "fine"]
    assert bad.reasons == {"not UTF-8": 1}
