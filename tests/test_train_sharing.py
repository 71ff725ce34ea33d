"""Prompts and completions that pairs share go through the model once, and nothing that is learned changes."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_tools import (
    BOS,
    EOS,
    HYBRIDS,
    VOCAB,
    assert_one_trajectory,
    gradients,
    planted,
    settings,
    small,
    tiny_model,
    trainer_of,
)

from train.config_dpo import DIVERGENCES, LOSSES, WITHIN_MICRO_BATCH
from train.data import PairRow

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def prompts_with(counts: list[int], seed: int = 0) -> list[PairRow]:
    """All pairs of so many completions for each prompt; prompts of 1 to 30 tokens, completions of 1 to 12."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(5, VOCAB) for _ in range(draw.randint(low, high))]

    rows = []
    for number, count in enumerate(counts):
        prompt = [BOS, *(ids(0, 29) if number else [])]  # the first is a single token
        answers = [[*ids(0, 11), EOS] for _ in range(count)]
        rows += [
            PairRow(prompt_ids=prompt, chosen_ids=a, rejected_ids=b, pair_id=f"{number}-{i}", where=f"f:{i}")
            for i, (a, b) in enumerate(itertools.combinations(answers, 2))
            if a != b
        ]
    return rows


SETS = {"one pair a prompt": planted(6), "several": prompts_with([3, 2, 3]), "all of 6": prompts_with([6])}


# against TRL


def stock_gradients(model: str, rows: list[PairRow], lora_r: int = 0, **options: Any) -> dict[str, Any]:
    """Of TRL's own trainer on the whole batch at once; the reference is made up."""
    import torch
    from trl import DPOConfig, DPOTrainer

    from gavel.tokenizer import HfTokenizer
    from train import adapter, exact, models

    class Stock(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:
            return dataset

    args = DPOConfig(
        output_dir="unused", bf16=False, use_cpu=True, gradient_checkpointing=False, max_length=None,
        precompute_ref_log_probs=True, report_to="none", seed=0, **options,
    )  # fmt: skip
    trainer = Stock(
        models.load(model, torch.float32).model, args=args, train_dataset=exact.places_of(len(rows)),
        processing_class=HfTokenizer.load(model).hf,
        peft_config=adapter.lora(settings(model, lora_r=lora_r)),
    )  # fmt: skip
    chosen, rejected = made_up(rows)
    batch = trainer.data_collator([
        {"prompt_ids": list(r.prompt_ids), "chosen_ids": list(r.chosen_ids),
         "rejected_ids": list(r.rejected_ids), "ref_chosen_logps": c, "ref_rejected_logps": d}
        for r, c, d in zip(rows, chosen, rejected, strict=True)
    ])  # fmt: skip
    trainer.compute_loss(trainer.model, batch).backward()
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}


def made_up(rows: list[PairRow]) -> tuple[list[float], list[float]]:
    """Reference log-probabilities near those of the model, off by something else for every row."""
    return ([-3.6 * len(r.chosen_ids) + 0.1 * (i % 7) for i, r in enumerate(rows)],
            [-3.5 * len(r.rejected_ids) - 0.1 * (i % 5) for i, r in enumerate(rows)])  # fmt: skip


def gavel_gradients(config: Any, rows: list[PairRow], out: Path) -> dict[str, Any]:
    from train.reference import Reference

    trainer = trainer_of(config, rows, out)
    trainer.reference = Reference(*made_up(rows), "made up", None)
    return gradients(trainer, list(range(len(rows))))


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """To 1e-5 of the largest gradient, be it large (2e5 with forward_kl) or small."""
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert largest > 1e-4
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).abs().max()) < 1e-5 * largest, name


