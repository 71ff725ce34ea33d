"""The gate before labelling: a judge that fails on gold labels must not label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gavel.errors import CheckFailed, InputError
from gavel.records import digest
from gavel.rundir import RunDir
from judge.judging import Judging, default_pass


@dataclass(frozen=True, kw_only=True)
class Gate:
    """gold: labelled pairs, see `judge.labelled`. min_accuracy, min_order_agreement: fractions."""

    gold: str
    min_accuracy: float = 0.6
    min_order_agreement: float = 0.5

    @classmethod
    def of(cls, gold: str | None, accuracy: float | None, agreement: float | None) -> Gate | None:
        """The gate of a command's options; None where there is none.

        Raises InputError for thresholds without gold labels, or a file that is not there.
        """
        if gold is None:
            if accuracy is not None or agreement is not None:
                where = "--min-accuracy" if accuracy is not None else "--min-order-agreement"
                raise InputError("needs labelled pairs", where=where, hint="Add --gold FILE.")
            return None
        if not gold.startswith("hub:") and not Path(gold).exists():
            raise InputError("there is no such file", where=f"--gold {gold}")
        made = cls(gold=gold)
        return cls(
            gold=gold,
            min_accuracy=made.min_accuracy if accuracy is None else accuracy,
            min_order_agreement=made.min_order_agreement if agreement is None else agreement,
        )

    def check(
        self, run: RunDir, judging: Judging, name: str | None = None, journal: Path | None = None
    ) -> dict[str, Any]:
        """Asks the judge about the gold pairs and notes the result in the run's manifest.

        The judgments are kept in `journal` (by default RUN/gold), so a checked judge is not asked again.

        Raises CheckFailed when it is under a threshold: nothing is labelled then.
        """
        from gavel.sources import BadRows
        from judge.agreement import agreement, compare, flip_rate
        from judge.duels import ask
        from judge.labelled import duels_of, read_labelled

        bad = BadRows(0)
        labelled = list(read_labelled(self.gold, {}, bad))
        bad.check()
        with RunDir.open(journal or run.path / "gold") as kept:
            pass_of_gold = f"gold-{digest(self.gold, judging.identity())[:8]}"
            outcomes, _ = ask(duels_of(labelled), judging, kept, name=pass_of_gold)
        compared = compare(labelled, outcomes)
        found = agreement(compared)
        judged = name or default_pass(judging)
        result = {
            "gold": self.gold,
            **{key: found[key] for key in ("n", "accuracy", "order_agreement", "unparsed")},
            "flip_rate": {rule: flip_rate(compared, rule) for rule in ("soften", "drop")},
            "min_accuracy": self.min_accuracy,
            "min_order_agreement": self.min_order_agreement,
        }
        failed = [
            f"{what.replace('_', ' ')} {result[what]:.3f} is under {least:g}"
            for what, least in (
                ("accuracy", self.min_accuracy),
                ("order_agreement", self.min_order_agreement),
            )
            if result[what] is None or result[what] < least
        ]
        result["passed"] = not failed
        run.note(gates=run.manifest().get("gates", {}) | {judged: result})
        if failed:
            raise CheckFailed(
                f"the judge fails on {result['n']} gold pairs: {', '.join(failed)}; nothing was labelled",
                where=f"--gold {self.gold}",
                hint="Try another judge, method or preset (see gavel agreement), or lower the threshold.",
            )
        return result
