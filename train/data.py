"""Preference pairs as token ids: exactly the ids that were sampled.

A run directory keeps the ids of its completions; only text from elsewhere is tokenised here. The
prompt is rendered again by the model's tokenizer and must hash to what the sampler saw. An answer that came
as text is trained as the chat template would have rendered it (`gavel.turns`), as `gavel train sft` does.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from gavel.errors import InputError, RowError
from gavel.packed import unpack_ids
from gavel.records import Completion, PreferencePair, Prompt, decode, digest
from gavel.rows import BadRows
from gavel.rundir import RunDir, read_lines
from gavel.sources import PreferenceRow
from gavel.turns import Asked, asked, turn_ids
from train.rows import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """One pair to train on. Produced here, consumed by `train.dpo` and `train.reward`.

    prompt_ids, chosen_ids, rejected_ids: token ids; what ends the completion is there exactly when it was
        sampled (or, for text from elsewhere, unless it is known to be cut off).
    ref_chosen_logp, ref_rejected_logp: summed natural log-probabilities that the sampler recorded, at
        temperature 1; None where the starting model is not the sampler or they are not known.
    margin: score of chosen minus score of rejected, None where not known.
    p_chosen: probability that chosen is better, None where not known.
    where: file and line that the pair comes from.
    """

    noun: ClassVar[str] = "pairs"

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    pair_id: str
    ref_chosen_logp: float | None = None
    ref_rejected_logp: float | None = None
    margin: float | None = None
    p_chosen: float | None = None
    where: str = ""

    @property
    def place(self) -> str:
        """Where it comes from, for a person."""
        return self.where or f"pair {self.pair_id}"

    @property
    def name(self) -> str:
        """Its id, and where it comes from."""
        return f"{self.pair_id} ({self.where})" if self.where else self.pair_id

    @property
    def fault(self) -> str | None:
        """Why it cannot be trained on."""
        return (
            None
            if self.prompt_ids and self.chosen_ids and self.rejected_ids
            else "empty prompt or completion"
        )

    @property
    def length(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


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


def data_version(rows: Iterable[PairRow], soft_labels: bool = False, margins: bool = False) -> str:
    """A hash of what is trained on: ids and their order, with soft labels also their probabilities, and where
    they are read their margins."""
    state = hashlib.blake2b(digest_size=12)
    for row in rows:
        if soft_labels:
            state.update(repr(row.p_chosen).encode())
        if margins:
            state.update(f"margin {row.margin!r}".encode())
        for ids in (row.prompt_ids, row.chosen_ids, row.rejected_ids):
            state.update(len(ids).to_bytes(4, "little") + array("i", ids).tobytes())
    return state.hexdigest()


def read_run(run: RunDir, encoder: Encoder, bad: BadRows, pairs: str | None = None) -> list[PairRow]:
    """The pairs of a run directory, joined with its completions and prompts.

    Args:
        pairs: name of the set of pairs, the newest where it is None.

    Raises:
        InputError: no such pairs, or the tokenizer renders a prompt otherwise than the sampler did.
        RunDirError: a run directory of a newer version.
    """
    run.manifest()  # refuses a newer version
    name = pair_set(run, pairs)
    path = run.pairs_path(name)
    found = [(f"{path}:{n}", decode(line, PreferencePair, f"{path}:{n}")) for n, _, line in read_lines(path)]
    if not found:
        raise InputError(
            "holds no pairs", where=str(path), hint="Make some with: gavel pairs RUN --min-margin 0"
        )
    answers = _answers(run, {i for _, p in found for i in (p.chosen_id, p.rejected_id)}, encoder)
    prompts = _prompts(run, {p.prompt_id for _, p in found}, encoder)
    bad.total += len(found)
    rows = []
    for where, pair in found:
        try:
            prompt = _known_prompt(prompts, pair.prompt_id)
            chosen, rejected = (
                _known_answer(answers, i, pair.prompt_id).behind(prompt, encoder)
                for i in (pair.chosen_id, pair.rejected_id)
            )
        except RowError as error:
            bad.add(RowError(error.what, where=where, hint=error.hint))
            continue
        rows.append(_row(encoder, prompt.ids, chosen, rejected, where, pair.id, pair.margin, pair.p_chosen))
    return _usable(rows, encoder, bad)


def read_preferences(
    source: Iterable[PreferenceRow], encoder: Encoder, bad: BadRows, run: RunDir | None = None
) -> list[PairRow]:
    """The pairs of a preference file; those that carry ids of `run`'s completions take its token ids."""
    given = list(source)
    answers: dict[str, Recorded] = {}
    if run is not None:
        run.manifest()  # refuses a newer version
        answers = _answers(run, {i for r in given for i in (r.chosen_id, r.rejected_id) if i}, encoder)
    rows = []
    for row in given:
        try:
            prompt = asked(row.prompt.messages, encoder.tokenizer)
            chosen, rejected = (
                (_unedited(answers, i, text) or Recorded(row.prompt.id, hash(text), text=text)).behind(
                    prompt, encoder
                )
                for i, text in ((row.chosen_id, row.chosen), (row.rejected_id, row.rejected))
            )
        except RowError as error:
            bad.add(RowError(error.what, where=error.where or row.row.where, hint=error.hint))
            continue
        pair_id = digest("pair", row.prompt.id, row.chosen, row.rejected)
        rows.append(_row(encoder, prompt.ids, chosen, rejected, row.row.where, pair_id,
                         row.margin, row.p_chosen))  # fmt: skip
    return _usable(rows, encoder, bad)


