"""What the demo models learn: conversations made from tasks, and batches of token ids."""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerFast

from demo.formats import aspects, formats
from demo.mistakes import grade, mistake
from demo.tasks import FAMILIES, Task, stream
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
