"""People in pictures made by the tests, in every layout that is read; and the real samples, where they are at hand."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.pose import COCO, LSP
from tests.helpers.people import dotted, spread


@pytest.fixture(scope="session")
def lspet_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LSPET crops as .npz: 24 + 8 people, the joints marked by discs, some of the training joints invisible."""
    root = tmp_path_factory.mktemp("lspet")
    random = np.random.default_rng(4)
    for name, count in (("lspet_train_0", 12), ("lspet_train_1", 12), ("lspet_test", 8)):
        data, joints, sizes = [], [], []
        for _ in range(count):
            size = random.integers(130, 180, 2)
            points = spread(random, 14, 20, 110)
            buffer = io.BytesIO()
            dotted(int(size[0]), int(size[1]), points).save(buffer, "JPEG", quality=97, subsampling=0)
            data.append(buffer.getvalue())
            joints.append(points)
            sizes.append(size)
        visible = np.ones((count, 14), np.uint8)
        if "train" in name:
            visible[::3, 5] = 0
        np.savez(
            root / f"{name}.npz",
            jpeg=np.frombuffer(b"".join(data), np.uint8),
            offsets=np.cumsum([0, *(len(d) for d in data)]).astype(np.uint32),
            joints=np.array(joints, np.float32),
            visible=visible,
            size=np.array(sizes, np.uint16),
            orig_id=np.arange(count, dtype=np.uint16),
            upright=(np.arange(count) % 2).astype(np.uint8),
        )
    return root


@pytest.fixture
def mpii_root(tmp_path: Path) -> Path:
    """MPII's layout: three people in two pictures."""
    random = np.random.default_rng(5)
    (tmp_path / "annot").mkdir()
    (tmp_path / "images").mkdir()
    rows = []
    for name, count in (("a.jpg", 1), ("b.jpg", 2)):
        points = spread(random, 16, 60, 340)
        dotted(420, 400, points).save(tmp_path / "images" / name, quality=97, subsampling=0)
        for person in range(count):
            rows.append(
                {
                    "image": name,
                    "center": [200.0 + person, 190.0],
                    "scale": 1.6,
                    "joints": (points + 1).tolist(),
                    "joints_vis": [1] * 15 + [0],
                }
            )
    for name in ("train", "valid"):
        (tmp_path / "annot" / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """COCO's layout: two people, a crowd, and somebody without keypoints."""
    random = np.random.default_rng(6)
    points = spread(random, 17, 40, 260)
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        dotted(320, 300, points).save(tmp_path / split / "000000000007.jpg", quality=97, subsampling=0)
    flags = np.array([2] * 15 + [1, 0])

    def person(number: int, **fields: Any) -> dict[str, Any]:
        keypoints = np.concatenate([points, flags[:, None]], axis=1).astype(int)
        return {
            "id": number,
            "image_id": 7,
            "category_id": 1,
            "bbox": [30.0, 32.0, 240.0, 236.0],
            "area": 30000.0,
            "iscrowd": 0,
            "num_keypoints": 16,
            "keypoints": keypoints.ravel().tolist(),
            **fields,
        }

    content = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "width": 320, "height": 300}],
        "annotations": [
            person(1),
            person(2, iscrowd=1),
            person(3, num_keypoints=0, keypoints=[0] * 51),
            person(4, bbox=[0.0, 0.0, 100.0, 300.0]),
        ],
        "categories": [
            {"id": 1, "name": "person", "keypoints": COCO.names, "skeleton": [[a + 1, b + 1] for a, b in COCO.skeleton]}
        ],
    }
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"person_keypoints_{split}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def lsp_folders(tmp_path: Path) -> Path:
    """The public archives: LSP (6 people, all joints labelled) and its extension (5 people, some joints unlabelled)."""
    scipy_io = pytest.importorskip("scipy.io")
    random = np.random.default_rng(7)
    for name, count in (("lsp_dataset", 6), ("lspet_dataset", 5)):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        points = np.stack([spread(random, len(LSP.names), 20, 120) for _ in range(count)])
        for index, joints in enumerate(points):
            dotted(150, 140, joints).save(folder / "images" / f"im{index + 1:05d}.jpg", quality=97, subsampling=0)
        flags = np.zeros((count, 14, 1))
        if name == "lspet_dataset":
            flags[:, :10] = 1
        matrix = np.concatenate([points, flags], axis=2)
        order = (1, 2, 0) if name == "lspet_dataset" else (2, 1, 0)
        scipy_io.savemat(folder / "joints.mat", {"joints": matrix.transpose(order)})
    return tmp_path


@pytest.fixture
def data() -> Path:
    """The folder of real data that SIGNET_DATA names."""
    folder = os.environ.get("SIGNET_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SIGNET_DATA names no folder of real data")
    return Path(folder)
