"""Demonstrations as token ids, and which of them are trained.

A conversation's prompt is rendered as the engine will render it, and each of the assistant's turns follows as
the ids that the engine would have to sample, with what ends the turn. Raw text is packed into rows of one
length. The best completions of a run come as they were sampled.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from gavel import scores
from gavel.demonstrations import Demonstration, Kind
from gavel.errors import InputError, RowError
from gavel.records import Message, digest
from gavel.rows import BadRows
from gavel.rundir import RunDir
from gavel.tokenizer import HfTokenizer
from gavel.turns import asked, turn_ids
from train.answers import check_rendering, recorded
from train.rows import Encoder

Span = tuple[int, int]
PACKED_LENGTH = 2048  # tokens of a row of raw text, where neither --max-length nor the context says less
IGNORED = -100  # a label that is not trained, as torch and TRL have it


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow:
    """One sequence to train on. Produced here, consumed by `train.sft`.

    ids: token ids. spans: the stretches [start, end) that are trained. starts: where something begins that
        sees nothing of what stands before it, 0 first: one conversation, or documents packed together.
        The token there is not trained, as nothing predicts it.
    where: file and line that it comes from.
    """

    noun: ClassVar[str] = "rows"

    ids: array[int]
    spans: tuple[Span, ...]
    row_id: str
    starts: tuple[int, ...] = (0,)
    where: str = ""

    @property
    def name(self) -> str:
        """Its id, and where it comes from."""
        return f"{self.row_id} ({self.where})" if self.where else self.row_id

    @property
    def place(self) -> str:
        """Where it comes from, for a person."""
        return self.where or f"row {self.row_id}"

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.ids)

    @property
    def trained(self) -> int:
        """How many of its tokens are trained."""
        unseen = sum(any(start <= i < end for start, end in self.spans) for i in self.starts)
        return sum(end - start for start, end in self.spans) - unseen

    @property
    def fault(self) -> str | None:
        """Why it cannot be trained on."""
        return None if self.trained else "none of its tokens is trained"

    @property
    def is_text(self) -> bool:
        """Whether it is raw text, and no answer to a prompt."""
        return self.spans[0][0] == 0

    @property
    def labels(self) -> array[int]:
        """The ids where they are trained, IGNORED elsewhere."""
        found = array("i", [IGNORED]) * len(self.ids)
        for start, end in self.spans:
            found[start:end] = self.ids[start:end]
        for start in self.starts:
            found[start] = IGNORED
        return found

    @property
    def lengths(self) -> list[int]:
        """Tokens of each of the parts that begin at `starts`."""
        ends = [*self.starts[1:], len(self.ids)]
        return [end - start for start, end in zip(self.starts, ends, strict=True)]


def rows_version(rows: Iterable[SftRow]) -> str:
    """A hash of what is trained on: ids, which of them, and their order."""
    state = hashlib.blake2b(digest_size=12)
    for row in rows:
        for numbers in (row.ids, [i for span in row.spans for i in span], row.starts):
            state.update(len(numbers).to_bytes(4, "little") + array("i", numbers).tobytes())
    return state.hexdigest()


def read_rows(
    source: Iterable[Demonstration], kind: Kind, encoder: Encoder, bad: BadRows, packed: bool = True
) -> list[SftRow]:
    """The rows of a source. What is too long or has nothing to train on is counted in `encoder`.

    Args:
        packed: whether a row of raw text may hold several documents.
    """
    if kind is Kind.TEXT:
        limits = (PACKED_LENGTH if encoder.max_length is None else encoder.max_length, encoder.context)
        size = min(limit for limit in limits if limit is not None)
        made = list(pack(_documents(source, encoder), size, packed))
        rows = [row for row in made if row.fault is None]  # a last row of one token has nothing to predict
        encoder.left_out["rows of one token"] += len(made) - len(rows)
        return rows
    rows = []
    for shown in source:
        try:
            made = conversation_rows(shown.messages, encoder.tokenizer, shown.row.where)
        except RowError as error:
            bad.add(RowError(error.what, where=error.where or shown.row.where, hint=error.hint))
            continue
        if not made:
            encoder.left_out["empty completion"] += 1
        encoder.completions["tokenised"] += sum(len(row.spans) for row in made)
        rows += [row for row in made if encoder.takes(row.length, row.place, bad)]
    return rows


def conversation_rows(messages: Sequence[Message], tokenizer: HfTokenizer, where: str) -> list[SftRow]:
    """The assistant's turns after the first question, each behind the prompt that an engine would see.

    Turns share a row where the later one's prompt begins with the earlier turn as it is trained. Where the
    template renders it otherwise (without its thinking, say), the later turn has a row of its own. Empty
    turns are context only; there may be no row.

    Raises RowError when the template refuses the conversation, or begins a thinking that an answer lacks.
    """
    rows: list[SftRow] = []
    ids, spans = array("i"), list[Span]()

    def close() -> None:
        if spans:
            row_id = digest("sft", where, len(rows), ids.tolist())
            rows.append(SftRow(ids=ids, spans=tuple(spans), row_id=row_id, where=where))

    question = False
    for place, message in enumerate(messages):
        question = question or message.role in ("user", "tool")
        if not question or message.role != "assistant" or not message.content.strip():
            continue
        prompt = asked(messages[:place], tokenizer)
        if prompt.ids[: len(ids)] != ids:
            close()
            spans = []
        ids = prompt.ids + turn_ids(prompt, message.content, tokenizer)
        spans.append((len(prompt.ids), len(ids)))
    close()
    return rows


def pack(
    documents: Iterable[tuple[Sequence[int], str]], size: int, together: bool = True
) -> Iterator[SftRow]:
    """Documents one after another in rows of `size` tokens, every token once; what does not fit goes on in
    the next row, and the last row is as short as it comes out.

    Args:
        documents: ids and where they come from. together: False begins a row with each.
    """
    ids, starts, places = array("i"), list[int](), list[str]()

    def row() -> SftRow:
        where = places[0] if places[0] == places[-1] else f"{places[0]} to {places[-1]}"
        row_id = digest("packed", where, ids.tolist())
        spans = ((0, len(ids)),)
        return SftRow(ids=ids, spans=spans, row_id=row_id, starts=tuple(starts), where=where)

    for document, place in documents:
        done = 0
        while done < len(document):
            starts.append(len(ids))
            places.append(place)
            piece = document[done : done + size - len(ids)]
            ids.extend(piece)
            done += len(piece)
            if len(ids) == size or (done == len(document) and not together):
                yield row()
                ids, starts, places = array("i"), [], []
    if ids:
        yield row()


def _documents(source: Iterable[Demonstration], encoder: Encoder) -> Iterator[tuple[list[int], str]]:
    for shown in source:
        if not (shown.text or "").strip():
            encoder.left_out["empty text"] += 1
            continue
        yield encoder.tokenizer.document_ids(shown.text or ""), shown.row.where


def read_best(
    run: RunDir, encoder: Encoder, bad: BadRows, judgments: str | None = None, min_score: float | None = None
) -> list[SftRow]:
    """The best completion of each prompt of a run, as it was sampled (rejection sampling).

    Of equal scores the completion whose id comes first is taken: a coin, the same in every run. Completions
    that were cut off are not learned from.

    Args:
        judgments: the judging pass whose scores count, the newest if None. min_score: prompts whose best
            completion has less are left out.

    Raises:
        InputError: no such pass, a `min_score` that is no number, or the tokenizer renders a prompt otherwise
            than the sampler did.
        RunDirError: a run directory of a newer version, or one without judgments.
    """
    if min_score is not None and not math.isfinite(min_score):
        raise InputError("must be a finite number", where="--min-score")
    run.manifest()  # refuses a newer version
    judging = scores.choose_pass(run, judgments)
    dropped: Counter[str] = Counter()
    rows = []
    with scores.Scores.open(run, judging, scores.aspects_of(run, judging)) as scored:
        for prompt in scores.distinct_prompts(run):
            bad.total += 1
            candidates = scored.of(prompt.id)
            whole = [c for c in candidates if c.completion.finish_reason != "length"]
            dropped["completions cut off"] += len(candidates) - len(whole)
            ranked = scores.eligible(whole, dropped)
            if not ranked:
                encoder.left_out["prompts without a scored completion"] += 1
            elif min_score is not None and ranked[0].number < min_score:
                encoder.left_out["prompts below --min-score"] += 1
            else:
                where = f"{run.completions_path}, completion {ranked[0].completion.id}"
                try:
                    question = asked(prompt.messages, encoder.tokenizer)
                    answer = recorded(ranked[0].completion, encoder, where).behind(question, encoder)
                except RowError as error:
                    bad.add(RowError(error.what, where=where, hint=error.hint))
                    continue
                check_rendering(question.ids, [answer], where)
                ids = question.ids + answer.ids
                if encoder.takes(len(ids), where, bad):
                    encoder.completions["sampled" if answer.sampled else "tokenised"] += 1
                    rows.append(SftRow(ids=ids, spans=((len(question.ids), len(ids)),),
                                       row_id=ranked[0].completion.id, where=where))  # fmt: skip
    encoder.left_out.update({why: dropped[why] for why in ("completions cut off", scores.UNSCORED)})
    return rows
