"""Runs for tests of the report: judged by several passes, in rounds, and with texts that mean harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from judged_runs import build, completion, judgment

from gavel.records import Completion, Judgment, Message, Prompt
from gavel.rundir import JsonlWriter, RunDir
from judge.pairs import PairConfig, make_pairs

#: what a candidate may try: to run, to end an element, to ask for something, to turn the text around
HOSTILE = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    '<img src="https://example.com/a.png" onerror="window.pwned = 3">',
    "<svg onload='window.pwned = 4'><a href='javascript:window.pwned=5'>x</a></svg>",
    "<!--<script>", "]]>", "-->", "&lt;script&gt;", "{{vega}} {{report}}", "${window.pwned = 6}",
    "'; window.pwned = 7; '", '"}];window.pwned = 8;//', "@chosen", "javascript:window.pwned=9",
    "\u202eevil\u202c \u2066isolate", "a\u2028b\u2029c", "nul \x00 bell \x07",
    "<style>*{display:none}</style>",
    "<iframe srcdoc='<script>parent.pwned=10</script>'></iframe>", "datum.pwned", "__proto__", "constructor",
)  # fmt: skip


_P_FIRST = {"first": 1.0, "tie": 0.5, "second": 0.0}


def compare(
    run: RunDir,
    judging: str,
    answers: dict[tuple[str, int, int], tuple[str | None, str | None]],
    **fields: Any,
) -> None:
    """Adds a pass of comparisons in both orders.

    answers: (prompt, a, b) → verdicts with a shown first and with b shown first; None: no verdict.
    """
    with JsonlWriter(run.judgments_path(judging)) as file:
        for (prompt, a, b), verdicts in answers.items():
            for (first, second), verdict in zip(((a, b), (b, a)), verdicts, strict=True):
                file.append(
                    Judgment(
                        id=f"{judging}-{prompt}-{first}-{second}", prompt_id=prompt, method="pairwise",
                        completion_ids=(f"{prompt}-c{first}", f"{prompt}-c{second}"),
                        aspect="overall", judge="tiny/other", weights="j2", template="t", parser="1",
                        raw=f"I say: {verdict}", verdict=verdict, reason=None if verdict else "no verdict",
                        measures={} if verdict is None else {"p_first": _P_FIRST[verdict]},
                        **fields,
                    )
                )  # fmt: skip
    passes = run.manifest().get("passes", {})
    run.note(passes=passes | {judging: {"orders": "both"}})
    run.finish_stage(f"judge/{judging}", {"pass": judging})


def paired(path: Path, prompts: int = 4, each: int = 4) -> Path:
    """Answers scored by their index, an other judge that is of two minds about p0 and of another about p1."""
    answers = {
        f"p{p}": [
            (f"answer {p} {i} " + "word " * i, {"clarity": float(i), "truth": 2.0 * i}) for i in range(each)
        ]
        for p in range(prompts)
    }
    build(path, answers, "scored")
    with RunDir.open(path) as run:
        last = each - 1
        verdicts = {("p0", 0, last): ("first", "first"), ("p1", 0, last): ("first", "second")}
        verdicts |= {(f"p{p}", 0, last): ("second", "first") for p in range(2, prompts)}
        compare(run, "compared", verdicts)
        make_pairs(run, PairConfig(judgments="scored"))
    return path


def metrics(folder: Path, steps: int = 30) -> None:
    """Training metrics of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "step": i,
            "epoch": i / 10,
            "loss": 1 / (i + 1),
            "rewards/chosen": 0.1 * i,
            "rewards/rejected": -0.1 * i,
        }
        for i in range(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def figures(number: int, win_rate: float | None, **fields: Any) -> dict[str, Any]:
    """A line of figures.jsonl."""
    found: dict[str, Any] = {"length_mean": {"value": 30.0 + number}, "distinct_2": {"value": None}}
    if win_rate is not None:
        found["win_rate_first"] = {"value": win_rate, "interval": [win_rate - 6, win_rate + 6], "n": 256}
    return {
        "round": number, "model": f"rounds/{number:02}/model", "start": None, "learning_rate": 5e-7,
        "seconds": {"sample": 10.0, "judge": 20.0, "train": 30.5, "evaluate": 5.0}, "figures": found,
        "gates": [], "decision": "go_on", "best": number, **fields,
    }  # fmt: skip


def rounds(path: Path) -> Path:
    """Two rounds, of which the second trips a gate, with figures and training curves."""
    path.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        metrics(paired(path / "rounds" / f"{number:02}", prompts=4 + number) / "model")
    gate = {"figure": "win_rate_first", "value": 43.0, "min": 45, "max": None, "action": "roll_back"}
    gate |= {"tripped": True, "what": "The policy wins less often than 45 %."}
    lines = [
        figures(0, None),
        figures(1, 61.2),
        figures(2, 43.0, gates=[gate], decision="roll_back", best=1),
    ]
    (path / "figures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def hostile(path: Path) -> Path:
    """A run in which everything that can be named or said is hostile."""
    with RunDir.open(path) as run:
        run.finish_stage("generate", {})
        with (
            JsonlWriter(run.prompts_path) as prompts,
            JsonlWriter(run.completions_path) as completions,
            JsonlWriter(run.judgments_path("scored")) as judgments,
        ):
            for number, text in enumerate(HOSTILE):
                prompt = f"{text}{number}"
                other = HOSTILE[(number + 1) % len(HOSTILE)]
                turn = Message(role=text, content=text)
                prompts.append(Prompt(id=prompt, messages=(turn,), references=(text,)))
                for index, said in enumerate((f"{text} one {other}", f"two {text}")):
                    made: Completion = completion(prompt, index, said, thinking=text, model=text)
                    completions.append(made)
                    judgments.append(
                        judgment(
                            prompt,
                            index,
                            text,
                            float(index),
                            raw=text,
                            judge=text,
                            method=text,
                            thinking=text,
                        )
                    )
                    judgments.append(judgment(prompt, index, "all", float(index), raw=text))
        run.finish_stage("judge/scored", {"pass": "scored"})
        make_pairs(run, PairConfig(judgments="scored", aspects=("all",)))
        stage = run.stage("pairs/scored-best-worst")
        run.finish_stage("pairs/scored-best-worst", stage | {"warnings": list(HOSTILE)})
    path.joinpath("metrics.jsonl").write_text(
        "".join(json.dumps({"step": i} | dict.fromkeys((*HOSTILE, "� half"), i)) + "\n" for i in range(3))
    )
    return path
