"""A user's own folder of photographs becomes a served label in the three commands of the README."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.test_whole_chain import signet
from tests.helpers.server import Server

PICTURES = Path(__file__).parents[1] / "fixtures" / "pictures"
"""Twelve photographs of each of three classes of CIFAR-10."""
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
