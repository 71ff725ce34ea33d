"""One row as a prompt, as outputs or as a preference, whatever layout it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gavel.columns import KNOWN, Columns, is_conversation, outputs, plain, turns, unpacked
from gavel.errors import RowError
from gavel.foreign import OutputsForm, PreferenceForm, PromptForm, checked, explain

_FIRST = frozenset({"a", "A", "1", 1, "model_a", "response_a", "output_1", "first"})
_SECOND = frozenset({"b", "B", "2", 2, "model_b", "response_b", "output_2", "second"})
_TIE = frozenset({"tie", "tie (bothbad)", "both", "equal", "neither", "bothbad"})
_CONVERSATIONS = ("messages", "conversations", "conversation")
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

#: a prompt and two texts, each with its column
_Both = tuple[PromptForm, tuple[tuple[str, str], tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two texts in the order of their columns, and which of them the row calls better.

    named: the columns are chosen and rejected; otherwise a label says it.
    better: 0 or 1, None for a tie. p_first: probability that the first is better, where the label is a
        number between 1 and 2.
    """

    prompt: PromptForm
    texts: tuple[str, str]
    named: bool
    better: int | None
    p_first: float | None = None


class Layout:
    """Reads rows by their columns. Stateless: each row stands for itself.

    Args:
        mapping: meaning → column, the user's own.
    """

    needs = "a prompt"

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.columns = Columns(mapping)

    def form(self, data: dict[str, Any]) -> Any:
        """What the row holds. Raises RowError."""
        return self.prompt(data, "id")

    def prompt(self, data: dict[str, Any], identity: str) -> PromptForm:
        """The row's prompt; a complete ShareGPT conversation is asked without its last answer.

        Args:
            identity: "id" where a row is a prompt, "prompt_id" where `id` names something else.
        """
        column, value = self._asked(data)
        conversation = turns(value)
        if column.startswith("conversation") and is_answered(conversation):
            conversation = conversation[:-1]
        return self._prompt(data, conversation, identity, column)

    def _asked(self, data: dict[str, Any]) -> tuple[str, Any]:
        column, value = self.columns.need(data, "prompt")
        if column in _CONVERSATIONS:
            value = unpacked(value)
        elif column == "instruction" or "input" in self.columns.mapped:
            more = self.columns.find(data, "input")[1]
            if type(value) is str and type(more) is str and more.strip():
                value = f"{value}\n\n{more}"
        return column, value

    def _prompt(self, data: dict[str, Any], conversation: Any, identity: str, column: str) -> PromptForm:
        """Adds system and references, and checks the whole."""
        conversation = self.led(data, conversation)
        noted, references = self.columns.find(data, "reference")
        if noted == "references":
            references = unpacked(references)
        if references is None or references == "":
            references = []
        elif type(references) is str:
            references = [references]
        fields = {"messages": conversation, "references": references}
        given = self.columns.text(data, identity)
        if given is not None:
            fields["id"] = given
        columns = {"messages": column, "references": noted, "id": identity}
        form = checked(fields, PromptForm, columns)
        last = form.messages[-1]
        if last.role not in ("user", "tool"):
            raise RowError(f"no question: the last turn of {column!r} is the {last.role}'s, not the user's")
        if not last.content.strip():
            raise RowError(f"empty prompt: {column!r} holds no text")
        return form

    def led(self, data: dict[str, Any], conversation: Any) -> Any:
        """The conversation with the row's system prompt before it."""
        system = self.columns.find(data, "system")[1]
        if system and type(conversation) is list and not _starts_with_system(conversation):
            return [{"role": "system", "content": system}, *conversation]
        return conversation

    def conversation(self, data: dict[str, Any]) -> tuple[str, Any, Any]:
        """The column that holds a conversation, its value, and that as turns."""
        column, value = next(((c, data[c]) for c in _CONVERSATIONS if data.get(c) is not None), ("", None))
        if not column or "prompt" in self.columns.mapped:
            column, value = self._asked(data)
        value = unpacked(value) if column in _CONVERSATIONS else value
        return column, value, turns(value)


