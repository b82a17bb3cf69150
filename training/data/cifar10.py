"""CIFAR-10 (Krizhevsky 2009) in two layouts: the original python batches, or JPEGs in one `.npz`.

The python batches are pickles. They are read by an unpickler that admits bytes, text, numbers, lists,
dicts and numpy arrays, and nothing that could run code.

The `.npz` holds one JPEG header that all images share (`header`), their scans end to end (`scans`, with
`lengths`), `labels`, `class_names` and `n_train`; image i is header + its scan + FF D9.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.packing.file import InputSpec, Resize
from training.data.dataset import Dataset, Pixels
from training.errors import TrainingError

SIDE_PX = 32
CLASSES = 10
MEAN = (0.4913, 0.4821, 0.4465)
STD = (0.2749, 0.2676, 0.2660)
NPZ_NAME = "cifar10_jpeg.npz"
BATCHES_NAME = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCH = "test_batch"
META = "batches.meta"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def find(root: Path) -> Path | None:
    """Where CIFAR-10 lies in or at `root`: an `.npz` file or a folder of python batches; None if nowhere."""
    for path in (root / BATCHES_NAME, root):
        if (path / TEST_BATCH).is_file():
            return path
    for path in (root / NPZ_NAME, root):
        if path.is_file() and path.suffix == ".npz":
            return path
    return None


def read(root: Path, side_px: int = SIDE_PX) -> Dataset:
    """Read CIFAR-10 from `root`: 50,000 training and 10,000 validation images in the official order.

    A `side_px` below 32 shrinks them, each pixel the mean of a square.

    Raises TrainingError naming the file, or the image's index, that is missing or damaged.
    """
    path = find(root)
    if path is None:
        raise TrainingError(
            f"data.root: no CIFAR-10 in {root}: looked for {NPZ_NAME} and for {BATCHES_NAME}/{TEST_BATCH}"
        )
    train, test, names = _read_npz(path) if path.is_file() else _read_batches(path)
    spec = InputSpec(
        height=side_px,
        width=side_px,
        mean=MEAN,
        std=STD,
        resize=Resize(mode="crop", short_side_px=side_px),
    )
    return Dataset("cifar10", _shrink(train, side_px), _shrink(test, side_px), names, spec)


def _shrink(pixels: Pixels, side_px: int) -> Pixels:
    square = SIDE_PX // side_px
    if square == 1:
        return pixels
    squares = pixels.images.reshape(-1, side_px, square, side_px, square, 3)
    return Pixels(squares.float().mean((2, 4)).round().to(torch.uint8), pixels.labels)


def _read_npz(path: Path) -> tuple[Pixels, Pixels, tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            header, scans = archive["header"].tobytes(), archive["scans"].tobytes()
            ends = np.cumsum(archive["lengths"].astype(np.int64))
            labels = archive["labels"].astype(np.int64)
            names = tuple(str(name) for name in archive["class_names"])
            n_train = int(archive["n_train"])
    except Exception as error:  # a damaged archive raises nearly anything
        raise TrainingError(f"{path}: cannot be read as CIFAR-10 JPEGs: {error}") from error
    total = int(ends[-1]) if len(ends) else 0
    if len(ends) != len(labels) or total != len(scans) or not 0 < n_train < len(ends):
        raise TrainingError(
            f"{path}: {len(ends)} lengths (of {total} bytes), {len(labels)} labels, {len(scans)} bytes of scans "
            f"and n_train {n_train} do not fit together"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise TrainingError(f"{path}: labels reach from {labels.min()} to {labels.max()}, {len(names)} class names")
    images = np.empty((len(ends), SIDE_PX, SIDE_PX, 3), np.uint8)
    begin = 0
    for index, end in enumerate(ends.tolist()):
        try:
            with Image.open(io.BytesIO(header + scans[begin:end] + b"\xff\xd9")) as image:
                images[index] = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise TrainingError(f"{path}: image {index} is damaged: {error}") from error
        begin = end
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    return Pixels(pixels[:n_train], targets[:n_train]), Pixels(pixels[n_train:], targets[n_train:]), names


class _ArraysOnly(pickle.Unpickler):
    """Admits what the CIFAR batches hold: builtin containers, which need no class, and numpy arrays."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which image batches do not need")
        if name == "_reconstruct":
            module = "numpy._core.multiarray"
        return super().find_class(module, name)


def _unpickle(path: Path) -> Mapping[bytes, Any]:
    if not path.is_file():
        raise TrainingError(f"{path}: is missing; a CIFAR-10 folder holds {', '.join((*TRAIN_BATCHES, TEST_BATCH))}")
    try:
        with path.open("rb") as handle:
            content = _ArraysOnly(handle, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise TrainingError(f"{path}: cannot be read as a CIFAR-10 batch: {error}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path}: holds a {type(content).__name__}, expected a dict")
    return content


def _read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = _unpickle(path)
    data, labels = content.get(b"data"), content.get(b"labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE_PX**2:
        raise TrainingError(f"{path}: data: expected a uint8 array [n, {3 * SIDE_PX**2}]")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise TrainingError(f"{path}: labels: expected a list of {len(data)} numbers")
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise TrainingError(f"{path}: labels: expected whole numbers from 0 to {CLASSES - 1}")
    return data.reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1), np.asarray(labels, np.int64)


def _read_batches(folder: Path) -> tuple[Pixels, Pixels, tuple[str, ...]]:
    parts = [_read_batch(folder / name) for name in TRAIN_BATCHES]
    names = CLASS_NAMES
    if (folder / META).is_file():
        listed = _unpickle(folder / META).get(b"label_names")
        if isinstance(listed, list) and len(listed) == CLASSES and all(isinstance(n, bytes) for n in listed):
            names = tuple(name.decode("utf-8", "replace") for name in listed)
    train = _pixels([images for images, _ in parts], [labels for _, labels in parts])
    images, labels = _read_batch(folder / TEST_BATCH)
    return train, _pixels([images], [labels]), names


def _pixels(images: list[NDArray[np.uint8]], labels: list[NDArray[np.int64]]) -> Pixels:
    return Pixels(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))
