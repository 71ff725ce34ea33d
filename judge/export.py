"""Pairs → a dataset that others read: TRL, KTO or reward format; file, `datasets` folder or the Hub.

Rows are written in batches as the run is read, so an export of any size needs little memory. Texts are
written exactly as they were sampled; the thinking of a reasoning model is not part of them. What stood
at the destination stays until the new export is whole.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from gavel.errors import CheckFailed, InputError, RunDirError
from gavel.rundir import RunDir, disk_error, write_atomic
from judge.card import MARK, dataset_card
from judge.export_rows import Count, Format, rows, schema

_ENDINGS = (".parquet", ".jsonl.gz", ".jsonl", ".json")
_UNKNOWN_ENDINGS = (
    ".gz",
    ".csv",
    ".tsv",
    ".txt",
    ".arrow",
    ".feather",
    ".zip",
    ".tar",
    ".zst",
    ".bz2",
    ".xz",
)
_OF_A_DATASET = re.compile(r"README\.md|state\.json|dataset_info\.json|data-\d+-of-\d+\.arrow")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Destination:
    """Where an export goes. kind: an ending of a file, "folder" or "hub"; name: path or owner/name."""

    kind: str
    name: str

    @property
    def path(self) -> Path:
        return Path(self.name)


def destination(to: str, *, overwrite: bool = False) -> Destination:
    """Reads `--to` and checks, before any work, that it can be written.

    Raises:
        InputError: an ending that cannot be written, something foreign in its place, or no HF_TOKEN.
    """
    if to.startswith("hub:"):
        return _hub_destination(to.removeprefix("hub:"))
    ending = next((e for e in _ENDINGS if to.endswith(e)), None)
    if ending is None and to.endswith(_UNKNOWN_ENDINGS):
        raise InputError(
            "cannot write this kind of file",
            where=f"--to {to}",
            hint=f"Known: {', '.join(_ENDINGS)}, a folder, or hub:owner/name.",
        )
    found = Destination(ending or "folder", to)
    (_check_file if ending else _check_folder)(found.path, overwrite)
    return found


def export_pairs(
    run: RunDir, name: str, to: Destination, export_format: str = Format.TRL, *, private: bool = False
) -> dict[str, Any]:
    """Writes the pairs of one set, with a dataset card, and says what was written.

    Args:
        name: of a finished set, RUN/pairs/<name>. private: of a repository that is made on the Hub.

    Raises:
        RunDirError: the set is not finished. InputError: the destination cannot be written.
        CheckFailed: the set is empty, or the Hub refused.
    """
    summary = run.stage(f"pairs/{name}")
    if not summary:
        raise RunDirError(
            f"no finished set of pairs {name!r}",
            where=str(run.path),
            hint=f"Run first: gavel pairs {run.path}",
        )
    if not summary["pairs"]:
        raise CheckFailed(
            f"the set {name!r} holds no pairs, so there is nothing to export", where=str(run.path)
        )
    count = Count(rows(run, name, Format(export_format)))

    def card(title: str, data_files: str | None = None) -> str:
        return dataset_card(summary, export_format, count.seen, title=title, data_files=data_files)

    if to.kind == "hub":
        _push(to.name, count, export_format, card, private)
    else:
        write = _write_folder if to.kind == "folder" else _write_file
        try:
            to.path.absolute().parent.mkdir(parents=True, exist_ok=True)
            write(to, count, export_format, card)
        except OSError as error:
            raise disk_error(error, to.path) from None
    where = f"hub:{to.name}" if to.kind == "hub" else str(to.path)
    return {"to": where, "format": str(export_format), "rows": count.seen}


Card = Callable[..., str]  # (title, data_files) → text, once the rows are counted


def _write_file(to: Destination, count: Count, export_format: str, card: Card) -> None:
    fresh = to.path.with_name(f".{to.path.name}.{os.getpid()}.tmp")
    try:
        if to.kind == ".parquet":
            write_parquet(fresh, count, export_format)
        else:
            with _text_file(fresh, to.kind) as file:
                write_json(file, count, array=to.kind == ".json")
        write_atomic(card_path(to.path), card(to.path.name).encode())  # first: it marks the file as gavel's
        fresh.replace(to.path)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _text_file(path: Path, kind: str) -> Iterator[IO[bytes]]:
    with open(path, "wb") as raw:
        if kind.endswith(".gz"):
            with gzip.GzipFile(
                fileobj=raw, mode="wb", filename="", mtime=0
            ) as packed:  # same bytes every time
                yield cast(IO[bytes], packed)
        else:
            yield raw


def write_json(file: IO[bytes], count: Count, *, array: bool) -> None:
    """One JSON object a line, or one array of them."""
    encode = msgspec.json.Encoder().encode
    for number, row in enumerate(count):
        if array:
            file.write(b",\n" if number else b"[\n")
        file.write(encode(row))
        if not array:
            file.write(b"\n")
    if array:
        file.write(b"\n]\n")


def write_parquet(path: Path, count: Count, export_format: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = schema(export_format)
    with pq.ParquetWriter(path, shape, compression="zstd") as writer:
        for batch in count.batches():
            writer.write_table(pa.Table.from_pylist(batch, shape))


def _write_folder(to: Destination, count: Count, export_format: str, card: Card) -> None:
    """A `datasets` folder, as Dataset.load_from_disk reads it, with the card as its README."""
    import datasets
    import pyarrow as pa

    shape = schema(export_format)
    target = to.path.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        stream, fresh = Path(scratch) / "rows.arrow", Path(scratch) / "dataset"
        with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, shape) as writer:
            for batch in count.batches():
                writer.write_table(pa.Table.from_pylist(batch, shape))
        with _quiet(datasets):
            datasets.Dataset.from_file(str(stream)).save_to_disk(str(fresh))  # memory-mapped
        (fresh / "README.md").write_text(card(target.name), "utf-8")
        if target.exists():
            target.rename(Path(scratch) / "earlier")
        fresh.rename(target)


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def card_path(path: Path) -> Path:
    """The card of a file: its whole name, so that pairs.jsonl and pairs.parquet have one each."""
    return path.with_name(path.name + ".card.md")


def _check_file(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise InputError("is a folder, a file was asked for by the ending", where=f"--to {path}")
    if path.exists() and not overwrite and not _is_card(card_path(path)):
        raise InputError(
            "exists and is no earlier export",
            where=f"--to {path}",
            hint="Choose another name, or replace it with --overwrite.",
        )


def _check_folder(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError("is a file, and its ending is none of " + ", ".join(_ENDINGS), where=f"--to {path}")
    inside = sorted(entry.name for entry in path.iterdir())
    foreign = [name for name in inside if not _OF_A_DATASET.fullmatch(name)]
    if foreign:  # not even with --overwrite: a whole folder of someone's files is not an export
        raise InputError(
            f"holds other things, such as {foreign[0]}",
            where=f"--to {path}",
            hint="Choose a new or empty folder.",
        )
    if inside and not overwrite and not _is_card(path / "README.md"):
        raise InputError(
            "exists and is no earlier export",
            where=f"--to {path}",
            hint="Choose another name, or replace it with --overwrite.",
        )


def _is_card(path: Path) -> bool:
    try:
        return MARK in path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _hub_destination(name: str) -> Destination:
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{name!r} is not owner/name", where=f"--to hub:{name}")
    if not os.environ.get("HF_TOKEN"):
        raise InputError(
            "pushing to the Hub needs a token in the environment",
            where=f"--to hub:{name}",
            hint="Set HF_TOKEN to a token with write access.",
        )
    return Destination("hub", name)


def _push(name: str, count: Count, export_format: str, card: Card, private: bool) -> None:
    """One commit with the rows as Parquet, which the Hub's viewer reads, and the card as README."""
    import httpx
    import huggingface_hub

    api = huggingface_hub.HfApi(token=os.environ["HF_TOKEN"])
    with tempfile.TemporaryDirectory(prefix="gavel-push-") as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        write_parquet(data / "train-00000-of-00001.parquet", count, export_format)
        (Path(scratch) / "README.md").write_text(card(name.split("/")[1], "data/train-*"), "utf-8")
        try:
            api.create_repo(name, repo_type="dataset", exist_ok=True, private=private or None)
            api.upload_folder(
                repo_id=name,
                repo_type="dataset",
                folder_path=scratch,
                commit_message=f"{count.seen} rows by gavel pairs",
            )
        except (httpx.HTTPError, OSError, ValueError) as error:  # HfHubHTTPError is an OSError
            hint = "The pairs are kept; the same command pushes again."
            raise CheckFailed(f"the push failed: {error}", where=f"hub:{name}", hint=hint) from None
