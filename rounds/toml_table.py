"""A table of a TOML file, read key by key with messages that name file, table and key."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from gavel.command import nearest
from gavel.errors import InputError

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table"}


class Table:
    """Keys are taken out of it; what is left at the end is not known. A key may be written with - or _.

    Args:
        where: the table for messages, e.g. "rounds.toml, [train]".
    """

    def __init__(self, entries: Any, where: str) -> None:
        if not isinstance(entries, dict):
            raise InputError(f"{entries!r} is not a table", where=where)
        self._left, self.where = dict(entries), where
        self._known: set[str] = set()

    def take(
        self, key: str, kind: type[Any], default: Any = ..., *, least: float | None = None,
        most: float = math.inf, among: Sequence[str] = (),
    ) -> Any:  # fmt: skip
        """The value of a key, taken out. Raises InputError for a missing key without a default, another type,
        or a value out of its range."""
        self._known.add(key)
        key = self._as_written(key)
        if key not in self._left:
            if default is ...:
                meant = difflib.get_close_matches(key, self._left, n=1)
                hint = f'Is "{meant[0]}" meant for it?' if meant else None
                hint = f"One of {', '.join(among)}." if among and not meant else hint
                raise InputError(f'lacks "{key}"', where=self.where, hint=hint)
            return default
        value: Any = self._left.pop(key)
        where = f"{self.where}, {key}"
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{value!r} is not {_WORDS[kind]}", where=where)
        if among and value not in among:
            raise InputError(f"must be one of {', '.join(among)}, not {value!r}", where=where)
        if least is not None and not (math.isfinite(value) and least <= value <= most):
            upper = f" and at most {most:g}" if math.isfinite(most) else ""
            raise InputError(f"must be at least {least:g}{upper}, not {value!r}", where=where)
        return value

    def table(self, key: str) -> Table:
        """A table inside; empty where there is none."""
        inner = f"{self.where[:-1]}.{key}]" if self.where.endswith("]") else f"{self.where}, [{key}]"
        self._known.add(key)
        return Table(self._left.pop(self._as_written(key), {}), inner)

    def is_off(self, key: str) -> bool:
        """Whether a key is false, which is then taken."""
        key = self._as_written(key)
        if self._left.get(key) is not False:
            return False
        del self._left[key]
        return True

    def peek(self, key: str, default: Any) -> Any:
        """The value of a key, which stays."""
        return self._left.get(self._as_written(key), default)

    def has(self, key: str) -> bool:
        return self._as_written(key) in self._left

    def _as_written(self, key: str) -> str:
        dashed = key.replace("_", "-")
        return dashed if dashed in self._left and key not in self._left else key

    def rest(self) -> dict[str, Any]:
        """What was not taken, for a check of its own."""
        left, self._left = self._left, {}
        return left

    def only(self, keys: Collection[str]) -> None:
        """Raises InputError for a key that is none of these: before what it was meant for is missed."""
        for key in self._left:
            if key not in keys:
                raise InputError(f'unknown key "{key}"', where=self.where, hint=nearest(key, keys))

    def end(self) -> None:
        """Raises InputError for a key that nobody took."""
        for key in self._left:
            raise InputError(f'unknown key "{key}"', where=self.where, hint=nearest(key, self._known))


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Errors that name an option of a command line name the table as well."""
    try:
        yield
    except InputError as error:
        option = (error.where or "").removeprefix("--").replace("-", "_")
        place = f"{where}, {option}" if option else where
        raise InputError(error.what, where=place, hint=error.hint) from None


def to_toml(table: dict[str, Any]) -> str:
    """A table as TOML: scalars first, then the tables inside."""
    return "\n".join(_lines(table, ())).strip() + "\n"


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield ""
        yield "[" + ".".join(map(_key, path)) + "]"
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key, value in table.items():
        if key not in inner:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        yield from _lines(value, (*path, key))


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        import json

        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    return str(value)  # numbers, dates and times
