"""The stages of a round that are more than a call: each does its work in the round's run directory and says
what it came to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gavel.command import say
from gavel.engines import EngineConfig
from gavel.errors import BudgetSpent, GavelError
from gavel.packed import count_of
from gavel.protocols import Engine
from gavel.records import Completion, Prompt, digest
from gavel.rows import BadRows
from gavel.rundir import JsonlWriter, RunDir, read_records
from gavel.scores import Scores, aspects_of, choose_pass, eligible
from gavel.weights import weights_version
from generate.stage import GenerateConfig, generate, stream, take_in
from judge.collect import Limits
from judge.gate import Gate
from judge.judging import Judging
from judge.pairs import NoPairs, PairConfig, make_pairs
from judge.stage import NothingUsable
from rounds.judges import asked_twice
from rounds.ledger import Made, content_of
from train.config import RewardConfig
from train.config_dpo import DpoConfig
from train.config_ppo import PpoConfig

if TYPE_CHECKING:
    from train.data import PairRow


#: Takes completions while they are sampled, prompt by prompt, and says what was asked; see `while_sampling`.
Taker = Callable[[Iterator[tuple[Prompt, list[Completion]]]], dict[str, int]]


def sample(
    run: RunDir,
    policy: Engine,
    config: GenerateConfig,
    prompts: Sequence[Prompt],
    extra: Iterable[Completion],
    taker: Taker | None = None,
) -> Made:
    """Completions of a round's prompts, and beside them others that join the candidates."""
    ids = take_in(run, lambda bad: iter(prompts), BadRows(0))
    asked: dict[str, int] = {}
    if taker is not None:
        asked = taker(_whole(stream(run, policy, config, ids=ids), prompts, config.n))
    summary = generate(run, policy, config, ids=ids)
    sampled = _counts(run, config.n)
    known, joined = run.ids(run.completions_path), 0
    with JsonlWriter(run.completions_path) as writer:
        for completion in extra:
            joined += 1
            if completion.id not in known:
                known.add(completion.id)
                writer.append(completion)
    kept = {k: summary[k] for k in ("prompts", "completions", "prompts_skipped", "failed")}
    return Made(content_of(run.completions_path), kept | sampled | {"joined": joined} | asked)


def _counts(run: RunDir, n: int) -> dict[str, int]:
    """Of the sampled completions on record, whether or not they are of the last attempt. n: of a prompt."""
    cut_off = tokens = 0
    for completion in read_records(run.completions_path, Completion):
        if completion.index < n:
            cut_off += completion.finish_reason == "length"
            tokens += count_of(completion.token_ids) if completion.token_ids is not None else 0
    return {"cut_off": cut_off, "tokens": tokens}


def _whole(
    completions: Iterator[Completion], prompts: Sequence[Prompt], n: int
) -> Iterator[tuple[Prompt, list[Completion]]]:
    """Each prompt as soon as all of its completions are there; one that was begun before a stop is left
    out."""
    asked, found = {prompt.id: prompt for prompt in prompts}, defaultdict[str, list[Completion]](list)
    for completion in completions:
        mine = found[completion.prompt_id]
        mine.append(completion)
        if len(mine) == n:
            yield asked[completion.prompt_id], sorted(found.pop(completion.prompt_id), key=lambda c: c.index)


def while_sampling(run: RunDir, judging: Judging, limits: Limits) -> Taker:
    """Judges what is already sampled while the rest is. What it leaves out the judging stage asks."""

    def take(groups: Iterator[tuple[Prompt, list[Completion]]]) -> dict[str, int]:
        try:
            summary = judging.judge(run, groups=lambda: groups, limits=limits)
        except NothingUsable as error:  # the judging stage will say so
            summary = error.summary
        for _ in groups:  # where a limit came first
            pass
        return {"judge_calls": summary["calls"], "judge_tokens": summary["tokens"]}

    return take


def reference_answers(prompts: Iterable[Prompt], index: int) -> Iterator[Completion]:
    """The prompts' reference answers as candidates. index: of each prompt's first."""
    for prompt in prompts:
        for place, text in enumerate(prompt.references):
            yield Completion(
                id=digest("reference answer", prompt.id, text), prompt_id=prompt.id, index=index + place,
                text=text, model="reference answer", finish_reason="stop",
            )  # fmt: skip


def earlier_best(earlier: RunDir, prompts: Iterable[Prompt], index: int) -> Iterator[Completion]:
    """Of each prompt that an earlier round had too, the completion that was scored best there."""
    judging = choose_pass(earlier, None)
    with Scores.open(earlier, judging, aspects_of(earlier, judging)) as scores:
        for prompt in prompts:
            ranked = eligible(scores.of(prompt.id), Counter())
            if ranked:
                yield msgspec.structs.replace(ranked[0].completion, index=index)


