"""GPTScore (arXiv 2302.04166): the log-probability of a text under a judge that was told what to look for.

score = Σ_t w_t · log p(h_t | h_<t, T(d, a, S)) over the tokens of the target h, after the template T
of task description d, aspect a and context S. The paper's code weighs w_t = 1/|h| (here "mean"); sum
and per byte are reported too, since a mean favours long texts and a sum short ones.

The scored span is cut out of the token ids of one sequence: after a chat template the target is the
assistant's turn; for a base model context and target are tokenised together and the span begins at
the first token that holds any of the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gavel.errors import InputError, RowError
from gavel.protocols import Capability, ScoreRequest, Tokenizer
from gavel.records import Completion, Judgment, Message, Prompt, digest
from gavel.templates import Template, as_text, guard, load, tables
from judge.method import Call, Item, Reply, Request, Verdict

FORMS = ("direct", "generate", "rewrite", "question")
_OF_CANDIDATE = ("direct", "generate", "rewrite")  # the templates whose target is the candidate
MEASURES = ("mean", "sum", "per_byte")
DIRECTIONS = ("candidate", "reference", "mean", "harmonic")


@dataclass(frozen=True)
class GptScore:
    """The method. Implements `judge.method.Method`.

    aspects: names in prompts/gptscore/aspects.toml (or in `aspects_file`).
    form: "direct" (the candidate as the answer to the prompt itself), "generate", "rewrite" (against
        references) or "question" (the candidate is read and "Yes" is scored).
    measure: which of MEASURES is the score.
    direction: of "rewrite": candidate given reference, reference given candidate, their mean, or the
        harmonic form ab/(a+b). Of several references the best counts.
    count_eos: whether the end-of-sequence token belongs to the target (the paper: no). It tells
        a finished answer from its own beginning; one that is known to be cut off has no end to count.
    plain: one text without a chat template, for base models; None: where the model has no template.
    demonstrations: worked examples for the template, see prompts/gptscore/forms.toml.
    """

    aspects: tuple[str, ...] = ("correctness",)
    form: str = "generate"
    measure: str = "mean"
    direction: str = "candidate"
    count_eos: bool = False
    plain: bool | None = None
    demonstrations: tuple[Mapping[str, Any], ...] = ()
    forms_file: str | None = None
    aspects_file: str | None = None

    name: str = field(default="gptscore", init=False)
    parser: str = field(default="gptscore/1", init=False)
    call: Call = field(default=Call.SCORE, init=False)
    one_prompt: bool = field(default=False, init=False)
    adaptive: bool = field(default=False, init=False)
    needs: frozenset[Capability] = field(default=frozenset({Capability.SCORE, Capability.TOKENS}), init=False)

    def __post_init__(self) -> None:
        """Raises InputError for an aspect, form, measure or direction that does not exist."""
        for value, known, option in (
            (self.form, FORMS, "--form"),
            (self.measure, MEASURES, "--measure"),
            (self.direction, DIRECTIONS, "--direction"),
        ):
            if value not in known:
                raise InputError(f"unknown {value!r}", where=option, hint=f"Known: {', '.join(known)}.")
        if not self.aspects:
            raise InputError("needs at least one aspect", where="--aspect")
        object.__setattr__(self, "aspects", tuple(dict.fromkeys(self.aspects)))
        for aspect in self.aspects:
            if aspect not in self._aspects:
                raise InputError(
                    f"unknown aspect {aspect!r}", where="--aspect", hint=f"Known: {', '.join(self._aspects)}."
                )

        self._try_templates()

    def _try_templates(self) -> None:
        """Renders everything once, so that a fault in a template or demonstration is known before an
        engine starts. Raises InputError."""
        completion = Completion(id="", prompt_id="", index=0, text="text")
        prompt = Prompt(id="", messages=(Message("user", "text"),), references=("text",))
        for aspect in self.aspects:
            variables = self._variables(Item(prompt, (completion,), aspect), "text")
            for template in self._templates.values():
                template.render(**variables)
                for part in template.texts:
                    template.text(part, **variables)

    @property
    def fingerprint(self) -> str:
        # "True" was of every candidate, whether it was finished or not
        eos = "finished" if self.count_eos else "False"
        settings = f"measure={self.measure} eos={eos} plain={self.plain}"
        if self.form == "rewrite":
            settings += f" direction={self.direction}"
        return f"{self.form} {settings}"

    @cached_property
    def _templates(self) -> dict[str, Template]:
        names = ("rewrite", "rewrite_back") if self.form == "rewrite" else (self.form,)
        return {name: load("gptscore", name, self.forms_file) for name in names}

    @cached_property
    def _aspects(self) -> dict[str, dict[str, Any]]:
        return tables("gptscore", "aspects", self.aspects_file)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        texts = [template.hash for template in self._templates.values()]
        return {a: digest(texts, self._aspects[a], self.demonstrations) for a in self.aspects}

    def template(self, aspect: str) -> str:
        return self._hashes[aspect]

    def items(
        self, prompt: Prompt, completions: Sequence[Completion], judged: Sequence[Judgment] = ()
    ) -> Iterator[Item]:
        for completion in completions:
            for aspect in self.aspects:
                yield Item(prompt, (completion,), aspect)

    def render(self, item: Item, tokenizer: Tokenizer | None) -> list[Request]:
        """One span, or for "rewrite" one for each reference and direction."""
        assert tokenizer is not None, "needs TOKENS"
        if not item.completions[0].text:
            raise RowError("the text is empty")
        return [self._span(item, tokenizer, *question) for question in self._questions(item)]

    def parse(self, item: Item, replies: Sequence[Reply]) -> Verdict:
        """Measures of the best reference, and the chosen one of them as the score."""
        spans = []
        for (name, reference), reply in zip(self._questions(item), replies, strict=True):
            logprobs = list(reply.logprobs or ())  # type: ignore[union-attr] # Call.SCORE: a Scored
            spans.append((logprobs, self._target(item, name, reference)))
        measured = [measures(logprobs, target) for logprobs, target in spans]
        if self.form == "rewrite" and self.direction in ("mean", "harmonic"):
            measured = [
                combine(a, b, self.direction) for a, b in zip(measured[::2], measured[1::2], strict=True)
            ]
        best = max(measured, key=lambda m: m[self.measure])
        logprobs = [lp for span, _ in spans for lp in span]
        return Verdict(score=best[self.measure], measures=best, logprobs=logprobs)

    def _questions(self, item: Item) -> list[tuple[str, str]]:
        """(template, reference) of each span, in the order asked."""
        if self.form != "rewrite":
            return [(self.form, "")]
        if not item.prompt.references:
            raise RowError("the rewrite form needs a reference, and the prompt has none")
        both = self.direction in ("mean", "harmonic")
        names = (
            ["rewrite", "rewrite_back"]
            if both
            else ["rewrite" if self.direction == "candidate" else "rewrite_back"]
        )
        return [(name, reference) for reference in item.prompt.references for name in names]

    def _variables(self, item: Item, reference: str) -> dict[str, Any]:
        candidate, instruction = item.completions[0].text, as_text(item.prompt.messages)
        return {
            **self._aspects[item.aspect],
            "messages": item.prompt.messages,
            "instruction": instruction,
            "candidate": candidate,
            "reference": reference,
            "demonstrations": self.demonstrations,
            "guard": guard(digest(item.prompt.id, instruction, candidate), instruction, candidate),
        }

    def _target(self, item: Item, name: str, reference: str) -> str:
        return self._templates[name].text("target", **self._variables(item, reference))

    def _span(self, item: Item, tokenizer: Tokenizer, name: str, reference: str) -> ScoreRequest:
        template = self._templates[name]
        variables = self._variables(item, reference)
        target = template.text("target", **variables)
        if self.plain or (self.plain is None and not tokenizer.has_chat_template):
            context = template.text("context", **variables) + template.text("separator", **variables)
            ids, start = tokenizer.span_ids(context, target)
        else:
            ids = tokenizer.chat_ids(template.render(**variables))
            start = len(ids)
            ids = ids + tokenizer.text_ids(target)
        if self.count_eos and not (name in _OF_CANDIDATE and item.completions[0].finish_reason == "length"):
            ids = [*ids, tokenizer.eos_id]
        if not 1 <= start < len(ids):
            raise RowError("the text has no tokens that can be scored")
        return ScoreRequest(key="", token_ids=ids, start=start)


def measures(logprobs: Sequence[float], target: str) -> dict[str, float]:
    """mean over tokens, sum, per UTF-8 byte of the target (in nats), and the number of tokens.

    >>> measures([-1.0, -3.0], "ab!")
    {'mean': -2.0, 'sum': -4.0, 'per_byte': -1.3333333333333333, 'tokens': 2}
    """
    total = sum(logprobs)
    return {
        "mean": total / len(logprobs),
        "sum": total,
        "per_byte": total / len(target.encode()),
        "tokens": len(logprobs),
    }


def combine(a: Mapping[str, float], b: Mapping[str, float], how: str) -> dict[str, float]:
    """Two directions as one: their mean, or the harmonic form ab/(a+b); tokens are added."""

    def one(x: float, y: float) -> float:
        if how == "mean":
            return (x + y) / 2
        return x * y / (x + y) if x + y else 0.0

    return {m: one(a[m], b[m]) for m in MEASURES} | {"tokens": a["tokens"] + b["tokens"]}
