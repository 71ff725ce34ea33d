"""JSON objects in a reply: strict JSON first, then what JSON5 takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from judge.reply_bare import taken_back
from judge.reply_text import Doubt, Quotations
from judge.reply_verdicts import LOOKS


def last_object(text: str, quotations: Quotations, field: str | None, cut: bool) -> dict[str, Any]:
    """The last object of a text that is the judge's own and has the field (None: any object).

    What is quoted from a candidate is left out, and so is, beside others, what a candidate holds too. An
    object that was cut off, or that cannot be read but names the field, takes back those before it.

    Raises Doubt where there is none, or a key stands in it twice.
    """
    spans = list(_spans(text))[-LOOKS:]
    own = [span for span in spans if not quotations.hold(*span)]
    if len(spans) > 1:
        own = [span for span in own if not quotations.held(*span)] or own
    if spans and not own:
        raise Doubt("the JSON is quoted from a candidate")
    reason = "no JSON object in the reply"
    found: dict[str, Any] | None = None
    for start, end in own:
        if found is not None and field is not None and field not in text[start:end]:
            continue  # braces in what is said about the verdict
        try:
            value = _loads(text[start:end])
        except _Twice as twice:
            reason, found = f"the key {twice} stands there twice", None
            continue
        except (ValueError, RecursionError):
            reason, found = "the JSON cannot be read", None
            continue
        if isinstance(value, dict) and (found is None or field is None or field in value):
            found = value
    rest = text[spans[-1][1] :] if spans else text
    if "{" in rest and (found is None or (field is not None and field in rest)):
        raise Doubt("the JSON was cut off" if cut or rest.count("{") > rest.count("}") else reason)
    if found is None:
        raise Doubt(reason)
    if taken_back(rest):
        raise Doubt("the verdict is taken back")
    return found


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the outermost {…} of a text stand; braces inside strings do not count."""
    start, depth, quote, escaped = -1, 0, "", False
    for place, letter in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = True
            elif letter == quote:
                quote = ""
        elif letter in "\"'" and depth and (letter == '"' or not text[place - 1].isalnum()):
            quote = letter
        elif letter == "{":
            if not depth:
                start = place
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
            if not depth:
                yield start, place + 1


class _Twice(Exception):
    """A key that stands twice in one object."""


def _loads(piece: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise _Twice(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return made

    try:
        return json.loads(piece, object_pairs_hook=once, strict=False)
    except ValueError:
        import json5

        return json5.loads(piece, object_pairs_hook=once)
