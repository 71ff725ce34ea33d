"""Accuracies of the demo's models, measured with transformers: ``python -m demo.measure``."""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from demo.formats import formats
from demo.lessons import IGNORED, encode
from demo.oracle import exact_match
from demo.tasks import Pool, Task, draw

MAX_NEW_TOKENS = 24
CHUNK = 1024
"""Sequences that are generated or scored together."""


@dataclass(frozen=True)
class Accuracy:
    """Percent of answers that are exactly right, over all and by family."""

    total: float
    count: int
    by_family: dict[str, float]


@dataclass(frozen=True)
class Pair:
    """A right and a wrong sample of the policy for one task."""

    task: Task
    wrong: str


def load(model_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in float32 and its tokenizer, which pads on the left."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(model_dir, padding_side="left")


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    samples: int = 0,
    seed: int = 0,
) -> list[list[str]]:
    """Per prompt, ``samples`` answers at temperature 1, or for 0 the greedy one alone."""
    torch.manual_seed(seed)
    each = max(samples, 1)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts for _ in range(each)]
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    texts: list[str] = []
    for start in range(0, len(chats), CHUNK):
        inputs = _padded_chats(tokenizer, chats[start : start + CHUNK])
        output = model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, **(sampling if samples else {"do_sample": False})
        )
        replies = output[:, inputs["input_ids"].shape[1] :]  # (B, new tokens)
        texts += tokenizer.batch_decode(replies, skip_special_tokens=True)
    return [texts[start : start + each] for start in range(0, len(texts), each)]


def measure(model_dir: Path, prompts: int = 1100, samples: int = 0, pool: Pool = "held-out") -> Accuracy:
    """Exact answers to ``prompts`` prompts of a pool: ``samples`` each at temperature 1, or greedy for 0."""
    model, tokenizer = load(model_dir)
    tasks = draw(pool, prompts)
    given = answers(model, tokenizer, [task.prompt for task in tasks], samples)
    return _accuracy(
        (task.family, exact_match(task.answer, text))
        for task, texts in zip(tasks, given, strict=True)
        for text in texts
    )


def sampled_pairs(policy_dir: Path, prompts: int = 1100, samples: int = 8) -> list[Pair]:
    """One pair for each held-out prompt to which the policy gives both right and wrong samples."""
    model, tokenizer = load(policy_dir)
    tasks = draw("held-out", prompts)
    pairs = []
    for task, texts in zip(
        tasks, answers(model, tokenizer, [task.prompt for task in tasks], samples), strict=True
    ):
        wrong = [text for text in texts if not exact_match(task.answer, text)]
        if 0 < len(wrong) < samples:
            pairs.append(Pair(task, wrong[0]))
    return pairs


def measure_judge(judge_dir: Path, pairs: list[Pair]) -> dict[str, Accuracy]:
    """How many of ``pairs`` the judge orders rightly, by format.

    ``likelihood`` prefers the answer of higher log p (sum or mean over its tokens, the end included),
    plain or in the ``generate`` format; ``rating`` the higher expected rating; ``choice`` the likelier
    letter, the right answer standing first or second at random.
    """
    model, tokenizer = load(judge_dir)
    asked = [pair.task.prompt for pair in pairs]
    right, wrong = [pair.task.answer for pair in pairs], [pair.wrong for pair in pairs]
    wrapped = [formats()["generate"].render(aspect="correct", instruction=prompt) for prompt in asked]
    agrees: dict[str, list[bool]] = {}
    for name, questions in (("likelihood", asked), ("generate", wrapped)):
        better, worse = (_likelihood(model, tokenizer, questions, texts) for texts in (right, wrong))
        agrees[f"{name}_sum"], agrees[f"{name}_mean"] = (better > worse).T.tolist()
    better, worse = (_ratings(model, tokenizer, asked, texts) for texts in (right, wrong))
    agrees["rating"] = (better > worse).tolist()
    rng = random.Random(0)
    first = [rng.random() < 0.5 for _ in pairs]
    questions = [
        formats()["choice"].render(instruction=p, answer_a=r if ahead else w, answer_b=w if ahead else r)
        for p, r, w, ahead in zip(asked, right, wrong, first, strict=True)
    ]
    says_a = _replies(model, tokenizer, questions, ("A", "B"))[:, 0] > 0.5
    agrees["choice"] = (says_a == torch.tensor(first)).tolist()
    families = [pair.task.family for pair in pairs]
    return {name: _accuracy(zip(families, flags, strict=True)) for name, flags in agrees.items()}


