"""`torchrun` with two gloo processes on CPU trains what one process trains with the same global batch.

Batch norm is what makes a difference by design: each process has the statistics of its own half. Here it runs on its
running statistics, so that everything else (shares of the batches, augmentation, gradients, holistic tensors, logged
figures, checkpoints, latents that end on the way) must agree, up to rounding. And the processes end their group before
they end themselves: a thread of gloo that outlives the interpreter aborts the process now and then.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from models.networks import build
from tests.helpers.training import Raw, recipe_of, weights
from training.reporting import EPOCHS_FILE, read_epochs

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit, os, sys
from pathlib import Path
from torch import nn
from torch.nn.functional import batch_norm
nn.BatchNorm2d.forward = lambda m, x: batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)

def check_threads():
    if any(file.read_text().startswith("pt_gloo") for file in Path("/proc/self/task").glob("*/comm")):
        print("threads of the process group outlive it", file=sys.stderr, flush=True)
        os._exit(3)

atexit.register(check_threads)  # before training's own, so that it comes after it
from training.commands import main
main()
"""
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TOLERANCE = 0.01
"""Of the way that training moved a parameter (of weights that took the place of latents: of their own size): a rounded
activation near 0 may have another sign."""


@pytest.mark.parametrize(
    "options", [{"epochs": 1}, {"epochs": 2, "latent_share": 0.5}, {"epochs": 1, "renew_latents_every": 2}]
)
def test_two_processes_equal_one(options: Raw, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    script, recipe = tmp_path / "train.py", tmp_path / "recipe.yaml"
    script.write_text(SCRIPT)
    changes = {"optimizer": "sgd", "learning_rate": 0.01, "validation_batch_size": 4}
    raw = {**raw_recipe, "training": {**raw_recipe["training"], **changes, **options}}
    recipe.write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SIGNET_DATA": str(cifar_batches), "OMP_NUM_THREADS": "1"}
    for name, launch in (("one", ()), ("two", LAUNCH)):
        command = [sys.executable, *launch, str(script), "train", str(recipe), "-o", str(tmp_path / name)]
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert ended.returncode == 0, ended.stderr
    torch.manual_seed(raw["seed"])
    start = build(recipe_of(raw).model).state_dict()
    one, two = (weights(tmp_path / name / "last.ckpt") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert ("network.holistic" in "".join(one)) == ("latent_share" not in options)
    moved = 0
    for name, value in one.items():
        difference = (two[name].double() - value.double()).norm()
        way = (value.double() - start.get(name.removeprefix("network."), torch.zeros(())).double()).norm()
        assert difference <= TOLERANCE * way + 1e-6, name
        moved += bool(way > 1e-4)
    assert moved > len(one) / 3
    rows = [read_epochs(tmp_path / name / EPOCHS_FILE) for name in ("one", "two")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == ["4", "8"][: options["epochs"]]
    for first, second in zip(*rows, strict=True):
        assert float(second["train_loss"]) == pytest.approx(float(first["train_loss"]), rel=1e-3)
        assert float(second["val_top1"]) == pytest.approx(float(first["val_top1"]), abs=3.4)  # one picture of 30
