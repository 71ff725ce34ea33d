"""`gavel judge --reparse`: the replies of a pass read again by the parser of now, without an engine."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from typing import Any

import msgspec

from gavel.errors import InputError, RunDirError
from gavel.protocols import Sampled
from gavel.records import Completion, Judgment, Prompt, digest
from gavel.rundir import Index, RunDir, read_records
from gavel.scores import choose_pass
from judge.collect import judgment_id, read
from judge.method import Item, Method
from judge.methods import make_method
from judge.pairs import replacing


def reparse_pass(run: RunDir, name: str | None) -> dict[str, Any]:
    """Replaces a pass by what the parser reads now; the judgments of before stay beside it in
    ``judgments.<parser>.jsonl``.

    Judgments without a reply (log-likelihoods, rewards, refusals) stay as they are. A pair rests on
    judgments by their ids, which change with the parser: make pairs anew afterwards.

    Args:
        name: of the pass; the newest if None.

    Raises:
        RunDirError: no such pass, or one that does not say how it was made.
        InputError: a template was changed since, so that the replies are to other questions.
    """
    judging = choose_pass(run, name)
    entry = run.manifest().get("passes", {}).get(judging, {})
    described = entry.get("options") or {}
    if not described.get("method"):
        raise RunDirError(
            f"the judging pass {judging!r} does not say how it was made, or is combined of others",
            where=str(run.path),
            hint="Passes of gavel judge with one judge can be read again.",
        )
    method = make_method(
        described["method"],
        {k: tuple(v) if isinstance(v, list) else v for k, v in described["settings"].items()},
    )
    _check_templates(method, entry["templates"], judging)
    now = {key: entry[key] for key in ("method", "settings", "parser", "weights", "dtype", "tokenizer")}
    now |= {"parser": method.parser}
    basis = digest(*now.values())
    path = run.judgments_path(judging)
    counts: Counter[str] = Counter()

    before = path.with_name(f"judgments.{entry['parser'].replace('/', '-').replace(' ', '_')}.jsonl")
    with contextlib.closing(Index(run.completions_path)) as index:
        prompts = {p.id: p for p in read_records(run.prompts_path, Prompt)}
        stage = f"judge/{judging}"
        summary = run.stage(stage)

        def keep() -> None:
            if not before.exists():
                whole = before.with_name(f".{before.name}.tmp")
                shutil.copyfile(path, whole)
                whole.replace(before)

        with replacing(path, before=keep) as writer:
            for old in read_records(path, Judgment):
                new = _again(old, method, basis, prompts, index)
                counts["judgments"] += 1
                counts["read_again"] += new is not None
                made = new or old
                counts["unusable"] += made.reason is not None
                counts["changed"] += new is not None and _says(new) != _says(old)
                writer.append(made)
    run.note(passes=run.manifest().get("passes", {}) | {judging: entry | now})
    if summary:
        run.finish_stage(stage, summary | {"unusable": counts["unusable"], "parser": method.parser})
    return {
        "pass": judging,
        "parser": method.parser,
        "parser_before": entry["parser"],
        **{key: counts[key] for key in ("judgments", "read_again", "changed", "unusable")},
        "kept": before.name,
    }


def _check_templates(method: Method, templates: dict[str, str], judging: str) -> None:
    for aspect in method.aspects:
        if templates.get(aspect, method.template(aspect)) != method.template(aspect):
            raise InputError(
                f"the template of {aspect!r} was changed since: these replies are to another question",
                where=f"judging pass {judging!r}",
                hint="Judge anew under another --name.",
            )


def _again(
    old: Judgment, method: Method, basis: str, prompts: dict[str, Prompt], index: Index
) -> Judgment | None:
    """The judgment as the parser of now reads it; None where there is no reply to read."""
    prompt = prompts.get(old.prompt_id)
    if old.raw is None or prompt is None:
        return None
    by_id = {c.id: c for c in index.read(prompt.id, Completion)}
    if any(one not in by_id for one in old.completion_ids):
        return None
    item = Item(prompt, tuple(by_id[one] for one in old.completion_ids), old.aspect)
    reply = Sampled(
        key="",
        text=old.raw,
        token_ids=None,
        logprobs=None,
        finish_reason=old.finish_reason,
        thinking=old.thinking,
        top_logprobs=[old.top_logprobs] if old.top_logprobs else (),
    )
    verdict = read(method, item, [reply])
    return msgspec.structs.replace(
        old,
        id=judgment_id(basis, method, item),
        parser=method.parser,
        verdict=verdict.verdict,
        score=verdict.score,
        measures=verdict.measures,
        reason=verdict.reason,
    )


def _says(judgment: Judgment) -> tuple[Any, ...]:
    return judgment.verdict, judgment.score, judgment.reason
