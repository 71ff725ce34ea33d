"""What a run recorded of prompts and completions, as token ids."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from gavel.errors import InputError, RowError
from gavel.packed import unpack_ids
from gavel.records import Completion, Prompt, decode, digest
from gavel.rundir import RunDir, read_lines
from gavel.turns import Asked, asked, turn_ids
from train.rows import Encoder


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion as token ids. logp: of the reference, if that is what sampled it."""

    ids: array[int]
    prompt_hash: str | None = None
    logp: float | None = None
    sampled: bool = False


@dataclass(slots=True)
class Recorded:
    """A completion of a run. answer: its ids; of one that came as `text` they are known with its prompt."""

    prompt_id: str
    text_hash: int
    answer: Answer | None = None
    text: str = ""
    cut_off: bool = False

    def behind(self, prompt: Asked, encoder: Encoder) -> Answer:
        """The completion as the answer to its prompt. Raises RowError for a text that cannot be one."""
        if self.answer is None:
            ids = array("i")  # of an empty one, which is left out
            if self.text.strip():
                ids = turn_ids(prompt, self.text, encoder.tokenizer, ended=not self.cut_off)
            self.answer, self.text = Answer(ids), ""
        return self.answer


class _Id(msgspec.Struct):
    id: str


def answers_of(run: RunDir, needed: set[str], encoder: Encoder) -> dict[str, Recorded]:
    """Streams completions.jsonl and keeps the ones that are needed."""
    only_id = msgspec.json.Decoder(_Id)
    path = run.completions_path
    found: dict[str, Recorded] = {}
    for number, _, line in read_lines(path):
        if only_id.decode(line).id not in needed:
            continue
        completion = decode(line, Completion, f"{path}:{number}")
        found[completion.id] = recorded(completion, encoder, f"{path}:{number}")
    return found


def recorded(completion: Completion, encoder: Encoder, where: str) -> Recorded:
    """What is kept of a completion. Raises InputError for ids that cannot be read."""
    text_hash = hash(completion.text)
    if completion.token_ids is None:
        cut_off = completion.finish_reason == "length"
        return Recorded(completion.prompt_id, text_hash, text=completion.text, cut_off=cut_off)
    try:
        ids = array("i", unpack_ids(completion.token_ids))
    except ValueError as error:
        raise InputError(str(error), where=where) from None
    reference = completion.logprobs_mode == "raw" and completion.weights == encoder.weights is not None
    logp = completion.logprob_sum if reference else None
    return Recorded(completion.prompt_id, text_hash, Answer(ids, completion.prompt_hash, logp, sampled=True))


def unedited(answers: dict[str, Recorded], completion_id: str | None, text: str) -> Recorded | None:
    """The completion that a row names, unless the row's text has been edited since."""
    found = answers.get(completion_id or "")
    return found if found is not None and found.text_hash == hash(text) else None


def prompts_of(run: RunDir, needed: set[str], encoder: Encoder) -> dict[str, Asked | RowError]:
    """Renders the prompts that are needed; pairs of one prompt share its ids."""
    only_id = msgspec.json.Decoder(_Id)
    path = run.prompts_path
    found: dict[str, Asked | RowError] = {}
    for number, _, line in read_lines(path):
        if only_id.decode(line).id not in needed:
            continue
        prompt = decode(line, Prompt, f"{path}:{number}")
        try:
            found[prompt.id] = asked(prompt.messages, encoder.tokenizer)
        except RowError as error:
            found[prompt.id] = error
    return found


def known_prompt(prompts: dict[str, Asked | RowError], prompt_id: str) -> Asked:
    found = prompts.get(prompt_id) or RowError(f"its prompt {prompt_id} is not in prompts.jsonl")
    if isinstance(found, RowError):
        raise found
    return found


def known_answer(answers: dict[str, Recorded], completion_id: str, prompt_id: str) -> Recorded:
    if completion_id not in answers:
        raise RowError(f"its completion {completion_id} is not in completions.jsonl")
    if answers[completion_id].prompt_id != prompt_id:
        raise RowError(f"its completion {completion_id} answers another prompt")
    return answers[completion_id]


def check_rendering(prompt_ids: array[int], answers: Iterable[Answer], where: str) -> None:
    """Raises InputError where the sampler saw the prompt of its answers as other ids."""
    hashes = {answer.prompt_hash for answer in answers} - {None}
    if hashes and hashes != {digest("prompt_ids", prompt_ids.tolist())}:
        raise InputError(
            "this model's tokenizer renders the prompt to other token ids than the sampler saw", where=where,
            hint="Train the model that sampled, with its chat template and the same --chat-template-arg.",
        )  # fmt: skip
