"""PPO's sampler and scorer on gavel's own engines and judges, every completion and judgment recorded.

Each iteration is a run directory of its own, ROOT/000001 and so on, as `gavel generate` and `gavel judge`
make them: what was sampled and judged before a stop is read, not asked for again, and every command that
reads runs can look at it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from gavel.errors import CheckFailed, EngineError, InputError
from gavel.protocols import Capability, Engine, Refused, ScoreRequest, require
from gavel.records import Completion, Judgment, Prompt, seed_for
from gavel.rows import BadRows
from gavel.rundir import RunDir, read_records
from generate.stage import GenerateConfig, generate, take_in
from judge.judging import Judging
from judge.stage import NothingUsable
from train.memory import out_of_memory
from train.rollout import OutOfMemory, Rollout


@dataclass(frozen=True)
class LiveSampler:
    """Samples by an engine. Implements `train.rollout.Sampler`.

    engine: opened with logprobs_mode="processed". config: n completions of a prompt, their sampling.
    """

    engine: Engine
    config: GenerateConfig
    root: Path

    def __post_init__(self) -> None:
        """Raises CapabilityError for an engine that cannot do what PPO needs."""
        require(self.engine, Capability.SAMPLE, Capability.TOKENS, Capability.LOGPROBS, Capability.SCORE,
                Capability.LOAD_WEIGHTS, task="gavel train ppo")  # fmt: skip

    @property
    def identity(self) -> str:
        sampling = msgspec.json.encode(self.config.sampling).decode()
        return f"n {self.config.n}, seed {self.config.seed}, {sampling}, {self.engine.dtype}, tokenizer " + (
            self.engine.tokenizer.version
        )

    def sample(self, iteration: int, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Raises CheckFailed where the engine refused a prompt, OutOfMemory where it has none left."""
        config = replace(self.config, seed=self.config.seed + iteration)
        found: dict[str, list[Completion]] = defaultdict(list)
        with _memory_of("the policy's engine"), RunDir.open(folder_of(self.root, iteration)) as run:
            take_in(run, lambda bad: iter(prompts), BadRows(0))
            generate(run, self.engine, config)
            for completion in read_records(run.completions_path, Completion):
                if self._is_asked(completion, config):
                    found[completion.prompt_id].append(completion)
        return [rollout for prompt in prompts for rollout in self._rollouts(prompt, found[prompt.id])]

    def _is_asked(self, completion: Completion, config: GenerateConfig) -> bool:
        """Whether it is of this sampling, and not of one that was begun otherwise in the same place."""
        seed = seed_for(config.seed, completion.prompt_id, completion.index)
        return (completion.weights, completion.sampling, completion.seed, completion.index < config.n) == (
            self.engine.weights, config.sampling, seed, True,
        )  # fmt: skip

    def _rollouts(self, prompt: Prompt, completions: list[Completion]) -> Iterator[Rollout]:
        if len(completions) != self.config.n:
            raise CheckFailed(
                f"the engine gave {len(completions)} of {self.config.n} completions",
                where=f"prompt {prompt.id}",
            )
        prompt_ids = self.engine.tokenizer.chat_ids(prompt.messages)
        for completion in sorted(completions, key=lambda c: c.index):
            yield Rollout.of(prompt, prompt_ids, completion)

    def load_weights(self, folder: Path) -> None:
        with _memory_of("the policy's engine"):
            self.engine.load_weights(str(folder))

    def logps(self, rollouts: Sequence[Rollout]) -> list[Sequence[float]]:
        requests = [
            ScoreRequest(key=str(i), token_ids=[*r.prompt_ids, *r.completion_ids], start=len(r.prompt_ids))
            for i, r in enumerate(rollouts)
        ]
        found: dict[int, Sequence[float]] = {}
        with _memory_of("the policy's engine"):
            for reply in self.engine.score(requests):
                if isinstance(reply, Refused):
                    raise CheckFailed(f"the engine cannot score what it sampled: {reply.reason}")
                found[int(reply.key)] = reply.logprobs
        return [found[place] for place in range(len(rollouts))]


@dataclass(frozen=True)
class LiveScorer:
    """Scores by a judge; of several aspects the mean counts. Implements `train.rollout.Scorer`."""

    judging: Judging
    root: Path

    def __post_init__(self) -> None:
        """Raises InputError for a judge that compares and does not score."""
        if self.judging.one_order or self.judging.both_orders:
            raise InputError(
                f"{self.judging.name} compares completions, and PPO needs a score for each", where="--method",
                hint="Use gptscore, rating or reward.",
            )  # fmt: skip

    @property
    def name(self) -> str:
        return f"{self.judging.name} by {' + '.join(self.judging.models)}"

    @property
    def identity(self) -> str:
        return self.judging.identity()

    @property
    def _pass(self) -> str:
        """Of each iteration's judgments, by this judge."""
        return f"ppo-{self.identity[:8]}"

    def score(self, iteration: int, rollouts: Sequence[Rollout]) -> list[float | None]:
        """Raises CheckFailed for a judge whose judgments are of several completions at once, OutOfMemory
        where its engine has no memory left."""
        groups: dict[str, tuple[Prompt, list[Completion]]] = {}
        for r in rollouts:
            groups.setdefault(r.prompt.id, (r.prompt, []))[1].append(r.completion)
        said: dict[str, list[float | None]] = defaultdict(list)
        with _memory_of("the judge's engine"), RunDir.open(folder_of(self.root, iteration)) as run:
            try:
                self.judging.judge(run, self._pass, groups=lambda: iter(groups.values()))
            except NothingUsable:
                return [None] * len(rollouts)  # with their reasons on record
            for judgment in read_records(run.judgments_path(self._pass), Judgment):
                if len(judgment.completion_ids) > 1:
                    raise CheckFailed(
                        f"{self.judging.name} ranks completions, and PPO needs a score for each",
                        where="--method",
                    )
                said[judgment.completion_ids[0]].append(judgment.score)
        return [_mean(said[r.completion.id]) for r in rollouts]


@contextlib.contextmanager
def _memory_of(whose: str) -> Iterator[None]:
    """Says of a lack of memory whose it is, so that nobody looks for it in the trainer."""
    try:
        yield
    except (RuntimeError, MemoryError, EngineError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{whose} is out of memory", where="--engine-arg",
            hint="Policy's engine and judge have the options of engines in common. Lower --max-model-len or "
                 "--max-tokens; with vLLM also the requests that run at once (--engine-arg max_num_seqs=32), "
                 "or its part of a GPU that the trainer shares (--engine-arg gpu_memory_utilization=0.3).",
        ) from error  # fmt: skip


def _mean(scores: list[float | None]) -> float | None:
    """None unless every aspect has a score."""
    usable = [score for score in scores if score is not None]
    return sum(usable) / len(usable) if usable and len(usable) == len(scores) else None


def folder_of(root: Path, iteration: int) -> Path:
    """Where an iteration's completions and judgments are."""
    return root / f"{iteration + 1:06d}"
