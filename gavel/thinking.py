"""A reasoning model's thinking kept apart from its answer."""

from __future__ import annotations

from typing import NamedTuple


class Tags(NamedTuple):
    """What opens and closes the thinking."""

    open: str
    close: str


DEFAULT = Tags("<think>", "</think>")


def split_thinking(text: str, tags: Tags, *, opened: bool) -> tuple[str | None, str]:
    """Splits a reply into (thinking, answer); thinking is None where there was none.

    opened: the prompt itself ended with the opening tag, as some chat templates do. Thinking that
    never closed has no answer: the answer is empty.

    >>> split_thinking("<think>2+2</think>\\n\\n4", DEFAULT, opened=False)
    ('2+2', '4')
    """
    started = opened or text.lstrip().startswith(tags.open)
    if not started:
        return None, text
    body = text.lstrip().removeprefix(tags.open)
    thinking, closed, answer = body.rpartition(tags.close)
    if not closed:
        return body.strip(), ""
    return thinking.strip(), answer.lstrip()
