"""A weighted mean of two models' weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from gavel.tokenizer import HfTokenizer
from train import memory, models


def average(older: str, newer: str, share: float, out: Path, trust_remote_code: bool = False) -> None:
    """Saves share · older + (1 − share) · newer, in the newer one's format.

    Args:
        older, newer: models of one architecture. share: in [0, 1].
    """
    if (out / "config.json").exists():
        return
    loaded = models.load(newer, torch.float32, trust_remote_code)
    other = dict(models.load(older, torch.float32, trust_remote_code).model.named_parameters())
    with torch.no_grad():
        for name, value in loaded.model.named_parameters():  # each once, tied or not
            value.lerp_(other[name], share)
    staging = out.with_name(f".{out.name}.saving")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    tokenizer = HfTokenizer.load(newer, trust_remote_code=trust_remote_code).hf
    models.save(loaded, loaded.model, newer, tokenizer, torch.float32, staging)
    staging.rename(out)
    del loaded, other
    memory.free_memory()
