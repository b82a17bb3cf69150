"""The type that every classification data set is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.packing.file import InputSpec


@dataclass(frozen=True)
class Pixels:
    """Images that lie in memory: `images` uint8 [N, H, W, 3] (RGB), `labels` int64 [N]."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}, expected uint8 [N, H, W, 3]")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"{len(self.images)} images have labels of shape {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Files:
    """Images that stay on disk until a batch needs them: `paths` [N], `labels` int64 [N]."""

    paths: Sequence[Path]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)


Split = Pixels | Files


@dataclass(frozen=True)
class Dataset:
    """A classification data set.

    Attributes
    ----------
    name : the data set's name, for the log and the checkpoint.
    train, validation : the two splits; the second one measures and is never trained on.
    class_names : one a class, in the order of the labels.
    input : size in pixels, mean and std, and how a picture of any size becomes an input.
    """

    name: str
    train: Split
    validation: Split
    class_names: tuple[str, ...]
    input: InputSpec
