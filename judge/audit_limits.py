"""What an audit counts, and how much of it is too much. Names and numbers only, so that --help is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """How large a share may be. 1 allows everything.

    name: of the finding; with --max- before it, the option. of: what the share is of.
    measured: the share estimates a rate, for which no small file should fail by chance: the limit is
        crossed where the lower end of the 95 % interval is above it, of the share or of its opposite.
    """

    name: str
    most: float
    of: str
    help: str
    measured: bool = False

    @property
    def option(self) -> str:
        return f"--max-{self.name.replace('_', '-')}"


LIMITS = (
    Limit("ties", 0.5, "comparisons", "Neither text is preferred."),
    Limit("identical", 0.01, "labelled", "Chosen and rejected are the same text."),
    Limit("near_identical", 0.1, "labelled", "Chosen and rejected are alike, but not the same."),
    Limit("empty", 0.01, "comparisons", "One of the texts is empty or white space."),
    Limit("duplicates", 0.01, "rows", "The same prompt, texts and label came before."),
    Limit("near_duplicates", 0.05, "contents", "The prompt and each text are like those of another row."),
    Limit("near_duplicate_prompts", 0.2, "prompts", "The prompt is like another."),
    Limit("contradictions", 0.01, "labelled", "Prompt and texts of another comparison, opposite label."),
    Limit("cycles", 0.01, "labelled", "Part of a cycle A > B > C > A within a prompt."),
    Limit("scores_against_label", 0.01, "scored", "The score of chosen is not above that of rejected."),
    Limit("special_tokens", 0.001, "rows", "A text spells special tokens of chat templates."),
    Limit("repeated_text", 0.05, "prompts", "Prompts that one and the same text is offered for (3 or more)."),
    Limit("eval_overlap", 0.0, "rows", "The prompt stands in a file given by --eval."),
    Limit("longer_wins", 0.7, "labelled", "The longer text is chosen, or the shorter one.", measured=True),
    Limit("first_column", 0.7, "ordered", "The first column is chosen, or the second.", measured=True),
)
NEAR, NGRAM, CONTAINMENT, LISTED = 0.8, 8, 0.5, 5