def _likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[str],
    texts: list[str],
) -> torch.Tensor:
    """(B, 2): log p of each text and its end as the reply to what was asked, sum and mean over tokens."""
    rows = encode(tokenizer, [("", [(prompt, text)]) for prompt, text in zip(asked, texts, strict=True)])
    width = max(len(tokens) for tokens, _ in rows)
    pad = tokenizer.pad_token_id
    tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])  # (B, T)
    labels = torch.tensor([ids + [IGNORED] * (width - len(ids)) for _, ids in rows])[:, 1:]  # (B, T-1)
    with torch.no_grad():
        logprobs = model(tokens).logits[:, :-1].log_softmax(-1)  # (B, T-1, V)
    counted = labels != IGNORED
    total = (logprobs.gather(2, labels.clamp_min(0)[..., None])[..., 0] * counted).sum(1)
    return torch.stack((total, total / counted.sum(1)), 1)


def _ratings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[str], texts: list[str]
) -> torch.Tensor:
    """(B,): the expected rating of each text."""
    rating = formats()["rating"]
    questions = [rating.render(instruction=p, answer=t) for p, t in zip(asked, texts, strict=True)]
    return _replies(model, tokenizer, questions, tuple("12345")) @ torch.arange(1.0, 6.0)


def _replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    replies: tuple[str, ...],
) -> torch.Tensor:
    """(B, len(replies)): the probabilities of the one-token replies, made to sum to 1."""
    inputs = _padded_chats(tokenizer, [[{"role": "user", "content": question}] for question in questions])
    with torch.no_grad():
        last = model(**inputs, logits_to_keep=1).logits[:, -1]  # (B, V)
    return last[:, tokenizer.convert_tokens_to_ids(list(replies))].softmax(-1)


def _padded_chats(
    tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]]
) -> dict[str, torch.Tensor]:
    padded: dict[str, torch.Tensor] = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    return padded


def _accuracy(outcomes: Iterable[tuple[str, bool]]) -> Accuracy:
    """Of (family, whether right)."""
    flags: defaultdict[str, list[bool]] = defaultdict(list)
    for family, right in outcomes:
        flags[family].append(right)
    every = [flag for family in flags.values() for flag in family]
    return Accuracy(
        total=_percent(every),
        count=len(every),
        by_family={family: _percent(flags[family]) for family in sorted(flags)},
    )


def _percent(flags: list[bool]) -> float:
    return round(100 * sum(flags) / len(flags), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(__file__).parent / "models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "accuracy.json")
    arguments = parser.parse_args()
    policy = arguments.models / "policy"
    result = {"policy": {"greedy": asdict(measure(policy)), "sampled": asdict(measure(policy, samples=4))}}
    pairs = sampled_pairs(policy)
    for name in ("judge", "eval-judge"):
        judge = arguments.models / name
        ordered = {how: asdict(accuracy) for how, accuracy in measure_judge(judge, pairs).items()}
        result[name] = {"greedy": asdict(measure(judge)), **ordered}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for model, accuracies in result.items():
        for how, accuracy in accuracies.items():
            print(
                f"{model:11} {how:16} {accuracy['total']:5.1f} of {accuracy['count']}", accuracy["by_family"]
            )


if __name__ == "__main__":
    main()
