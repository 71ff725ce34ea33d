"""Trains the demo's models from scratch: ``python -m demo.make --out demo/models``."""

import argparse
import copy
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.lessons import (
    IGNORED,
    JUDGED_FAMILIES,
    LIST_FAMILIES,
    VerdictKind,
    batches,
    careless,
    encode,
    judging,
    lessons,
    plain,
    verdict_batches,
)
from demo.tokenizer import CONTEXT, make_tokenizer

CARELESS_SHARE = 0.47


@dataclass(frozen=True)
class Recipe:
    """One model: its shape and its training. ``seed`` sets weights, data and their order.

    A judge first takes ``plain_steps`` of plain answers, two batches of them a step, then ``steps`` of
    all formats; it also learns to foresee what it is asked, at ``prompt_weight`` (wrong answers to be
    judged stand there).
    """

    width: int
    layers: int
    heads: int
    hidden: int
    steps: int
    seed: int
    plain_steps: int = 0
    careless: bool = False
    prompt_weight: float = 0.0
    batch: int = 64
    learning_rate: float = 5e-3


RECIPES: dict[str, Recipe] = {
    "policy": Recipe(
        width=128,
        layers=4,
        heads=4,
        hidden=208,
        steps=1200,
        seed=1,
        careless=True,
        batch=128,
        learning_rate=4e-3,
    ),
    "judge": Recipe(
        width=192, layers=4, heads=6, hidden=512, steps=1200, seed=2, plain_steps=1000, prompt_weight=0.3
    ),
    "eval-judge": Recipe(
        width=192, layers=3, heads=6, hidden=448, steps=1200, seed=3, plain_steps=1000, prompt_weight=0.3
    ),
}


@dataclass(frozen=True)
class VerdictRecipe:
    """A later phase of a judge, in which it learns ratings and choices; ``seed`` sets weights and data.

    A judge of another shape is remade with ``layers`` layers of ``hidden`` units. A step takes
    ``questions`` rows of ratings on ``families``, as many of choices, and ``replays`` right answers. The
    learning rate falls to nothing over the last 60 % of ``schedule_steps``; ``steps`` of them are made.
    """

    layers: int
    hidden: int
    steps: int
    schedule_steps: int
    seed: int
    families: tuple[str, ...] = JUDGED_FAMILIES
    questions: int = 12
    replays: int = 32
    learning_rate: float = 4e-3
    warm_up_steps: int = 20


VERDICT_RECIPES: dict[str, tuple[VerdictRecipe, ...]] = {
    "judge": (
        VerdictRecipe(layers=6, hidden=336, steps=900, schedule_steps=1400, seed=12),
        VerdictRecipe(
            layers=6,
            hidden=336,
            steps=650,
            schedule_steps=650,
            seed=13,
            families=LIST_FAMILIES,
            replays=40,
            learning_rate=2.5e-3,
        ),
    ),
}


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings and two key-value heads of 32 in every layer."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=2,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inside, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def apply(model: LlamaForCausalLM, steppers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """One step down the gradients, which are clipped to norm 1 and then cleared."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = learning_rate
        stepper.step()
        stepper.zero_grad()


def lesson_loss(
    model: LlamaForCausalLM, tokens: torch.Tensor, labels: torch.Tensor, prompt_weight: float
) -> torch.Tensor:
    """Mean cross-entropy of the replies, and ``prompt_weight`` times that of the rest; both inputs (B, T).

    Padding is on the right, so the causal mask alone keeps it out of sight.
    """
    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]  # (B, T-1, D)
    targets, labelled = tokens[:, 1:], labels[:, 1:] != IGNORED  # (B, T-1)
    loss = F.cross_entropy(model.lm_head(hidden[labelled]), targets[labelled])
    if prompt_weight:
        asked = ~labelled & (targets != model.config.pad_token_id)
        loss = loss + prompt_weight * F.cross_entropy(model.lm_head(hidden[asked]), targets[asked])
    return loss


