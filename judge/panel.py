"""Several judges as one: each judges into a pass of its own, then their words are put together.

- "mean" and "minimum": of the members' scores, each calibrated to mean 0 and standard deviation 1 over
  the whole pass, so that a judge of 1–10 does not outweigh one of 1–5;
- "majority": each member votes on each two completions of a prompt, and the share of votes is the
  probability that the first is better; an even split is a tie, whatever the order;
- "implicit": DPO's own reward β·log(π/π_ref) (Rafailov et al. 2023, eq. 5, without the term that
  depends on the prompt alone), from the log-likelihoods of a policy and its reference.

A completion that any member has no score for has none here, and the member is named.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from gavel.engines import EngineConfig, open_engine
from gavel.errors import RunDirError
from gavel.records import Completion, Judgment, Prompt, digest
from gavel.rundir import Index, RunDir
from gavel.scores import Candidate, score_completions
from gavel.standing import distinct
from judge.collect import UNLIMITED, Limits
from judge.judging import default_pass
from judge.kinship import Kin
from judge.method import Method, orders_of
from judge.pairs import replacing
from judge.panel_agreement import Agreement
from judge.stage import Groups, NothingUsable, groups_of, judge

COMBINE = ("mean", "majority", "minimum")
PARSER = "panel/1"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One judge of a panel. name: part of its pass's name."""

    name: str
    config: EngineConfig
    method: Method


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Implements `judge.judging.Judging`.

    combine: one of COMBINE, or "implicit" for (policy, reference). beta: of "implicit".
    """

    members: tuple[Member, ...]
    combine: str
    beta: float = 0.1

    @property
    def name(self) -> str:
        return "implicit" if self.combine == "implicit" else "panel"

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.config.model for member in self.members))

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def one_order(self) -> bool:
        return any(orders_of(member.method) == "one" for member in self.members)

    @property
    def both_orders(self) -> bool:
        return False  # a vote is on a pair, not on an order

    def identity(self) -> str:
        asked = [
            (m.name, m.config.model, m.config.adapter, m.method.name, m.method.fingerprint,
             [m.method.template(a) for a in m.method.aspects])
            for m in self.members
        ]  # fmt: skip
        return digest("panel", PARSER, self.combine, self.beta, asked)

    def kin(self) -> list[Kin]:
        return [Kin(member.config.model) for member in self.members]

    def judge(
        self, run: RunDir, name: str | None = None, groups: Groups | None = None, limits: Limits = UNLIMITED
    ) -> dict[str, Any]:
        """Judges by each member in turn, its engine open only meanwhile, then combines.

        Raises: as `judge.stage.judge`; CheckFailed where nothing could be combined.
        """
        started = time.monotonic()
        judging = name or default_pass(self)
        self._claim(run, judging)
        summaries: dict[str, dict[str, Any]] = {}
        spent: Counter[str] = Counter()
        for member in self.members:
            asked = f"{judging}.{member.name}"
            with open_engine(member.config) as engine:
                try:
                    summary = judge(
                        run, engine, member.method, name=asked, groups=groups, limits=limits.after(spent)
                    )
                except NothingUsable as error:  # said for each completion, with the member's name
                    summary = error.summary
            spent.update({key: summary[key] for key in ("calls", "tokens")})
            summaries[member.name] = summary
        sums = {
            key: sum(s[key] for s in summaries.values())
            for key in ("calls", "tokens", "completion_tokens", "failed", "left")
        }
        passes = {m: run.judgments_path(s["pass"]) for m, s in summaries.items()}
        with contextlib.ExitStack() as stack:
            indices = {m: stack.enter_context(contextlib.closing(Index(p))) for m, p in passes.items()}
            own = stack.enter_context(contextlib.closing(Index(run.completions_path)))
            found = _Read(groups or (lambda: groups_of(run, own)), indices, self.members)
            run.reopen_stage(f"judge/{judging}")
            written, unusable, agreement = self._combine(run, judging, found)
        summary = {
            "pass": judging,
            "judgments": written,
            "unusable": unusable,
            **sums,
            "seconds": round(time.monotonic() - started, 2),
            "judge": " + ".join(self.models),
            "weights": digest([s["weights"] for s in summaries.values()]),
            "method": self.name,
            "settings": self.combine if self.combine != "implicit" else f"beta={self.beta}",
            "members": summaries,
            "agreement": agreement,
        }
        if not sums["left"] and not sums["failed"]:
            run.finish_stage(f"judge/{judging}", summary)
        if written == unusable and not sums["left"]:
            raise NothingUsable(
                "not one judgment could be combined",
                summary,
                where=str(run.judgments_path(judging)),
                hint="Their reasons stand in the file.",
            )
        return summary

    def _claim(self, run: RunDir, judging: str) -> None:
        """Notes what a pass is combined of. Raises RunDirError when the name is taken by something else."""
        passes = run.manifest().get("passes", {})
        now = {"judge": " + ".join(self.models), "method": self.name, "settings": self.combine,
               "parser": PARSER, "members": self.identity()}  # fmt: skip
        before = passes.get(judging)
        taken = run.judgments_path(judging).exists() if before is None else before != now
        if taken:
            raise RunDirError(
                f"the judging pass {judging!r} was begun with other judges or another method",
                where=str(run.path),
                hint="Give this one a name of its own with --name.",
            )
        run.note(passes=passes | {judging: now})

    def _combine(self, run: RunDir, judging: str, found: _Read) -> tuple[int, int, dict[str, Any]]:
        """Writes the pass anew; returns judgments, unusable ones, and how far the members agree."""
        calibrated = found.calibration() if self.combine in ("mean", "minimum") else {}
        agreement = Agreement([member.name for member in self.members])
        weights = digest([m.config.model for m in self.members])
        written = unusable = 0
        with replacing(run.judgments_path(judging), before=lambda: None) as writer:
            for prompt, by_member in found:
                agreement.add(by_member)
                for judgment in self._judgments(by_member, calibrated):
                    made = as_record(judgment, prompt, " + ".join(self.models), weights, self)
                    writer.append(made)
                    written += 1
                    unusable += made.reason is not None
        return written, unusable, agreement.summary() if self.combine != "implicit" else {}

    def _judgments(
        self, by_member: Mapping[str, Sequence[Candidate]], calibrated: Mapping[str, tuple[float, float]]
    ) -> Iterator[_Said]:
        if self.combine == "majority":
            yield from votes(by_member)
            return
        for place, candidate in enumerate(next(iter(by_member.values()))):
            ids = (candidate.completion.id,)
            scores = {name: found[place].score for name, found in by_member.items()}
            missing = [name for name, score in scores.items() if score is None]
            rests = tuple(dict.fromkeys(i for found in by_member.values() for i in found[place].judgment_ids))
            if missing:
                yield _Said(ids, rests, reason=f"no score from {', '.join(missing)}")
                continue
            known = {name: float(score) for name, score in scores.items() if score is not None}
            if self.combine == "implicit":
                reward = self.beta * (known["policy"] - known["reference"])
                yield _Said(ids, rests, score=reward, measures={**known, "log_odds": reward})
                continue
            standard = {n: (score - calibrated[n][0]) / calibrated[n][1] for n, score in known.items()}
            values = list(standard.values())
            together = min(values) if self.combine == "minimum" else math.fsum(values) / len(values)
            yield _Said(ids, rests, score=together, measures=standard)


@dataclass(frozen=True, slots=True)
class _Said:
    """A combined judgment before it has a name. rests: the members' judgments."""

    completion_ids: tuple[str, ...]
    rests: tuple[str, ...]
    verdict: str | None = None
    score: float | None = None
    measures: dict[str, float] = field(default_factory=dict)
    reason: str | None = None


