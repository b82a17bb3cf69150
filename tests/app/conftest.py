from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.xnor import Session
from tests.helpers import packed, pictures
from tests.helpers.server import Server


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two small classifiers, one of them in two versions, and a pose model."""
    root = tmp_path_factory.mktemp("zoo")
    packed.write_random(root / "random" / "1" / "model.safetensors", seed=1)
    packed.write_random(root / "random" / "2" / "model.safetensors", seed=2)
    packed.write_colour(root / "colour" / "1" / "model.safetensors")
    packed.write_dots(root / "dots" / "1" / "model.safetensors")
    return root


@pytest.fixture(scope="session")
def slow_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model of each task that takes a noticeable part of a second."""
    root = tmp_path_factory.mktemp("slow-zoo")
    packed.write_slow(root / "slow-pose" / "1" / "model.safetensors", pose=True)
    packed.write_slow(root / "slow" / "1" / "model.safetensors")
    return root


@pytest.fixture(scope="session")
def answer_s(slow_zoo: Path) -> float:
    """Seconds that the slow model takes for one answer."""
    session = Session.load(slow_zoo / "slow" / "1" / "model.safetensors", threads=1)
    images = pictures.random_pixels(192, 192)[None]
    session.run(images)
    begun = time.monotonic()
    session.run(images)
    return time.monotonic() - begun


@pytest.fixture(scope="session")
def server(zoo: Path) -> Iterator[Server]:
    """The service with a small limit on bodies, shared by all tests that leave it as it was."""
    running = Server(zoo, default_model="random", version_policy="all", max_body_bytes=4 << 20)
    yield running
    running.close()