def label(run: RunDir, judging: Judging, gate: Gate | None, gold: Path, limits: Callable[[], Limits]) -> Made:
    """Judgments of all completions; before them the judge's gold test.

    limits: what is left of them by now.

    Raises CheckFailed when the judge fails that, a limit came first, or too much was not answered.
    """
    if gate is not None:
        gate.check(run, judging, journal=gold)
    summary = asked_twice(lambda: judging.judge(run, limits=limits()), str(run.path))
    if summary["left"]:
        raise BudgetSpent(
            f"the budget of the judge is spent, {summary['left']:,} judgments are left",
            where=str(run.path), hint="Raise judge_calls or judge_tokens in [budget] and resume.",
        )  # fmt: skip
    name = summary["pass"]
    measured = run.manifest().get("gates", {}).get(name, {})
    kept = {k: summary[k] for k in ("judgments", "unusable", "failed", "calls", "tokens")}
    return Made(
        content_of(*sorted((run.path / "judgments").glob("*/judgments.jsonl"))),
        kept | {"pass": name, "gold": {k: v for k, v in measured.items() if k != "gold"}},
    )


def pair(run: RunDir, config: PairConfig) -> Made:
    summary = make_pairs(run, config)
    kept = ("name", "pairs", "prompts", "prompts_without_pair", "dropped", "flip_rate", "length_correlation",
            "chosen_longer", "warnings")  # fmt: skip
    return Made(content_of(run.pairs_path(summary["name"])), {key: summary.get(key) for key in kept})


def too_few() -> tuple[type[GavelError], ...]:
    """What pairing and training raise where a round has too little to train on."""
    from train.checks import TooFewRows

    return NoPairs, TooFewRows


def pair_rows(
    run: RunDir,
    pairs: str,
    config: DpoConfig | RewardConfig,
    earlier: Mapping[int, tuple[RunDir, str]],
    share: float,
) -> list[PairRow]:
    """The round's pairs as token ids, and so many of earlier rounds' that they make up `share` of all.

    Pairs that are too long for the model are left out: a reference answer may be, and a reward model may take
    less than the policy.

    earlier: round → its run and the name of its pairs. Which of theirs are taken hangs on the seed alone.
    """
    from train.data import read_run
    from train.models import context_of, encoder_of

    limits = (config.max_length, context_of(config.model, config.trust_remote_code))
    longest = min((limit for limit in limits if limit is not None), default=None)
    encoder, bad = encoder_of(replace(config, max_length=longest)), BadRows(0)
    rows = read_run(run, encoder, bad, pairs)
    wanted = round(len(rows) * share / (1 - share)) if earlier else 0
    if wanted:
        older = [(digest("replay", config.seed, run.path.name, number, row.pair_id), row)
                 for number, (other, name) in sorted(earlier.items())
                 for row in read_run(other, encoder, bad, name)]  # fmt: skip
        rows += [row for _, row in sorted(older, key=lambda item: item[0])[:wanted]]
    bad.check(len(rows) + bad.count)
    if encoder.left_out:
        reasons = (f"{reason} ({count:,})" for reason, count in encoder.left_out.items())
        say(f"pairs that are not trained on: {', '.join(reasons)}")
    return rows


def smoothed(config: Any, run: RunDir, pairs: str, measured: bool) -> Any:
    """The configuration with the pairs' own flip rate as label smoothing, where that is asked for."""
    if not measured:
        return config
    from train.data import flip_rate

    return replace(config, label_smoothing=flip_rate(run, pairs))


def train_by_dpo(config: DpoConfig, rows: list[PairRow], out: Path) -> Made:
    from train.dpo import train_dpo

    return _trained(train_dpo(config, rows, out), out)


def train_reward_model(config: RewardConfig, rows: list[PairRow], out: Path) -> Made:
    from train.reward import train_reward

    return _trained(train_reward(config, rows, out), out)


def train_by_ppo(
    config: PpoConfig,
    prompts: Sequence[Prompt],
    policy: Engine,
    reward: Judging,
    sampling: GenerateConfig,
    out: Path,
) -> Made:
    """PPO against a reward model, on the round's prompts. config: its critic is that model, where it fits."""
    from rounds.cli_ppo import fitting, implied_critic
    from rounds.live import LiveSampler, LiveScorer
    from train.ppo import train_ppo

    if config.critic is not None:
        critic = implied_critic(config.model, config.critic, config.trust_remote_code)
        config = replace(config, critic=critic)
    root = out / "rollouts"
    sampler = LiveSampler(policy, replace(sampling, n=config.n), root)
    summary = train_ppo(config, fitting(prompts, policy, config), sampler, LiveScorer(reward, root), out)
    return _trained(summary, out)


def _trained(summary: Mapping[str, Any], out: Path) -> Made:
    """The summary without what another run would not repeat: times and places."""
    kept = {key: value for key, value in summary.items() if key not in ("seconds", "model")}
    return Made(weights_version(str(out)), kept)


def engine_settings(config: EngineConfig) -> dict[str, Any]:
    """Of how a model is opened, what shapes its answers."""
    return {
        "tokenizer": config.tokenizer,
        "adapter": config.adapter,
        "dtype": config.arithmetic(config.dtype),
        "context": config.context,
        "template_args": config.template_args,
    }