@pytest.mark.parametrize("rows", SETS.values(), ids=SETS.keys())
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_the_gradient_of_trl(
    model: str, tmp_path: Path, loss: str, rows: list[PairRow]
) -> None:
    """The denominator: pairs of the batch, chosen tokens of the batch for sft."""
    smoothing = 0.1 if loss in ("exo_pair", "robust", "aot", "aot_unpaired") else 0.0
    micro = len(rows) if loss in WITHIN_MICRO_BATCH else 1
    config = settings(
        model, loss={loss: 1.0}, batch_size=len(rows), micro_batch=micro, label_smoothing=smoothing
    )
    theirs = stock_gradients(model, rows, loss_type=[loss], label_smoothing=smoothing)
    assert_equal(gavel_gradients(config, rows, tmp_path), theirs)


OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a mix": ({"loss": {"sigmoid": 0.7, "sft": 0.3}},
              {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]}),
    **{name: ({"divergence": name}, {"f_divergence_type": name}) for name in DIVERGENCES[1:]},
    "alpha 0.2": ({"divergence": "alpha_divergence", "divergence_alpha": 0.2},
                  {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.2}),
    "ld 0.3": ({"ld_alpha": 0.3}, {"ld_alpha": 0.3}),
    "wpo": ({"wpo": True}, {"use_weighting": True}),
    "tau": ({"loss": {"discopop": 1.0}, "discopop_tau": 0.5},
            {"loss_type": ["discopop"], "discopop_tau": 0.5}),
    "beta": ({"beta": 0.5}, {"beta": 0.5}),
    "lora": ({"lora_r": 4}, {"lora_r": 4}),
}  # fmt: skip


@pytest.mark.parametrize("sharing", ["prompts", "completions"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_option_has_the_gradient_of_trl(model: str, tmp_path: Path, name: str, sharing: str) -> None:
    rows = SETS["several"]
    ours, theirs = OBJECTIVES[name]
    config = settings(model, **({"loss": {"sigmoid": 1.0}} | ours), batch_size=len(rows), micro_batch=1,
                      sharing=sharing)  # fmt: skip
    found = gavel_gradients(config, rows, tmp_path)
    assert_equal(found, stock_gradients(model, rows, **theirs))
    if name not in ("lora", "a mix"):  # it changes what it should: not the gradient without it
        plain = stock_gradients(model, rows, loss_type=theirs.get("loss_type", ["sigmoid"]))
        assert max(float((found[k] - plain[k]).abs().max()) for k in plain) > 1e-4


# one trajectory, however the work is shared


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 2}, {"sharing": "completions"},
                                     {"sharing": "off"}, {"gradient_checkpointing": True}],
                         ids=str)  # fmt: skip
def test_sharing_and_micro_batches_change_nothing(
    model: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from train.dpo import train_dpo

    rows = prompts_with([4, 2, 3, 5, 2, 3])
    base = settings(model, epochs=2, reference="pass", scheduler="linear")
    train_dpo(base, rows, tmp_path / "base")
    train_dpo(replace(base, **changes), rows, tmp_path / "other")
    assert_one_trajectory(tmp_path / "base", tmp_path / "other")
    both = zip(*(_metrics(tmp_path / name) for name in ("base", "other")), strict=True)
    for mine, theirs in list(both)[1:]:  # at the start rewards are 0, which is the larger is rounding
        assert mine == pytest.approx(theirs, rel=2e-4, abs=1e-5)


def _metrics(out: Path) -> list[dict[str, float]]:
    from training_tools import steps_of

    names = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logits/rejected", "entropy",
             "mean_token_accuracy")  # fmt: skip
    return [{name: step[name] for name in names} for step in steps_of(out)]


# what goes through the model


