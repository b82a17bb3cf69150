"""Where two pieces of plain data (dicts, lists, values) differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONG = 60


def first_difference(field: str, one: Any, other: Any) -> tuple[str, str, str]:
    """The first place where `one` and `other`, which stand in `field`, differ, and what either has there, shortly."""
    while True:
        key: Any
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            key = next(key for key in (*other, *one) if one.get(key) != other.get(key))
            one, other = one.get(key), other.get(key)
        elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            key = next(index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
            one, other = one[key], other[key]
        else:
            return field, _short(one), _short(other)
        field = f"{field}.{key}"


def _short(value: Any) -> str:
    text = repr(value)
    return f"{len(value)} values" if isinstance(value, list) and len(text) > LONG else text
