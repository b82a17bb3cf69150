"""Who may ask: API keys for clients, and keys for administrators, who may do everything.

Keys come from settings or from files with one key a line. Only their digests are kept, and a given key is compared with
every one of them in constant time, so that the time of an answer tells nothing about them.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from enum import IntEnum
from hashlib import sha256
from pathlib import Path

from pydantic import SecretStr


class Role(IntEnum):
    """What a key allows; a higher role may do what a lower one may."""

    NOBODY = 0
    CLIENT = 1
    ADMIN = 2


class Keys:
    """The keys of one service. Without client keys everybody is a client; without admin keys nobody is an admin."""

    def __init__(self, clients: Iterable[str] = (), admins: Iterable[str] = ()) -> None:
        given = [(Role.CLIENT, key) for key in clients] + [(Role.ADMIN, key) for key in admins]
        self._digests = [(role, _digest(key)) for role, key in given]
        self._anybody = Role.NOBODY if any(role is Role.CLIENT for role, _ in given) else Role.CLIENT

    def match(self, given: str | None) -> tuple[Role, bytes | None]:
        """The highest role of a key, or of a request without one, and the digest of a key that is known."""
        digest, matched = _digest(given or ""), False
        found = self._anybody
        for role, known in self._digests:
            if hmac.compare_digest(digest, known):
                found, matched = max(found, role), True
        return found, digest if matched else None

    def role(self, given: str | None) -> Role:
        """The highest role of a key, or of a request without one."""
        return self.match(given)[0]


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def check_key(key: str) -> None:
    """Raise ValueError for a key that a header cannot carry as it is."""
    if not (key.isascii() and key.isprintable()):
        raise ValueError("a key has characters other than those of printable ASCII")


def read_keys(given: Iterable[SecretStr], file: Path | None) -> list[str]:
    """The keys of a setting and of a file: one a line, empty lines and those that begin with # left out.

    Raises ValueError for a key that a header cannot carry as it is, and for a file that cannot be read.
    """
    keys = [key.get_secret_value().strip() for key in given]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text") from error
        keys += [line.strip() for line in lines if not line.lstrip().startswith("#")]
    for key in keys:
        check_key(key)
    return [key for key in keys if key]
