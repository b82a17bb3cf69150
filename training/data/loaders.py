"""Loaders: epochs of (images uint8 [B, H, W, 3], labels int64 [B]), reproducible and resumable.

`MemoryLoader` serves images that lie in memory as one tensor, on a GPU or not: a batch is one gather.
`FileLoader` decodes pictures in worker processes. Both know their position in an epoch (`state_dict`),
which a checkpoint keeps, and take their random numbers from it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from training.data import augment as augmentation
from training.data.dataset import Files, Pixels
from training.data.pictures import centre_crop, open_rgb, random_resized_crop
from training.data.plan import BatchPlan, generator
from training.errors import TrainingError
from training.recipe import LargeImageAugment, SmallImageAugment

Batch = tuple[Tensor, Tensor]
B = TypeVar("B")


class Position(TypedDict):
    """How far an epoch has been read."""

    epoch: int
    batch: int


def leave_group(worker: int) -> None:  # noqa: ARG001 - what a DataLoader passes
    """Give a worker process a group of its own, so that a signal to the run's group reaches the run alone.

    The run ends at a signal after its step, for which it needs its workers.
    """
    os.setpgid(0, 0)


class _Announcement(NamedTuple):
    sampler: Any


class Loader(ABC, Generic[B]):
    """An iterable over one epoch's batches of one process; see the module's description."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.epoch = 0
        self.next_batch = 0

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def batch_sampler(self) -> _Announcement:
        """Lightning announces epochs to `batch_sampler.sampler`."""
        return _Announcement(self)

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch`, unless it has begun already (then go on where it stands)."""
        if epoch != self.epoch:
            self.epoch, self.next_batch = epoch, 0

    def state_dict(self) -> Position:
        """Where the epoch stands."""
        return {"epoch": self.epoch, "batch": self.next_batch}

    def load_state_dict(self, state: Position) -> None:
        """Go on from a stored position."""
        self.epoch, self.next_batch = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[B]:
        # A generator: the position is read when the first batch is asked for, after set_epoch.
        start = self.next_batch if self.plan.shuffle else 0
        for number, batch in enumerate(self._batches(start), start):
            self.next_batch = number + 1
            yield batch

    @abstractmethod
    def _batches(self, start: int) -> Iterator[B]:
        """This process's batches of the current epoch, from batch `start` on."""


class MemoryLoader(Loader[Batch]):
    """Batches of images in memory, augmented if `augment` is given."""

    def __init__(
        self,
        pixels: Pixels,
        plan: BatchPlan,
        *,
        augment: SmallImageAugment | None = None,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(plan)
        self.images, self.labels = pixels.images.to(device), pixels.labels.to(device)
        self.augment = augment
        self.fill = (torch.tensor(mean) * 255).round().to(torch.uint8)

    def _batches(self, start: int) -> Iterator[Batch]:
        height, width = self.images.shape[1:3]
        for number, whole in self.plan.batches(self.epoch, start):
            index = self.plan.mine(whole)
            if self.augment is None:
                images = self.images[index.to(self.images.device)]
            else:
                # Drawn for the whole batch, so that images are cut alike however many processes share it.
                random = generator(self.plan.seed, self.epoch, number + 1)
                drawn = augmentation.draw(len(whole), height, width, self.augment, random)
                drawn = drawn.share(self.plan.rank, self.plan.world)
                images = augmentation.apply(self.images, index, drawn, self.augment, self.fill)
            yield images, self.labels[index.to(self.labels.device)]


class _Pictures(TorchDataset[tuple[Tensor, int]]):
    """Decodes one picture; its key is (seed, epoch, index), from which a worker draws the crop."""

    def __init__(self, files: Files, side: int, short_side: int, augment: LargeImageAugment | None) -> None:
        self.files, self.side, self.short_side, self.augment = files, side, short_side, augment

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int]:
        index = key[2]
        image = open_rgb(self.files.paths[index])
        if self.augment is None:
            pixels = centre_crop(image, self.side, self.short_side)
        else:
            pixels = random_resized_crop(image, self.side, self.augment, generator(*key))
        return torch.from_numpy(pixels), int(self.files.labels[index])

    def collate(self, samples: list[tuple[Tensor, int]]) -> Batch:
        """A batch; an empty one for a process that has no share of the last batch."""
        if not samples:
            return torch.empty(0, self.side, self.side, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        images, labels = default_collate(samples)
        return images, labels


class _Keys:
    """Keys of the batches that remain in a loader's epoch, read anew by each epoch's iterator."""

    def __init__(self, loader: FileLoader) -> None:
        self.loader = loader
        self.start = 0

    def __len__(self) -> int:
        return len(self.loader.plan) - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        plan, epoch = self.loader.plan, self.loader.epoch
        for _, whole in plan.batches(epoch, self.start):
            yield [(plan.seed, epoch, int(index)) for index in plan.mine(whole)]


class FileLoader(Loader[Batch]):
    """Batches of pictures decoded from files, cropped at random if `augment` is given, in the middle if not."""

    def __init__(
        self,
        files: Files,
        plan: BatchPlan,
        *,
        side: int,
        short_side: int,
        augment: LargeImageAugment | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(plan)
        self._keys = _Keys(self)
        pictures: Any = _Pictures(files, side, short_side, augment)
        self._loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            pictures,
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=pictures.collate,
            worker_init_fn=leave_group,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
        )

    def _batches(self, start: int) -> Iterator[Batch]:
        self._keys.start = start
        try:
            yield from self._loader
        except TrainingError as error:
            # A worker's exception arrives with its traceback as its message; the last line is what was raised.
            raise TrainingError(str(error).rpartition(f"{TrainingError.__name__}: ")[2].strip()) from None
