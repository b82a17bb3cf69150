"""Which versions of a model serve: the version policy of TensorFlow Serving and Triton.

`latest` serves the highest number, or the highest so many; `all` every version in the repository; `specific` those that
are named, which pins a model to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = re.compile(r"[1-9][0-9]{0,8}")
"""A version's number, as folders and requests have it."""
EXPECTED = (
    'expected latest, latest:N, all or specific:N,N,..., or the same as JSON: {"latest": {"num_versions": N}}, '
    '{"all": {}}, {"specific": {"versions": [N]}}'
)


@dataclass(frozen=True)
class VersionPolicy:
    """One policy.

    Attributes
    ----------
    specific : the versions that are to serve; empty for the other policies.
    most : how many of the highest serve; None for all of them.
    """

    specific: tuple[int, ...] = ()
    most: int | None = 1

    def candidates(self, found: Iterable[int]) -> list[int]:
        """Numbers to serve from, the most wanted first; `most` of them do. Those pinned may not be among `found`."""
        return sorted(self.specific or found, reverse=True)

    def chosen(self, found: Iterable[int]) -> list[int]:
        """The numbers that serve where all of them can."""
        return self.candidates(found)[: self.most]

    def __str__(self) -> str:
        if self.specific:
            return f"specific:{','.join(map(str, self.specific))}"
        return "all" if self.most is None else "latest" if self.most == 1 else f"latest:{self.most}"

    def described(self) -> dict[str, dict[str, Any]]:
        """The policy in the words of Triton's model configuration."""
        if self.specific:
            return {"specific": {"versions": sorted(self.specific)}}
        return {"all": {}} if self.most is None else {"latest": {"num_versions": self.most}}


LATEST = VersionPolicy()
ALL = VersionPolicy(most=None)


@dataclass(frozen=True)
class VersionPolicies:
    """The policy of every model: one for all, and those of models that have their own."""

    general: VersionPolicy = LATEST
    by_name: Mapping[str, VersionPolicy] = field(default_factory=dict)

    def of(self, name: str) -> VersionPolicy:
        """The policy of a model."""
        return self.by_name.get(name, self.general)


def read_policy(value: object) -> VersionPolicy:
    """A policy from its text or its JSON. Raises ValueError saying what was expected."""
    if isinstance(value, VersionPolicy):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _json(value)
    kind, argument = _parts(value)
    if kind == "all" and argument is None:
        return ALL
    if kind == "latest":
        return VersionPolicy(most=1 if argument is None else _number(argument, value))
    if kind == "specific" and isinstance(argument, list) and argument:
        versions = tuple(sorted({_number(entry, value) for entry in argument}))
        return VersionPolicy(specific=versions, most=None)
    raise _wrong(value)


def _parts(value: object) -> tuple[object, object]:
    """The kind of policy, and its number, its list of numbers, or None."""
    if isinstance(value, str):
        kind, colon, argument = value.partition(":")
        kind = kind.strip()
        if not colon:
            return kind, None
        return kind, argument.split(",") if kind == "specific" else argument
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, inner),) = value.items()
        name = {"latest": "num_versions", "specific": "versions"}.get(kind)
        if isinstance(inner, Mapping) and inner.keys() <= {name}:
            return kind, inner.get(name)
    raise _wrong(value)


def _number(entry: object, whole: object) -> int:
    text = str(entry).strip() if isinstance(entry, int | str) and not isinstance(entry, bool) else ""
    if not VERSION.fullmatch(text):
        raise _wrong(whole)
    return int(text)


def read_policies(value: object) -> dict[str, VersionPolicy]:
    """Policies by name of the model, from a JSON object. Raises ValueError saying what was expected."""
    read = _json(value) if isinstance(value, str) else value
    if not isinstance(read, Mapping):
        raise ValueError('expected JSON, a policy for each model: {"NAME": "specific:1,3"}')
    policies = {}
    for name, policy in read.items():
        try:
            policies[str(name)] = read_policy(policy)
        except ValueError as error:
            raise ValueError(f"{str(name)[:80]}: {error}") from None
    return policies


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None


def _wrong(value: object) -> ValueError:
    return ValueError(f"{str(value)[:80]!r} is no version policy; {EXPECTED}")
