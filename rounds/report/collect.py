"""A run directory, or a whole directory of rounds, as a `Report`.

Prompts are walked one by one; what is kept of each is a few numbers (`tally`, `sample`), so memory grows
with the number of records and not with their texts. The pairs that were drawn are read again, whole.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from gavel.errors import RunDirError
from gavel.records import Completion, Judgment, PreferencePair, Prompt
from gavel.rundir import Index, RunDir, holds_lines, is_run
from gavel.scores import Candidate, aspects_of, distinct_prompts, eligible, in_both_orders, score_completions
from judge.panel_agreement import Agreement as Alike
from rounds.report.examples import example
from rounds.report.sample import PairTally, Pick, allot, doubtfulness
from rounds.report.shapes import Agreement, Example, PairSet, Report, RunReport
from rounds.report.tally import PassTally, TextTally, histogram
from rounds.report.training import read_curves, read_rounds, summary_of

MOST_PASSES = 6  # of one run that are compared with each other

#: what stands in for the pairs of a run that has none
PAIR, BEST_WORST, TWO = "pair", "best and worst", "two answers"


@dataclass(frozen=True)
class _Seen:
    """All that a run holds of one prompt. scored: by pass, in the order of `completions`."""

    place: int
    prompt: Prompt
    completions: list[Completion]
    judgments: dict[str, list[Judgment]]
    scored: dict[str, list[Candidate]]
    pairs: dict[str, list[PreferencePair]]

    def by_id(self) -> list[dict[str, Candidate]]:
        return [{c.completion.id: c for c in found} for found in self.scored.values()]


def collect(path: str | Path, pairs: int = 1000) -> Report:
    """Reads a run of any stage, a trained model's directory or a directory of rounds.

    Args:
        pairs: how many to draw to be looked at, as many of each round; what one lacks goes to the others.

    Raises:
        RunDirError: nothing that can be shown; what to run first is named.
    """
    home = Path(path)
    rounds = sorted(p for p in (home / "rounds").glob("[0-9]*") if p.is_dir())
    folders = [(f"round {int(p.name)}" if p.name.isdigit() else p.name, p) for p in rounds]
    if not folders:
        folders = [(home.resolve().name, home)]
    folders = [(label, folder) for label, folder in folders if _holds(folder)]
    figures = read_rounds(home / "figures.jsonl")
    if not folders and not figures:
        raise RunDirError(
            "holds nothing to report: no completions, no figures of rounds, no metrics of a training",
            where=str(path),
            hint=f"Run first: gavel generate --model M --prompts SRC --out {path}",
        )
    made = [collect_run(label, folder) for label, folder in folders]
    shares = allot(pairs, [1 / len(made) for _ in made], [len(one.offered) for one in made])
    examples = [found for one, share in zip(made, shares, strict=True) for found in one.examples(share)]
    offered: Counter[str] = Counter()
    for one in made:
        offered[one.kind] += len(one.offered)
    return Report(
        title=home.resolve().name,
        path=str(path),
        runs=tuple(one.report for one in made),
        rounds=tuple(figures),
        examples=tuple(sorted(examples, key=doubtfulness)),
        offered=dict(offered),
        notes=_notes(home, bool(rounds), bool(figures)),
    )


def _holds(folder: Path) -> bool:
    """Whether a folder has anything to show."""
    return holds_lines(folder / "completions.jsonl") or bool(_metrics(folder))


def _metrics(folder: Path) -> list[Path]:
    """The training metrics of a run's model and reward model, or of a model's directory itself."""
    files = (
        folder / "metrics.jsonl",
        folder / "model" / "metrics.jsonl",
        folder / "reward" / "metrics.jsonl",
    )
    return [file for file in files if file.is_file()]


def _notes(home: Path, rounds: bool, figures: bool) -> tuple[str, ...]:
    if rounds and not figures:
        return ("There is no figures.jsonl here, so nothing is shown by round.",)
    if not rounds and not is_run(home):
        return ("A trained model's directory: its training curves are all that there is.",)
    return ()


@dataclass(frozen=True)
class Counted:
    """A run directory once its records were counted.

    kind: what can be looked at, pairs or what stands in for them. offered: all of these.
    """

    folder: Path
    report: RunReport
    kind: str = PAIR
    offered: PairTally = field(default_factory=PairTally)

    def examples(self, count: int) -> list[Example]:
        """At most so many of what is offered, with their texts, which are read now."""
        picks = self.offered.draw(count)
        if not picks:
            return []
        with _Reader.open(RunDir(self.folder)) as reader:
            return reader.examples(self.report.label, self.kind, picks)


def collect_run(label: str, folder: Path) -> Counted:
    """Counts one run directory."""
    curves = tuple(curve for file in _metrics(folder) for curve in read_curves(file))
    run = RunDir(folder)
    if not holds_lines(run.completions_path):
        return Counted(folder, RunReport(label, None, curves=curves, trained=summary_of(folder)))
    with _Reader.open(run) as reader:
        texts, alike = TextTally(), _agreements(reader.passes)
        passes = {name: PassTally(name) for name in reader.passes}
        kind, offered = reader.kind(), PairTally()
        sets = {name: PairTally() for name in reader.pair_sets}
        for seen in reader.walk():
            texts.add(seen.completions)
            for name, tally in passes.items():
                tally.add(seen.judgments[name], seen.scored[name])
            for both, agreement in alike.items():
                agreement.add({name: seen.scored[name] for name in both})
            known, by_id = {c.id: c.text for c in seen.completions}, seen.by_id()
            for name, pair_tally in sets.items():
                pair_tally.add(seen.place, seen.pairs[name], known, by_id)
            if kind != PAIR:
                offered.add(seen.place, stand_in(kind, seen.completions, seen.scored), known, by_id)
        report = RunReport(
            label=label,
            texts=texts.report(),
            passes=tuple(
                tally.report(finished=bool(run.stage(f"judge/{name}"))) for name, tally in passes.items()
            ),
            agreements=tuple(
                Agreement(*both, **next(iter(found.summary().values()))) for both, found in alike.items()
            ),
            pair_sets=tuple(_pair_set(run, name, tally) for name, tally in sets.items()),
            curves=curves,
            notes=reader.notes,
        )
        return Counted(folder, report, kind, sets[reader.pair_sets[-1]] if kind == PAIR else offered)


def _agreements(passes: Sequence[str]) -> dict[tuple[str, str], Alike]:
    """Two by two, since a completion that a third pass left out says something of these two all the same."""
    return {both: Alike(both) for both in combinations(passes[-MOST_PASSES:], 2)}


def _pair_set(run: RunDir, name: str, tally: PairTally) -> PairSet:
    stage: dict[str, Any] = run.stage(f"pairs/{name}")
    return PairSet(
        name=name,
        judging=stage.get("judgments"),
        pairs=len(tally),
        prompts=tally.prompts,
        without_pair=tally.without_pair,
        margins=histogram(tally.margins),
        longer=tally.longer,
        chars=tally.chars,
        doubtful=tally.doubtful(),
        warnings=tuple(stage.get("warnings", ())),
    )


def stand_in(
    kind: str, completions: Sequence[Completion], scored: dict[str, list[Candidate]]
) -> list[PreferencePair]:
    """What to show of a prompt that has no pairs: its best and worst answer by the newest pass, else
    its first two different ones."""
    if kind == BEST_WORST:
        ranked = eligible(list(scored.values())[-1], Counter())
        if len(ranked) < 2:
            return []
        best, worst = ranked[0], ranked[-1]
        return [_as_pair(best.completion, worst.completion, best.number, worst.number)]
    texts = {c.text: c for c in sorted(completions, key=lambda c: (-c.index, c.id))}  # the lowest index wins
    two = sorted(texts.values(), key=lambda c: (c.index, c.id))[:2]
    return [_as_pair(two[0], two[1], 0.0, 0.0)] if len(two) == 2 else []


def _as_pair(chosen: Completion, rejected: Completion, score: float, other: float) -> PreferencePair:
    return PreferencePair(
        id="", prompt_id=chosen.prompt_id, chosen_id=chosen.id, rejected_id=rejected.id,
        margin=score - other, chosen_score=score, rejected_score=other,
    )  # fmt: skip


class _Reader:
    """A run's files, read prompt by prompt."""

    def __init__(self, run: RunDir, stack: contextlib.ExitStack) -> None:
        def index(path: Path) -> Index:
            return stack.enter_context(contextlib.closing(Index(path)))

        self.run = run
        self.passes, self.pair_sets = _present(run)
        self.notes: tuple[str, ...] = ()
        if len(self.passes) > MOST_PASSES:
            self.notes = (f"The {MOST_PASSES} newest judging passes are compared with each other.",)
        self._completions = index(run.completions_path)
        self._judgments = {name: index(run.judgments_path(name)) for name in self.passes}
        self._pairs = {name: index(run.pairs_path(name)) for name in self.pair_sets}
        self._aspects = {name: aspects_of(run, name) for name in self.passes}
        self._both = {name: in_both_orders(run, name) for name in self.passes}

    @classmethod
    @contextlib.contextmanager
    def open(cls, run: RunDir) -> Iterator[_Reader]:
        with contextlib.ExitStack() as stack:
            yield cls(run, stack)

    def kind(self) -> str:
        return PAIR if self.pair_sets else BEST_WORST if self.passes else TWO

    def walk(self, wanted: set[int] | None = None) -> Iterator[_Seen]:
        """The prompts in file order; wanted: only those at these places."""
        for place, prompt in enumerate(distinct_prompts(self.run)):
            if wanted is None or place in wanted:
                yield self._read(place, prompt)

    def _read(self, place: int, prompt: Prompt) -> _Seen:
        completions = self._completions.read(prompt.id, Completion)
        judgments = {name: index.read(prompt.id, Judgment) for name, index in self._judgments.items()}
        scored = {
            name: score_completions(completions, found, self._aspects[name], both_orders=self._both[name])
            for name, found in judgments.items()
        }
        pairs = {name: index.read(prompt.id, PreferencePair) for name, index in self._pairs.items()}
        return _Seen(place, prompt, completions, judgments, scored, pairs)

    def examples(self, label: str, kind: str, picks: Sequence[Pick]) -> list[Example]:
        """The drawn pairs with their texts, in the order of the draw."""
        found: dict[tuple[int, int], Example] = {}
        doubts = {(pick.prompt, pick.pair): pick.doubts for pick in picks}
        for seen in self.walk({pick.prompt for pick in picks}):
            pairs = (
                seen.pairs[self.pair_sets[-1]]
                if kind == PAIR
                else stand_in(kind, seen.completions, seen.scored)
            )
            for place, pair in enumerate(pairs):
                if (seen.place, place) in doubts:
                    made = example(
                        label, kind, pair, seen.prompt, seen.completions, seen.judgments,
                        doubts[seen.place, place],
                    )  # fmt: skip
                    if made is not None:
                        found[seen.place, place] = made
        return [found[key] for key in doubts if key in found]


def _present(run: RunDir) -> tuple[list[str], list[str]]:
    """The judging passes and sets of pairs that hold a record, oldest first."""
    passes = [n for n in run.judging_passes() if holds_lines(run.judgments_path(n))]
    sets = [n for n in run.pair_sets() if holds_lines(run.pairs_path(n))]
    return passes, sets
