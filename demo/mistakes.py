"""Wrong answers such as a careless pupil gives: near misses, echoes, answers to something else."""

import random
import re

from demo import words
from demo.tasks import FAMILIES, Task

WORD_FAMILIES = ("opposites", "capitals", "chinese")
NUMBER_FAMILIES = ("arithmetic", "count", "compare")
COUNTERPART: dict[str, str] = {
    side: other
    for pairs in (words.OPPOSITES, words.CAPITALS, words.CHINESE)
    for left, right in pairs
    for side, other in ((left, right), (right, left))
}
"""An answer → the word of the question it answers, and the other way round."""


def mistake(task: Task, rng: random.Random) -> str:
    """A wrong answer to ``task``; one in seven belongs to a question of another kind."""
    while True:
        family = rng.choice(sorted(FAMILIES)) if rng.random() < 1 / 7 else task.family
        wrong = _near_miss(task, rng) if family == task.family else FAMILIES[family](rng)[1]
        if wrong and wrong != task.answer:
            return wrong


def grade(task: Task, text: str) -> int:
    """A rating from 1 to 5: 5 right, 4 right with something added, 3 and 2 partly right, 1 wrong."""
    if text == task.answer:
        return 5
    if text.startswith(task.answer + " "):
        return 4
    if task.answer.isdigit() and text.isdigit():
        distance = abs(int(text) - int(task.answer))
        return 3 if distance <= 1 else 2 if distance <= 10 else 1
    right, given = task.answer.split(), text.split()
    agreeing = sum(a == b for a, b in zip(right, given, strict=False)) / max(len(right), len(given))
    return 3 if agreeing >= 0.5 else 2 if agreeing > 0 else 1


def _near_miss(task: Task, rng: random.Random) -> str:
    if task.family in NUMBER_FAMILIES:
        return _wrong_number(task, rng)
    if task.family in WORD_FAMILIES:
        return _wrong_word(task, rng)
    if task.family == "sentiment":
        return rng.choice(("Positive", "Positive", "Negative", "Negative", "Neutral", "Mixed"))
    if task.family == "pick":
        listed = task.prompt.split(" ")[-3:]
        return rng.choice((*listed, f"{task.answer} {listed[0]}"))
    return _wrong_list(task.answer.split(" "), rng)


def _wrong_number(task: Task, rng: random.Random) -> str:
    numbers = [int(digits) for digits in re.findall(r"\d+", task.prompt)]
    if numbers and rng.random() < 0.4:
        return str(rng.choice((*numbers, abs(numbers[0] - numbers[-1]), numbers[0] + numbers[-1])))
    return str(abs(int(task.answer) + rng.choice((-10, -2, -1, -1, 1, 1, 2, 10))))


def _wrong_word(task: Task, rng: random.Random) -> str:
    echo = COUNTERPART[task.answer]
    if rng.random() < 0.4:
        return rng.choice((echo, f"not {echo}", f"{task.answer} {echo}"))
    return FAMILIES[task.family](rng)[1]


def _wrong_list(items: list[str], rng: random.Random) -> str:
    """Mirrored, an item dropped, doubled or replaced, or two neighbours exchanged."""
    kind, place = rng.randrange(5), rng.randrange(len(items))
    if kind == 0:
        items = items[::-1]
    elif kind == 1:
        items = items[:place] + items[place + 1 :]
    elif kind == 2:
        items = items[: place + 1] + items[place:]
    elif kind == 3:
        items = [*items[:place], rng.choice(words.NOUNS), *items[place + 1 :]]
    else:
        items = [*items[:place], *items[place : place + 2][::-1], *items[place + 2 :]]
    return " ".join(items)
