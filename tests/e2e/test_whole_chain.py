"""From a folder of pictures to an answer over HTTP, each step the command that the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import pictures
from tests.helpers.server import Server

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}
RECIPE = """
name: colours
seed: 1
model: {architecture: resnet, classes: 3, width: 0.125, latent: {kind: holistic}}
data: {name: imagefolder, image_size: 32, augment: {crop_padding_px: 0, cutout_px: 0}}
training: {epochs: 5, batch_size: 12, learning_rate: 0.01, precision: 32-true, threads: 1, validation_batch_size: 8}
"""


def signet(*arguments: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIGNET_")}
    ended = subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**environment, "COLUMNS": "160"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def picture(colour: tuple[int, int, int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 80, 2)
    noisy = np.clip(np.array(colour) + rng.integers(-40, 41, (height, width, 3)), 0, 255).astype(np.uint8)
    return pictures.encoded(Image.fromarray(noisy), "PNG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of each of three colours."""
    root = tmp_path_factory.mktemp("chain")
    for name, colour in COLOURS.items():
        (root / "pictures" / name).mkdir(parents=True)
        for seed in range(16):
            (root / "pictures" / name / f"{seed}.png").write_bytes(picture(colour, seed))
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def test_train_pack_inspect_evaluate_predict_serve(folder: Path) -> None:
    run, zoo = folder / "run", folder / "zoo"
    packed = zoo / "colours" / "1" / "model.safetensors"
    signet("train", folder / "recipe.yaml", "--data", folder / "pictures", "-o", run)
    signet("pack", run / "best.ckpt", "-o", zoo, "--name", "colours")
    assert packed.is_file()
    assert "1-bit" in signet("inspect", packed)

    measured = [signet("evaluate", file, "--data", folder / "pictures") for file in (run / "best.ckpt", packed)]
    before, after = (re.findall(r"top-1 ([0-9.]+)", text) for text in measured)
    assert before == after

    sample = folder / "sample.png"
    sample.write_bytes(picture(COLOURS["green"], 99))
    predicted = signet("predict", sample, "--models", zoo, "--top-k", "1")
    running = Server(zoo)
    try:
        card = running.client.get("/v1/models/colours").json()
        assert card["labels"] == sorted(COLOURS)
        right = 0
        for name, colour in COLOURS.items():
            answer = running.classify(picture(colour, 99)).json()
            assert answer["model"] == "colours"
            right += answer["predictions"][0]["label"] == name
        assert right >= 2
        assert running.classify(sample.read_bytes()).json()["predictions"][0]["label"] in predicted
    finally:
        running.close()
