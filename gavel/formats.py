"""Files, directories and hub datasets as a stream of rows: bytes to columns, nothing about meaning.

A row that cannot be read is reported to `BadRows` and the rest goes on; a file that cannot be read
is an InputError. Nothing but the rows in hand is kept in memory (a JSON array: one element and 64 kB).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from gavel.errors import InputError, RowError
from gavel.rows import BadRows, Row

CHUNK = 1 << 16
READS = (
    ".jsonl, .json, .csv, .parquet or .txt (each also .gz), a datasets directory, or hub:owner/name[:split]"
)
_MAGIC = {b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 file", b"(\xb5/\xfd": "a zstandard file",
          b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text"}  # fmt: skip
_BOM = codecs.BOM_UTF8

Reader = Callable[[IO[bytes], str, BadRows], Iterator[Row]]


def file_rows(path: Path, src: str, bad: BadRows) -> Iterator[Row]:
    """The rows of one file.

    Args:
        path: where it lies. src: how the person named it.

    Raises:
        InputError: missing, not readable, of an unknown format, damaged.
    """
    suffixes = [s.lower() for s in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    reader = READERS.get("".join(suffixes[-2:-1] if zipped else suffixes[-1:]))
    if reader is None:
        raise InputError("not a file that gavel reads", where=src, hint=f"It reads {READS}.")
    try:
        with open(path, "rb") as raw:
            magic = raw.read(4)
            raw.seek(0)
            if not magic:
                raise InputError("the file is empty", where=src)
            for start, kind in _MAGIC.items():
                if magic.startswith(start):
                    raise InputError(f"is {kind}", where=src, hint=f"gavel reads UTF-8 text: {READS}.")
            if zipped or magic.startswith(b"\x1f\x8b"):
                yield from _unzipped(raw, reader, src, bad)
            else:
                yield from reader(raw, src, bad)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=src) from None


def _unzipped(raw: IO[bytes], reader: Reader, src: str, bad: BadRows) -> Iterator[Row]:
    try:
        with cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) as plain:
            yield from reader(plain, src, bad)
    except gzip.BadGzipFile as error:
        raise InputError(f"is not a whole gzip file: {error}", where=src) from None
    except EOFError:
        raise InputError("the gzip file is cut off", where=src, hint="Copy or download it again.") from None
    except zlib.error as error:
        raise InputError(f"the gzip file is damaged: {error}", where=src) from None


def jsonl_rows(file: IO[bytes], src: str, bad: BadRows) -> Iterator[Row]:
    """JSON Lines. Lines end at a newline only; blank ones are skipped."""
    decode = msgspec.json.Decoder().decode
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if not line.strip():
            continue
        where = f"{src}:{number}"
        bad.total += 1
        try:
            try:
                data = decode(line)
            except (ValueError, RecursionError):
                data = _lenient(line)
            yield _row(data, where, bad)
        except RowError as error:
            bad.add(RowError(error.what, where=where, hint=error.hint))


def _lenient(line: bytes) -> Any:
    """A line that the strict parser refused: NaN and control characters pass, the rest is explained."""
    try:
        data = json.loads(line.decode("utf-8"), strict=False)
        check_unicode(data)
    except RecursionError:
        raise RowError("not JSON: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte {error.start + 1} of the line") from None
    except ValueError as error:
        raise RowError(f"not JSON: {error}") from None
    return data


def check_unicode(data: Any) -> None:
    """Raises RowError for text with lone surrogates anywhere in `data`."""
    try:
        msgspec.json.encode(data, enc_hook=str)
    except UnicodeEncodeError as error:
        shown = ascii(error.object[error.start : error.start + 1])
        raise RowError(f"not valid Unicode: a lone surrogate {shown}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"wrong type: {error}") from None


def _row(data: Any, where: str, bad: BadRows) -> Row:
    if type(data) is not dict:
        raise RowError(f"wrong type: the row is {json_type(data)}, not an object")
    return Row(where, data, bad.total)


def json_type(value: Any) -> str:
    """The JSON name of a value's type, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), type(value).__name__)


def json_rows(file: IO[bytes], src: str, bad: BadRows) -> Iterator[Row]:
    """A JSON array, element by element, or JSON Lines."""
    head = file.read(CHUNK).removeprefix(_BOM)
    while head and not head.strip():
        head = file.read(CHUNK)
    rest = _Pushback(head, file)
    if head.lstrip().startswith(b"["):
        yield from _array_rows(rest, src, bad)
        return
    first, newline, _ = head.partition(b"\n")
    if newline and first.strip() in (b"{", b""):
        raise InputError("holds neither an array of rows nor JSON Lines", where=src,
                         hint="Write an array of objects, or one object per line.")  # fmt: skip
    yield from jsonl_rows(io.BufferedReader(rest, CHUNK), src, bad)


