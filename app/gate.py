"""Who may ask, and how often: the checks before a request's body is read, whatever its protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping

from app.errors import Problem, ServiceError
from app.keys import Keys, Role
from app.rates import RateLimit, address_name


class Gate:
    """The keys of a service and its limit on clients, None where it has none."""

    def __init__(self, keys: Keys, rates: RateLimit | None) -> None:
        self._keys = keys
        self._rates = rates

    def require_client(self, headers: Mapping[str, str], address: str | None) -> None:
        """Refuse a request without a key where keys are set, and a client that asks too often.

        `headers` have names in lower case. Wrong keys count for their address, so that they cannot be tried quickly.
        Raises ServiceError UNAUTHORIZED or RATE_LIMITED.
        """
        role, key = self._match(headers)
        if self._rates is not None:
            wait_s = self._rates.wait_s(key or address_name(address))
            if wait_s:
                detail = f"Requests come faster than they are accepted; the next one is in {wait_s:.3g} s."
                raise ServiceError(Problem.RATE_LIMITED, detail, retry_after_s=math.ceil(wait_s))
        if role < Role.CLIENT:
            detail = "Send a valid key, as Authorization: Bearer KEY or as X-API-Key: KEY."
            raise ServiceError(Problem.UNAUTHORIZED, detail)

    def require_admin(self, headers: Mapping[str, str]) -> None:
        """Refuse a request without an admin key. Raises ServiceError FORBIDDEN."""
        if self._match(headers)[0] < Role.ADMIN:
            raise ServiceError(Problem.FORBIDDEN, "Loading and unloading models takes an admin key.")

    def _match(self, headers: Mapping[str, str]) -> tuple[Role, bytes | None]:
        kind, _, token = headers.get("authorization", "").partition(" ")
        return self._keys.match(headers.get("x-api-key") or (token.strip() if kind.lower() == "bearer" else None))
