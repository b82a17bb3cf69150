"""Which image goes into which batch: a function of seed, epoch and batch number, and of nothing else.

Nothing random is kept between batches, so a run that resumes in the middle of an epoch sees exactly the
batches that an uninterrupted run sees, and processes that share an epoch need not talk to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator whose stream depends on all numbers of `key` (each >= 0) and nothing else."""
    # The length is part of the key, because a SeedSequence takes (1,) and (1, 0) for the same.
    state = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


@dataclass(frozen=True)
class BatchPlan:
    """Batches of image indices for process `rank` of `world`.

    A batch has `batch_size` images over all processes, of which a process takes every `world`-th. Plans that
    shuffle (training) drop the incomplete last batch, so that each step sees equally many images in every
    process; the others cover each image exactly once over all processes.
    """

    length: int
    batch_size: int
    shuffle: bool
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world or self.length < 1:
            raise ValueError(f"{self.length} images, batches of {self.batch_size}, {self.world} processes")
        if self.shuffle and self.length < self.batch_size:
            raise ValueError(f"{self.length} images do not fill a batch of {self.batch_size}")

    def __len__(self) -> int:
        whole, rest = divmod(self.length, self.batch_size)
        return whole if self.shuffle or not rest else whole + 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Yield (number, indices int64 of the whole batch) of `epoch` from batch `start` on."""
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=generator(self.seed, epoch))
        for number in range(start, len(self)):
            yield number, order[number * self.batch_size : (number + 1) * self.batch_size]

    def mine(self, batch: Tensor) -> Tensor:
        """This process's share of something that has one row an image of a whole batch."""
        return batch[self.rank :: self.world]
