"""The models that ship, served as `signet serve` serves them out of the box."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.settings import shipped_zoo
from tests.helpers import pictures
from tests.helpers.server import Server

MODEL = shipped_zoo() / "cifar10-resnet18" / "1" / "model.safetensors"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
DATA = Path(os.environ.get("SIGNET_DATA", "/nonexistent"))
CIFAR = DATA / "cifar10_jpeg.npz"
PHOTOGRAPHS = DATA / "demo"

ALL = sorted(shipped_zoo().glob("*/*/model.safetensors"))

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="the model that ships has not been trained yet")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.parts[-3])
def test_every_model_is_ready_and_has_its_card(shipped: Server, path: Path) -> None:
    name, version = path.parts[-3:-1]
    assert (path.parent / "README.md").read_text().startswith(f"# {name}, version {version}\n")
    card = shipped.client.get(f"/v1/models/{name}", params={"version": version}).json()
    assert card["state"] == "ready"
    assert (card["labels"] is None) == (card["task"] == "pose")
    assert (card["keypoints"] is None) == (card["task"] == "classification")
    assert card["sizes"]["ratio"] > 8
    assert card["macs"]["binary"] > card["macs"]["real"]
    assert {"recipe", "seed", "metrics"} <= set(card["provenance"])


def cifar_test_jpegs(count: int) -> tuple[list[bytes], np.ndarray]:
    """The first images of CIFAR-10's test set as JPEG files, and their classes."""
    with np.load(CIFAR) as data:
        lengths = data["lengths"].astype(np.int64)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        header, scans, first = data["header"].tobytes(), data["scans"], int(data["n_train"])
        chosen = range(first, first + count)
        files = [header + scans[starts[i] : starts[i] + lengths[i]].tobytes() + b"\xff\xd9" for i in chosen]
        return files, data["labels"][first : first + count]


def test_it_is_the_default_and_describes_itself(shipped: Server) -> None:
    assert shipped.client.get("/readyz").status_code == 200
    card = shipped.client.get("/v1/models/cifar10-resnet18").json()
    assert card["labels"] == CLASSES
    assert card["task"] == "classification"
    assert card["sizes"]["ratio"] > 8
    assert card["macs"]["binary"] > card["macs"]["real"]
    assert card["provenance"]
    assert shipped.classify(pictures.jpeg()).json()["model"] == "cifar10-resnet18"


@pytest.mark.skipif(not CIFAR.is_file(), reason="SIGNET_DATA names no folder with CIFAR-10")
def test_it_knows_pictures_that_it_was_not_trained_on(shipped: Server) -> None:
    files, classes = cifar_test_jpegs(300)
    with ThreadPoolExecutor(4) as clients:
        replies = list(clients.map(lambda data: shipped.classify(data, top_k=1), files))
    found = np.array([reply.json()["predictions"][0]["index"] for reply in replies])
    assert (found == classes).mean() > 0.75


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="SIGNET_DATA names no folder with photographs")
def test_it_answers_every_photograph_and_knows_most_of_its_classes(shipped: Server) -> None:
    right = []
    for entry in json.loads((PHOTOGRAPHS / "index.json").read_text()):
        reply = shipped.classify((PHOTOGRAPHS / entry["file"]).read_bytes())
        assert reply.status_code == 200
        assert reply.json()["image"] == {"width": entry["width"], "height": entry["height"]}
        if entry["cifar10_class"] in CLASSES:
            right.append(reply.json()["predictions"][0]["label"] == entry["cifar10_class"])
    assert np.mean(right) >= 0.5


def test_memory_and_start_are_small() -> None:
    running = Server(shipped_zoo())
    try:
        assert running.cpu_s < 5
        for seed in range(20):
            running.classify(pictures.jpeg(375, 500, seed))
        assert running.rss_bytes < 120 << 20
    finally:
        running.close()