class _Pushback(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] if self._head else self._rest.read(len(buffer))
        self._head = self._head[len(data) :] if self._head else b""
        buffer[: len(data)] = data
        return len(data)


def _array_rows(file: IO[bytes] | io.RawIOBase, src: str, bad: BadRows) -> Iterator[Row]:
    text = _Text(file, src)
    text.skip("[")
    number = 0
    while text.peek() != "]":
        data = text.value()
        number += 1
        bad.total += 1
        where = f"{src}, row {number}"
        try:
            check_unicode(data)
            yield _row(data, where, bad)
        except RowError as error:
            bad.add(RowError(error.what, where=where, hint=error.hint))
        if text.peek() != "]":
            text.skip(",")
    text.skip("]")
    if text.peek():
        raise InputError("there is more after the array", where=text.where())


class _Text:
    """JSON text read in pieces, with the scanner of the standard library."""

    def __init__(self, file: Any, src: str) -> None:
        self._file, self._src = file, src
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder(strict=False).raw_decode
        self._text, self._at, self._lines, self._ended = "", 0, 0, False

    def where(self) -> str:
        return f"{self._src}:{self._lines + self._text.count(chr(10), 0, self._at) + 1}"

    def _more(self, size: int) -> None:
        piece = self._file.read(size)
        self._ended = not piece
        self._lines += self._text.count("\n", 0, self._at)
        try:
            self._text = self._text[self._at :] + self._utf8.decode(piece, final=not piece)
        except UnicodeDecodeError:
            raise InputError("not UTF-8", where=self.where()) from None
        self._at = 0

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            rest = len(self._text)
            while self._at < rest and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < rest or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(CHUNK)

    def skip(self, mark: str) -> None:
        found = self.peek()
        if found != mark:
            what = f"{found!r} where {mark!r} is expected" if found else "the array is cut off"
            raise InputError(f"not JSON: {what}", where=self.where())
        self._at += 1

    def value(self) -> Any:
        self.peek()
        size = CHUNK
        while True:
            try:
                found, end = self._scan(self._text, self._at)
            except RecursionError:
                raise InputError("not JSON: nested too deeply", where=self.where()) from None
            except ValueError as error:
                at = getattr(error, "pos", len(self._text))
                cut = "Unterminated" in str(error) or len(self._text) - at < 16
                if self._ended or not cut:
                    what = "the array is cut off" if cut else getattr(error, "msg", str(error))
                    raise InputError(f"not JSON: {what}", where=self.where()) from None
            else:
                if end < len(self._text) or self._ended:
                    self._at = end
                    return found
            self._more(size)
            size *= 2


def csv_rows(file: IO[bytes], src: str, bad: BadRows) -> Iterator[Row]:
    """CSV with a header; every value is a string. NUL bytes and fields of any length are taken."""
    csv.field_size_limit(sys.maxsize)
    lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    table = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{src}:{table.line_num + 1}"
        try:
            fields = next(table, None)
            if fields is None:
                return
            if not fields:
                continue
            if header is None:
                header = _header(fields, src)
                continue
            bad.total += 1
            if len(fields) != len(header):
                raise RowError(f"wrong number of fields: {len(fields)}, the header names {len(header)}")
            if not all(map(_is_unicode, fields)):
                raise RowError("not UTF-8")
            yield Row(where, dict(zip(header, fields, strict=True)), bad.total)
        except csv.Error as error:
            if header is None:
                raise InputError(f"not CSV: {error}", where=where) from None
            bad.total += 1
            bad.add(RowError(f"not CSV: {error}", where=where))
        except RowError as error:
            bad.add(RowError(error.what, where=where))


def _header(fields: list[str], src: str) -> list[str]:
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise InputError(f"the header names {', '.join(map(repr, twice))} twice", where=f"{src}:1")
    if not all(map(_is_unicode, fields)):
        raise InputError("the header is not UTF-8", where=f"{src}:1")
    return fields


def _is_unicode(text: str) -> bool:
    """Whether no byte of the field had to be escaped when it was decoded."""
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


def text_rows(file: IO[bytes], src: str, bad: BadRows) -> Iterator[Row]:
    """A whole file as one text."""
    bad.total += 1
    try:
        yield Row(src, {"text": file.read().decode("utf-8-sig")}, bad.total)
    except UnicodeDecodeError as error:
        bad.add(RowError(f"not UTF-8: byte {error.start + 1}", where=src))


def parquet_rows(file: IO[bytes], src: str, bad: BadRows) -> Iterator[Row]:
    from gavel.tables import parquet_rows as read  # pyarrow is slow to import

    return read(file, src, bad)


READERS: dict[str, Reader] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
    ".txt": text_rows,
}
