"""One pair with all that was said of it, as it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gavel.records import Completion, Judgment, PreferencePair, Prompt
from rounds.report.shapes import Example, Excerpt, Said, Side
from rounds.report.tally import tokens_of

MOST_CHARS = 20_000  # of a text that are kept; the page may show fewer
_MOST_SAID = 24  # judgments of one pair that are shown, those of the two alone before longer lists


def example(
    label: str,
    kind: str,
    pair: PreferencePair,
    prompt: Prompt,
    completions: Sequence[Completion],
    judgments: Mapping[str, Sequence[Judgment]],
    doubts: tuple[str, ...],
) -> Example | None:
    """Args:
        label: of the run. kind: what the pair is (`collect.PAIR` and its kin).
        judgments: pass → all of the prompt. doubts: of `sample.DOUBTS`.

    None where a completion of the pair is not among those given.
    """
    by_id = {completion.id: completion for completion in completions}
    if pair.chosen_id not in by_id or pair.rejected_id not in by_id:
        return None
    scored = kind != "two answers"
    return Example(
        label=label,
        kind=kind,
        id=pair.id,
        prompt_id=prompt.id,
        prompt=tuple((message.role, Excerpt.of(message.content, MOST_CHARS)) for message in prompt.messages),
        references=tuple(Excerpt.of(text, MOST_CHARS) for text in prompt.references),
        chosen=_side(by_id[pair.chosen_id], pair.chosen_score if scored else None),
        rejected=_side(by_id[pair.rejected_id], pair.rejected_score if scored else None),
        margin=pair.margin if scored else None,
        p_chosen=pair.p_chosen,
        doubts=doubts,
        said=tuple(_said(pair, judgments)),
    )


def _side(completion: Completion, score: float | None) -> Side:
    return Side(
        id=completion.id,
        text=Excerpt.of(completion.text, MOST_CHARS),
        tokens=tokens_of(completion),
        score=score,
        finish=completion.finish_reason,
        thinking=_excerpt(completion.thinking),
    )


def _excerpt(text: str | None) -> Excerpt | None:
    return None if text is None else Excerpt.of(text, MOST_CHARS)


def _said(pair: PreferencePair, judgments: Mapping[str, Sequence[Judgment]]) -> list[Said]:
    """The judgments that say something of the pair, those that show fewest other completions first."""
    names = {pair.chosen_id: "chosen", pair.rejected_id: "rejected"}
    found = [
        (len(judgment.completion_ids), judging, judgment)
        for judging, of_pass in judgments.items()
        for judgment in of_pass
        if _concerns(judgment, names)
    ]
    found.sort(key=lambda entry: entry[0])
    return [
        Said(
            judging=judging,
            judge=judgment.judge,
            aspect=judgment.aspect,
            shown=", ".join(names.get(one, "another") for one in judgment.completion_ids),
            answer=_answer(judgment),
            raw=_excerpt(judgment.raw),
            thinking=_excerpt(judgment.thinking),
        )
        for _, judging, judgment in found[:_MOST_SAID]
    ]


def _concerns(judgment: Judgment, names: Mapping[str, str]) -> bool:
    """One of the two alone, or both in one question; not a comparison of one with a stranger."""
    known = [one for one in judgment.completion_ids if one in names]
    return bool(known) and (len(judgment.completion_ids) == 1 or len(known) == 2)


def _answer(judgment: Judgment) -> str:
    if judgment.reason is not None:
        return f"unusable: {judgment.reason}"
    if judgment.verdict is not None:
        p = judgment.measures.get("p_first")
        return judgment.verdict + (f" (p first {p:.3f})" if p is not None else "")
    return f"{judgment.score:.4g}" if judgment.score is not None else "no score"
