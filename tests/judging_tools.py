"""What tests of judging methods share: items, replies, and a judge that answers by a rule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gavel.engines.fake import ByteTokenizer, FakeEngine
from gavel.protocols import Refused, Sampled, SampleRequest
from gavel.records import Completion, Message, Prompt
from judge.method import Item


def prompt(text: str = "What is 2 + 2?", *references: str, id: str = "p") -> Prompt:
    return Prompt(id=id, messages=(Message("user", text),), references=references)


def completion(text: str, index: int = 0, prompt_id: str = "p") -> Completion:
    return Completion(id=f"{prompt_id}-{index}", prompt_id=prompt_id, index=index, text=text)


def item(*texts: str, aspect: str = "overall", asked: Prompt | None = None) -> Item:
    completions = tuple(completion(text, index) for index, text in enumerate(texts))
    return Item(asked or prompt(), completions, aspect)


def says(text: str = "", top: Mapping[str, float] | None = None, **fields: Any) -> Sampled:
    """A reply; top: token → probability at the first position."""
    made: dict[str, Any] = {"token_ids": None, "logprobs": None, "finish_reason": "stop"} | fields
    likeliest = [{token: math.log(p) for token, p in top.items()}] if top is not None else ()
    return Sampled(key="", text=text, top_logprobs=likeliest, **made)


class Answering(FakeEngine):
    """A judge that answers a question by a rule on its text.

    rule: the text of the prompt → reply text, or token → probability.
    """

    def __init__(self, rule: Callable[[str], str | Mapping[str, float]], **settings: Any) -> None:
        super().__init__("answering", context=200_000, **settings)
        self._rule = rule
        self.seen: list[str] = []

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]:
        for request in requests:
            text = ByteTokenizer().decode(request.prompt_ids)
            self.seen.append(text)
            answer = self._rule(text)
            if isinstance(answer, str):
                yield _keyed(says(answer), request.key)
            else:
                likeliest = max(answer, key=lambda token: answer[token])
                yield _keyed(says(likeliest, answer), request.key)


def _keyed(reply: Sampled, key: str) -> Sampled:
    from dataclasses import replace

    return replace(reply, key=key, usage={"prompt_tokens": 1, "completion_tokens": 1})


def shown(text: str, mark: str) -> str:
    """The text after the guard line that ends in `mark`, up to the next guard line."""
    body = text.split(f" {mark}]\n", 1)[1]
    return body.split("\n[", 1)[0]


def as_json(**fields: Any) -> str:
    return json.dumps(fields)
