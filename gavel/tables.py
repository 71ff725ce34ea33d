"""Parquet files, `datasets` directories and hub datasets as a stream of rows."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gavel.errors import InputError, RowError
from gavel.formats import READS, check_unicode, file_rows
from gavel.rows import BadRows, Row

BATCH = 256  # rows turned into Python values at a time
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")


def parquet_rows(file: IO[bytes], src: str, bad: BadRows) -> Iterator[Row]:
    """The rows of a Parquet file, a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as whole:
        if isinstance(file, gzip.GzipFile):  # Parquet is read from its end, where gzip cannot jump to
            shutil.copyfileobj(file, whole)
            file = whole
        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=BATCH)
            yield from _batch_rows(batches, src, bad)
        except pa.ArrowException as error:
            raise InputError(
                f"not a Parquet file that can be read: {_first_line(error)}", where=src
            ) from None


def _batch_rows(batches: Iterable[Any], src: str, bad: BadRows) -> Iterator[Row]:
    """Arrow record batches as rows, numbered within their file."""
    number = 0
    for batch in batches:
        for row in _values(batch):
            number += 1
            bad.total += 1
            where = f"{src}, row {number}"
            if row is None:
                bad.add(RowError("not UTF-8", where=where))
                continue
            yield Row(where, row, bad.total)


def _values(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of one batch; None for one that holds text that is not UTF-8."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="lossy")
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            try:
                row = batch.slice(at, 1).to_pylist(maps_as_pydicts="lossy")[0]
            except UnicodeDecodeError:
                row = None
            yield row


def directory_rows(path: Path, src: str, bad: BadRows) -> Iterator[Row]:
    """A `datasets` directory (save_to_disk), or a directory of Parquet files or of texts.

    Raises:
        InputError: neither, or with several splits (they are named).
    """
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json").get("splits", [])
        only = _one_split(list(splits), f"{src.rstrip('/')}/", src)
        return directory_rows(path / only, f"{src.rstrip('/')}/{only}", bad)
    if (path / "state.json").is_file():
        return _arrow_rows(path, src, bad)
    files = sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.txt"))
    if not files:
        hint = f"It reads {READS}."
        if (path / "manifest.json").is_file():
            hint = "It looks like a run directory: name one of its .jsonl files."
        elif (path / "gavel.json").is_file():
            hint = "It holds what a training left, a model and no data."
        raise InputError("holds neither a dataset nor Parquet or text files", where=src, hint=hint)
    splits = sorted({match[1] for file in files if (match := _SPLIT.fullmatch(file.name))})
    if len(splits) > 1:
        raise InputError(
            f"the directory holds several splits: {', '.join(splits)}",
            where=src,
            hint="Name one of its files, or put the files of one split in a directory.",
        )
    names = [f"{src.rstrip('/')}/{file.relative_to(path)}" for file in files]
    return (row for file, name in zip(files, names, strict=True) for row in file_rows(file, name, bad))


def _arrow_rows(path: Path, src: str, bad: BadRows) -> Iterator[Row]:
    """The Arrow files of save_to_disk, read in place: importing `datasets` takes seconds."""
    import pyarrow as pa

    names = [entry["filename"] for entry in _json(path / "state.json").get("_data_files", [])]

    def batches() -> Iterator[Any]:
        for name in names:
            with pa.memory_map(str(path / name)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    for at in range(0, batch.num_rows, BATCH):
                        yield batch.slice(at, BATCH)

    try:
        yield from _batch_rows(batches(), src, bad)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"the dataset cannot be read: {_first_line(error)}", where=src) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise InputError("is not a JSON object", where=str(path))
    return found


def _one_split(splits: list[str], prefix: str, src: str) -> str:
    """The only split, else "train"."""
    if len(splits) == 1 or "train" in splits:
        return splits[0] if len(splits) == 1 else "train"
    raise InputError(f"holds the splits {', '.join(splits) or '(none)'}", where=src,
                     hint=f"Name one: {prefix}{splits[0] if splits else 'SPLIT'}.")  # fmt: skip


def hub_rows(name: str, split: str | None, src: str, bad: BadRows) -> Iterator[Row]:
    """A dataset of the Hugging Face hub, streamed; "train" or the only split unless one is named."""
    import datasets

    try:
        found = datasets.load_dataset(name, split=split, streaming=True)
        if split is None:
            split = _one_split(list(found), f"hub:{name}:", src)
            found = found[split]
        number = 0
        for data in found:
            number += 1
            bad.total += 1
            where = f"hub:{name}:{split}, row {number}"
            try:
                check_unicode(data)
            except RowError as error:
                bad.add(RowError(error.what, where=where))
                continue
            yield Row(where, dict(data), bad.total)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"the dataset cannot be read: {_first_line(error)}",
            where=src,
            hint="Check its name, the network, and `hf auth login` for a private one.",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
