"""`gavel train sft`. Nothing heavy is imported before it runs."""

from __future__ import annotations

from typing import Any

import click

from gavel.command import command, emit, say
from gavel.errors import InputError
from train.config import CHAT_TEMPLATES, SftConfig
from train.options import account, common, data_and_out, given, setting, spread

_KINDS = ("auto", "text", "instruction", "chat")  # gavel.demonstrations.Kind: a test holds them equal


@command("Train MODEL on texts, instructions, conversations or the best completions of a run.", name="sft")
@click.option("--model", required=True, help="Model directory or hub id to start from.")
@data_and_out(
    "Texts, instructions or conversations (JSON Lines, JSON, Parquet, CSV, text, datasets directory, hub:…), "
    "or a judged run directory, whose best completion of each prompt is trained on."
)
@click.option(
    "--kind",
    type=click.Choice(_KINDS),
    default="auto",
    show_default=True,
    help="What the rows of SRC are; auto: as their columns say. Texts are packed into rows of --max-length.",
)
@click.option(
    "--pack/--no-pack",
    "packed",
    default=True,
    show_default=True,
    help="Whether a row of texts holds several, which see nothing of one another.",
)
@click.option(
    "--judgments", metavar="PASS", help="Whose scores choose from RUN; the newest pass unless given."
)
@click.option("--min-score", type=float, help="Leave out prompts of RUN whose best completion scores less.")
@setting(
    SftConfig,
    "chat_template",
    f"{', '.join(CHAT_TEMPLATES)} or a file; saved with the model.  [default: the model's own]",
    metavar=f"{'|'.join(CHAT_TEMPLATES)}|FILE",
)
@setting(SftConfig, "learning_rate", "Peak learning rate.", type=float)
@common(SftConfig, "rows")
@click.option("--merge", is_flag=True, help="Save the merged model, the adapter beside it.")
def sft(**options: Any) -> None:
    """Reads the rows, trains, prints the summary."""
    if spread(options):
        return
    config = SftConfig(**given(SftConfig, options))
    rows, prepared, read = _rows(config, options)

    from train.sft import train_sft

    emit(train_sft(config, rows, options["out"], prepared) | read, options["as_json"], "trained")


def _rows(config: SftConfig, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The rows as token ids, the tokenizer that made them, and the account that goes into the summary."""
    from gavel.demonstrations import Kind, read_demonstrations
    from gavel.rows import BadRows
    from gavel.rundir import RunDir, is_run, refuse_rounds
    from train import sft_data
    from train.chat_template import prepare, require
    from train.models import encoder_of

    source, bad = options["data"], BadRows(options["max_bad_rows"])
    if is_run(source):
        refuse_rounds(source)
        if options["kind"] != "auto":
            raise InputError("says what the rows of a file are, and --data is a run", where="--kind")
        prepared = prepare(config)
        require(prepared.tokenizer)
        encoder = encoder_of(config, prepared.tokenizer)
        rows = sft_data.read_best(RunDir(source), encoder, bad, options["judgments"], options["min_score"])
        return rows, prepared, {"kind": "best of a run"} | account(encoder, bad, "of the run")
    for name in ("judgments", "min_score"):
        if options[name] is not None:
            raise InputError("chooses among the completions of a run directory, and --data is none",
                             where=f"--{name.replace('_', '-')}")  # fmt: skip
    wanted = None if options["kind"] == "auto" else Kind(options["kind"])
    kind, why, shown = read_demonstrations(source, options["mapping"], bad, wanted)
    if why:
        say(f"{source}: {kind} ({why}; --kind says otherwise)")
    if kind is Kind.TEXT and config.chat_template is not None:
        raise InputError("raw text has no turns", where="--chat-template")
    prepared = prepare(config)
    if kind is not Kind.TEXT:
        require(prepared.tokenizer)
    encoder = encoder_of(config, prepared.tokenizer)
    rows = sft_data.read_rows(shown, kind, encoder, bad, options["packed"])
    return rows, prepared, {"kind": str(kind)} | account(encoder, bad, "rows")
