"""The pose model that ships: people of Leeds Sports Pose that it was not trained on, and ordinary photographs."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.settings import shipped_zoo
from tests.helpers.server import Server

NAME = "lspet-hourglass"
DATA = Path(os.environ.get("SIGNET_DATA", "/nonexistent"))
PEOPLE = DATA / "lspet_test.npz"
PHOTOGRAPHS = DATA / "demo"
TORSO = ("left_shoulder", "right_hip")
COUNT = 120

pytestmark = pytest.mark.skipif(
    not (shipped_zoo() / NAME).is_dir(), reason="the pose model that ships has not been trained yet"
)


@pytest.mark.skipif(not PEOPLE.is_file(), reason="SIGNET_DATA names no folder with Leeds Sports Pose")
def test_it_finds_joints_of_people_that_it_was_not_trained_on(shipped: Server) -> None:
    """PCK@0.2 of the torso, worked out here: the mean pose has 4 %."""
    with np.load(PEOPLE) as archive:
        offsets, jpeg, joints = archive["offsets"].astype(int), archive["jpeg"], archive["joints"][:COUNT]
        names = [str(name) for name in archive["joint_names"]]
    files = [jpeg[offsets[i] : offsets[i + 1]].tobytes() for i in range(COUNT)]
    low, high = joints.min(axis=1), joints.max(axis=1)
    boxes = np.concatenate([low + 0.5, high - low], axis=1).tolist()

    def ask(index: int) -> list[list[float]]:
        answer = shipped.pose(files[index], boxes=json.dumps(boxes[index])).json()
        assert answer["model"] == NAME
        (person,) = answer["people"]
        assert [entry["name"] for entry in person["keypoints"]] == names
        return [[entry["x"], entry["y"]] for entry in person["keypoints"]]

    with ThreadPoolExecutor(4) as clients:
        found = np.array(list(clients.map(ask, range(COUNT))))
    torso = np.linalg.norm(joints[:, names.index(TORSO[0])] - joints[:, names.index(TORSO[1])], axis=1)
    right = np.linalg.norm(found - joints, axis=2) <= 0.2 * torso[:, None]
    assert right.mean() > 0.45


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="SIGNET_DATA names no folder with photographs")
def test_it_answers_and_draws_every_photograph(shipped: Server) -> None:
    for entry in json.loads((PHOTOGRAPHS / "index.json").read_text()):
        data = (PHOTOGRAPHS / entry["file"]).read_bytes()
        answer = shipped.pose(data).json()
        assert answer["image"] == {"width": entry["width"], "height": entry["height"]}
        drawn = shipped.pose(data, visualize="true")
        assert Image.open(io.BytesIO(drawn.content)).size == (entry["width"], entry["height"])
