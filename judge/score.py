"""`gavel score`: outputs that exist already, scored row by row.

Every row of the source comes out, in order and with its own columns, `scores` added. Judgments are
kept in a journal beside the output until it is whole, so a stopped run goes on where it was.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gavel.correlation import rank_correlation
from gavel.errors import CheckFailed, InputError, RowError
from gavel.records import Completion, Judgment, Prompt
from gavel.rundir import Index, RunDir, disk_error
from gavel.scores import Candidate, score_completions
from gavel.sources import BadRows, OutputReader, OutputRow, Row, read_outputs, read_rows
from judge.collect import UNLIMITED, Limits
from judge.judging import Judging
from judge.stage import NothingUsable

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(slots=True)
class Correlations:
    """Pairs of score and human score (or length), by name; `rank` gives Spearman's rho."""

    values: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, name: str, x: float, y: float) -> None:
        self.values.setdefault(name, []).append((x, y))

    def rank(self) -> dict[str, float | None]:
        """Spearman's rank correlation; None where one side never varies."""
        found: dict[str, float | None] = {}
        for name, pairs in self.values.items():
            rho = rank_correlation(*zip(*pairs, strict=True))
            found[name] = None if rho is None else round(rho, 4)
        return found


def check_destination(out: str, source: str) -> Path:
    """Raises InputError for a file that cannot be written, or that is the source."""
    path = Path(out)
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise InputError("is the source itself, which would be replaced", where=f"--out {out}")
    if not path.name.endswith(ENDINGS):
        raise InputError(f"must end in {', '.join(ENDINGS)}", where=f"--out {out}")
    if not path.parent.is_dir():
        raise InputError("there is no such folder", where=f"--out {path.parent}")
    if path.is_dir():
        raise InputError("is a folder, a file is needed", where=f"--out {out}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise InputError(f"cannot write there: {error.strerror}", where=f"--out {out}") from None


def check_source(
    source: str, mapping: Mapping[str, str], bad: BadRows, correlate: Sequence[str] = ()
) -> None:
    """Reads a source whole, so that what is wrong with it is known before an engine starts.

    Raises InputError for a source that cannot be read, more bad rows than allowed, or a column to
    correlate that has no numbers.
    """
    missing = set(correlate)
    for row in read_outputs(source, mapping, bad):
        if "scores" in row.row.data:
            raise InputError(
                "has a column 'scores' of its own, which would be lost",
                where=row.row.where,
                hint="Rename it in the source.",
            )
        missing = {column for column in missing if _number(row.row.data.get(column)) is None}
    bad.check()
    if missing:
        raise InputError(f"no row has a number in {', '.join(sorted(missing))}", where="--correlate")


def score(
    source: str,
    out: Path,
    judging: Judging,
    *,
    mapping: Mapping[str, str],
    correlate: Sequence[str] = (),
    limits: Limits = UNLIMITED,
) -> dict[str, Any]:
    """Scores every row of `source` into `out` and returns a summary.

    A row that cannot be scored has ``scores: null`` and a `reason`. A row with several outputs has a
    list of scores, or an object by model where the outputs are named by model. What `check_source`
    and `check_destination` refuse is not looked for again.

    Args:
        correlate: columns with human scores, whose rank correlation with the scores is reported.

    Raises:
        CapabilityError: the engine cannot do what the method needs.
        CheckFailed: not one row could be scored.
    """
    started = time.monotonic()
    with RunDir.open(out.with_name(f".{out.name}.gavel")) as journal:

        def groups() -> Iterator[tuple[Prompt, list[Completion]]]:
            rows = read_outputs(source, mapping, BadRows.quiet())
            return ((row.prompt, list(row.completions)) for row in rows)

        try:
            summary = judging.judge(journal, judging.identity(), groups, limits)
        except NothingUsable as error:  # every row is written with its reason
            summary = error.summary
        path = journal.judgments_path(judging.identity())
        index = Index(path)
        judgments_of = partial(_by_completion, index=index, both_orders=judging.both_orders)
        human, length = Correlations(), Correlations()
        try:
            written, scored = _write(out, _rows(source, mapping, judgments_of, correlate, human, length))
        finally:
            index.close()
        if not summary["failed"] and not summary["left"]:
            shutil.rmtree(journal.path)
    if not scored:
        raise CheckFailed(
            "not one row could be scored", where=str(out), hint="Their reasons stand in the file."
        )
    seconds = time.monotonic() - started
    return {
        "rows": written,
        "scored": scored,
        "without_score": written - scored,
        "failed": summary["failed"],
        "left": summary["left"],
        "calls": summary["calls"],
        "tokens": summary["tokens"],
        "rank_correlation": human.rank(),
        "rank_correlation_with_length": length.rank(),
        "seconds": round(seconds, 2),
        **{key: summary[key] for key in ("judge", "weights", "method", "settings")},
        "out": str(out),
    }


#: a row's judgments by completion id
JudgmentsOf = Callable[[OutputRow], dict[str, list[Judgment]]]


def _rows(
    source: str,
    mapping: Mapping[str, str],
    judgments_of: JudgmentsOf,
    correlate: Sequence[str],
    human: Correlations,
    length: Correlations,
) -> Iterator[dict[str, Any]]:
    """Every row in order with its scores; rows that cannot be read stand as `reason` alone."""
    unread: list[RowError] = []
    reader = OutputReader(mapping)
    for row in read_rows(source, BadRows.quiet(unread.append)):
        while unread:
            yield {"scores": None, "reason": str(unread.pop(0))}
        try:
            found = reader(row)
        except RowError as error:
            yield {**row.data, "scores": None, "reason": error.what}
            continue
        assert found is not None, "a row of outputs always says something"
        yield _scored_row(row, found, judgments_of, correlate, human, length)
    while unread:
        yield {"scores": None, "reason": str(unread.pop(0))}


def _scored_row(
    row: Row,
    found: OutputRow,
    judgments_of: JudgmentsOf,
    correlate: Sequence[str],
    human: Correlations,
    length: Correlations,
) -> dict[str, Any]:
    judgments = judgments_of(found)
    scores, reasons = [], []
    for completion in found.completions:
        by_aspect = {j.aspect: j for j in judgments.get(completion.id, [])}
        reasons += [f"{j.aspect}: {j.reason}" for j in by_aspect.values() if j.reason]
        if not by_aspect:
            reasons.append("the judge did not answer; the same command asks again")
        given = {a: _measures(j) for a, j in by_aspect.items()}
        scores.append(given if any(given.values()) else None)
        for aspect, measures in given.items():
            for measure, score in (measures or {}).items():
                if measure == "tokens":
                    continue
                length.add(f"{aspect} {measure}", score, len(completion.text))
                for column in correlate:
                    value = _number(row.data.get(column))
                    if value is not None:
                        human.add(f"{aspect} {measure} ~ {column}", score, value)
    shaped = _shape(found.prompt, found.completions, scores)
    done = dict(row.data) | {"scores": shaped if any(scores) else None}
    named = "reason" if "reason" not in row.data else "scores_reason"  # the source's own column stays
    return done | ({named: "; ".join(dict.fromkeys(reasons))} if reasons else {})


def _by_completion(found: OutputRow, index: Index, both_orders: bool) -> dict[str, list[Judgment]]:
    """Completion id → its judgments; comparisons as one judgment per aspect with the strength."""
    mine = {completion.id for completion in found.completions}
    judgments: dict[str, list[Judgment]] = {}
    compared: dict[str, list[Judgment]] = {}
    for judgment in index.read(found.prompt.id, Judgment):
        if len(judgment.completion_ids) == 1:
            judgments.setdefault(judgment.completion_ids[0], []).append(judgment)
        elif mine.issuperset(judgment.completion_ids):
            compared.setdefault(judgment.aspect, []).append(judgment)
    for aspect, rest in compared.items():
        for candidate in score_completions(found.completions, rest, [aspect], both_orders=both_orders):
            judgments.setdefault(candidate.completion.id, []).append(_as_judgment(candidate, aspect, rest[0]))
    return judgments


def _as_judgment(candidate: Candidate, aspect: str, like: Judgment) -> Judgment:
    reason = None if candidate.score is not None else "no comparison with a verdict"
    return msgspec.structs.replace(
        like, completion_ids=(candidate.completion.id,), score=candidate.score, reason=reason,
        measures={}, verdict=None, aspect=aspect,
    )  # fmt: skip


def _measures(judgment: Judgment) -> dict[str, float] | None:
    """A judgment's numbers; its score alone where the method measures nothing else."""
    if judgment.reason is not None or judgment.score is None:
        return None
    measures: dict[str, float] = judgment.measures
    if judgment.score not in measures.values():  # gptscore's score is one of its measures
        measures = {"score": judgment.score, **measures}
    return {name: int(value) if name == "tokens" else value for name, value in measures.items()}


def _number(value: Any) -> float | None:
    """A finite number, also from a CSV file's text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shape(prompt: Prompt, completions: Sequence[Completion], scores: list[Any]) -> Any:
    """One output: its scores. Several: by model where each has its own, else a list."""
    models = [c.model for c in completions]
    if len(scores) == 1 and models[0] is None:
        return scores[0]
    if all(models) and len(set(models)) == len(models) and len(models) > 1:
        return dict(zip(models, scores, strict=True))
    return scores[0] if len(scores) == 1 else scores


def _write(out: Path, rows: Iterator[dict[str, Any]]) -> tuple[int, int]:
    """Writes whole or not at all; returns (rows, rows with scores)."""
    temporary = out.with_name(f".{out.name}.part")
    written = scored = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal written, scored
        for row in rows:
            written += 1
            scored += row["scores"] is not None
            yield row

    try:
        if out.suffix == ".parquet":
            _write_parquet(temporary, list(counted()), out)
        else:
            opener = gzip.open if out.suffix == ".gz" else open
            with opener(temporary, "wt", encoding="utf-8") as file:
                for row in counted():
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        temporary.replace(out)
    except OSError as error:
        raise disk_error(error, out) from None
    finally:
        temporary.unlink(missing_ok=True)
    return written, scored


def _write_parquet(path: Path, rows: list[dict[str, Any]], out: Path) -> None:
    """Raises InputError for columns that hold several types, which Parquet has no place for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict.fromkeys(column for row in rows for column in row)
    try:
        table = pa.table({column: [row.get(column) for row in rows] for column in columns})
        pq.write_table(table, path)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"the rows do not fit a Parquet table: {error}",
            where=f"--out {out}",
            hint="Write them as .jsonl instead.",
        ) from None
