"""Near-duplicates: planted edits are found, and nothing else."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_tools import found, prose, writer

from judge.audit import AuditConfig, audit
from judge.near_duplicates import Sketches, groups_of, near_pairs, normalised, similarity


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


def jaccard(a: str, b: str) -> float:
    sets = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in map(normalised, (a, b))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(text: str, share: float, seed: int) -> str:
    """With a share of the words replaced."""
    draw = random.Random(seed)
    words = text.split()
    for place in draw.sample(range(len(words)), round(share * len(words))):
        words[place] = "x" + words[place][::-1]
    return " ".join(words)


def test_the_estimate_is_that_of_the_sets() -> None:
    """Unbiased, and as exact as 130 hashes promise: the error in its own standard errors has sd 1."""
    sketches, exact = Sketches(), []
    for i in range(300):
        a = prose(i, 60)
        b = edited(a, i / 600, i)
        sketches.add(a)
        sketches.add(b)
        exact.append(jaccard(a, b))
    true = np.array(exact)
    error = similarity(sketches.table(), np.arange(600).reshape(-1, 2)) - true
    inner = (true > 0.05) & (true < 0.98)
    assert inner.sum() > 200
    assert abs(error[inner].mean()) < 0.008
    assert 0.85 < (error[inner] / np.sqrt(true * (1 - true) / 130)[inner]).std() < 1.15
    assert error[true == 1] == pytest.approx(0)


def test_planted_edits_are_found_and_nothing_else() -> None:
    sketches, texts = Sketches(), []
    for i in range(400):
        texts += [prose(i, 80), edited(prose(i, 80), (0.025, 0.3)[i % 2], i)]
    for text in texts:
        sketches.add(text)
    near = {i for i in range(400) if jaccard(*texts[2 * i : 2 * i + 2]) > 0.85}
    far = {i for i in range(400) if jaccard(*texts[2 * i : 2 * i + 2]) < 0.7}
    assert len(near) == len(far) == 200
    pairs = near_pairs(sketches.table(), 0.8)
    assert all(a // 2 == b // 2 for a, b in pairs)
    hits = {int(a) // 2 for a, _ in pairs}
    assert len(hits & near) >= 0.97 * len(near)
    assert not hits & far


def test_case_width_and_spaces_are_no_difference() -> None:
    sketches = Sketches()
    for text in (
        "The  QUICK brown fox.",
        "the quick brown\nfox.",
        "ｔｈｅ quick brown fox.",
        "the slow red fox!",
        "",
        " ",
    ):
        sketches.add(text)
    groups = groups_of(sketches.table(), 0.9)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert groups[4] == groups[5] not in (groups[0], groups[3])


def test_a_template_used_a_thousand_times_is_one_group() -> None:
    sketches = Sketches()
    for i in range(1000):
        sketches.add(f"{prose('template', 60)} {i}")
    sketches.add(prose("apart", 60))
    groups = groups_of(sketches.table(), 0.8)
    assert (groups[:1000] == groups[0]).all()
    assert groups[1000] != groups[0]
    assert len(near_pairs(sketches.table(), 0.8)) < 1000 * 5 * 26


def test_a_long_text_that_two_rows_share_makes_no_near_duplicates(write: Any) -> None:
    long = prose("long", 300)
    rows = [{"prompt": long, "chosen": long, "rejected": prose(i, 10)} for i in range(3)]
    assert found(audit(write(*rows), AuditConfig()), "near_duplicates", "duplicates") == {
        "near_duplicates": 0, "duplicates": 0
    }  # fmt: skip
