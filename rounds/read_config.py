"""The TOML file of `gavel rounds` → `rounds.config.RoundsConfig`, checked whole before the first token.

Each table has the options of the command that does the same by hand: [policy] a model and the engine options,
[sample] those of `gavel generate`, [judge] and [evaluate.judge] of `gavel judge`, [pairs] of `gavel pairs`,
[train] of `gavel train dpo` or `ppo`, [train.reward] of `gavel train reward`. What is more is taken here.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import fields, replace
from typing import Any

import click

from gavel.command import options_of, read_toml
from gavel.engines import EngineConfig
from gavel.errors import InputError
from gavel.options import engine_config, engine_options
from gavel.records import Sampling
from generate.stage import GenerateConfig
from judge.gate import Gate as GoldGate
from judge.methods import method_options
from judge.pairs import PairConfig
from rounds.config import (
    ENGINES,
    REFERENCES,
    TRAINERS,
    Budget,
    EvaluationSettings,
    JudgeConfig,
    Keep,
    PromptsConfig,
    Recipe,
    RoundsConfig,
)
from rounds.gates import read_gates
from rounds.toml_table import Table, at
from train.config_ppo import PpoConfig

_TABLES = ("rounds", "seed", "engines", "policy", "prompts", "sample", "judge", "pairs", "train", "evaluate",
           "gates", "budget", "keep")  # fmt: skip


def read_config(path: str) -> RoundsConfig:
    """Raises InputError, which names file, table and key, for whatever cannot be used."""
    return config_of(read_toml(path, path), path)


def config_of(table: dict[str, Any], where: str) -> RoundsConfig:
    """The configuration of a parsed file; errors as `read_config`."""
    top = Table(table, where)
    top.only(_TABLES)
    rounds, seed = top.take("rounds", int, least=1), top.take("seed", int, 0)
    engines = top.take("engines", str, "auto", among=ENGINES)
    policy, train, sample = _policy(top.table("policy")), top.table("train"), top.table("sample")
    method = train.take("method", str, "dpo", among=TRAINERS)
    if method == "ppo":  # its importance weights need what was sampled from
        policy = replace(policy, logprobs_mode="processed")
    joining = {key: sample.take(key, bool, False) for key in ("reference_answer", "earlier_best", "overlap")}
    sampling = _sampling(sample, seed, policy.logprobs_mode)
    judge, pairs = top.table("judge"), top.table("pairs")
    if joining["overlap"]:
        _check_overlap(judge)
    gold = _gold(judge)
    replay = pairs.take("replay", float, 0.0, least=0, most=0.95)
    prompts = _prompts(top.table("prompts"))
    if joining["earlier_best"] and not prompts.reuse:
        raise InputError("no earlier round has a round's prompts", where=f"{where}, [sample], earlier_best",
                         hint="Set reuse = true in [prompts].")  # fmt: skip
    return RoundsConfig(
        rounds=rounds,
        seed=seed,
        engines=engines,
        policy=policy,
        prompts=prompts,
        sample=sampling,
        **joining,
        judge=_judge(judge),
        gold=gold,
        pairs=_pairs(pairs, seed),
        replay=replay,
        train=_recipe(train, method, policy, sampling, seed),
        evaluate=_evaluation(top.table("evaluate"), sampling, seed),
        gates=read_gates(top.take("gates", dict, {}), f"{where}, [gates]"),
        budget=_plain(top.table("budget"), Budget),
        keep=_plain(top.table("keep"), Keep),
        table=table,
    )


@click.command()
@engine_options
def _engine(**options: Any) -> None:
    """Holds the engine options."""


@click.command()
@method_options()
def _method(**options: Any) -> None:
    """Holds the options of judging methods."""


_ENGINE, _METHOD = ({str(option.name) for option in held.params} for held in (_engine, _method))
#: What every trainer's options have that rounds give themselves.
_GIVEN = {"model", "data", "pairs", "run", "out", "mapping", "max_bad_rows", "seed", "template_args",
          "trust_remote_code", "processes"}  # fmt: skip


def _policy(table: Table) -> EngineConfig:
    model = table.take("model", str)
    options = options_of(_engine, table.rest(), table.where, ())
    with at(table.where):
        found = engine_config(model, options)
    if found.resolved() == "server":
        raise InputError("a server takes no new weights", where=f"{table.where}, base_url",
                         hint="Leave it out, the policy runs here. Judges may be servers.")  # fmt: skip
    if found.adapter is not None:
        raise InputError("rounds begin from whole weights", where=f"{table.where}, adapter",
                         hint="Merge the adapter into the model first.")  # fmt: skip
    return found


def _prompts(table: Table) -> PromptsConfig:
    found = PromptsConfig(
        source=table.take("source", str),
        per_round=table.take("per_round", int, None, least=1),
        reuse=table.take("reuse", bool, False),
        shuffle=table.take("shuffle", bool, True),
        held_out=table.take("held_out", int, PromptsConfig.held_out, least=1),
        held_out_source=table.take("held_out_source", str, None),
        mapping={str(k): str(v) for k, v in table.take("map", dict, {}).items()},
        max_bad_rows=table.take("max_bad_rows", float, PromptsConfig.max_bad_rows, least=0),
    )
    table.end()
    if found.per_round is None and not found.reuse:
        raise InputError('lacks "per_round", how many prompts each round takes', where=table.where,
                         hint="Or reuse = true: every round takes all prompts again.")  # fmt: skip
    return found


def _sampling(table: Table, seed: int, mode: str) -> GenerateConfig:
    from generate.cli import generate, generate_config

    given = {"model", "source", "out", "logprobs_mode", "seed", "mapping", "max_bad_rows", *_ENGINE}
    options = options_of(generate, table.rest(), table.where, given)
    with at(table.where):
        return generate_config(options | {"logprobs_mode": mode, "seed": seed})


def _check_overlap(judge: Table) -> None:
    """Raises InputError for a judge that must see all completions before it can ask."""
    from judge.methods import SEVERAL

    method, plan = judge.peek("method", "gptscore"), judge.peek("pairs", "all")
    if method in SEVERAL or plan in ("tournament", "best-worst"):
        what = f"{plan if method not in SEVERAL else method} needs all completions of a prompt at once"
        raise InputError(what, where="[sample], overlap")


def _gold(table: Table) -> GoldGate | None:
    thresholds = (table.take(key, float, None, least=0, most=1)
                  for key in ("min_accuracy", "min_order_agreement"))  # fmt: skip
    with at(table.where):
        return GoldGate.of(table.take("gold", str, None), *thresholds)


def _judge(table: Table) -> JudgeConfig:
    from judge.cli import judge
    from judge.methods import check_judge
    from rounds.judges import parts_of

    model = table.take("model", str, None)
    given = {"model", "out", "name", "dry_run", "reparse", "gold", "min_accuracy", "min_order_agreement",
             "limit_calls", "limit_tokens", "mapping", "max_bad_rows"}  # fmt: skip
    found = JudgeConfig(model=model, options=options_of(judge, table.rest(), table.where, given))
    with at(table.where):  # all that can be known before a model is loaded
        check_judge(model, found.fresh())
        parts_of(found)
    return found


def _pairs(table: Table, seed: int) -> PairConfig:
    from judge.cli_pairs import pair_config, pairs

    given = {"run", "judgments", "name", "to", "format", "overwrite", "private", "seed"}
    options = options_of(pairs, table.rest(), table.where, given)
    with at(table.where):
        return pair_config(options | {"judgments": None, "name": None, "seed": seed})


def _recipe(table: Table, method: str, policy: EngineConfig, sample: GenerateConfig, seed: int) -> Recipe:
    rules = {
        "method": method,
        "reference": table.take("reference", str, among=REFERENCES),
        "ema": table.take("ema", float, Recipe.ema, least=0, most=1),
        "lower": table.take("lower", float, Recipe.lower, least=0, most=1),
    }
    shared = {"model": policy.model, "seed": seed, "template_args": dict(policy.template_args),
              "trust_remote_code": policy.trust_remote_code}  # fmt: skip
    if method == "dpo":
        if table.has("reward"):
            raise InputError('a reward model is trained with method = "ppo" only',
                             where=f"{table.where}, reward", hint="Leave the table out.")  # fmt: skip
        return Recipe(**rules, **_dpo(table, shared))
    reward = table.table("reward")
    start = reward.take("model", str, None)
    return Recipe(**rules, reward_model=start, **_reward(reward, shared), ppo=_ppo(table, shared, sample))


def _dpo(table: Table, shared: dict[str, Any]) -> dict[str, Any]:
    from train.cli import dpo, dpo_config

    options = options_of(dpo, table.rest(), table.where, {*_GIVEN, "reference", "reference_model"})
    measured = _measured(options)
    options |= shared | {"reference": "auto"}
    with at(table.where):
        if measured:  # a loss that does not read it would be found out after the first labels
            dpo_config(options | {"label_smoothing": 0.1})
        config = dpo_config(options)
    return {"dpo": config, "smoothing_measured": measured}


def _reward(table: Table, shared: dict[str, Any]) -> dict[str, Any]:
    from train.cli import reward, reward_config

    options = options_of(reward, table.rest(), table.where, _GIVEN)
    measured = _measured(options)
    with at(table.where):
        return {"reward": reward_config(options | shared), "smoothing_measured": measured}


def _measured(options: dict[str, Any]) -> bool:
    """Whether the label smoothing is measured anew each round; 0 stands in for it until then."""
    from train.cli import MEASURED

    measured = bool(options["label_smoothing"] == MEASURED)
    if measured:
        options["label_smoothing"] = 0.0
    return measured


def _ppo(table: Table, shared: dict[str, Any], sample: GenerateConfig) -> PpoConfig:
    from rounds.cli_ppo import ppo
    from train.options import given as settings_among

    given: Container[str] = {
        *_GIVEN, *_ENGINE, *_METHOD, "source", "critic", "judge_model", "policy_engine", "self_judge",
        "temperature", "max_tokens", "reference_model",
    }  # fmt: skip
    options = options_of(ppo, table.rest(), table.where, given)
    sampling = {"temperature": sample.sampling.temperature, "max_tokens": sample.sampling.max_tokens}
    with at(table.where):
        return PpoConfig(**settings_among(PpoConfig, options) | shared | sampling)


def _evaluation(table: Table, sample: GenerateConfig, seed: int) -> EvaluationSettings:
    judge = None
    table.only(("judge", "n", "pairs"))
    if not table.is_off("judge"):
        if not table.has("judge"):
            raise InputError("lacks [evaluate.judge], the second judge, which never labels",
                             where=table.where, hint="Or judge = false: without win rates.")  # fmt: skip
        judge = _judge(table.table("judge"))
    whole = Sampling(max_tokens=sample.sampling.max_tokens, stop=sample.sampling.stop,
                     logprobs_mode=sample.sampling.logprobs_mode)  # fmt: skip
    return EvaluationSettings(
        judge=judge,
        generate=GenerateConfig(
            n=table.take("n", int, 1, least=1), seed=seed, sampling=whole, tags=sample.tags
        ),
        pairs=table.take("pairs", int, EvaluationSettings.pairs, least=0),
    )


def _plain(table: Table, kind: type) -> Any:
    """A dataclass of numbers of at least 0."""
    found = {f.name: table.take(f.name, int if "int" in str(f.type) else float, f.default, least=0)
             for f in fields(kind)}  # fmt: skip
    table.end()
    return kind(**found)
