"""Small data sets in their public layouts, made by the tests, and a recipe that trains on them in a second."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

TRAIN_IMAGES_A_BATCH = 16
TEST_IMAGES = 30
COLOURS = {"red": (220, 40, 30), "green": (40, 200, 60), "blue": (30, 60, 220)}


def noisy(random: np.random.Generator, colour: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    noise = random.integers(-30, 31, (height, width, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def cifar_batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's python batches: 80 training and 30 test images, each class with a colour of its own."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    palette = random.integers(0, 256, (10, 3))
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        count = TEST_IMAGES if name == "test_batch" else TRAIN_IMAGES_A_BATCH
        labels = random.integers(0, 10, count)
        noise = random.integers(-40, 41, (count, 3, 32, 32))
        images = np.clip(palette[labels][:, :, None, None] + noise, 0, 255).astype(np.uint8)
        content = {b"data": images.reshape(count, -1), b"labels": [int(n) for n in labels], b"batch_label": b"test"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder without a split: three classes of ten pictures, of several sizes and formats."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(1)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for index in range(10):
            height, width = random.integers(40, 90, 2)
            suffix = ("png", "jpg", "webp")[index % 3]
            Image.fromarray(noisy(random, colour, height, width)).save(root / name / f"{index}.{suffix}")
    return root


@pytest.fixture
def raw_recipe() -> dict[str, Any]:
    """A recipe as plain data: a very thin network, two epochs, float32."""
    return {
        "name": "tiny",
        "seed": 3,
        "model": {"architecture": "resnet", "width": 0.125, "latent": {"kind": "holistic"}},
        "data": {"name": "cifar10"},
        "training": {
            "epochs": 2,
            "batch_size": 20,
            "precision": "32-true",
            "threads": 1,
            "validation_batch_size": 8,
        },
    }


@pytest.fixture
def recipe_file(tmp_path: Path, raw_recipe: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw_recipe))
    return path
