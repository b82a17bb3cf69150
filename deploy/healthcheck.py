"""Is the service on this machine ready? Exit status 0 if /readyz answers 200 in time, else 1 and the reason.

The image's HEALTHCHECK: it has no curl, and this needs nothing but the standard library.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 2.5


def main() -> int:
    """Ask once."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("SIGNET_PORT", "8000")), timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if status != http.client.OK:
        print(f"/readyz answered {status}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
