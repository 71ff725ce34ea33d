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

from gavel.errors import InputError, RowError
from gavel.records import PreferencePair, decode, digest
from gavel.rows import BadRows
from gavel.rundir import RunDir, read_lines
from gavel.sources import PreferenceRow
from gavel.turns import asked
from train.answers import (
    Answer,
    Recorded,
    answers_of,
    check_rendering,
    known_answer,
    known_prompt,
    prompts_of,
    unedited,
)
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
    answers = answers_of(run, {i for _, p in found for i in (p.chosen_id, p.rejected_id)}, encoder)
    prompts = prompts_of(run, {p.prompt_id for _, p in found}, encoder)
    bad.total += len(found)
    rows = []
    for where, pair in found:
        try:
            prompt = known_prompt(prompts, pair.prompt_id)
            chosen, rejected = (
                known_answer(answers, i, pair.prompt_id).behind(prompt, encoder)
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
        answers = answers_of(run, {i for r in given for i in (r.chosen_id, r.rejected_id) if i}, encoder)
    rows = []
    for row in given:
        try:
            prompt = asked(row.prompt.messages, encoder.tokenizer)
            chosen, rejected = (
                (unedited(answers, i, text) or Recorded(row.prompt.id, hash(text), text=text)).behind(
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
