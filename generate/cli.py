"""`gavel generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gavel.command import command, emit, say
from gavel.options import engine_config, engine_options, source_options

if TYPE_CHECKING:
    from generate.stage import GenerateConfig


@command("Sample N completions for each prompt of SRC into a run directory.")
@click.option("--model", required=True, help="Model directory or hub id.")
@click.option(
    "--prompts",
    "source",
    required=True,
    metavar="SRC",
    help="JSON Lines, JSON, Parquet, CSV (each also .gz), a datasets directory, or hub:owner/name[:split].",
)
@click.option(
    "-n", "--n", "n", default=8, show_default=True, type=click.IntRange(min=1), help="Completions per prompt."
)
@click.option("--out", required=True, metavar="RUN", help="Run directory; the same command resumes it.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(min=0))
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@click.option("--top-k", default=0, show_default=True, type=click.IntRange(min=0), help="0 is off.")
@click.option("--min-p", default=0.0, show_default=True, type=click.FloatRange(0, 1))
@click.option("--repetition-penalty", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--max-tokens", default=512, show_default=True, type=click.IntRange(min=1))
@click.option("--min-tokens", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--stop", multiple=True, help="Stop string; may be given several times.")
@click.option(
    "--logprobs-mode",
    default="raw",
    show_default=True,
    type=click.Choice(["raw", "processed"]),
    help="raw: of temperature 1, what DPO's reference needs. processed: of what was sampled from.",
)
@click.option(
    "--think-tags",
    default="<think>,</think>",
    show_default=True,
    help="What opens and closes a reasoning model's thinking.",
)
@click.option("--seed", default=0, show_default=True, type=int)
@source_options("0.01")
@engine_options
def generate(**options: Any) -> None:
    """Reads the prompts, opens the engine, samples."""
    from gavel.engines import open_engine
    from gavel.rundir import RunDir, refuse_rounds
    from gavel.sources import BadRows, read_prompts
    from generate.stage import generate as run_stage
    from generate.stage import take_in

    config = generate_config(options)
    mode = config.sampling.logprobs_mode
    engine_settings = engine_config(options["model"], options, logprobs_mode=mode)
    bad = BadRows(options["max_bad_rows"])
    refuse_rounds(options["out"])
    with RunDir.open(options["out"]) as run:
        places: dict[str, str] = {}
        ids = take_in(run, lambda b: read_prompts(options["source"], options["mapping"], b, places), bad)
        if bad.repeated:
            plural = "prompt; it" if bad.repeated == 1 else "prompts; each"
            say(f"{options['source']} repeats {bad.repeated:,} {plural} is sampled once")
        with open_engine(engine_settings) as engine:
            summary = run_stage(run, engine, config, ids=ids, bad=bad, places=places)
        run.note(policy=engine_settings.model)
    summary.pop("sampling")
    emit(summary | {"bad_rows": bad.count, "run": options["out"]}, options["as_json"], "sampled")


def generate_config(options: dict[str, Any]) -> GenerateConfig:
    """What the options say of sampling. Raises InputError for those that do not fit together."""
    from gavel.errors import InputError
    from gavel.records import Sampling
    from gavel.thinking import Tags
    from generate.stage import GenerateConfig

    tags = options["think_tags"].split(",")
    if len(tags) != 2 or not all(tags):
        raise InputError("needs two tags with a comma between them", where="--think-tags")
    if not all(options["stop"]):
        raise InputError("an empty stop string would end every answer at once", where="--stop")
    if options["min_tokens"] > options["max_tokens"]:
        raise InputError(f"is above --max-tokens {options['max_tokens']}", where="--min-tokens")
    return GenerateConfig(
        n=options["n"],
        seed=options["seed"],
        tags=Tags(*tags),
        sampling=Sampling(
            temperature=options["temperature"], top_p=options["top_p"], top_k=options["top_k"],
            min_p=options["min_p"], repetition_penalty=options["repetition_penalty"],
            max_tokens=options["max_tokens"], min_tokens=options["min_tokens"],
            stop=tuple(options["stop"]), logprobs_mode=options["logprobs_mode"],
        ),
    )  # fmt: skip
