"""What ends an answer, as a model directory keeps it: generation_config.json.

transformers and vLLM read the ids by themselves. The strings only transformers' `generate` reads, and only
if it is handed the tokenizer, so every engine of gavel asks here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gavel.protocols import SampleRequest

FILE = "generation_config.json"


class Ends(NamedTuple):
    """token_ids, strings: each of them ends an answer."""

    token_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()

    def union(self, other: Ends) -> Ends:
        """Both, each end once."""
        return Ends(
            tuple(dict.fromkeys(self.token_ids + other.token_ids)),
            tuple(dict.fromkeys(self.strings + other.strings)),
        )


def ends_of(model: str) -> Ends:
    """What ends the answers of a model: of a directory, or of a hub id that is on this machine."""
    path = Path(model)
    if path.is_dir():
        return read_ends(path / FILE)
    if path.is_absolute() or model.count("/") > 1:
        return Ends()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, FILE)
    except HFValidationError:  # the name of a model on some server
        return Ends()
    return read_ends(Path(cached)) if isinstance(cached, str) else Ends()


def read_ends(file: Path) -> Ends:
    """The ends that a generation_config.json names; none where it cannot be read."""
    try:
        config = json.loads(file.read_bytes())
        return Ends(_all(config.get("eos_token_id"), int), _all(config.get("stop_strings"), str))
    except (OSError, ValueError, AttributeError):
        return Ends()


def stopping(requests: Iterable[SampleRequest], strings: Sequence[str]) -> Iterator[SampleRequest]:
    """The requests, each to stop at `strings` as well."""
    for request in requests:
        more = tuple(s for s in strings if s not in request.sampling.stop)
        if more:
            sampling = msgspec.structs.replace(request.sampling, stop=(*request.sampling.stop, *more))
            request = replace(request, sampling=sampling)
        yield request


def _all(value: Any, kind: type) -> tuple[Any, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, kind) and not isinstance(v, bool) and v != "")
