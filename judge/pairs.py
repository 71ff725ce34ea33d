"""Judgments → preference pairs: the stage behind `gavel pairs`.

Walks prompt by prompt through files of any size: memory grows by the two indices (24 bytes a record),
130 bytes a prompt and 20 bytes a completion for the statistics. The same inputs and settings give the
same bytes, so a rerun is a rewrite, never a resume.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from gavel.errors import CheckFailed, InputError, RunDirError
from gavel.records import PreferencePair, digest
from gavel.rundir import JsonlWriter, RunDir, read_lines
from gavel.scores import Scores, choose_pass, distinct_prompts, eligible
from judge.pair_statistics import Tally, warnings_of
from judge.select import (
    Drop,
    Proposal,
    Selection,
    is_swapped,
    margin,
    p_better,
    select,
)

_LISTED = 10  # how many reasons of unusable judgments a summary tells apart


class NoPairs(CheckFailed):
    """The candidates are all alike, or filters left nothing."""


@dataclass(frozen=True, kw_only=True)
class PairConfig(Selection):
    """Settings of one set of pairs.

    judgments: the judging pass; the newest if None. aspects: all of the pass if empty.
    shuffle_labels: a control that swaps chosen and rejected of half the pairs.
    name: of the set; made of pass and strategy if None.
    """

    judgments: str | None = None
    aspects: tuple[str, ...] = ()
    shuffle_labels: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and (
            not self.name or self.name.startswith(".") or set(self.name) & set("/\\\0")
        ):
            raise InputError(f"{self.name!r} cannot name a folder", where="--name")


def make_pairs(run: RunDir, config: PairConfig) -> dict[str, Any]:
    """Writes RUN/pairs/<name>/pairs.jsonl and returns the summary that the manifest keeps.

    Args:
        run: an open run directory with completions and judgments.

    Raises:
        NoPairs: none came out; an earlier set of the same name stays as it is.
        RunDirError: nothing to make pairs of yet; the command to run first is named.
        InputError: a judging pass or an aspect that does not exist; the known ones are named.
    """
    judging = choose_pass(run, config.judgments)
    source = survey(run.judgments_path(judging))
    aspects = choose_aspects(source, config.aspects, judging)
    name = config.name or default_name(judging, config)
    path, stage = run.pairs_path(name), f"pairs/{name}"
    tally, dropped = Tally(), Counter({str(reason): 0 for reason in Drop})

    with (
        Scores.open(run, judging, aspects) as scores,
        replacing(path, before=lambda: run.reopen_stage(stage)) as writer,
    ):
        for prompt in distinct_prompts(run):
            candidates = scores.of(prompt.id)
            chosen_pairs = select(prompt.id, eligible(candidates, dropped), config, dropped)
            tally.add_prompt(candidates, chosen_pairs)
            for pair in chosen_pairs:
                swapped = config.shuffle_labels and is_swapped(config.seed, prompt.id, pair)
                tally.add_pair(pair, swapped)
                writer.append(as_record(prompt.id, pair, swapped))
        if not tally.pairs:  # the file that is there stays
            raise NoPairs(
                "no pair came out: " + (reasons(dropped) or "nothing to pair"),
                where=str(run.path),
                hint="Judge more completions a prompt, or loosen the filters.",
            )

    summary: dict[str, Any] = {
        "name": name,
        "judgments": judging,
        "judging_finished": bool(run.stage(f"judge/{judging}")),
        **tally.counts(),
        "dropped": dict(dropped),
        **tally.statistics(),
        **tally.orders(run.manifest().get("gates", {}).get(judging), config.disputed),
        "repeated_texts": tally.repeated_texts(run.completions_path),
        "labels_shuffled": config.shuffle_labels,
        "labels_swapped": tally.swapped,
        "settings": asdict(config) | {"judgments": judging, "aspects": list(aspects), "name": name},
        "judge": source,
        "policies": tally.policies(),
        "seeds": seeds_of(run, config),
        "gavel": version("gavel"),
    }
    summary["warnings"] = warnings_of(summary)
    run.finish_stage(stage, summary)
    return summary


def reasons(dropped: Mapping[str, int]) -> str:
    """Why what was dropped was dropped, in words."""
    return ", ".join(f"{why.replace('_', ' ')} {n:,}" for why, n in dropped.items() if n)


class _Judged(msgspec.Struct):
    """What `survey` reads of a judgment."""

    completion_ids: tuple[str, ...]
    method: str
    aspect: str
    judge: str
    weights: str
    template: str
    parser: str
    score: float | None = None
    verdict: str | None = None
    reason: str | None = None


def survey(path: Path) -> dict[str, Any]:
    """What a judging pass is made of: methods, judges, aspects with templates, unusable by reason."""
    decoder = msgspec.json.Decoder(_Judged)
    seen: dict[str, set[str]] = {key: set() for key in ("method", "judge", "weights", "parser")}
    templates: dict[str, set[str]] = {}
    reasons: Counter[str] = Counter()
    judgments = single = 0
    for number, _, line in read_lines(path):
        try:
            row = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunDirError(f"not a judgment: {error}", where=f"{path}:{number}") from None
        judgments += 1
        for key, values in seen.items():
            values.add(getattr(row, key))
        single += len(row.completion_ids) == 1
        templates.setdefault(row.aspect, set()).add(row.template)
        if row.reason is not None or (row.score is None and row.verdict is None):
            reason = row.reason or "no score"
            reasons[reason if reason in reasons or len(reasons) < _LISTED else "other"] += 1
    return {
        "judgments": judgments,
        "single": single,
        "unusable": dict(sorted(reasons.items())),
        **{key: sorted(values) for key, values in seen.items()},
        "templates": {aspect: sorted(templates[aspect]) for aspect in sorted(templates)},
    }


def choose_aspects(source: dict[str, Any], wanted: tuple[str, ...], judging: str) -> tuple[str, ...]:
    """The aspects to average: those wanted (each once), else all of the pass."""
    known = tuple(source["templates"])
    if not known:
        raise RunDirError(f"judging pass {judging!r} holds no judgments yet", hint="Run gavel judge first.")
    for aspect in wanted:
        if aspect not in known:
            raise InputError(
                f"no aspect {aspect!r} in judging pass {judging!r}",
                where="--aspect",
                hint=f"Known: {', '.join(known)}.",
            )
    return tuple(dict.fromkeys(wanted)) or known


def default_name(judging: str, config: PairConfig) -> str:
    """The name of a set that was given none; a control never takes the place of the real thing."""
    return f"{judging}-{config.strategy}" + ("-shuffled" if config.shuffle_labels else "")


def seeds_of(run: RunDir, config: PairConfig) -> dict[str, int]:
    """The seeds that the manifest knows of, by stage."""
    found = {}
    for stage, entry in run.manifest().get("stages", {}).items():
        settings = entry.get("settings") if isinstance(entry, dict) else None
        seed = (
            (settings if isinstance(settings, dict) else {}).get("seed")
            if "seed" not in entry
            else entry["seed"]
        )
        if isinstance(seed, int) and not stage.startswith("pairs/"):
            found[stage] = seed
    return found | {"pairs": config.seed}


def as_record(prompt_id: str, pair: Proposal, swapped: bool) -> PreferencePair:
    """One pair. In a swapped one each score stays with its completion, and the margin is still the size
    of their difference: no score says anything false of a text, and the margin is always above 0. The
    probability stays with the label, so that a trainer that reads it learns nothing either."""
    chosen, rejected = reversed(pair) if swapped else pair
    judgment_ids = tuple(dict.fromkeys(chosen.judgment_ids + rejected.judgment_ids))
    ids = (prompt_id, chosen.completion.id, rejected.completion.id)
    return PreferencePair(
        id=digest("pair", *ids, judgment_ids),
        prompt_id=ids[0],
        chosen_id=ids[1],
        rejected_id=ids[2],
        margin=margin(pair),
        p_chosen=p_better(*pair),
        chosen_score=chosen.number,
        rejected_score=rejected.number,
        judgment_ids=judgment_ids,
    )


@contextlib.contextmanager
def replacing(path: Path, before: Callable[[], None]) -> Iterator[JsonlWriter]:
    """A writer whose file takes the place of `path` when all went well; `before` is called first."""
    fresh = path.with_name(f".{path.name}.tmp")  # the run's lock keeps others away
    fresh.unlink(missing_ok=True)
    try:
        with JsonlWriter(fresh) as writer:
            yield writer
        before()
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