class OutputsLayout(Layout):
    """Reads rows that hold outputs: one or several for a prompt."""

    needs = "a prompt, and a completion or completions"

    def form(self, data: dict[str, Any]) -> tuple[PromptForm, OutputsForm]:
        column, value = self.outputs(data)
        if value is not None:
            items = outputs(value, self.columns.text(data, "model"))
            form = self.prompt(data, "prompt_id")
        elif self._has_pair(data):
            form, pair = PreferenceLayout.of(self.columns).both(data)
            items = [{"text": text, "metadata": {"column": name}} for name, text in pair]
        else:
            column, conversation = self._answered(data)
            items = [{"text": conversation[-1]["content"], "model": self.columns.text(data, "model")}]
            form = self._prompt(data, conversation[:-1], "prompt_id", column)
        return form, checked({"completions": items}, OutputsForm, {"completions": column})

    def outputs(self, data: dict[str, Any]) -> tuple[str, Any]:
        """The column that holds outputs, and its value; ("", None) where the row has none.

        Raises RowError where the user named it and it is null.
        """
        mapped = [m for m in ("completions", "completion") if m in self.columns.mapped]
        for meaning in mapped or ("completions", "completion"):
            column, value = self.columns.find(data, meaning)
            if value is not None:
                return column, unpacked(value) if meaning == "completions" else value
        if mapped:
            raise RowError(f"empty completion: column {self.columns.mapped[mapped[0]]!r} is null")
        return "", None

    def _has_pair(self, data: dict[str, Any]) -> bool:
        find = self.columns.find
        return any(
            find(data, a)[1] is not None and find(data, b)[1] is not None
            for a, b in (("chosen", "rejected"), ("first", "second"))
        )

    def _answered(self, data: dict[str, Any]) -> tuple[str, list[Any]]:
        """The conversation that ends with the output."""
        column, value, conversation = self.conversation(data)
        if not is_answered(conversation):
            if is_conversation(value):
                raise RowError(f"no output: the last turn of {column!r} is not the assistant's")
            if any(name in data for name in KNOWN["completions"]):
                raise RowError("empty completions: the column is null")
            self.columns.need(data, "completion")
        return column, conversation


