"""`gavel demo`: the whole loop on the bundled models."""

from __future__ import annotations

from typing import Any

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
@click.option("--trainer", type=click.Choice(["dpo", "ppo"]), default="dpo", show_default=True,
              help="ppo: a reward model on the same pairs, then PPO.")  # fmt: skip
@click.option("--reference", type=click.Choice(["first", "previous", "ema"]), default="previous",
              show_default=True, help="The policy that training is held to.")  # fmt: skip
@click.option("--prompts", default=2048, show_default=True, type=click.IntRange(min=16), help="Per round.")
@click.option("--seed", default=0, show_default=True, type=int)
def demo(out: str, as_json: bool, **chosen: Any) -> None:
    """Runs the loop and prints the table."""
    import json

    from demo.run import Chosen, run_demo
    from demo.table import show

    result = run_demo(out, Chosen(**chosen))
    if as_json:
        click.echo(json.dumps(result))
    else:
        show(result)
        say(f"Look around: gavel rounds status {out} shows each round's figures, "
            f"gavel pairs {out}/rounds/01 --to pairs.jsonl writes its pairs as a dataset.")  # fmt: skip
