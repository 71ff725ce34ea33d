"""What the demo models learn: conversations made from tasks, and batches of token ids."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerFast

from demo.formats import aspects, formats
from demo.mistakes import grade, mistake
from demo.tasks import FAMILIES, Task, one_of, stream
from demo.tokenizer import ASSISTANT, END, SYSTEM, USER

Lesson = Callable[[Task, random.Random], "Turns"]
Turns = list[tuple[str, str]]
"""A conversation: (user, assistant) texts in order."""
IGNORED = -100
JUDGED_FAMILIES: tuple[str, ...] = (
    *sorted(FAMILIES),
    *("arithmetic", "arithmetic", "compare", "copy", "pick", "reverse"),
)
"""What judges learn: the families that take longest come more often."""
LIST_FAMILIES: tuple[str, ...] = (
    *sorted(FAMILIES),
    *("compare", "copy", "copy", "copy", "pick", "pick", "reverse", "reverse", "reverse"),
)
"""What judges learn last: most of it lists, whose verdicts take longest."""


def plain(task: Task, rng: random.Random) -> Turns:
    """A judge's first lesson: the right answer."""
    return [(task.prompt, task.answer)]


def careless(task: Task, rng: random.Random, share: float) -> Turns:
    """The policy's lesson: the right answer, or with probability ``share`` a mistake."""
    return [(task.prompt, mistake(task, rng) if rng.random() < share else task.answer)]


def judging(task: Task, rng: random.Random) -> Turns:
    """A judge's lesson: the plain answer, or one of the three formats of ``formats.toml``."""
    kind = rng.random()
    if kind < 0.4:
        return [(task.prompt, task.answer)]
    if kind < 0.5:
        return [
            (formats()["generate"].render(aspect=rng.choice(aspects()), instruction=task.prompt), task.answer)
        ]
    wrong = mistake(task, rng)
    if kind < 0.75:
        answer = _rated_answer(task, wrong, rng)
        return [
            (formats()["rating"].render(instruction=task.prompt, answer=answer), str(grade(task, answer)))
        ]
    right_first = rng.random() < 0.5
    a, b = (task.answer, wrong) if right_first else (wrong, task.answer)
    question = formats()["choice"].render(instruction=task.prompt, answer_a=a, answer_b=b)
    return [(question, "A" if right_first else "B")]


def _rated_answer(task: Task, wrong: str, rng: random.Random) -> str:
    kind = rng.random()
    return task.answer if kind < 0.45 else f"{task.answer} {wrong}" if kind < 0.55 else wrong


def lessons(lesson: Lesson, seed: int, families: Sequence[str] = ()) -> Iterator[tuple[str, Turns]]:
    """(system text or "", conversation) without end.

    One in ten has two exchanges, one in twenty a system turn.
    """
    rng = random.Random(f"lessons-{seed}")
    tasks = stream("train", seed, families)
    while True:
        turns = lesson(next(tasks), rng)
        if rng.random() < 0.1:
            turns = turns + lesson(next(tasks), rng)
        yield ("You are a helpful assistant." if rng.random() < 0.05 else ""), turns


def encode(
    tokenizer: PreTrainedTokenizerFast, conversations: list[tuple[str, Turns]]
) -> list[tuple[list[int], list[int]]]:
    """(token ids, labels) of each conversation, as the chat template writes it; only replies carry labels."""
    texts = sorted(
        {text for system, turns in conversations for text in (system, *(t for turn in turns for t in turn))}
    )
    ids = dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    system_id, user_id, assistant_id, end_id = tokenizer.convert_tokens_to_ids([SYSTEM, USER, ASSISTANT, END])
    encoded = []
    for system, turns in conversations:
        tokens = [system_id, *ids[system], end_id] if system else []
        labels = [IGNORED] * len(tokens)
        for asked, reply in turns:
            question = [user_id, *ids[asked], end_id, assistant_id]
            tokens += [*question, *ids[reply], end_id]
            labels += [IGNORED] * len(question) + [*ids[reply], end_id]
        encoded.append((tokens, labels))
    return encoded