def run_beside(source: str) -> RunDir | None:
    """The run directory that an exported file lies in, if any."""
    for folder in list(Path(source).absolute().parents)[:4]:
        if (folder / "completions.jsonl").exists():
            return RunDir(folder)
    return None


def pair_set(run: RunDir, name: str | None) -> str:
    """The set of pairs of that name, the newest where it is None. Raises InputError where there is none."""
    known = run.pair_sets()
    if not known:
        raise InputError("has no preference pairs", where=str(run.path),
                         hint=f"Make them with: gavel pairs {run.path}")  # fmt: skip
    if name is not None and name not in known:
        raise InputError(f"no pairs named {name!r}", where=str(run.path), hint=f"Known: {', '.join(known)}")
    return name or known[-1]


def flip_rate(run: RunDir, pairs: str | None = None) -> float:
    """How often a label of a set of pairs is wrong, in [0, 0.5), as `gavel pairs` measured it.

    Raises InputError where it was not measured; how to is said.
    """
    name = pair_set(run, pairs)
    rate = run.stage(f"pairs/{name}").get("flip_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 0.5:
        raise InputError(
            f"the flip rate of pairs {name} " + ("was not measured" if rate is None else f"is {rate}"),
            where=str(run.path),
            hint="Judge in both orders (gavel judge RUN --method pairwise) or check the judge against gold "
            "labels (gavel judge RUN --gold FILE), and make the pairs again; or give the number yourself.",
        )
    return float(rate)


def _answers(run: RunDir, needed: set[str], encoder: Encoder) -> dict[str, Recorded]:
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


def _unedited(answers: dict[str, Recorded], completion_id: str | None, text: str) -> Recorded | None:
    """The completion that a row names, unless the row's text has been edited since."""
    found = answers.get(completion_id or "")
    return found if found is not None and found.text_hash == hash(text) else None


def _prompts(run: RunDir, needed: set[str], encoder: Encoder) -> dict[str, Asked | RowError]:
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


def _known_prompt(prompts: dict[str, Asked | RowError], prompt_id: str) -> Asked:
    found = prompts.get(prompt_id) or RowError(f"its prompt {prompt_id} is not in prompts.jsonl")
    if isinstance(found, RowError):
        raise found
    return found


def _known_answer(answers: dict[str, Recorded], completion_id: str, prompt_id: str) -> Recorded:
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


def _row(encoder: Encoder, prompt_ids: array[int], chosen: Answer, rejected: Answer, where: str,
         pair_id: str, margin: float | None, p_chosen: float | None) -> PairRow:  # fmt: skip
    check_rendering(prompt_ids, (chosen, rejected), where)
    encoder.completions.update("sampled" if a.sampled else "tokenised" for a in (chosen, rejected))
    return PairRow(prompt_ids=prompt_ids, chosen_ids=chosen.ids, rejected_ids=rejected.ids, pair_id=pair_id,
                   ref_chosen_logp=chosen.logp, ref_rejected_logp=rejected.logp,
                   margin=margin, p_chosen=p_chosen, where=where)  # fmt: skip


def _usable(rows: list[PairRow], encoder: Encoder, bad: BadRows) -> list[PairRow]:
    """Leaves out what cannot be trained on."""
    kept = []
    for row in rows:
        if not encoder.takes(row.length, row.place, bad):
            continue
        if not row.chosen_ids or not row.rejected_ids:
            encoder.left_out["empty completion"] += 1
        elif row.chosen_ids == row.rejected_ids:
            encoder.left_out["chosen = rejected"] += 1
        else:
            kept.append(row)
    return kept
