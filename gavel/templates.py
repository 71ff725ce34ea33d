"""Templates: what a judge is asked, as data in `prompts/` or in a user's own file.

A template file is TOML with one table per template. Its strings are Jinja2 texts, rendered strictly
(an undefined variable is an error) and once: what a variable holds comes out literally, whatever it
looks like. Text that nobody may trust is quoted between marks that it cannot guess (`guard`).

    [question]
    description = "for people; changes nothing"
    system = "…"                  # optional: a system turn
    context = "…{{ instruction }}…"
    target = " Yes"               # any further string is a text of its own
    separator = "\\n"
    pattern_of = "other"          # optional: its pattern is that of another table of the file
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gavel import HOME
from gavel.errors import InputError
from gavel.records import Message, digest

GUARD_HEX = 12  # 48 bits: more tries than a candidate can make, and few tokens
_NO_HASH = frozenset({"description"})


@dataclass(frozen=True)
class Template:
    """One way of asking.

    name: ``kind/name``. where: its file. texts: part → Jinja2 text, as in the file but for white
    space around it (kept in `separator` and `target`). settings: what else its table holds.
    hash: of texts and settings; a description changes nothing.
    """

    name: str
    where: str
    texts: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""

    def text(self, part: str, **variables: Any) -> str:
        """One part, rendered.

        Raises:
            InputError: no such part, or a variable in it is undefined.
        """
        source = self.texts.get(part)
        if source is None:
            raise InputError(f"has no {part!r}", where=self._place(), hint=f"It has {', '.join(self.texts)}.")
        import jinja2

        try:
            return str(compiled(source).render(variables))
        except jinja2.TemplateError as error:
            known = ", ".join(sorted(variables))
            raise InputError(f"cannot be rendered: {error.message}", where=f"{self._place()} {part}",
                             hint=f"The variables are {known}.") from None  # fmt: skip
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"cannot be rendered: {error}", where=f"{self._place()} {part}") from None

    def render(self, **variables: Any) -> tuple[Message, ...]:
        """The conversation put to a chat model: `context` as the user's turn, `system` before it.

        A template with ``own_messages = true`` adds no words: it puts the conversation given as the
        variable `messages`.

        Raises:
            InputError: as `text`.
        """
        if self.settings.get("own_messages"):
            return tuple(variables["messages"])
        asked = Message("user", self.text("context", **variables))
        if "system" not in self.texts:
            return (asked,)
        return (Message("system", self.text("system", **variables)), asked)

    def _place(self) -> str:
        return f"template {self.name} ({self.where})"


def load(kind: str, name: str, path: str | Path | None = None) -> Template:
    """The template `name` of a judging method.

    Args:
        kind: the folder in `prompts/`, such as "gptscore"; its forms.toml is read.
        path: the user's own file, read instead.

    Raises:
        InputError: no such file or template, not TOML, or a text that is not Jinja2.
    """
    entries = tables(kind, "forms", path)
    where = str(path) if path else f"prompts/{kind}/forms.toml"
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise InputError(
            f"there is no template {name!r}", where=where, hint=f"{hint}It has {', '.join(entries)}."
        )
    return _template(f"{kind}/{name}", where, _with_pattern(entries[name], entries, where))


def _with_pattern(entry: dict[str, Any], entries: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """A table with the pattern that it takes from another, as if it stood in it."""
    if "pattern_of" not in entry:
        return entry
    source = entries.get(str(entry["pattern_of"]), {})
    if "pattern" not in source or "pattern" in entry:
        fault = "has a pattern of its own as well" if "pattern" in entry else "there is no such pattern"
        raise InputError(fault, where=f"{where}, pattern_of = {entry['pattern_of']!r}")
    return {k: v for k, v in entry.items() if k != "pattern_of"} | {"pattern": source["pattern"]}


def tables(kind: str, name: str, path: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """The tables of ``prompts/<kind>/<name>.toml``, or of the user's own file, in its order.

    Raises:
        InputError: no such file, not TOML, or holding something beside tables.
    """
    file = Path(path).expanduser() if path else HOME / "prompts" / kind / f"{name}.toml"
    where = str(path or file)
    try:
        found = tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        kinds = sorted(p.parent.name for p in (HOME / "prompts").glob("*/forms.toml"))
        hint = None if path else f"There are templates for {', '.join(kinds)}."
        raise InputError(f"cannot be read: {error.strerror}", where=where, hint=hint) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", where=where) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not TOML: {error}", where=where) from None
    loose = [key for key, entry in found.items() if not isinstance(entry, dict)]
    if loose or not found:
        what = f"holds {loose[0]!r} outside a table" if loose else "is empty"
        raise InputError(what, where=where, hint="A template file has one table per entry, as in [name].")
    return found


def _template(name: str, where: str, entry: dict[str, Any]) -> Template:
    import jinja2

    texts: dict[str, str] = {}
    for key, value in entry.items():
        if isinstance(value, str) and key not in _NO_HASH:
            texts[key] = value if key in ("separator", "target") else value.strip()
            try:
                compiled(texts[key])
            except jinja2.TemplateSyntaxError as error:
                raise InputError(f"line {error.lineno} of {key} is not Jinja2: {error.message}",
                                 where=f"template {name} ({where})") from None  # fmt: skip
    settings = {k: v for k, v in entry.items() if k not in texts}
    if "context" not in texts and not settings.get("own_messages"):
        raise InputError("has no context", where=f"template {name} ({where})")
    hashed = {k: v for k, v in settings.items() if k not in _NO_HASH}
    return Template(name, where, texts, settings, digest("template", texts, hashed))


@lru_cache(maxsize=256)
def compiled(source: str) -> Any:
    """A Jinja2 template in a sandbox, strict and without escaping; kept, as it takes a millisecond."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False,
                                                trim_blocks=True, lstrip_blocks=True,
                                                keep_trailing_newline=True)  # fmt: skip
    template = environment.from_string(source)
    template.globals = dict(template.globals)  # a chain of maps is slow to copy, and each rendering does
    return template


def guard(key: str, *quoted: str) -> str:
    """A mark to put around untrusted text: the same for the same request, and in none of its texts.

    Args:
        key: names the request; it should depend on the quoted texts (a record's id does), so that
            none of them can hold the mark that its own content decides.
        quoted: the untrusted texts; a mark that stands in one of them by chance is not used.
    """
    folded = [_folded(text) for text in quoted]
    for attempt in range(1 << 16):
        mark = hashlib.blake2b(f"{attempt}\0{key}".encode(), key=b"gavel guard").hexdigest()[:GUARD_HEX]
        if not any(mark in text for text in folded):
            return mark
    raise AssertionError("65,536 marks stand in the quoted texts")


def _folded(text: str) -> str:
    """A text without what can hide a mark from a comparison and not from a reader: case, width,
    characters that cannot be seen."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in plain if unicodedata.category(c) != "Cf")


def as_text(messages: tuple[Message, ...]) -> str:
    """A conversation as the `instruction` of a template: the text alone where it is one user's turn."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)
