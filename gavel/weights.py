"""Which weights a model has: a hash of its shards, or its hub revision."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gavel import stops
from gavel.errors import InputError
from gavel.records import digest

_SHARDS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")  # the first kind that is there is what is loaded
_NO_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"}
_CONFIGS = ("config.json", "adapter_config.json")
_RACY_NS = 2_000_000_000  # a file this young can change again without its time changing


def weights_version(model: str, adapter: str | None = None) -> str:
    """Version of a model's weights, its adapter's included.

    A local directory: a hash of the content of its weight files and config (remembered by path, size
    and time of change, since hashing takes about a second a gigabyte). A hub id: its revision, which
    is the name of the snapshot folder that it is loaded from.

    Raises InputError when there are no weights there.
    """
    base = _version(model)
    return base if adapter is None else digest(base, _version(adapter))


def _version(model: str) -> str:
    return _directory_version(Path(model)) if Path(model).is_dir() else _hub_revision(model)


def _directory_version(path: Path) -> str:
    files: list[Path] = []
    for pattern in _SHARDS:
        files = files or sorted(f for f in path.glob(pattern) if f.name not in _NO_WEIGHTS)
    if not files:
        raise InputError(
            "holds no weights (*.safetensors)",
            where=str(path),
            hint="Give a directory as transformers saves it, or a hub id owner/name.",
        )
    files += [f for name in _CONFIGS if (f := path / name).exists()]
    known = _read_cache()
    hashes, fresh = [], {}
    for file in files:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_ino}:{stat.st_ctime_ns}"
        content = known.get(key) or file_hash(file)
        if key not in known and time.time_ns() - stat.st_ctime_ns > _RACY_NS:
            fresh[key] = content
        hashes.append((file.name, content))
    if fresh:
        _write_cache(fresh)
    return digest("weights", hashes, _ends(path))


def _ends(path: Path) -> Any:
    """What ends an answer, which engines read beside the weights: ids, and stop strings if there are any."""
    try:
        config = json.loads((path / stops.FILE).read_bytes())
        ids, strings = config.get("eos_token_id"), config.get("stop_strings")
    except (OSError, ValueError, AttributeError):
        return None
    return [ids, strings] if strings else ids


def check_whole(
    where: str, *, missing: Collection[str] = (), unlike: Collection[tuple[str, Any, Any]] = ()
) -> None:
    """Raises InputError for weights that transformers would draw at random.

    Args:
        missing: names of those that are not there. unlike: (name, stored shape, shape by the configuration)
            of those whose shapes differ; both as transformers' loading info has them.
    """
    fault = ""
    if missing:
        fault = f"{len(missing):,} of its weights are missing, {min(missing)} among them"
    elif unlike:
        name, stored, wanted = min(unlike, key=lambda entry: entry[0])
        fault = (f"{len(unlike):,} of its weights have other shapes than its config.json says, {name} among "
                 f"them: {tuple(stored)}, not {tuple(wanted)}")  # fmt: skip
    if fault:
        raise InputError(fault, where=where, hint="Give the directory of a whole model.")


def file_hash(path: Path) -> str:
    """A hash of what a file holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _cache() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(folder) / "gavel" / "weights.json"


def _read_cache() -> dict[str, str]:
    """What was remembered; an unreadable cache is an empty one."""
    try:
        cache = json.loads(_cache().read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    return cache if isinstance(cache, dict) else {}


def _write_cache(fresh: dict[str, str]) -> None:
    """The cache is a convenience: failing to write it is no failure."""
    try:
        path = _cache()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**_read_cache(), **fresh}))
        temporary.replace(path)
    except (OSError, RuntimeError):
        pass


def _hub_revision(model: str) -> str:
    """The revision that `main` of a hub model has on this machine, fetched where it is not there yet."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        for name in _CONFIGS:
            config = try_to_load_from_cache(model, name)
            if isinstance(config, str):
                return Path(config).parent.name
        return Path(hf_hub_download(model, _CONFIGS[0])).parent.name
    except Exception as error:  # the hub client's errors have no root of their own
        raise InputError(
            f"no such model directory, and not a hub model that can be loaded ({type(error).__name__})",
            where=model,
            hint="Give a directory, or a hub id owner/name that this machine can reach.",
        ) from None
