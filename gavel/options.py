"""Options that several commands share, and the settings they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gavel.command import key_values, place, text_values
from gavel.engines import ENGINES, EngineConfig
from gavel.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


def engine_options(function: F) -> F:
    """Adds the options of a model's engine; `engine_config` reads them."""
    for option in reversed(
        [
            click.option("--engine", help=f"One of {', '.join(ENGINES)}; vllm where it is installed."),
            click.option(
                "--base-url", help="Address of an OpenAI-compatible server, e.g. http://host:8000/v1."
            ),
            click.option("--tokenizer", help="Tokenizer, where it is not the model's own."),
            click.option("--adapter", help="Directory of a LoRA adapter."),
            click.option(
                "--dtype",
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                default="auto",
                show_default=True,
                help="Of the arithmetic; auto: the checkpoint's, on a CPU float32.",
            ),
            click.option("--max-model-len", type=click.IntRange(min=2), help="Longest sequence in tokens."),
            click.option(
                "--engine-arg",
                multiple=True,
                callback=key_values,
                metavar="KEY=VALUE",
                help="Passed to the engine, e.g. tensor_parallel_size=4.",
            ),
            click.option(
                "--chat-template-arg",
                multiple=True,
                callback=key_values,
                metavar="KEY=VALUE",
                help="Passed to the chat template, e.g. enable_thinking=false.",
            ),
            click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
        ]
    ):
        function = option(function)
    return function


def engine_config(model: str, options: dict[str, Any], **more: Any) -> EngineConfig:
    """Takes the engine options out of `options`. Raises InputError for an unknown engine."""
    config = EngineConfig(
        model=model,
        engine=options.pop("engine"),
        base_url=options.pop("base_url"),
        tokenizer=options.pop("tokenizer"),
        adapter=options.pop("adapter"),
        dtype=options.pop("dtype"),
        context=options.pop("max_model_len"),
        engine_args=options.pop("engine_arg"),
        template_args=options.pop("chat_template_arg"),
        trust_remote_code=options.pop("trust_remote_code"),
        **more,
    )
    config.resolved()
    return config


def source_options(default_bad_rows: str) -> Callable[[F], F]:
    """Adds `--map` and `--max-bad-rows`."""

    def wrap(function: F) -> F:
        function = click.option(
            "--max-bad-rows",
            default=default_bad_rows,
            show_default=True,
            callback=_bad_rows,
            help="How many unusable rows to skip: a share below 1, or a count.",
        )(function)
        return click.option(
            "--map",
            "mapping",
            multiple=True,
            callback=text_values,
            metavar="NAME=COLUMN",
            help="Where a column has another name, e.g. prompt=source.",
        )(function)

    return wrap


def _bad_rows(ctx: click.Context, param: click.Parameter, value: str) -> float:
    try:
        number = float(str(value).rstrip("%")) / (100 if str(value).endswith("%") else 1)
    except ValueError:
        number = -1
    if number < 0 or number != number:
        raise InputError(f"{value!r} is neither a share nor a count", where=place(ctx, param))
    return number
