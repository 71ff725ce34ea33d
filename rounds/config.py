"""What a run of rounds is told to do; `rounds.read_config` makes it of a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gavel.engines import EngineConfig
from gavel.rows import BadRows
from generate.stage import GenerateConfig
from judge.gate import Gate as GoldGate
from judge.pairs import PairConfig
from rounds.gates import Gate
from train.config import RewardConfig
from train.config_dpo import DpoConfig
from train.config_ppo import PpoConfig

REFERENCES = ("first", "previous", "ema")
ENGINES = ("auto", "keep", "restart")
TRAINERS = ("dpo", "ppo")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge: its model and the options of `gavel judge`, for `judge.judging.open_judging`."""

    model: str | None
    options: Mapping[str, Any]

    def fresh(self) -> dict[str, Any]:
        """The options once more: who opens a judge takes them out."""
        return {k: dict(v) if isinstance(v, dict) else v for k, v in self.options.items()}


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """source, mapping, max_bad_rows: as `gavel generate` reads prompts.

    per_round: how many a round takes, None for all. reuse: every round takes the same ones. shuffle: they are
        taken in random order, not that of the source.
    held_out: how many are kept from all rounds for the evaluation. held_out_source: where those come
        from, None: off the same source.
    """

    source: str
    per_round: int | None = None
    reuse: bool = False
    shuffle: bool = True
    held_out: int = 256
    held_out_source: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    max_bad_rows: float = 0.01

    def bad_rows(self) -> BadRows:
        """Counts prompts that cannot be used, and refuses too many of them."""
        return BadRows(self.max_bad_rows, "[prompts] max_bad_rows", sign=" = ")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """judge: the second judge, which never labels; None for none. generate: of held-out prompts, at
    temperature 1 from the whole distribution, so that the KL is unbiased. pairs: how many of a round's pairs
    the second judge looks at."""

    judge: JudgeConfig | None
    generate: GenerateConfig
    pairs: int = 200


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Where a run stops, to be resumed with a larger one; None for no limit.

    judge_calls, judge_tokens: of the labelling judge. hours: of work. disk_gb: of the run's directory.
    """

    judge_calls: int | None = None
    judge_tokens: int | None = None
    hours: float | None = None
    disk_gb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Whose weights stay: the last round's, the best one's, and every n-th round's; 0 for no more."""

    every: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a round trains.

    reference: the policy that training is held to, one of REFERENCES. ema: with "ema", how much of the
        reference before stays in the next.
    lower: the learning rate's factor after a rollback.
    smoothing_measured: a round's label smoothing is the flip rate of its pairs.
    dpo: for method "dpo". reward, ppo: for "ppo". reward_model: what reward models start from, None: the
        first policy.
    """

    method: str
    reference: str
    ema: float = 0.5
    lower: float = 0.5
    smoothing_measured: bool = False
    dpo: DpoConfig | None = None
    reward: RewardConfig | None = None
    reward_model: str | None = None
    ppo: PpoConfig | None = None

    @property
    def policy(self) -> DpoConfig | PpoConfig:
        """The settings that train the policy."""
        found = self.dpo or self.ppo
        assert found is not None
        return found


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Everything.

    engines: whether they stay beside the trainer, one of ENGINES, see `rounds.lifetimes`.
    replay: share of a round's training pairs that come from earlier rounds.
    reference_answer, earlier_best: what joins the candidates of a prompt. overlap: what is sampled is judged
        while the rest is sampled.
    gates: of figures, after each round. gold: of the labelling judge, before each round's labels.
    table: the file's.
    """

    rounds: int
    seed: int
    policy: EngineConfig
    prompts: PromptsConfig
    sample: GenerateConfig
    judge: JudgeConfig
    pairs: PairConfig
    train: Recipe
    evaluate: EvaluationSettings
    gates: tuple[Gate, ...]
    gold: GoldGate | None = None
    engines: str = "auto"
    replay: float = 0.0
    reference_answer: bool = False
    earlier_best: bool = False
    overlap: bool = False
    budget: Budget = Budget()
    keep: Keep = Keep()
    table: Mapping[str, Any] = field(default_factory=dict)
