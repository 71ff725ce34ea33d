"""`gavel demo`: the whole loop on the bundled models."""

from __future__ import annotations

import click

from gavel.command import command, say


@command(
    "Run the whole loop on the bundled models: sample, judge, pair, train, again.\n\n"
    "Real vLLM, real TRL, on two CPU cores in minutes. Ends with a table of what it gained."
)
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--out", default="gavel-demo", show_default=True, metavar="RUN",
              help="Where everything is written; the same command resumes it.")  # fmt: skip
@click.option("--shuffle-labels", is_flag=True,
              help="A control: chosen and rejected swapped at random. There must be no gain.")  # fmt: skip
@click.option("--prompts", default=2048, show_default=True, type=click.IntRange(min=16), help="Per round.")
@click.option("--seed", default=0, show_default=True, type=int)
def demo(rounds: int, out: str, shuffle_labels: bool, prompts: int, seed: int, as_json: bool) -> None:
    """Runs the loop and prints the table."""
    import json

    from demo.run import run_demo
    from demo.table import show

    result = run_demo(out, rounds=rounds, prompts=prompts, seed=seed, shuffle_labels=shuffle_labels)
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(result)
        say(
            "Look around: "
            + f"gavel pairs {out}/rounds/01 --to pairs.jsonl writes round 1's pairs as a dataset."
        )
