"""Run directories that hold completions and judgments, made without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gavel.records import Completion, Judgment, Message, Prompt, Sampling, digest
from gavel.rundir import JsonlWriter, RunDir

#: what the answers to one prompt are: (text, score by aspect or None with a reason)
Answers = list[tuple[str, dict[str, float | None]]]


def completion(prompt_id: str, index: int, text: str, **fields: Any) -> Completion:
    made = {"model": "tiny/policy", "weights": "w1", "sampling": Sampling(max_tokens=32), **fields}
    return Completion(id=f"{prompt_id}-c{index}", prompt_id=prompt_id, index=index, text=text, **made)


def judgment(prompt_id: str, index: int, aspect: str, score: float | None, **fields: Any) -> Judgment:
    made: dict[str, Any] = {
        "id": digest(prompt_id, index, aspect, score, str(fields)),
        "completion_ids": (f"{prompt_id}-c{index}",),
        "method": "gptscore", "judge": "tiny/judge", "weights": "j1",
        "template": f"t-{aspect}", "parser": "1",
        "reason": None if score is not None else "context too long",
    }  # fmt: skip
    return Judgment(prompt_id=prompt_id, aspect=aspect, score=score, **{**made, **fields})


def build(path: Path, answers: dict[str, Answers], judging: str = "gptscore-judge") -> Path:
    """A run with one prompt for each key; the question is the key."""
    with RunDir.open(path) as run:
        run.finish_stage("generate", {"settings": {"seed": 7}})
        with (
            JsonlWriter(run.prompts_path) as prompts,
            JsonlWriter(run.completions_path) as completions,
            JsonlWriter(run.judgments_path(judging)) as judgments,
        ):
            for prompt_id, offered in answers.items():
                prompts.append(Prompt(id=prompt_id, messages=(Message(role="user", content=prompt_id),)))
                for index, (text, scores) in enumerate(offered):
                    completions.append(completion(prompt_id, index, text))
                    for aspect, score in scores.items():
                        judgments.append(judgment(prompt_id, index, aspect, score))
        run.finish_stage(f"judge/{judging}", {"pass": judging})
    return path


def plain(prompts: int = 3, each: int = 4) -> dict[str, Answers]:
    """Answers whose score is their index, all texts different."""
    return {
        f"p{p}": [(f"answer {p} {i} " + "x" * i, {"quality": float(i)}) for i in range(each)]
        for p in range(prompts)
    }