def as_record(said: _Said, prompt: Prompt, judges: str, weights: str, panel: Panel) -> Judgment:
    """A combined judgment as a record; its id is the hash of what it rests on."""
    return Judgment(
        id=digest("panel", PARSER, panel.combine, panel.beta, said.completion_ids, said.rests, said.measures),
        prompt_id=prompt.id,
        completion_ids=said.completion_ids,
        method=panel.name,
        aspect=panel.name,
        judge=judges,
        weights=weights,
        template=digest("panel", panel.combine),
        parser=PARSER,
        verdict=said.verdict,
        score=said.score,
        measures=said.measures,
        reason=said.reason,
    )


def votes(by_member: Mapping[str, Sequence[Candidate]]) -> Iterator[_Said]:
    """One judgment for each two completions of different text: the share of members for the first.

    >>> list(votes({}))
    []
    """
    if not by_member:
        return
    found = {name: {c.completion.id: c for c in candidates} for name, candidates in by_member.items()}
    completions = distinct(c.completion for c in next(iter(by_member.values())))
    for one, other in combinations(sorted(c.id for c in completions), 2):
        cast = {}
        rests: dict[str, None] = {}
        for name, candidates in found.items():
            a, b = candidates[one], candidates[other]
            rests |= dict.fromkeys(a.judgment_ids + b.judgment_ids)
            if a.score is not None and b.score is not None:
                cast[name] = 0.5 if a.score == b.score else float(a.score > b.score)
        missing = [name for name in found if name not in cast]
        if missing:
            reason = f"no vote from {', '.join(missing)}"
            yield _Said((one, other), tuple(rests), reason=reason)
            continue
        share = sum(cast.values()) / len(cast)
        verdict = "tie" if share == 0.5 else "first" if share > 0.5 else "second"
        yield _Said((one, other), tuple(rests), verdict=verdict, measures={"p_first": share, **cast})


class _Read:
    """Prompt by prompt what each member made of the completions: (prompt, member → candidates)."""

    def __init__(self, groups: Groups, indices: Mapping[str, Index], members: Iterable[Member]) -> None:
        self._groups, self._indices = groups, indices
        self._methods = {member.name: member.method for member in members}

    def __iter__(self) -> Iterator[tuple[Prompt, dict[str, list[Candidate]]]]:
        for prompt, completions in self._groups():
            yield prompt, self._candidates(prompt, completions)

    def _candidates(self, prompt: Prompt, completions: Sequence[Completion]) -> dict[str, list[Candidate]]:
        mine = {c.id for c in completions}
        return {
            name: score_completions(
                completions,
                [j for j in index.read(prompt.id, Judgment) if mine.issuperset(j.completion_ids)],
                self._methods[name].aspects,
                both_orders=orders_of(self._methods[name]) == "both",
            )
            for name, index in self._indices.items()
        }

    def calibration(self) -> dict[str, tuple[float, float]]:
        """Member → mean and standard deviation of its scores over the whole pass (1 where they are all
        the same)."""
        scores: dict[str, list[float]] = {name: [] for name in self._indices}
        for _, by_member in self:
            for name, candidates in by_member.items():
                scores[name] += [c.score for c in candidates if c.score is not None]
        found = {}
        for name, values in scores.items():
            mean = math.fsum(values) / len(values) if values else 0.0
            spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values)) if values else 0.0
            found[name] = (mean, spread or 1.0)
        return found
