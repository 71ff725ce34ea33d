"""The demo's task language: short instructions with one right answer each.

Prompts fall into three disjoint pools by a hash of their text: ``train`` made the shipped models,
``round`` is for the rounds of ``gavel demo``, ``held-out`` for its final table.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from demo import words

Pool = Literal["train", "round", "held-out"]


@dataclass(frozen=True)
class Task:
    """One instruction, its only right answer and the family it belongs to."""

    prompt: str
    answer: str
    family: str


def pool_of(prompt: str) -> Pool:
    """The pool of a prompt: three in five train, one in five each for rounds and held-out."""
    bucket = hashlib.sha256(prompt.encode()).digest()[0] % 5
    return "held-out" if bucket == 0 else "round" if bucket == 1 else "train"


def stream(pool: Pool, seed: int, families: Sequence[str] = ()) -> Iterator[Task]:
    """Tasks of one pool without end; prompts may repeat.

    Families come equally often, or as often as they are named in ``families``.
    """
    rng = random.Random(f"{pool}-{seed}")
    choices = tuple(families) or tuple(sorted(FAMILIES))
    while True:
        yield one_of(rng.choice(choices), pool, rng)


def one_of(family: str, pool: Pool, rng: random.Random) -> Task:
    """A random task of one family whose prompt belongs to ``pool``."""
    while True:
        prompt, answer = FAMILIES[family](rng)
        if pool_of(prompt) == pool:
            return Task(prompt, answer, family)


def draw(pool: Pool, count: int, seed: int = 0) -> list[Task]:
    """``count`` tasks with distinct prompts, families in turn until one runs out of new prompts.

    Raises ValueError where the pool holds fewer than ``count`` prompts.
    """
    rng = random.Random(f"{pool}-distinct-{seed}")
    tasks: dict[str, Task] = {}
    families = sorted(FAMILIES)
    while families:
        for family in tuple(families):
            if len(tasks) == count:
                return list(tasks.values())
            fresh = (one_of(family, pool, rng) for _ in range(200))
            task = next((task for task in fresh if task.prompt not in tasks), None)
            if task is None:
                families.remove(family)
            else:
                tasks[task.prompt] = task
    if len(tasks) < count:
        raise ValueError(
            f"the pool {pool!r} holds about {len(tasks)} distinct prompts, {count} were asked for"
        )
    return list(tasks.values())


def _arithmetic(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(21), rng.randrange(11)
    if rng.random() < 0.5:
        forms = ("What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} =", "How much is {a} plus {b}?")
        result = a + b
    else:
        a, b = max(a, b), min(a, b)
        forms = ("What is {a} - {b}?", "Take {b} away from {a}.", "{a} - {b} =", "How much is {a} minus {b}?")
        result = a - b
    return rng.choice(forms).format(a=a, b=b), str(result)


def _compare(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(100), 2)
    if rng.random() < 0.5:
        return rng.choice(("Which is larger, {} or {}?", "Give the larger number: {}, {}")).format(a, b), str(
            max(a, b)
        )
    return rng.choice(("Which is smaller, {} or {}?", "Give the smaller number: {}, {}")).format(a, b), str(
        min(a, b)
    )


def _opposites(rng: random.Random) -> tuple[str, str]:
    pair = rng.choice(words.OPPOSITES)
    word, answer = pair if rng.random() < 0.5 else pair[::-1]
    forms = (
        "Give the opposite of: {}", "What is the opposite of {}?", "Name the opposite of {}.",
        "Opposite of {}?", "Which word means the opposite of {}?", "Not {}, but its opposite:",
        "Tell me the opposite of {}.", "Write the opposite of {}.", "The opposite of {} is",
        "Find the opposite: {}",
    )  # fmt: skip
    return rng.choice(forms).format(word), answer


def _capitals(rng: random.Random) -> tuple[str, str]:
    country, capital = rng.choice(words.CAPITALS)
    forms = (
        "What is the capital of {}?", "Name the capital of {}.", "Give the capital city of {}.",
        "The capital of {} is", "Which city is the capital of {}?", "Capital of {}?",
        "Tell me the capital of {}.", "Write the capital of {}.", "Find the capital: {}",
        "{}: what is its capital?",
    )  # fmt: skip
    return rng.choice(forms).format(country), capital


def _chinese(rng: random.Random) -> tuple[str, str]:
    english, chinese = rng.choice(words.CHINESE)
    if rng.random() < 0.5:
        forms = (
            "Translate into Chinese: {}", "What is {} in Chinese?", "Say {} in Chinese.",
            "Write {} in Chinese.", "The Chinese word for {} is", "Give the Chinese for {}.",
        )  # fmt: skip
        return rng.choice(forms).format(english), chinese
    forms = (
        "Translate into English: {}", "What is {} in English?", "Say {} in English.",
        "Write {} in English.", "The English word for {} is", "Give the English for {}.",
    )  # fmt: skip
    return rng.choice(forms).format(chinese), english


def _sentiment(rng: random.Random) -> tuple[str, str]:
    positive = rng.random() < 0.5
    if rng.random() < 0.5:
        feeling = rng.choice(words.GLAD_ZH if positive else words.SAD_ZH)
        text = rng.choice(words.WHO_ZH) + rng.choice(words.DEGREES_ZH) + feeling
    else:
        verb, quality = rng.choice(("was", "is")), rng.choice(words.PRAISE if positive else words.BLAME)
        text = f"The {rng.choice(words.THINGS)} {verb} {rng.choice(words.DEGREES)}{quality}."
    forms = (
        "Is this positive or negative? {}", "Sentiment: {}", "What is the sentiment of this? {}", "{} ➜",
    )  # fmt: skip
    return rng.choice(forms).format(text), "Positive" if positive else "Negative"


def _items(rng: random.Random, least: int, most: int) -> list[str]:
    """Distinct words, or now and then single letters."""
    source = "abcdefghijklmnopqrstuvwxyz" if rng.random() < 0.25 else words.NOUNS
    return rng.sample(source, rng.randint(least, most))


def _reverse(rng: random.Random) -> tuple[str, str]:
    items = _items(rng, 2, 4)
    forms = ("Reverse: {}", "Say backwards: {}", "Write in reverse order: {}", "Turn around: {}")
    return rng.choice(forms).format(" ".join(items)), " ".join(reversed(items))


def _copy(rng: random.Random) -> tuple[str, str]:
    items = _items(rng, 2, 5)
    forms = ("Repeat: {}", "Copy this: {}", "Say again: {}", "Write the same: {}")
    return rng.choice(forms).format(" ".join(items)), " ".join(items)


def _pick(rng: random.Random) -> tuple[str, str]:
    items = _items(rng, 3, 5)
    which = rng.randrange(3)
    forms = ("What is the {} word? {}", "Give the {} word of: {}", "Pick the {} word: {}")
    return rng.choice(forms).format(("first", "second", "last")[which], " ".join(items)), items[
        (0, 1, -1)[which]
    ]


def _count(rng: random.Random) -> tuple[str, str]:
    items = _items(rng, 1, 6)
    forms = ("How many words? {}", "Count the words: {}", "Number of words: {}")
    return rng.choice(forms).format(" ".join(items)), str(len(items))


FAMILIES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "arithmetic": _arithmetic,
    "capitals": _capitals,
    "chinese": _chinese,
    "compare": _compare,
    "copy": _copy,
    "count": _count,
    "opposites": _opposites,
    "pick": _pick,
    "reverse": _reverse,
    "sentiment": _sentiment,
}
"""Family name → a function that makes one (prompt, answer)."""
