"""A data set as loaders for Lightning's Trainer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from training.data.dataset import Dataset, Pixels
from training.data.loaders import FileLoader, Loader, MemoryLoader
from training.data.plan import BatchPlan
from training.errors import TrainingError
from training.recipe import ClassificationConfig, ImageFolderData, Recipe


class RecipeData(LightningDataModule):
    """Loaders over the two splits of a data set as `recipe` wants them, one share a process."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    @abstractmethod
    def length(self, *, training: bool) -> int:
        """Images of a split."""

    @abstractmethod
    def loader(self, plan: BatchPlan, *, training: bool) -> Loader[Any]:
        """The loader of a split: augmented for training, else unchanged."""

    def train_dataloader(self) -> Loader[Any]:
        """Shuffled and augmented; a batch here is one accumulation step's part of the recipe's batch."""
        training, world = self.recipe.training, self._world()
        part, rest = divmod(training.batch_size, training.accumulate)
        if rest or part % world:
            raise TrainingError(
                f"training.batch_size: {training.batch_size} cannot be shared equally by {world} processes "
                f"with {training.accumulate} accumulation steps"
            )
        if part > self.length(training=True):
            raise TrainingError(
                f"training.batch_size: {training.batch_size} is more than the {self.length(training=True)} "
                "training images"
            )
        return self.loader(self._plan(part, training=True), training=True)

    def val_dataloader(self) -> Loader[Any]:
        """Every validation image once, in order, unchanged."""
        batch_size = self.recipe.training.validation_batch_size * self._world()
        return self.loader(self._plan(batch_size, training=False), training=False)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _plan(self, batch_size: int, *, training: bool) -> BatchPlan:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        length = self.length(training=training)
        return BatchPlan(length, batch_size, training, self.recipe.seed, rank, self._world())


class ClassificationData(RecipeData):
    """Labelled pictures."""

    def __init__(self, dataset: Dataset, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.dataset = dataset

    def length(self, *, training: bool) -> int:
        return len(self.dataset.train if training else self.dataset.validation)

    def loader(self, plan: BatchPlan, *, training: bool) -> Loader[Any]:
        split = self.dataset.train if training else self.dataset.validation
        spec, data = self.dataset.input, self.recipe.data
        if isinstance(split, Pixels):
            assert isinstance(data, ClassificationConfig)
            augment = data.augment if training else None
            return MemoryLoader(split, plan, augment=augment, mean=spec.mean, device=self.device)
        assert isinstance(data, ImageFolderData)
        return FileLoader(
            split,
            plan,
            side=spec.height,
            short_side=spec.resize.short_side_px or spec.height,
            augment=data.file_augment if training else None,
            workers=data.workers,
            pin_memory=self.device.type == "cuda",
        )