class Read:
    """Tokens that a model's embedding read while gradients were on, call by call."""

    def __init__(self, trainer: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        trainer.model.get_input_embeddings().register_forward_hook(self._hook)

    def _hook(self, module: Any, args: Any, output: Any) -> None:
        self.shapes.append(tuple(args[0].shape))


def test_each_prompt_and_completion_goes_through_once(model: str, tmp_path: Path) -> None:
    """28 pairs of 8 completions: one row, no padding, in a single micro-batch of 16 sequences."""
    rows = prompts_with([2, 8])[1:]
    assert len(rows) == 28
    trainer = trainer_of(settings(model, batch_size=28, micro_batch=7), rows, tmp_path)
    read = Read(trainer)
    gradients(trainer, list(range(28)))
    answers = {tuple(ids) for row in rows for ids in (row.chosen_ids, row.rejected_ids)}
    # the prompt without its last token, which begins every answer, whose own last token is not read
    assert read.shapes == [(1, len(rows[0].prompt_ids) - 1 + sum(map(len, answers)))]


def test_without_prompts_shared_each_sequence_goes_through_once(model: str, tmp_path: Path) -> None:
    rows = prompts_with([2, 8])[1:]
    trainer = trainer_of(settings(model, batch_size=28, sharing="completions"), rows, tmp_path)
    read = Read(trainer)
    gradients(trainer, list(range(28)))
    assert [shape[0] for shape in read.shapes] == [8]
    off = trainer_of(settings(model, batch_size=28, micro_batch=7, sharing="off"), rows, tmp_path)
    read = Read(off)
    gradients(off, list(range(28)))
    assert [shape[0] for shape in read.shapes] == [14] * 4


# which models


def deltas(net: Any, rows: list[PairRow]) -> tuple[str | None, float, float]:
    """What stood in the way, and how far both forwards are apart: log-probabilities and gradients."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from train.unique import Unique, by_prompts, by_rows, try_prompts

    add_fused_lm_head(net, outputs=("log_probs", "entropy"))
    unique, device = Unique.of(rows), torch.device("cpu")

    def both(forward: Any) -> tuple[Any, list[Any]]:
        net.zero_grad()
        outputs, counted = forward(net, unique, device)
        logps = outputs.log_probs[counted]
        (logps * torch.linspace(-1, 1, len(logps))).mean().backward()
        return logps.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]

    plain, expected = both(by_rows)
    why = try_prompts(net, rows[:2], device, 1e-3)
    if why is not None:
        again, _ = both(by_rows)  # the model is as it was
        assert torch.equal(again, plain)
        return why, 0.0, 0.0
    logps, found = both(by_prompts)
    assert len(found) == len(expected)
    apart = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return None, float((logps - plain).abs().max()), apart


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("llama", {}), ("qwen2", {}), ("qwen3", {}), ("gpt2", {}), ("phi3", {}), ("olmo2", {}), ("gemma", {}),
     ("gpt_neox", {}), ("mistral", {"sliding_window": 4}), ("gemma3_text", {"sliding_window": 4}),
     ("mixtral", {"num_local_experts": 4}), ("llama", {"attn_implementation": "eager"})],
)  # fmt: skip
def test_a_model_as_it_is_gives_the_same_from_a_forest(kind: str, fields: dict[str, Any]) -> None:
    why, logps, grads = deltas(small(kind, **fields), prompts_with([3, 2, 4]))
    assert why is None
    assert logps < 2e-5 and grads < 1e-5


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [("gemma2", {}, "softcap"),  # it bends attention scores
     ("gpt_oss", {"num_local_experts": 4}, "s_aux"),  # sinks
     ("bloom", {"n_layer": 2, "n_head": 4}, "cannot be replaced"),  # positions by ALiBi
     ("mamba", {"state_size": 8}, "cannot be replaced")],
)  # fmt: skip
def test_a_model_that_a_forest_does_not_suit_is_left_as_it_is(
    kind: str, fields: dict[str, Any], said: str
) -> None:
    why, _, _ = deltas(small(kind, **fields), prompts_with([3, 2]))
    assert why is not None and said in why


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_model_whose_layers_run_along_the_row_is_refused(kind: str, precision: str) -> None:
    """With small weights and long completions what leaks does not show in the mean over tokens."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from train import forest
    from train.unique import TOLERANCE, try_prompts

    net = small(kind, initializer_range=0.02, **HYBRIDS[kind])
    add_fused_lm_head(net, outputs=("log_probs", "entropy"))
    net.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    rows = [replace(row, chosen_ids=row.chosen_ids[:1] * 30) for row in prompts_with([2, 2])]
    why = try_prompts(net, rows, torch.device("cpu"), TOLERANCE[precision])
    assert why is not None and ("see one another" in why or "differ" in why)
    assert net.config._attn_implementation != forest.NAME


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize(("kind", "fields"), [
    ("llama", {}), ("qwen3", {}), ("gemma3_text", {"sliding_window": 4}), ("mistral", {"sliding_window": 4}),
    ("mixtral", {"num_local_experts": 4}), ("gemma2", {"sliding_window": 4, "attn_logit_softcapping": None}),
])  # fmt: skip
def test_what_a_leaf_must_not_see_does_not_move_it(kind: str, fields: dict[str, Any], precision: str) -> None:
    import torch

    from train import apart, forest

    net = small(kind, **fields)
    net.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        assert apart.moved_in_packed_row(net) < 1e-6
        forest.install(net)
        assert apart.moved_in_forest(net) < 1e-6, "experts are given other numbers of tokens: rounding"


def test_a_model_that_computes_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing raises, but the numbers differ: attention that ignores windows, on a model that has one."""
    from train import forest

    masks = forest.Forest.masks
    monkeypatch.setattr(forest.Forest, "masks", lambda self, window: masks(self, None))
    why, _, _ = deltas(small("mistral", sliding_window=4), prompts_with([2, 3, 2])[1:])
    assert why is not None and "differ" in why


def test_a_model_that_stumbles_over_a_forest_trains_without_but_memory_is_no_such_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from train import forest

    def fails(error: Exception) -> Any:
        def attend(*args: Any, **kwargs: Any) -> Any:
            raise error

        return attend

    rows = prompts_with([2, 3])
    monkeypatch.setitem(forest.AttentionInterface._global_mapping, forest.NAME, fails(RuntimeError("shapes")))
    assert deltas(small("llama"), rows)[0] == "shapes"
    error = torch.OutOfMemoryError("out of memory")
    monkeypatch.setitem(forest.AttentionInterface._global_mapping, forest.NAME, fails(error))
    with pytest.raises(torch.OutOfMemoryError):
        deltas(small("llama"), rows)


def test_a_router_with_a_loss_of_its_own_trains_as_in_trl(tmp_path: Path) -> None:
    """Its loss is a mean over the tokens forwarded, so none is left out."""
    from gavel.tokenizer import HfTokenizer

    path = tmp_path / "mixtral"
    tokenizer = HfTokenizer.load(tiny_model(tmp_path / "llama")).hf
    small("mixtral", num_local_experts=4, router_aux_loss_coef=0.5).save_pretrained(path)
    tokenizer.save_pretrained(path)
    rows = SETS["several"]
    config = settings(str(path), loss={"sigmoid": 1.0}, batch_size=len(rows), micro_batch=len(rows))
    trainer = trainer_of(config, rows, tmp_path)
    assert trainer.sharing == "off"
    theirs = stock_gradients(str(path), rows)
    assert_equal(gavel_gradients(config, rows, tmp_path), theirs)
    without = gavel_gradients(replace(config, router_aux=0.0), rows, tmp_path)
    assert_equal(without, stock_gradients(str(path), rows, router_aux_loss_coef=0.0))
    assert max(float((without[k] - theirs[k]).abs().max()) for k in theirs) > 1e-4


# which pairs meet

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(6, 9)), min_size=1, max_size=24)


@given(PAIRS, st.integers(1, 5))
def test_micro_batches_hold_every_pair_once_and_no_more_sequences_than_asked(
    pairs: list[tuple[int, int, int]], micro: int
) -> None:
    from train.draw import micro_batches

    rows = [
        PairRow(prompt_ids=[a] * (a + 1), chosen_ids=[b], rejected_ids=[c], pair_id="") for a, b, c in pairs
    ]
    split = micro_batches(rows, range(len(rows)), micro)
    assert sorted(itertools.chain(*split)) == list(range(len(rows)))
    assert len(split) <= -(-len(rows) // micro), "never more than plain micro-batches"
    for places in split:
        assert places and len({(pairs[p][0], ids) for p in places for ids in pairs[p][1:]}) <= 2 * micro
    lengths = [rows[p].length for places in split for p in places]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(m) for m in micro_batches(rows, range(len(rows)), micro, merge=False)][:-1] == [micro] * (
        -(-len(rows) // micro) - 1
    )


def order(rows: list[PairRow], together: bool) -> list[int]:
    from train.draw import ByPrompt
    from train.exact import Drawn

    sampler = ByPrompt(rows, 3) if together else Drawn(len(rows), 3)
    sampler.set_epoch(1)
    return list(sampler)


def test_pairs_of_a_prompt_follow_one_another_where_the_first_was_drawn() -> None:
    from accelerate.data_loader import SeedableRandomSampler

    rows = [replace(row, pair_id=str(i)) for i, row in enumerate(prompts_with([3] * 8))]
    drawn = SeedableRandomSampler(rows, data_seed=3)
    drawn.set_epoch(1)
    plain = list(drawn)
    prompts = list(dict.fromkeys(tuple(rows[place].prompt_ids) for place in plain))
    found = order(rows, together=True)
    assert [tuple(rows[p].prompt_ids) for p in found] == [prompt for prompt in prompts for _ in range(3)]
    assert sorted(found) == list(range(len(rows)))
    assert order(rows, together=False) == plain
    alone = prompts_with([2] * 9)
    assert order(alone, together=True) == order(alone, together=False), "with one pair a prompt"


def test_plans_from_before_still_resume_with_pairs_drawn_one_by_one(model: str) -> None:
    assert "draw" not in settings(model, draw="pairs").shaping()
    assert settings(model).shaping()["draw"] == "prompts"
    assert "sharing" not in settings(model).shaping() and "wpo" not in settings(model).shaping()
    assert settings(model, wpo=True).shaping()["wpo"] is True


# reward models


def test_a_reward_model_reads_each_completion_once(model: str, tmp_path: Path) -> None:
    """All pairs of 8 completions, and the gradient of plain Bradley-Terry with margins and targets."""
    import torch
    from torch.nn.functional import logsigmoid

    from gavel.tokenizer import HfTokenizer
    from train import models
    from train.config import RewardConfig
    from train.output import Output
    from train.reward import ExactRewardTrainer, _arguments

    rows = [replace(row, margin=0.1 * i) for i, row in enumerate(prompts_with([2, 8])[1:])]
    config = RewardConfig(model=model, batch_size=28, micro_batch=14, precision="fp32", margin_scale=0.5)
    tokenizer = HfTokenizer.load(model)
    loaded = models.load_reward(model, tokenizer, torch.float32)
    trainer = ExactRewardTrainer(config, rows, loaded, [0.8] * 28, args=_arguments(config, "fp32",
                                 Output(tmp_path)), processing_class=tokenizer.hf)  # fmt: skip
    read = Read(trainer)
    found = gradients(trainer, list(range(28)))
    assert [shape[0] for shape in read.shapes] == [8]

    def reward(ids: list[int]) -> Any:
        net = trainer.model
        hidden = net.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return net.score(hidden)[0]

    losses = []
    for row in rows:
        u = (reward([*row.prompt_ids, *row.chosen_ids]) - reward([*row.prompt_ids, *row.rejected_ids])
             - 0.5 * row.margin)  # fmt: skip
        losses.append(-0.8 * logsigmoid(u) - 0.2 * logsigmoid(-u))
    trainer.model.zero_grad()
    torch.stack(losses).mean().backward()
    assert_equal(found, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})


def test_all_pairs_of_many_completions_fill_micro_batches() -> None:
    """32 completions, 16 sequences at a time: at most one micro-batch for each two of 4 blocks, themselves
    included; in the order of the completions it would be 30."""
    from train.draw import micro_batches

    rows = prompts_with([2, 32])[1:]
    split = micro_batches(rows, range(len(rows)), 8)
    assert len(rows) > 480 and len(split) <= 10
    assert [len(places) for places in micro_batches(prompts_with([8]), range(28), 8)] == [28]
