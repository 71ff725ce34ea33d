"""Values of a run as JSON that can stand inside a script element of the page."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: what ends a script element, starts a comment, or ends a line of JavaScript but not of JSON
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair, which UTF-8 cannot hold


def embed(value: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element, and halves of
    surrogate pairs are escaped. What is not a finite number becomes null.

    >>> embed({"a": "</script>", "b": float("nan")})
    '{"a":"\\\\u003c/script\\\\u003e","b":null}'
    """
    made = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return HALF.sub(lambda half: f"\\u{ord(half.group()):04x}", made.translate(_UNSAFE))


def size_of(value: Any) -> int:
    """Bytes of a value in the page."""
    return len(embed(value).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.6g}")  # more would not show
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
