"""The dataset card of exported pairs: what they are, where they came from, and how they look."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

#: A file beside which, or a folder in which, a card with this line lies is an earlier export.
MARK = "<!-- written by gavel pairs; replaced at the next export -->"

_COLUMNS = {
    "trl": "TRL's conversational preference format: `prompt` (messages), `chosen` and `rejected` (one "
    "assistant message each). `margin` is the score of chosen minus that of rejected.",
    "kto": "KTO's unpaired format: `prompt` (messages), `completion` (one assistant message), `label`. Each "
    "completion stands once: true where it won more of its pairs than it lost, false where it lost "
    "more, left out where it won as many as it lost.",
    "reward": "Reward format with implicit prompt: `chosen` and `rejected` are whole conversations. TRL's "
    "RewardTrainer subtracts the column `margin` in its loss; it is in the judge's own unit, so "
    "drop the column unless that is wanted.",
}
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
_DROPPED = {
    "unscored": "completions without a usable score",
    "empty": "empty completions",
    "duplicate": "completions with the text of another",
    "too_few": "prompts with fewer than two completions left",
    "tie": "pairs of equal score",
    "disputed": "pairs whose two orders disagree",
    "min_margin": "pairs under the minimum margin",
    "max_length_ratio": "pairs over the maximum length ratio",
    "per_prompt": "pairs over the number wanted of a prompt",
}


def dataset_card(
    summary: dict[str, Any], export_format: str, rows: int, *, title: str, data_files: str | None = None
) -> str:
    """README.md of an export: YAML front matter and a page of Markdown.

    Args:
        summary: what `judge.pairs.make_pairs` returned, as kept in the manifest.
        export_format: trl, kto or reward.
        rows: rows of the export.
        data_files: glob of its Parquet files for the Hub's viewer.
    """
    parts = [
        _front_matter(summary, export_format, rows, title, data_files),
        MARK,
        f"# {_line(title)}",
        _opening(summary, export_format, rows),
        _COLUMNS[export_format],
        "## Where it came from\n\n" + _sources(summary),
        "## How the pairs were made\n\n" + _settings(summary),
        "## Counts\n\n" + _counts(summary, rows),
        "## Scores and lengths\n\n" + _statistics(summary),
        "## Licence\n\nNot stated by gavel: it depends on the prompts and on the terms of the models above.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    summary: dict[str, Any], export_format: str, rows: int, title: str, data_files: str | None
) -> str:
    kind = {"trl": "dpo", "kto": "kto", "reward": "reward-modeling"}[export_format]
    tags = ["preference", "rlaif", "synthetic", "trl", kind, "gavel"]
    if summary["labels_shuffled"]:
        tags.append("label-shuffled-control")
    size = next((name for limit, name in _SIZES if rows < limit), "n>1B")
    lines = [f"pretty_name: {json.dumps(title)}", "task_categories:", "- text-generation", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    lines += ["size_categories:", f"- {size}"]
    if data_files:
        lines += [
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            f"    path: {data_files}",
        ]
    return "\n".join(["---", *lines, "---"])


def _opening(summary: dict[str, Any], export_format: str, rows: int) -> str:
    pairs = f"{summary['pairs']:,}"
    text = (
        f"{rows:,} rows of AI preference in format `{export_format}`, made by gavel {summary['gavel']} "
        f"from {pairs} pairs. No person labelled them."
    )
    if not summary["labels_shuffled"]:
        return text
    return (
        "**CONTROL, NOT FOR USE: the labels are shuffled.** Chosen and rejected were swapped at random in "
        f"{summary['labels_swapped']:,} of {pairs} pairs.\n\n{text}"
    )


def _sources(summary: dict[str, Any]) -> str:
    judge = summary["judge"]
    lines = []
    for policy in summary["policies"]:
        sampling = ", ".join(f"{key} {value}" for key, value in policy["sampling"].items())
        lines.append(
            f"- Policy: {_model(policy['model'])}, weights {_code(policy['weights'])}, "
            f"{policy['completions']:,} completions"
            + (f" ({_code(sampling)}; the rest as by default)" if sampling else "")
        )
    models = ", ".join(_model(name) for name in judge["judge"])
    lines += [
        f"- Judge: {models}, weights {_codes(judge['weights'])}",
        f"- Method: {_codes(judge['method'])}, parser {_codes(judge['parser'])}, "
        f"judging pass {_code(summary['judgments'])}",
    ]
    for aspect in summary["settings"]["aspects"]:
        lines.append(f"- Aspect {_code(aspect)}: template {_codes(judge['templates'][aspect])}")
    seeds = ", ".join(f"{_line(stage)} {seed}" for stage, seed in summary["seeds"].items())
    return "\n".join([*lines, f"- Seeds: {seeds}"])


def _settings(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    shown = {
        "strategy": settings["strategy"],
        "k": settings["k"] if settings["strategy"] == "top-bottom" else None,
        "min margin": settings["min_margin"] or None,
        "max length ratio": settings["max_length_ratio"],
        "pairs per prompt at most": settings["per_prompt"],
        "labels shuffled": "yes" if settings["shuffle_labels"] else None,
    }
    lines = [f"- {name}: {value}" for name, value in shown.items() if value is not None]
    return "\n".join([*lines, "- score: mean over the aspects above; higher is better"])


def _counts(summary: dict[str, Any], rows: int) -> str:
    table: list[tuple[str, int]] = [
        ("prompts", summary["prompts"]),
        ("prompts without a pair", summary["prompts_without_pair"]),
        ("completions", summary["completions"]),
        ("judgments", summary["judge"]["judgments"]),
        *((f"judgments unusable: {_line(why)}", n) for why, n in summary["judge"]["unusable"].items()),
        *((f"dropped: {_DROPPED.get(why, why)}", n) for why, n in summary["dropped"].items()),
        ("pairs", summary["pairs"]),
        ("rows", rows),
    ]
    return _table(("", "number"), [(name, f"{number:,}") for name, number in table])


def _statistics(summary: dict[str, Any]) -> str:
    names = list(summary["scores"] or summary["margins"])
    rows = [
        (label, *(f"{summary[key][name]:.4g}" for name in names))
        for label, key in (("score", "scores"), ("margin", "margins"))
        if summary[key]
    ]
    rho, chars = summary["length_correlation"], summary["mean_chars"]
    lines = [
        _table(("", *names), rows),
        "",
        f"- mean length: chosen {chars['chosen']:.1f} characters, rejected {chars['rejected']:.1f}; "
        f"chosen is the longer one in {summary['chosen_longer']:.1%} of the pairs",
        f"- rank correlation of score with length (Spearman): {'none' if rho is None else f'{rho:.3f}'}",
    ]
    if summary.get("order_disagreement") is not None:
        lines.append(f"- pairs whose two orders disagree: {summary['order_disagreement']:.1%}")
    if summary.get("flip_rate") is not None:
        lines.append(
            f"- flip rate, measured from {summary['flip_rate_from']}: {summary['flip_rate']:.4f} "
            "(for a loss that allows for wrong labels)"
        )
    for repeated in summary["repeated_texts"]:
        lines.append(
            f"- the same text for {repeated['prompts']:,} prompts: {_code(json.dumps(repeated['text']))}"
        )
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    """Untrusted text on one line of Markdown, without markup of its own."""
    return "".join("\\" + c if c in "`*_<>[]#|\\" else c for c in " ".join(text.split()))


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def _codes(texts: list[str]) -> str:
    return ", ".join(_code(text) for text in texts) or "unknown"


def _model(name: str) -> str:
    """A model as named; of a local folder only its own name, for a card may be published."""
    return _code(PurePath(name).name) + " (local)" if PurePath(name).is_absolute() else _code(name)
