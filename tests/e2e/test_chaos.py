"""The chaos client, for a few seconds."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.chaos import SETTINGS, Chaos, write_zoo
from tests.helpers.server import Server


def test_the_service_has_not_noticed(tmp_path: Path) -> None:
    write_zoo(tmp_path)
    server = Server(tmp_path, default_model="random", **SETTINGS)
    try:
        chaos = Chaos(server, tmp_path)
        memory = chaos.run(seconds=6, clients=6)
        assert min(chaos.crowd.sent.values()) > 0
        chaos.check_afterwards(memory)
    finally:
        server.close()
