"""What the methods that show candidates to a judge are made of: a preset, rubrics, and how they are
asked. `judge.questions` holds the steps that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from gavel.protocols import Capability, Sampled, Tokenizer
from gavel.records import Completion, Message, Prompt, digest
from judge.method import Item
from judge.questions import Preset, preset, reference_of, rendered
from judge.rubrics import chosen, rubrics


@dataclass(frozen=True, kw_only=True)
class Showing:
    """The base of `Rating`, `Pairwise` and `Listwise`.

    preset: a table of prompts/<kind>/forms.toml (or of `forms_file`). aspects: rubrics by name.
    rubric: the user's own rubrics, see `judge.rubrics`.
    verdict: how it is read, see `judge.questions.Reads`; None: as the preset says.
    with_reference: None shows the prompt's first reference answer where there is one.
    plain: without the chat template; None: where the model has none. max_tokens: of a reply.
    """

    preset: str = "default"
    aspects: tuple[str, ...] = ("overall",)
    rubric: str | None = None
    verdict: str | None = None
    with_reference: bool | None = None
    plain: bool | None = None
    max_tokens: int | None = None
    forms_file: str | None = None

    _kind: ClassVar[str]
    _rubric_place: ClassVar[tuple[str, str]] = ("rating", "rubrics")

    @property
    def needs(self) -> frozenset[Capability]:
        return self._asked.needs

    @cached_property
    def _asked(self) -> Preset:
        return preset(self._kind, self.preset, verdict=self.verdict, max_tokens=self.max_tokens,
                      forms_file=self.forms_file)  # fmt: skip

    @cached_property
    def _rubrics(self) -> dict[str, dict[str, Any]]:
        return rubrics(self.rubric, *self._rubric_place)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {aspect: self._hash(aspect) for aspect in self.aspects}

    def template(self, aspect: str) -> str:
        return self._hashes[aspect]

    def _hash(self, aspect: str) -> str:
        return digest(self._asked.template.hash, self._rubrics[aspect])

    def _choose_aspects(self, default: Sequence[str]) -> None:
        """Settles `aspects`, each once. Raises InputError for one that has no rubric."""
        object.__setattr__(self, "aspects", chosen(self.aspects or tuple(default), self._rubrics))

    def _try_template(self, candidates: int) -> None:
        """Renders everything once, so that a fault in a template is known before an engine starts.
        Raises InputError."""
        prompt = Prompt(id="", messages=(Message("user", "text"),), references=("text",))
        shown = (Completion(id="", prompt_id="", index=0, text="text"),) * candidates
        for aspect in self.aspects:
            self._asked.template.render(**self._variables(Item(prompt, shown, aspect), "text"))

    def _variables(self, item: Item, reference: str) -> Mapping[str, Any]:
        """What the template reads."""
        raise NotImplementedError

    def _prompt(self, item: Item, tokenizer: Tokenizer | None) -> Sequence[int] | tuple[Message, ...]:
        """The question about an item, as it is sent. Raises RowError when it cannot be asked."""
        variables = self._variables(item, reference_of(item.prompt, self.with_reference))
        return rendered(self._asked.template, variables, tokenizer, self.plain)

    def _about(self, item: Item, reply: Sampled) -> dict[str, Any]:
        """What a reader of `judge.replies` is told beside the reply: the untrusted texts that a judge may
        quote, and how the reply ended."""
        asked = (message.content for message in item.prompt.messages)
        return {
            "quoted": (*item.texts, *item.prompt.references, *asked),
            "finish_reason": reply.finish_reason,
        }