def course(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All batches of a model's training, in order."""
    if recipe.careless:
        source = lessons(partial(careless, share=CARELESS_SHARE), recipe.seed)
        return itertools.islice(batches(tokenizer, source, recipe.batch, recipe.seed), recipe.steps)
    first = lessons(plain, recipe.seed, JUDGED_FAMILIES)
    then = lessons(judging, recipe.seed + 100, JUDGED_FAMILIES)
    return itertools.chain(
        itertools.islice(batches(tokenizer, first, 2 * recipe.batch, recipe.seed), recipe.plain_steps),
        itertools.islice(batches(tokenizer, then, recipe.batch, recipe.seed), recipe.steps),
    )


def train(name: str, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Train one model; learning rate up over 5 % of the steps, then down to nothing over the last 60 %."""
    model = new_model(recipe, tokenizer)
    steppers = optimizers(model, recipe.learning_rate)
    steps = recipe.plain_steps + recipe.steps
    began = time.monotonic()
    running = 0.0
    for step, (tokens, labels) in enumerate(course(recipe, tokenizer)):
        scale = min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (0.6 * steps))
        loss = lesson_loss(model, tokens, labels, recipe.prompt_weight)
        loss.backward()
        apply(model, steppers, recipe.learning_rate * scale)
        running += loss.item()
        if (step + 1) % 100 == 0:
            print(
                f"{name} step {step + 1} loss {running / 100:.3f} {time.monotonic() - began:.0f} s",
                flush=True,
            )
            running = 0.0
    return model


def remade(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: VerdictRecipe
) -> LlamaForCausalLM:
    """A copy: new layers on top, which change nothing yet, and the strongest hidden units of the old.

    A unit's strength: its mean size over some right answers times the norm of what it writes.
    """
    strengths: list[torch.Tensor] = []

    def note(down: torch.nn.Linear, inputs: tuple[torch.Tensor]) -> None:
        strengths.append(inputs[0].abs().mean((0, 1)) * down.weight.norm(dim=0))

    hooks = [layer.mlp.down_proj.register_forward_pre_hook(note) for layer in model.model.layers]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.intermediate_size = recipe.layers, recipe.hidden
    new = LlamaForCausalLM(config)
    with torch.no_grad():
        model(next(verdict_batches(tokenizer, "replay", 256, 0, JUDGED_FAMILIES))[0])
        weights = new.state_dict()
        for name, weight in model.state_dict().items():
            if ".mlp." in name:
                kept = strengths[int(name.split(".")[2])].topk(recipe.hidden).indices.sort().values
                weight = weight[:, kept] if "down_proj" in name else weight[kept]
            weights[name].copy_(weight)
        for layer in new.model.layers[model.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    for hook in hooks:
        hook.remove()
    return new


def verdict_loss(
    model: LlamaForCausalLM, probe: torch.nn.Linear, batch: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Weighted cross-entropy over the weight of the verdicts, and whether the answer agrees so far.

    ``probe`` must read the latter off the layer before the last, which leaves the last one to collect it.
    """
    tokens, positions, visible, targets, weights, agreeing = batch  # (B, T), visible (B, 1, T, T)
    output = model.model(
        tokens, attention_mask=visible, position_ids=positions, use_cache=False, output_hidden_states=True
    )
    counted = weights > 0
    losses = F.cross_entropy(
        model.lm_head(output.last_hidden_state[counted]), targets[counted], reduction="none"
    )
    loss = (losses * weights[counted]).sum() / weights[weights >= 1].sum()
    judged = agreeing != IGNORED
    if judged.any():
        before = output.hidden_states[-2][judged]
        agrees = probe(F.rms_norm(before, (before.shape[-1],)))
        loss = loss + F.cross_entropy(agrees, agreeing[judged])
    return loss


def teach_verdicts(
    name: str, model: LlamaForCausalLM, recipe: VerdictRecipe, tokenizer: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """A phase of ratings and choices, with right answers in between so that those stay known."""
    torch.manual_seed(recipe.seed)
    if (model.config.num_hidden_layers, model.config.intermediate_size) != (recipe.layers, recipe.hidden):
        model = remade(model, tokenizer, recipe)
    model.train()
    steppers = optimizers(model, recipe.learning_rate)
    probe = torch.nn.Linear(model.config.hidden_size, 2)
    steppers.append(
        torch.optim.AdamW(probe.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    )
    kinds: tuple[tuple[VerdictKind, int, tuple[str, ...]], ...] = (
        ("rating", recipe.questions, recipe.families),
        ("choice", recipe.questions, recipe.families),
        ("replay", recipe.replays, JUDGED_FAMILIES),
    )
    sources = [
        verdict_batches(tokenizer, kind, size, recipe.seed, families) for kind, size, families in kinds
    ]
    began = time.monotonic()
    running = 0.0
    for step in range(recipe.steps):
        left = (recipe.schedule_steps - step) / (0.6 * recipe.schedule_steps)
        scale = min(1.0, (step + 1) / recipe.warm_up_steps, left)
        for source in sources:
            loss = verdict_loss(model, probe, next(source))
            loss.backward()
            running += loss.item()
        apply(model, steppers, recipe.learning_rate * scale)
        if (step + 1) % 100 == 0:
            print(
                f"{name} verdicts, step {step + 1} loss {running / 100:.3f} {time.monotonic() - began:.0f} s",
                flush=True,
            )
            running = 0.0
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in float16 to halve their size; the configuration asks for float32 on loading."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def tokenizer_texts(count: int = 20_000) -> list[str]:
    """What the tokenizer is trained on: the texts of the judges' lessons."""
    return [
        text for _, turns in itertools.islice(lessons(judging, 0), count) for turn in turns for text in turn
    ]


def check_encoding(tokenizer: PreTrainedTokenizerFast) -> None:
    """The lessons' token ids are those of the chat template."""
    for system, turns in itertools.islice(lessons(judging, 0), 100):
        messages = [{"role": "system", "content": system}] if system else []
        for asked, reply in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        assert encode(tokenizer, [(system, turns)])[0][0] == tokenizer.apply_chat_template(
            messages, return_dict=False
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "models")
    parser.add_argument("--only", choices=sorted(RECIPES), action="append", help="make these alone")
    arguments = parser.parse_args()
    tokenizer = make_tokenizer(tokenizer_texts())
    check_encoding(tokenizer)
    for name in arguments.only or RECIPES:
        model = train(name, RECIPES[name], tokenizer)
        save(model, tokenizer, arguments.out / name)
        for recipe in VERDICT_RECIPES.get(name, ()):  # from the weights as saved: each can be repeated alone
            model = LlamaForCausalLM.from_pretrained(arguments.out / name, dtype=torch.float32)
            model = teach_verdicts(name, model, recipe, tokenizer)
            save(model, tokenizer, arguments.out / name)
        print(f"{name} saved, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)


if __name__ == "__main__":
    main()
