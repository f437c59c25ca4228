"""JSON of which nothing is dropped in silence."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """Parse JSON that names every key once; the standard module keeps the last.

    Raises:
        ValueError: Saying what is wrong with it, also for brackets within brackets
            without end.

    Examples::

        >>> read_json('{"text": "a", "text": "b"}')
        Traceback (most recent call last):
        ValueError: an object names 'text' more than once
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object names {key!r} more than once")
        found[key] = value
    return found