class PreferenceLayout(Layout):
    """Reads rows that prefer one output to another."""

    needs = "a prompt, and chosen and rejected (or response_a, response_b and label)"

    @classmethod
    def of(cls, columns: Columns) -> PreferenceLayout:
        made = cls({})
        made.columns = columns
        return made

    def form(self, data: dict[str, Any]) -> tuple[PromptForm, PreferenceForm] | None:
        """None for a tie."""
        found = self.compared(data)
        return None if found.better is None else (found.prompt, self.preference(data, found))

    def compared(self, data: dict[str, Any]) -> Compared:
        """The row as it stands, ties and the order of its columns kept. Raises RowError."""
        prompt, ((_, first), (_, second)) = self.both(data)
        if not self._unnamed(data):
            return Compared(prompt, (first, second), named=True, better=0)
        better, p_first = _read_label(*self.columns.need(data, "label"))
        return Compared(prompt, (first, second), named=False, better=better, p_first=p_first)

    def preference(self, data: dict[str, Any], found: Compared) -> PreferenceForm:
        """What else the row says of a pair that is no tie."""
        assert found.better is not None
        find = self.columns
        margin = find.number(data, "margin")
        scores = find.number(data, "chosen_score"), find.number(data, "rejected_score")
        if margin is None and scores[0] is not None and scores[1] is not None:
            margin = scores[0] - scores[1]
        p_chosen = find.number(data, "p_chosen")
        if p_chosen is None and found.p_first is not None:
            p_chosen = max(found.p_first, 1 - found.p_first)
        fields = {
            "chosen": found.texts[found.better],
            "rejected": found.texts[1 - found.better],
            "chosen_id": find.text(data, "chosen_id"),
            "rejected_id": find.text(data, "rejected_id"),
            "margin": margin,
            "p_chosen": p_chosen,
        }
        return checked(fields, PreferenceForm, {})

    def both(self, data: dict[str, Any]) -> _Both:
        """The prompt and the two texts with their columns, chosen first where the columns say it."""
        one, other = ("first", "second") if self._unnamed(data) else ("chosen", "rejected")
        found = [self.columns.need(data, one), self.columns.need(data, other)]
        names = (found[0][0], found[1][0])
        values = [value for _, value in found]
        if all(type(v) is str and v.startswith(_HUMAN) for v in values):
            values = [_dialogue(v) for v in values]
        if all(is_conversation(v) for v in values):
            return self._conversations(data, names, [turns(v) for v in values])
        form = self.prompt(data, "prompt_id")
        if type(values[0]) is not str or type(values[1]) is not str:
            fields = dict(zip(("chosen", "rejected"), values, strict=True))
            columns = {"chosen": names[0], "rejected": names[1]}
            explain(fields, PreferenceForm, columns, "one is text, the other a conversation")
        return form, ((names[0], values[0]), (names[1], values[1]))

    def _unnamed(self, data: dict[str, Any]) -> bool:
        """Whether the row has two outputs and a label instead of chosen and rejected."""

        def has(meaning: str) -> bool:
            return meaning in self.columns.mapped or any(name in data for name in KNOWN[meaning])

        return "first" in self.columns.mapped or (has("first") and not has("chosen"))

    def _conversations(self, data: dict[str, Any], names: tuple[str, str], sides: list[Any]) -> _Both:
        """Both as conversations: the answers alone, or each with the prompt before it (TRL)."""
        for name, side in zip(names, sides, strict=True):
            if not is_answered(side):
                raise RowError(f"no output: the last turn of {name!r} is not the assistant's")
        if sides[0][:-1] != sides[1][:-1]:
            raise RowError("different prompts: chosen and rejected differ before their last turn")
        texts: list[Any] = [side[-1]["content"] for side in sides]
        for name, text in zip(names, texts, strict=True):
            if type(text) is not str:
                explain({"chosen": text, "rejected": ""}, PreferenceForm, {"chosen": name}, "")
        if len(sides[0]) == 1:
            form = self.prompt(data, "prompt_id")
        else:
            form = self._prompt(data, sides[0][:-1], "prompt_id", names[0])
        return form, ((names[0], texts[0]), (names[1], texts[1]))


def _read_label(column: str, label: Any) -> tuple[int | None, float | None]:
    """Which of two is better, and the probability of the first where the label says one: AlpacaEval
    writes 1 for the first, 2 for the second and everything between."""
    if isinstance(label, str | int | float) and not isinstance(label, bool):
        if label in _TIE:
            return None, None
        if label in _FIRST | _SECOND:
            return int(label in _SECOND), None
        try:
            number = float(label)
        except (ValueError, OverflowError):
            number = 0.0
        if 1 <= number <= 2:
            return (None if number == 1.5 else int(number > 1.5)), 2 - number
    raise RowError(f"unknown label: {column!r} is {str(label)[:40]!r}, not a, b, tie or from 1 to 2")


def is_answered(conversation: Any) -> bool:
    """Whether the last turn is the assistant's."""
    if type(conversation) is not list or not conversation or type(conversation[-1]) is not dict:
        return False
    return bool(conversation[-1]["role"] == "assistant")


def _starts_with_system(conversation: list[Any]) -> bool:
    first = conversation[0] if conversation else None
    return type(first) is dict and first["role"] in ("system", "developer")


def _dialogue(text: str) -> list[dict[str, str]]:
    """Anthropic's "\\n\\nHuman: … \\n\\nAssistant: …" as a conversation."""
    found = []
    for asked in text.split(_HUMAN)[1:]:
        question, *answers = asked.split(_ASSISTANT)
        found.append({"role": "user", "content": question.strip()})
        found.extend({"role": "assistant", "content": answer.strip()} for answer in answers)
    return found


def metadata_of(data: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The short columns that mean nothing to gavel, and what a `metadata` object holds."""
    mapped = columns.mapped.values()
    found = {k: v for k, v in data.items() if k not in _MEANT and plain(v) and k not in mapped}
    own = columns.find(data, "metadata")[1]
    return {**found, **own} if type(own) is dict else found


_MEANT = frozenset({"record", *(column for columns in KNOWN.values() for column in columns)})
