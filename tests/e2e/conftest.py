from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import shipped_zoo
from tests.helpers.server import Server


@pytest.fixture(scope="session")
def shipped() -> Iterator[Server]:
    """The service with the models that ship."""
    running = Server(shipped_zoo())
    yield running
    running.close()
