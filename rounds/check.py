"""What can be known of a run before its first token: every path, model, column and option of all rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gavel.command import warn
from gavel.engines import EngineConfig, open_engine
from gavel.errors import InputError
from gavel.protocols import Capability, require
from gavel.records import Prompt
from judge.method import Method
from rounds.config import JudgeConfig, RoundsConfig
from rounds.judges import kin_of, models_of, parts_of
from rounds.pool import Pool
from rounds.toml_table import at

#: Keys whose values are paths where something lies there; a hub id or an engine's own name stays as it is.
_PATHS = {"model", "source", "held_out_source", "gold", "panel", "rubric", "forms_file", "aspects_file",
          "demonstrations", "tokenizer", "adapter"}  # fmt: skip


def absolute(table: dict[str, Any], name: str = "") -> dict[str, Any]:
    """A configuration whose paths hold in every folder: those that lie in this one are made absolute.

    name: of the table. A judge's "reference" is a model, a trainer's is none; a server's model is a name.
    """
    paths = _PATHS | {"reference"} if name == "judge" else _PATHS
    if table.get("engine") == "server" or table.keys() & {"base_url", "base-url"}:
        paths = paths - {"model"}
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found[key] = absolute(value, key)
        elif key.replace("-", "_") in paths and isinstance(value, str) and Path(value).exists():
            found[key] = str(Path(value).absolute())
        else:
            found[key] = value
    return found


def check(config: RoundsConfig, *, drawn: bool = False) -> Pool | None:
    """Raises InputError for the first thing that would stop a round; warns of what would spoil it.

    Args:
        drawn: the prompts were drawn before, and their source is not needed again.

    Returns: the prompts, unless they were drawn before.
    """
    _model(config.policy, "[policy]", chat=True)
    _judge(config.judge, "[judge]", begins=not drawn)
    if config.evaluate.judge is not None:
        _judge(config.evaluate.judge, "[evaluate.judge]", begins=not drawn)
    _kin(config)
    if config.gold is not None:
        from gavel.rows import BadRows
        from judge.labelled import read_labelled

        bad = BadRows(0)
        if not list(read_labelled(config.gold.gold, {}, bad)):
            raise InputError("holds no labelled pairs", where=f"[judge], gold ({config.gold.gold})")
        bad.check()
    _candidates(config)
    _labels(config)
    _training(config)
    if drawn:
        return None
    pool = Pool.draw(config.prompts, config.seed, config.policy)
    pool.check(config.prompts, config.rounds)
    if config.reference_answer and not any(prompt.references for prompt in pool.rounds):
        raise InputError("no prompt has a reference answer", where="[sample], reference_answer",
                         hint="Name their column in [prompts]: map = {reference = \"answer\"}.")  # fmt: skip
    _batches(config, pool.of_round(1, config.prompts))
    return pool


def _model(config: EngineConfig, where: str, *, chat: bool = False) -> None:
    """Raises InputError for a model that is not there, or a policy that has no chat template."""
    kind = config.resolved()
    if kind in ("server", "fake"):
        return
    from gavel.tokenizer import HfTokenizer
    from gavel.weights import weights_version

    try:
        weights_version(config.model, config.adapter)
        tokenizer = HfTokenizer.load(config.tokenizer_path, trust_remote_code=config.trust_remote_code,
                                     template_args=config.template_args)  # fmt: skip
        if chat:
            tokenizer.require_chat_template()
    except InputError as error:
        raise InputError(
            error.what, where=f"{where}: {error.where or config.model}", hint=error.hint
        ) from None


def _judge(config: JudgeConfig, where: str, *, begins: bool) -> None:
    """begins: the run does, so that its servers should be there."""
    panel = config.options.get("panel")
    place = f"{where}, {panel}" if panel else where
    for method, model in parts_of(config):
        if model is not None:
            _model(model, place)
            with at(place):
                _asked(method, model, begins=begins)


def _asked(method: Method, model: EngineConfig, *, begins: bool) -> None:
    """Raises InputError, CapabilityError or EngineError for a judge that would fail when it is first asked,
    after all that was sampled for it: by an option that its engine does not know, a model of the wrong kind,
    a server that is not there. One that takes its time to load is not opened."""
    kind = model.resolved()
    if kind == "fake" or (kind == "server" and begins):
        with open_engine(model) as engine:
            require(engine, *method.needs, task=f"judging by {method.name}")
    if kind == "vllm" and model.engine_args:
        from gavel.engines.vllm import check_arguments

        check_arguments(model.engine_args)
    if kind in ("vllm", "transformers") and not model.engine_args.keys() & {"runner", "convert"}:
        from train.models import gives_scores

        scores = gives_scores(model.model, model.trust_remote_code)
        if scores and method.needs and Capability.REWARD not in method.needs:
            raise InputError(f"a reward model, and judging by {method.name} needs a language model",
                             where="--model", hint='It judges with method = "reward".')  # fmt: skip
        if scores is False and Capability.REWARD in method.needs:
            raise InputError(f"a language model, and judging by {method.name} needs a reward model",
                             where="--model", hint="gavel train reward makes one.")  # fmt: skip


def _kin(config: RoundsConfig) -> None:
    """Warns of a judge that is related to the policy, and of a second one that is the first."""
    from judge.kinship import warn_of_kin

    policy, labels = kin_of(config.policy), [kin_of(model) for model in models_of(config.judge)]
    warn_of_kin(labels, [policy], allowed=bool(config.judge.options.get("self_judge")))
    second = config.evaluate.judge
    if second is None:
        return
    others = [kin_of(model) for model in models_of(second)]
    warn_of_kin(others, [policy], allowed=bool(second.options.get("self_judge")))
    if any(a.model == b.model or (a.weights and a.weights == b.weights) for a in labels for b in others):
        warn("the evaluation judge is the labelling judge: it will like what it has taught")


def _candidates(config: RoundsConfig) -> None:
    """Raises InputError for candidates that are all the same."""
    joined = config.reference_answer or config.earlier_best
    if config.sample.sampling.temperature == 0 and not joined:
        raise InputError("all answers to a prompt would be the same, and no pair would come of them",
                         where="[sample], temperature", hint="Raise it, or leave it at 1.")  # fmt: skip


def _labels(config: RoundsConfig) -> None:
    """Raises InputError for pairs that ask of the judge what it will not say."""
    from judge.method import orders_of
    from judge.methods import SEVERAL, make_method, method_from

    name, settings, _ = method_from(config.judge.fresh())
    if name in SEVERAL:
        return  # members say what they say
    method = make_method(name, settings)
    if unknown := [aspect for aspect in config.pairs.aspects if aspect not in method.aspects]:
        raise InputError(f"the judge is not asked about {unknown[0]!r}", where="[pairs], aspect",
                         hint=f"It is asked about {', '.join(method.aspects)}.")  # fmt: skip
    if config.train.smoothing_measured and config.gold is None and orders_of(method) != "both":
        raise InputError(
            f"the flip rate is not measured: {name} is not asked in two orders, and there is no gold file",
            where="[train], label-smoothing", hint="Add gold to [judge], or give the number yourself.",
        )  # fmt: skip
    trained = config.train.dpo or config.train.reward
    if name == "gptscore" and trained is not None and trained.soft_labels:
        raise InputError("a GPTScore says by how much a completion is better, not how probably",
                         where="[train], soft-labels", hint="Use a pairwise or reward judge.")  # fmt: skip


def _training(config: RoundsConfig) -> None:
    from train.checks import check_names
    from train.models import context_of

    recipe = config.train
    context_of(recipe.policy.model, recipe.policy.trust_remote_code)
    for trained in (recipe.policy, recipe.reward):
        if trained is not None:
            check_names(trained)
    if recipe.dpo is not None and recipe.dpo.lora_r and not recipe.dpo.merge:
        raise InputError(
            "the next round needs whole weights", where="[train], lora_r", hint="Add merge = true."
        )
    if recipe.reward_model is not None:
        context_of(recipe.reward_model)


def _batches(config: RoundsConfig, prompts: Sequence[Prompt]) -> None:
    """Raises InputError for a round that cannot fill one batch, or one iteration of PPO."""
    joined = max((len(p.references) for p in prompts), default=0) if config.reference_answer else 0
    most = len(prompts) * config.pairs.most(config.sample.n + joined)
    trained = config.train.dpo or config.train.reward
    assert trained is not None
    if most < trained.batch_size:
        raise InputError(
            f"a round has at most {most:,} pairs, fewer than one batch of {trained.batch_size:,}",
            where="[train], batch_size", hint="Lower it, or raise per_round in [prompts].",
        )  # fmt: skip
    if config.train.ppo is not None:
        from train.ppo import iterations_of

        try:
            iterations_of(config.train.ppo, prompts)
        except InputError as error:
            hint = "Lower it, raise n, or raise per_round in [prompts]."
            raise InputError(error.what, where="[train], batch_size", hint=hint) from None
