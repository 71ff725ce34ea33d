"""`gavel train ppo`: the judge and the policy's engine live beside the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gavel.command import command, emit, say
from gavel.errors import InputError
from gavel.options import engine_config, engine_options, source_options
from gavel.processes import is_main
from judge.methods import check_judge, method_options
from train.config_ppo import PpoConfig
from train.options import optimisation, setting, settings_of, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gavel.engines import EngineConfig
    from gavel.protocols import Engine
    from gavel.records import Prompt

_NO_CRITIC = "none"  # as the value of --critic
_OWN_BODY = "the critic starts from the policy's own body, not from the reward model"


@command("Train MODEL against a judge's scores by proximal policy optimisation.", name="ppo")
@click.option("--model", required=True, help="Policy: model directory or hub id.")
@click.option("--prompts", "source", required=True, metavar="SRC", help="As for gavel generate.")
@click.option("--out", required=True, metavar="DIR", help="Where the model goes; the same command resumes.")
@click.option("--judge", "judge_model", help="Who scores: a reward model, or any with another --method.")
@setting(PpoConfig, "reference_model", "What the KL is measured from.  [default: the model it starts from]")
@setting(
    PpoConfig,
    "critic",
    "Reward model that the critic starts from, or none: the policy's own body, at 0.  "
    "[default: the judge if it is one and reads the policy's token ids]",
)
@setting(PpoConfig, "learning_rate", "Peak learning rate.", type=float)
@setting(PpoConfig, "critic_learning_rate", "The critic's.  [default: the policy's]", type=float)
@click.option("-n", "--n", "n", default=settings_of(PpoConfig)["n"], show_default=True, type=int,
              help="Completions of a prompt in an iteration.")  # fmt: skip
@setting(PpoConfig, "temperature", "Of sampling.", type=float)
@setting(PpoConfig, "max_tokens", "Longest completion.", type=int)
@setting(PpoConfig, "ppo_epochs", "Passes over an iteration's completions.", type=int)
@setting(PpoConfig, "mini_batches", "Optimiser steps of a pass.", type=int)
@setting(PpoConfig, "kl_coef", "Weight of the KL penalty.", type=float)
@setting(PpoConfig, "kl_target", "Steer the KL to this, in nats per completion.", type=float)
@setting(PpoConfig, "kl_horizon", "How slowly, in completions.", type=int)
@setting(PpoConfig, "clip", "Of the probability ratio.", type=float)
@setting(PpoConfig, "value_clip", "Of a value's change.", type=float)
@setting(PpoConfig, "value_coef", "Weight of the value loss.", type=float)
@setting(PpoConfig, "gamma", "Discount.", type=float)
@setting(PpoConfig, "lam", "λ of the advantage estimates.", type=float)
@setting(
    PpoConfig,
    "importance_cap",
    "Of weights that correct for the sampler; 0: none.",
    type=float,
)
@setting(PpoConfig, "missing_eos_penalty", "Taken off the score of a cut-off completion.", type=float)
@click.option("--bootstrap", is_flag=True, help="A cut-off completion's rest is worth what the critic says.")
@click.option("--whiten-rewards", is_flag=True, help="Bring rewards to variance 1 around their mean.")
@optimisation(PpoConfig, "completions", "iteration")
@click.option("--policy-engine", type=click.Choice(["vllm", "transformers"]),
              help="That samples.  [default: vllm where it is installed]")  # fmt: skip
@click.option("--self-judge", is_flag=True, help="Judge and policy may be one model or family.")
@method_options("reward")
@source_options("0.01")
@engine_options
def ppo(as_json: bool, **options: Any) -> None:
    """Reads the prompts, opens policy and judge, trains."""
    if spread(options):
        return
    from gavel.engines import open_engine
    from gavel.records import Sampling
    from generate.stage import GenerateConfig
    from judge.judging import open_judging
    from judge.kinship import Kin, warn_of_kin
    from rounds.live import LiveSampler, LiveScorer

    out, judge_model = options.pop("out"), options.pop("judge_model")
    config = _config(options, judge_model)
    check_judge(judge_model, options)
    prompts, bad_rows = _prompts(options)
    policy = _policy_engine(config, options)
    allowed = options.pop("self_judge")

    from train.checks import check_names
    from train.ppo import iterations_of, train_ppo

    check_names(config)  # errors now, not when the engines are up
    iterations_of(config, prompts)
    if not is_main():
        train_ppo(config, prompts, None, None, out)
        return
    root = Path(out) / "rollouts"
    sampling = Sampling(
        temperature=config.temperature, max_tokens=config.max_tokens, logprobs_mode="processed"
    )
    with open_engine(policy) as engine, open_judging(judge_model, options) as judging:
        warn_of_kin(judging.kin(), [Kin(engine.model, engine.weights)], allowed=allowed)
        kept = fitting(prompts, engine, config)
        sampler = LiveSampler(engine, GenerateConfig(n=config.n, seed=config.seed, sampling=sampling), root)
        summary = train_ppo(config, kept, sampler, LiveScorer(judging, root), out)
    emit(summary | {"left_out": len(prompts) - len(kept), "bad_rows": bad_rows}, as_json, "trained")


def _config(options: dict[str, Any], judge_model: str | None) -> PpoConfig:
    """Takes the settings out of the options."""
    shared = {"trust_remote_code"}  # with the engines
    given = {name: options.pop(name) for name in settings_of(PpoConfig).keys() - shared if name in options}
    given["template_args"] = options["chat_template_arg"]
    given["trust_remote_code"] = options["trust_remote_code"]
    if given["critic"] == _NO_CRITIC:
        given["critic"] = None
    elif given["critic"] is None and options["method"] == "reward" and judge_model is not None:
        if options["engine"] == "server":
            say(f"{_OWN_BODY}: a server has its weights")
        else:
            given["critic"] = implied_critic(given["model"], judge_model, given["trust_remote_code"])
    return PpoConfig(**given)


def _prompts(options: dict[str, Any]) -> tuple[list[Prompt], int]:
    from gavel.rows import BadRows
    from gavel.sources import read_prompts

    source, bad = options.pop("source"), BadRows(options.pop("max_bad_rows"))
    prompts = list(read_prompts(source, options.pop("mapping"), bad))
    bad.check()
    if bad.repeated:
        say(f"{source} repeats {bad.repeated:,} prompts, which count once")
    return prompts, bad.count


def _policy_engine(config: PpoConfig, options: dict[str, Any]) -> EngineConfig:
    """The policy's engine has the judge's settings, but for those that name another model."""
    own = {"base_url": None, "tokenizer": None, "adapter": None}
    kind = options.pop("policy_engine") or (options["engine"] if options["engine"] != "server" else None)
    return engine_config(config.model, options | own | {"engine": kind}, logprobs_mode="processed")


def implied_critic(model: str, reward: str, trust_remote_code: bool = False) -> str | None:
    """The reward model that judges, where the critic can start from it too; where it cannot, that is said.

    Args:
        model: the policy.
    """
    from gavel.tokenizer import HfTokenizer
    from train.actor_critic import misfit

    tokenizer = HfTokenizer.load(model, trust_remote_code=trust_remote_code)
    why = misfit(reward, tokenizer, trust_remote_code)
    if why is not None:
        say(f"{_OWN_BODY}: {why}")
    return reward if why is None else None


def fitting(prompts: Sequence[Prompt], engine: Engine, config: PpoConfig) -> list[Prompt]:
    """The prompts that leave room for a whole completion."""
    room = engine.context - config.max_tokens
    kept = [p for p in prompts if len(engine.tokenizer.chat_ids(p.messages)) <= room]
    if len(kept) < len(prompts):
        say(f"prompts left out: with --max-tokens {config.max_tokens} longer than the context of "
            f"{engine.context:,} ({len(prompts) - len(kept):,})")  # fmt: skip
    if not kept:
        raise InputError(f"leaves no prompt any room in a context of {engine.context:,} tokens",
                         where=f"--max-tokens {config.max_tokens}")  # fmt: skip
    return kept
