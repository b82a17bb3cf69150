"""Recipes changed, runs interrupted, checkpoints compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from training import train as training
from training.checkpoints import Checkpoints
from training.recipe import Recipe, check_recipe

Raw = dict[str, Any]


def recipe_of(raw: Raw, **changes: Any) -> Recipe:
    return check_recipe({**raw, "training": {**raw["training"], **changes}}, "test")


def with_model(raw: Raw, **changes: Any) -> Raw:
    return {**raw, "model": {**raw["model"], **changes}}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["state_dict"])


def assert_same_weights(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


class SignalAt(Callback):
    """Pretends that a signal came in a certain place."""

    def __init__(self, checkpoints: Checkpoints, where: str, epoch: int, batch: int) -> None:
        self.checkpoints, self.where, self.epoch, self.batch = checkpoints, where, epoch, batch

    def _at(self, where: str, trainer: Any, batch_idx: int) -> None:
        if (where, trainer.current_epoch, batch_idx) == (self.where, self.epoch, self.batch):
            self.checkpoints.receive(15)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._at("train", trainer, batch_idx)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._at("validate", trainer, batch_idx)


@contextmanager
def signal_at(where: str, epoch: int, batch: int) -> Iterator[None]:
    """Interrupt a run at (train or validate, epoch, batch)."""
    original = training.make_trainer

    def with_signal(recipe: Recipe, folder: Path, callbacks: list[Callback]) -> Any:
        checkpoints = next(one for one in callbacks if isinstance(one, Checkpoints))
        return original(recipe, folder, [*callbacks, SignalAt(checkpoints, where, epoch, batch)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_trainer", with_signal)
        yield
