from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.packing.file import read
from models.xnor import Session, available_isas
from tests.models.xnor.builder import random_images
from tests.models.xnor.oracle import check_each_op


@pytest.fixture(params=available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine can run."""
    return str(request.param)


@pytest.fixture
def check() -> Callable[..., dict[str, NDArray[Any]]]:
    """Compare each op, run by itself, with torch; then all values of the fused plan with those. Returns them."""

    def run(path: Path, isa: str, count: int = 2, threads: int = 1) -> dict[str, NDArray[Any]]:
        file = read(path)
        images = random_images(file, count)

        def values(fuse: bool, keep: Iterable[str]) -> dict[str, NDArray[Any]]:
            return Session.load(path, isa=isa, threads=threads, fuse=fuse, keep=keep).run(images)

        kept = values(False, file.values)
        check_each_op(file, images, kept)
        for fuse, keep in ((True, file.values), (True, ()), (False, ())):
            for name, result in values(fuse, keep).items():
                value = file.header.graph.outputs.get(name, name)
                assert np.array_equal(result.reshape(kept[value].shape), kept[value]), (name, fuse)
        return kept

    return run
