"""The two sides of a comparison: outputs of a file, of a run, or of a model that is sampled for it."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gavel.command import say
from gavel.engines import EngineConfig, open_engine
from gavel.errors import InputError
from gavel.records import Completion, Message, Prompt, digest
from gavel.rundir import Index, RunDir, is_run, read_records
from gavel.sources import BadRows, read_outputs, read_prompts
from generate.stage import GenerateConfig, generate, take_in
from judge.duels import Duel, Outcome
from judge.head_to_head import Bout
from judge.kinship import Kin
from judge.pair_statistics import suspicious
from judge.stage import groups_of, pass_name


@dataclass(slots=True)
class Side:
    """Outputs by what was asked. asked: hash of a prompt's messages → the prompt and its outputs."""

    name: str
    asked: dict[str, tuple[Prompt, list[Completion]]] = field(default_factory=dict)

    def add(self, prompt: Prompt, completions: Iterable[Completion]) -> None:
        self.asked.setdefault(digest(prompt.messages), (prompt, []))[1].extend(completions)

    def repeated(self) -> tuple[str, int] | None:
        """The text that is offered for the most prompts, and for how many, where that is suspicious: a text
        that flatters the judge needs no prompt."""
        texts = Counter(
            t for _, made in self.asked.values() for t in {c.text.strip() for c in made if c.text.strip()}
        )
        text, count = max(texts.items(), key=lambda item: item[1], default=("", 0))
        return (text, count) if count >= suspicious(len(self.asked)) else None

    def makers(self) -> list[Kin]:
        """The models that made the outputs, where they are known."""
        made = (c for _, completions in self.asked.values() for c in completions)
        return list(dict.fromkeys(Kin(c.model, c.weights) for c in made if c.model))


@dataclass(frozen=True, slots=True)
class Joined:
    """duels: the k-th output of a against the k-th of b, by hash of the prompt's messages.

    only_a, only_b: prompts that the other side has no outputs for. left_out: outputs without a partner,
    of prompts that both have.
    """

    duels: dict[str, list[Duel]]
    only_a: int
    only_b: int
    left_out: int

    def blank(self) -> int:
        """Duels in which one output is empty and the other is not: a judge that compares is not asked."""
        texts = [(d.a.text.strip(), d.b.text.strip()) for duels in self.duels.values() for d in duels]
        return sum(bool(a) != bool(b) for a, b in texts)


@dataclass(frozen=True, slots=True)
class Sampled:
    """How the models of a comparison are sampled.

    prompts: the source of the prompts, None where none was given. out: a folder for the outputs.
    """

    prompts: str | None
    config: GenerateConfig
    out: Path


def is_model(source: str) -> bool:
    """Whether A or B names a model: a directory with a config.json, or nothing that is there and no file
    of data by its name."""
    path = Path(source).expanduser()
    if source.startswith("hub:") or is_run(path):
        return False
    if path.exists():
        return (path / "config.json").is_file()
    return not {".jsonl", ".json", ".csv", ".parquet", ".gz"} & set(path.suffixes)


def check_sides(a: str, b: str, prompts: str | None) -> None:
    """Raises InputError where a side names nothing, or a model has no prompts to answer."""
    models = [source for source in (a, b) if is_model(source)]
    if models and prompts is None:
        there = Path(models[0]).expanduser().exists()
        what = "is a model" if there else "there is no such file, and as a model it needs prompts"
        raise InputError(what, where=models[0], hint="Say what to ask it: --prompts SRC.")
    if not models and prompts is not None:
        raise InputError("is for models; both sides hold their outputs already", where="--prompts")


def of_run(path: str) -> Side:
    """The completions of a run directory. Raises InputError where it has none."""
    run, side = RunDir(path), Side(path)
    with contextlib.closing(Index(run.completions_path)) as index:
        for prompt, completions in groups_of(run, index):
            side.add(prompt, completions)
    if not side.asked:
        raise InputError("holds no completions", where=path, hint="Run gavel generate first.")
    return side


def of_source(source: str, mapping: Mapping[str, str], bad: BadRows) -> Side:
    """The outputs of a file. Raises InputError as `gavel.sources.read_outputs`."""
    side = Side(source)
    for row in read_outputs(source, mapping, bad):
        side.add(row.prompt, row.completions)
    bad.check()
    return side


def of_model(engine: EngineConfig, sampling: Sampled, mapping: Mapping[str, str], bad: BadRows) -> Side:
    """A model's answers to the prompts, kept in a run directory of their own that resumes.

    Raises InputError for prompts, a model or options that cannot be used.
    """
    assert sampling.prompts is not None, "check_sides"
    source, config = sampling.prompts, sampling.config
    # all that shapes the answers, so that answers of other settings never stand beside them
    settings = digest(asdict(engine), config.sampling, config.seed, config.tags)
    folder = sampling.out / f"{pass_name('of', engine.model)}-{settings[:8]}"
    side = Side(engine.model)
    with RunDir.open(folder) as run:
        ids = set(take_in(run, lambda b: read_prompts(source, mapping, b), bad))
        with open_engine(engine) as opened:
            say(f"sampling {engine.model} ({len(ids):,} prompts)")
            generate(run, opened, config, ids=ids, bad=bad)
            weights = opened.weights  # the same path may have held other weights before
        run.note(policy=engine.model)
        prompts = {p.id: p for p in read_records(run.prompts_path, Prompt) if p.id in ids}
        for completion in read_records(run.completions_path, Completion):
            mine = completion.prompt_id in ids and completion.weights == weights
            if mine and completion.index < config.n:
                side.add(prompts[completion.prompt_id], [completion])
    return side


def join(a: Side, b: Side) -> Joined:
    """The duels of two sides, joined by what was asked.

    Raises InputError where no prompt is on both sides.
    """
    both = [key for key in a.asked if key in b.asked]
    if not both:
        raise InputError(
            "the two sides have no prompt in common",
            where=f"{a.name}, {b.name}",
            hint=f"The first asks {_begins(a)!r}, the second {_begins(b)!r}.",
        )
    duels, left_out = {}, 0
    for key in both:
        prompt, of_a = a.asked[key]
        other, of_b = b.asked[key]
        known = prompt if prompt.references else other
        pairs = list(itertools.zip_longest(_ordered(of_a), _ordered(of_b)))
        whole = [(one, two) for one, two in pairs if one is not None and two is not None]
        left_out += len(pairs) - len(whole)
        duels[key] = [
            Duel(digest("duel", key, place), known, one, two) for place, (one, two) in enumerate(whole)
        ]
    return Joined(duels, len(a.asked) - len(both), len(b.asked) - len(both), left_out)


def bouts_of(duels: Iterable[Duel], outcomes: Mapping[str, Outcome]) -> list[Bout]:
    """The duels of one prompt with what came of them; one that is not answered in both orders has no
    verdict, since the order that was answered alone would speak for its place."""
    found = []
    for duel in duels:
        ab, ba = outcomes[duel.id].ab, outcomes[duel.id].ba
        p = None if ab is None or ba is None else 1 - (ab + ba) / 2
        found.append(Bout(p, len(duel.a.text), len(duel.b.text), ab, ba))
    return found


def _ordered(completions: Iterable[Completion]) -> Iterator[Completion]:
    """By index; in the order read where several have the same."""
    yield from sorted(completions, key=lambda c: c.index)


def _begins(side: Side) -> str:
    messages: tuple[Message, ...] = next(iter(side.asked.values()))[0].messages
    return messages[-1].content[:40]
