from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.packing.file import PackedFile
from models.xnor import Session, available_isas
from tests.models.xnor.oracle import check_each_op

ISAS = ("portable", "avx2", "avx512", "avx512_vpopcntdq", "neon")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    if request.param not in available_isas():
        pytest.skip(f"this machine has no {request.param}")
    return str(request.param)


def random_images(file: PackedFile, count: int, seed: int = 0) -> NDArray[np.uint8]:
    size = file.header.input
    return np.random.default_rng(seed).integers(0, 256, (count, size.height, size.width, 3), dtype=np.uint8)


@pytest.fixture
def check() -> Callable[..., dict[str, NDArray[Any]]]:
    """Run a file fused and unfused, compare each op with torch, and return all values (fused)."""

    def run(path: Path, isa: str, count: int = 2, threads: int = 1) -> dict[str, NDArray[Any]]:
        kept: dict[str, NDArray[Any]] = {}
        for fuse in (False, True):
            session = Session.load(path, isa=isa, threads=threads, fuse=fuse)
            file = session.file
            images = random_images(file, count)
            kept = Session.load(path, isa=isa, threads=threads, fuse=fuse, keep=file.values).run(images)
            check_each_op(file, images, kept)
            for name, result in session.run(images).items():
                value = file.header.graph.outputs[name]
                assert np.array_equal(result.reshape(kept[value].shape), kept[value])
        return kept

    return run