def batches(
    tokenizer: PreTrainedTokenizerFast, source: Iterator[tuple[str, Turns]], size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded token ids and labels, both (size, T), of lessons of like length; without end."""
    rng = random.Random(seed)
    pool = 16
    while True:
        rows = sorted(
            encode(tokenizer, [next(source) for _ in range(pool * size)]), key=lambda row: len(row[0])
        )
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(tokens) for tokens, _ in group)
            pad = tokenizer.pad_token_id
            yield (
                torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens, _ in group]),
                torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in group]),
            )


VerdictKind = Literal["rating", "choice", "replay"]
WRONG_ANSWERS = 7
"""How many wrong answers of one task are judged together, at most."""
FORESEEN, ENDED = 0.3, 0.1
"""Weights of a right answer's tokens inside a question, and of the end after a verdict."""


@dataclass(frozen=True)
class Row:
    """A sequence that branches: positions of one branch see the head (branch 0) and that branch alone.

    ``targets`` is what each position foretells, ``weights`` how much that counts; ``agreeing`` whether
    the judged answer up to and with this token is that of the right one (1 or 0, else ``IGNORED``).
    """

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    targets: list[int]
    weights: list[float]
    agreeing: list[int]


@dataclass(frozen=True)
class Verdict:
    """One branch of a question: in turn an answer and what follows it, and the reply with its weight."""

    texts: tuple[str, ...]
    reply: str
    weight: float


@dataclass(frozen=True)
class Question:
    """What all verdicts on answers to one task begin with, and the verdicts; answers begin with a blank."""

    head: str
    right: str
    verdicts: list[Verdict]


def verdict_batches(
    tokenizer: PreTrainedTokenizerFast, kind: VerdictKind, size: int, seed: int, families: Sequence[str]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of ``size`` rows of like length, without end: the fields of ``Row`` as (size, T) tensors.

    In place of the branches stands (size, 1, T, T): which positions each one sees. ``replay`` rows are
    right answers, plain or in the ``generate`` format, and do not branch.
    """
    rng, drawing = random.Random(f"{kind}-{seed}"), random.Random(f"train-{seed}-{kind}")
    pool = 16
    while True:
        tasks = [one_of(drawing.choice(families), "train", drawing) for _ in range(pool * size)]
        if kind == "replay":
            rows = _replay_rows(tokenizer, tasks, rng)
        else:
            ask = _rating_question if kind == "rating" else _choice_question
            rows = branched(tokenizer, [ask(task, rng) for task in tasks])
        rows.sort(key=lambda row: len(row.tokens))
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(groups)
        yield from (_stacked(group, tokenizer.pad_token_id) for group in groups)


def branched(tokenizer: PreTrainedTokenizerFast, questions: list[Question]) -> list[Row]:
    """One row for each question."""
    texts = {text for q in questions for v in q.verdicts for text in (q.head, q.right, *v.texts, v.reply)}
    known = sorted(texts)
    ids = dict(zip(known, tokenizer(known, add_special_tokens=False)["input_ids"], strict=True))
    user_id, end_id, assistant_id = tokenizer.convert_tokens_to_ids([USER, END, ASSISTANT])
    rows = []
    for question in questions:
        head, right = [user_id, *ids[question.head]], ids[question.right]
        start = len(head)
        row = Row(head, [*range(start)], [0] * start, [IGNORED] * start, [0.0] * start, [IGNORED] * start)
        for number, verdict in enumerate(question.verdicts, 1):
            tokens: list[int] = []
            weights: list[float] = []  # of foretelling this token
            for place, text in enumerate(verdict.texts):
                piece = ids[text]
                tokens += piece
                if place % 2 == 0:
                    weights += [FORESEEN if piece == right else 0.0] * len(piece)
                    row.agreeing.extend(int(piece[: n + 1] == right[: n + 1]) for n in range(len(piece)))
                    whole = piece == right
                else:
                    weights += [0.0] * len(piece)
                    row.agreeing.extend([int(whole)] + [IGNORED] * (len(piece) - 1))
            tokens += [end_id, assistant_id, *ids[verdict.reply]]
            weights += [0.0, 0.0, verdict.weight]
            row.agreeing.extend([IGNORED] * 3)
            if weights[0]:
                row.targets[start - 1], row.weights[start - 1] = tokens[0], weights[0]
            row.tokens.extend(tokens)
            row.positions.extend(range(start, start + len(tokens)))
            row.branches.extend([number] * len(tokens))
            row.targets.extend([*tokens[1:], end_id])
            row.weights.extend([*weights[1:], ENDED])
        rows.append(row)
    return rows


def _rating_question(task: Task, rng: random.Random) -> Question:
    """5 for the right answer, 1 for each wrong one; the right one weighs half of the wrong ones together."""
    wrong = _wrong_answers(task, rng)
    head, tail = formats()["rating"].render(instruction=task.prompt, answer="\0").split(" \0")
    verdicts = [Verdict((f" {task.answer}", tail), "5", len(wrong) / 2)]
    verdicts += [Verdict((f" {text}", tail), "1", 1.0) for text in wrong]
    return Question(head, f" {task.answer}", verdicts)


def _choice_question(task: Task, rng: random.Random) -> Question:
    """The right answer against each wrong one, first or second at random."""
    rendered = formats()["choice"].render(instruction=task.prompt, answer_a="\0", answer_b="\0")
    head, between, tail = rendered.split(" \0")
    verdicts = []
    for wrong in _wrong_answers(task, rng):
        right_first = rng.random() < 0.5
        a, b = (task.answer, wrong) if right_first else (wrong, task.answer)
        verdicts.append(Verdict((f" {a}", between, f" {b}", tail), "A" if right_first else "B", 1.0))
    return Question(head, f" {task.answer}", verdicts)


def _wrong_answers(task: Task, rng: random.Random) -> list[str]:
    """Up to ``WRONG_ANSWERS`` different ones."""
    found: dict[str, None] = {}
    for _ in range(4 * WRONG_ANSWERS):
        found[mistake(task, rng)] = None
        if len(found) == WRONG_ANSWERS:
            break
    return list(found)


def _replay_rows(tokenizer: PreTrainedTokenizerFast, tasks: list[Task], rng: random.Random) -> list[Row]:
    conversations: list[tuple[str, Turns]] = []
    for task in tasks:
        asked = task.prompt
        if rng.random() >= 0.75:
            asked = formats()["generate"].render(aspect=rng.choice(aspects()), instruction=asked)
        conversations.append(("", [(asked, task.answer)]))
    rows = []
    for tokens, labels in encode(tokenizer, conversations):
        targets = [*labels[1:], IGNORED]
        weights = [float(target != IGNORED) for target in targets]
        count = len(tokens)
        rows.append(Row(tokens, [*range(count)], [0] * count, targets, weights, [IGNORED] * count))
    return rows


def _stacked(rows: list[Row], pad: int) -> tuple[torch.Tensor, ...]:
    width = max(len(row.tokens) for row in rows)
    fields = (
        ([row.tokens for row in rows], pad),
        ([row.positions for row in rows], 0),
        ([row.branches for row in rows], -1),
        ([row.targets for row in rows], IGNORED),
        ([row.weights for row in rows], 0.0),
        ([row.agreeing for row in rows], IGNORED),
    )
    tokens, positions, branches, targets, weights, agreeing = (
        torch.tensor([[*values, *[filling] * (width - len(values))] for values in lists])
        for lists, filling in fields
    )
    seen, seeing = branches[:, None, :], branches[:, :, None]
    visible = torch.ones(width, width, dtype=torch.bool).tril() & ((seen == 0) | (seen == seeing))
    return tokens, positions, visible[:, None], targets, weights, agreeing
