"""Which weights a model has: a hash of its shards, or its hub revision."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from gavel.errors import InputError
from gavel.records import digest

_SHARDS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gavel" / "weights.json"


def weights_version(model: str, adapter: str | None = None) -> str:
    """Version of a model's weights, its adapter's included.

    A local directory: a hash of the content of its weight files and config (remembered by path, size
    and time, since hashing takes about a second a gigabyte). A hub id: its revision, which is the
    name of the snapshot folder that it is loaded from.

    Raises InputError when there are no weights there.
    """
    base = _directory_version(Path(model)) if Path(model).is_dir() else _hub_revision(model)
    return base if adapter is None else digest(base, _directory_version(Path(adapter)))


def _directory_version(path: Path) -> str:
    files = sorted(f for pattern in _SHARDS for f in path.glob(pattern))
    if not files:
        raise InputError(
            "holds no weights (*.safetensors)",
            where=str(path),
            hint="Give a directory as transformers saves it, or a hub id owner/name.",
        )
    files += [f for name in ("config.json", "adapter_config.json") if (f := path / name).exists()]
    known = _read_cache()
    hashes, fresh = [], {}
    for file in files:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            known[key] = fresh[key] = _file_hash(file)
        hashes.append((file.name, known[key]))
    if fresh:
        _write_cache(fresh)
    return digest("weights", hashes)


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_cache() -> dict[str, str]:
    try:
        cache: dict[str, str] = json.loads(_CACHE.read_bytes())
        return cache
    except (OSError, ValueError):
        return {}


def _write_cache(fresh: dict[str, str]) -> None:
    """The cache is a convenience: failing to write it is no failure."""
    try:
        _CACHE.parent.mkdir(parents=True, exist_ok=True)
        temporary = _CACHE.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**_read_cache(), **fresh}))
        temporary.replace(_CACHE)
    except OSError:
        pass


def _hub_revision(model: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    if isinstance(config, str):
        return Path(config).parent.name
    raise InputError(
        "no such model directory, and not a hub model that can be loaded",
        where=model,
        hint="Give a directory, or a hub id owner/name that this machine can reach.",
    )
