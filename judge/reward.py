"""A reward model as judge: the raw score of a sequence-classification model with one label.

The sequence is what a policy trains on: the prompt by the model's chat template, the candidate as the
assistant's turn as the template renders it, and the token that ends it, left out where the candidate was cut
off. A candidate that was sampled with a tokenizer that renders the prompt to the same ids is read as the ids
that were sampled, its thinking included. `gavel train reward` reads both alike.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gavel.errors import RowError
from gavel.packed import unpack_ids
from gavel.protocols import Capability, Rewarded, RewardRequest, Tokenizer
from gavel.records import Completion, Judgment, Prompt, digest
from gavel.templates import as_text
from gavel.turns import Asked, asked, turn_ids
from judge.method import Call, Item, Reply, Request, Verdict, one_by_one


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The method. Implements `judge.method.Method`. plain: without the chat template; None: where the
    model has none."""

    plain: bool | None = None

    name: str = field(default="reward", init=False)
    parser: str = field(default="reward/3", init=False)
    aspects: tuple[str, ...] = field(default=("reward",), init=False)
    call: Call = field(default=Call.REWARD, init=False)
    one_prompt: bool = field(default=False, init=False)
    adaptive: bool = field(default=False, init=False)
    needs: frozenset[Capability] = field(
        default=frozenset({Capability.REWARD, Capability.TOKENS}), init=False
    )

    @property
    def fingerprint(self) -> str:
        return f"plain={self.plain}"

    def template(self, aspect: str) -> str:
        return digest("reward")

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        return one_by_one(prompt, completions, self.aspects)

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        assert tokenizer is not None, "needs TOKENS"
        completion = item.completions[0]
        plain = self._is_plain(tokenizer)
        prompt = Asked(item.prompt.messages, array("i")) if plain else asked(item.prompt.messages, tokenizer)
        ids = prompt.ids.tolist()
        if completion.token_ids is not None and completion.prompt_hash == digest("prompt_ids", ids):
            return [RewardRequest(key="", token_ids=ids + unpack_ids(completion.token_ids))]
        if not completion.text:
            raise RowError("the text is empty")
        ended = completion.finish_reason != "length"
        if plain:
            ids, _ = tokenizer.span_ids(as_text(item.prompt.messages) + "\n\n", completion.text)
            ids += [tokenizer.eos_id] if ended else []
        else:
            ids += turn_ids(prompt, completion.text, tokenizer, ended=ended)
        return [RewardRequest(key="", token_ids=ids)]

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        (reply,) = replies
        assert isinstance(reply, Rewarded), "Call.REWARD"
        return Verdict(score=reply.reward)

    def _is_plain(self, tokenizer: Tokenizer) -> bool:
        return bool(self.plain) or (self.plain is None and not tokenizer.has_chat_template)
