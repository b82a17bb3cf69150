"""A data set as loaders for Lightning's Trainer."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule

from training.data.dataset import Dataset, Pixels
from training.data.loaders import FileLoader, Loader, MemoryLoader
from training.data.plan import BatchPlan
from training.errors import TrainingError
from training.recipe import ImageFolderData, Recipe


class ClassificationData(LightningDataModule):
    """Loaders over the two splits of `dataset` as `recipe` wants them, one share a process."""

    def __init__(self, dataset: Dataset, recipe: Recipe) -> None:
        super().__init__()
        self.dataset, self.recipe = dataset, recipe

    def train_dataloader(self) -> Loader:
        """Shuffled and augmented; a batch here is one accumulation step's part of the recipe's batch."""
        training, world = self.recipe.training, self._world()
        part, rest = divmod(training.batch_size, training.accumulate)
        if rest or part % world:
            raise TrainingError(
                f"training.batch_size: {training.batch_size} cannot be shared equally by {world} processes "
                f"with {training.accumulate} accumulation steps"
            )
        if part > len(self.dataset.train):
            raise TrainingError(
                f"training.batch_size: {training.batch_size} is more than the {len(self.dataset.train)} training images"
            )
        return self._loader(training=True, batch_size=part)

    def val_dataloader(self) -> Loader:
        """Every validation image once, in order, unchanged."""
        return self._loader(training=False, batch_size=self.recipe.training.validation_batch_size * self._world())

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _loader(self, *, training: bool, batch_size: int) -> Loader:
        split = self.dataset.train if training else self.dataset.validation
        rank = self.trainer.global_rank if self.trainer is not None else 0
        plan = BatchPlan(len(split), batch_size, training, self.recipe.seed, rank, self._world())
        spec, data = self.dataset.input, self.recipe.data
        device = self.trainer.strategy.root_device if self.trainer is not None else "cpu"
        if isinstance(split, Pixels):
            augment = data.augment if training else None
            return MemoryLoader(split, plan, augment=augment, mean=spec.mean, device=device)
        assert isinstance(data, ImageFolderData)
        return FileLoader(
            split,
            plan,
            side=spec.height,
            short_side=spec.resize.short_side_px or spec.height,
            augment=data.file_augment if training else None,
            workers=data.workers,
            pin_memory=str(device).startswith("cuda"),
        )
