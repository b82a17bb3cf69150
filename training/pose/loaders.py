"""Loaders of people: reproducible, resumable epochs of `PoseBatch`, augmented for training, unchanged for measuring.

People lie decoded in memory (on the GPU where there is one) or are decoded from their pictures in worker processes;
everything after the cutting out is the same for both and happens to a whole batch, on the batch's device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from models.pose import flip_order
from training.data.loaders import Loader, leave_group
from training.data.plan import BatchPlan, generator
from training.errors import TrainingError
from training.pose import augment as augmentation
from training.pose.config import PoseAugment
from training.pose.people import FILL, People

MEMORY_LIMIT_BYTES = 4 << 30


class PoseBatch(NamedTuple):
    """What a network is given, and where the joints are.

    `images` uint8 [B, size, size, 3], `joints` float32 [B, K, 2] in their pixels, `visible` bool [B, K], `people`
    int64 [B], which ones of the split these are.
    """

    images: Tensor
    joints: Tensor
    visible: Tensor
    people: Tensor


class _Crops(TorchDataset[Tensor]):
    """Crops of people, cut out anew at each reading."""

    def __init__(self, people: People, size: int, margin: float) -> None:
        self.people, self.size, self.margin = people, size, margin

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.people.cut_out(index, self.size, self.margin))

    def collate(self, crops: list[Tensor]) -> Tensor:
        """A batch; an empty one for a process that has no share of the last batch."""
        if not crops:
            return torch.empty(0, self.size, self.size, 3, dtype=torch.uint8)
        batch: Tensor = default_collate(crops)
        return batch

    def all(self) -> Tensor:
        """Everybody's crop, uint8 [N, size, size, 3]."""
        crops = torch.empty(len(self.people), self.size, self.size, 3, dtype=torch.uint8)

        def fill(index: int) -> None:
            crops[index] = self[index]

        # Decoding and resizing release the GIL.
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            for _ in threads.map(fill, range(len(self.people))):
                pass
        return crops


class PoseLoader(Loader[PoseBatch]):
    """Batches of the people of a split.

    Parameters
    ----------
    people : the split.
    plan : which of them go into which batch.
    size : side of the network's input in pixels.
    augment : how training people are changed; None leaves them as they are.
    storage : `memory`, `files`, or `auto`, which takes memory for up to 4 GiB.
    workers : processes that decode files.
    device : where the batches are made.
    """

    def __init__(
        self,
        people: People,
        plan: BatchPlan,
        *,
        size: int,
        augment: PoseAugment | None = None,
        storage: str = "auto",
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(plan)
        self.people, self.size, self.augment, self.device = people, size, augment, torch.device(device)
        self.joints = torch.from_numpy(people.crop_joints(size)).to(device)
        self.visible = torch.from_numpy(people.visible).to(device)
        self.flip_order = torch.from_numpy(flip_order(people.keypoints)).to(device)
        self.fill = torch.tensor(FILL, dtype=torch.uint8, device=device)
        margin = 1.0 if augment is None else augmentation.MARGIN
        crops = _Crops(people, round(size * margin), margin)
        fits = len(people) * crops.size**2 * 3 <= MEMORY_LIMIT_BYTES
        self.stored: Tensor | None = None
        if storage == "memory" or (storage == "auto" and fits):
            self.stored = crops.all().to(device)
        else:
            self._indices = _Indices(self)
            dataset: Any = crops
            self._files: DataLoader[Tensor] = DataLoader(
                dataset,
                batch_sampler=self._indices,
                num_workers=workers,
                collate_fn=crops.collate,
                worker_init_fn=leave_group,
                pin_memory=self.device.type == "cuda",
                persistent_workers=workers > 0,
            )

    def _batches(self, start: int) -> Iterator[PoseBatch]:
        crops = None if self.stored is not None else iter(self._read_files(start))
        for number, whole in self.plan.batches(self.epoch, start):
            index = self.plan.mine(whole).to(self.device)
            if self.stored is not None:
                images = self.stored[index]
            else:
                assert crops is not None
                images = next(crops).to(self.device, non_blocking=True)
            joints, visible = self.joints[index], self.visible[index]
            if self.augment is not None:
                # Drawn for the whole batch, so that people are changed alike however many processes share it.
                random = generator(self.plan.seed, self.epoch, number + 1)
                drawn = augmentation.draw(len(whole), self.augment, random).share(self.plan.rank, self.plan.world)
                images, joints, visible = augmentation.apply(
                    images, joints, visible, drawn, size=self.size, flip_order=self.flip_order, fill=self.fill
                )
            yield PoseBatch(images, joints, visible, index)

    def _read_files(self, start: int) -> Iterator[Tensor]:
        self._indices.start = start
        try:
            yield from self._files
        except TrainingError as error:
            # A worker's exception arrives with its traceback as its message; the last line is what was raised.
            raise TrainingError(str(error).rpartition(f"{TrainingError.__name__}: ")[2].strip()) from None


class _Indices:
    """Indices of the batches that remain in a loader's epoch, read anew by each epoch's iterator."""

    def __init__(self, loader: PoseLoader) -> None:
        self.loader = loader
        self.start = 0

    def __len__(self) -> int:
        return len(self.loader.plan) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        plan, epoch = self.loader.plan, self.loader.epoch
        for _, whole in plan.batches(epoch, self.start):
            yield np.asarray(plan.mine(whole)).tolist()
