"""A user's own folder of photographs becomes a served label in the three commands of the README."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from models.packing.file import read
from tests.e2e.test_whole_chain import signet
from tests.helpers.server import Server
from training.recipe import load_recipe

PICTURES = Path(__file__).parents[1] / "fixtures" / "pictures"
"""Twelve photographs of each of three classes of CIFAR-10."""
RECIPES = Path(__file__).parents[2] / "training" / "recipes"
QUICK = ("--set", "model.width=0.125", "--set", "data.image_size=32", "--set", "training.epochs=2")


def test_three_commands_from_a_folder_to_a_label(tmp_path: Path) -> None:
    run, zoo = tmp_path / "run", tmp_path / "zoo"
    signet("train", "--data", PICTURES, "-o", run, *QUICK)
    signet("pack", run / "best.ckpt", "-o", zoo, "--name", "my-model")
    running = Server(zoo)
    try:
        card = running.client.get("/v1/models/my-model").json()
        assert card["labels"] == ["airplane", "frog", "ship"]
        answer = running.classify((PICTURES / "frog" / "00.jpg").read_bytes()).json()
        assert {one["label"] for one in answer["predictions"]} == {"airplane", "frog", "ship"}
    finally:
        running.close()
    # The packed file scores what the checkpoint scores.
    found = [
        signet("evaluate", path, "--data", PICTURES)
        for path in (run / "best.ckpt", zoo / "my-model/1/model.safetensors")
    ]
    tops = [re.findall(r"top-1 ([0-9.]+)", text) for text in found]
    assert tops[0] == tops[1]


def test_training_goes_on_from_the_model_that_ships(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = RECIPES / "imagefolder_finetune.yaml"
    quick = ("--set", "training.epochs=10", "--set", "training.precision=32-true", "--set", "training.batch_size=10")
    signet("train", recipe, "--data", PICTURES, "-o", run, *quick)
    signet("pack", run / "last.ckpt", "-o", tmp_path, "--name", "mine")
    ours, theirs = (
        read(path) for path in (tmp_path / "mine/1/model.safetensors", load_recipe(recipe).training.start_from)
    )
    assert ours.header.labels == ["airplane", "frog", "ship"]
    bits = [name for name, tensor in theirs.tensors.items() if tensor.dtype == np.uint64]
    flipped = [np.unpackbits((ours.tensors[name] ^ theirs.tensors[name]).view(np.uint8)).mean() for name in bits]
    assert np.mean(flipped) < 0.02
    # From nothing, twenty steps would leave it at chance, a third.
    (top1,) = re.findall(r"top-1 ([0-9.]+)", signet("evaluate", run / "last.ckpt", "--data", PICTURES))
    assert float(top1) > 50
