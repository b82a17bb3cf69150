"""Loaders: what is in a batch is decided by seed, epoch and number alone; augmentation against plain loops."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data import augment as augmentation
from training.data.dataset import Files, Pixels
from training.data.imagefolder import read
from training.data.loaders import FileLoader, Loader, MemoryLoader
from training.data.plan import BatchPlan, generator
from training.recipe import ImageFolderData, LargeImageAugment, SmallImageAugment

COUNT = 50


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """Images that can be told apart: their label is their index."""
    random = generator(9)
    images = torch.randint(0, 256, (COUNT, 12, 10, 3), dtype=torch.uint8, generator=random)
    return Pixels(images, torch.arange(COUNT))


def memory_loader(pixels: Pixels, batch_size: int = 8, **changes: Any) -> MemoryLoader:
    plan = BatchPlan(COUNT, batch_size, **{"shuffle": True, "seed": 1, **changes})
    return MemoryLoader(pixels, plan, augment=SmallImageAugment(cutout_px=3))


def epoch_of(loader: Loader, epoch: int) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


def same(left: Iterable[tuple[Tensor, Tensor]], right: Iterable[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


def test_an_epoch_is_the_same_for_the_same_seed_and_number_alone(pixels: Pixels) -> None:
    first = epoch_of(memory_loader(pixels), 3)
    assert same(first, epoch_of(memory_loader(pixels), 3))
    assert not same(first, epoch_of(memory_loader(pixels), 4))
    assert not same(first, epoch_of(memory_loader(pixels, seed=2), 3))


def test_an_epoch_shows_each_image_at_most_once_and_whole_batches(pixels: Pixels) -> None:
    loader = memory_loader(pixels)
    labels = [labels for _, labels in epoch_of(loader, 0)]
    assert len(labels) == len(loader) == COUNT // 8
    seen = torch.cat(labels).tolist()
    assert len(set(seen)) == len(seen) == 48
    assert seen != sorted(seen)


def test_validation_shows_every_image_once_in_order_unchanged(pixels: Pixels) -> None:
    loader = MemoryLoader(pixels, BatchPlan(COUNT, 8, shuffle=False))
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 7
        assert torch.equal(torch.cat([images for images, _ in batches]), pixels.images)
        assert torch.equal(torch.cat([labels for _, labels in batches]), pixels.labels)


@pytest.mark.parametrize("stop", [0, 1, 5, 6])
def test_a_loader_goes_on_where_another_stood(stop: int, pixels: Pixels) -> None:
    whole = epoch_of(memory_loader(pixels), 2)
    first = memory_loader(pixels)
    first.set_epoch(2)
    iterator = iter(first)
    for _ in range(stop):
        next(iterator)
    second = memory_loader(pixels)
    second.load_state_dict(first.state_dict())
    second.set_epoch(2)
    assert same(list(second), whole[stop:])
    second.set_epoch(3)
    assert same(list(second), epoch_of(memory_loader(pixels), 3))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_what_one_process_sees(world: int, shuffle: bool, pixels: Pixels) -> None:
    """Images, order and augmentation: the parts of a batch together are the batch of one process."""
    whole = epoch_of(memory_loader(pixels, shuffle=shuffle), 1)
    parts = [epoch_of(memory_loader(pixels, shuffle=shuffle, rank=rank, world=world), 1) for rank in range(world)]
    for number, (images, labels) in enumerate(whole):
        for rank in range(world):
            assert torch.equal(parts[rank][number][0], images[rank::world])
            assert torch.equal(parts[rank][number][1], labels[rank::world])


@pytest.mark.parametrize("fill", ["reflect", "zero"])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("cutout", [0, 1, 5])
def test_augmentation_is_padding_cropping_flipping_and_cutting_out(
    fill: str, padding: int, cutout: int, pixels: Pixels
) -> None:
    augment = SmallImageAugment(crop_padding_px=padding, crop_fill=fill, cutout_px=cutout)  # type: ignore[arg-type]
    index = torch.tensor([4, 0, 49, 4, 17, 8, 9, 10])
    height, width = pixels.images.shape[1:3]
    drawn = augmentation.draw(len(index), height, width, augment, generator(2))
    colour = torch.tensor([1, 2, 3], dtype=torch.uint8)
    got = augmentation.apply(pixels.images, index, drawn, augment, colour)
    for row, which in enumerate(index.tolist()):
        mode = {"reflect": "reflect", "zero": "constant"}[fill]
        padded = np.pad(pixels.images[which].numpy(), ((padding, padding), (padding, padding), (0, 0)), mode=mode)
        top, left = int(drawn.top[row]) + padding, int(drawn.left[row]) + padding
        expected = padded[top : top + height, left : left + width].copy()
        if drawn.flip[row]:
            expected = expected[:, ::-1].copy()
        y, x = int(drawn.cut_y[row]) - cutout // 2, int(drawn.cut_x[row]) - cutout // 2
        expected[max(y, 0) : max(y + cutout, 0), max(x, 0) : max(x + cutout, 0)] = colour.numpy()
        assert np.array_equal(got[row].numpy(), expected)


def test_draws_cover_their_range_evenly() -> None:
    augment = SmallImageAugment(crop_padding_px=2)
    drawn = augmentation.draw(20_000, 32, 32, augment, generator(0))
    assert torch.allclose(torch.bincount(drawn.top + 2) / 20_000, torch.full((5,), 0.2), atol=0.02)
    assert torch.allclose(torch.bincount(drawn.left + 2) / 20_000, torch.full((5,), 0.2), atol=0.02)
    assert abs(float(drawn.flip.float().mean()) - 0.5) < 0.02
    assert not augmentation.draw(100, 32, 32, SmallImageAugment(flip=False), generator(0)).flip.any()


def test_generators_of_different_keys_differ() -> None:
    keys = [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (5, 1, 2)]
    draws = {tuple(torch.randint(0, 2**31, (3,), generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize(
    "arguments",
    [
        {"length": 5, "batch_size": 8, "shuffle": True},
        {"length": 0, "batch_size": 8, "shuffle": False},
        {"length": 50, "batch_size": 9, "shuffle": True, "world": 2},
    ],
)
def test_plans_that_cannot_be(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="images"):
        BatchPlan(**arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_read_alike_by_any_number_of_workers(workers: int, picture_folder: Any) -> None:
    config = ImageFolderData(name="imagefolder", image_size=32, storage="files")
    files = read(picture_folder, config).train
    assert isinstance(files, Files)

    def loader(count: int) -> FileLoader:
        plan = BatchPlan(len(files), 5, shuffle=True, seed=1)
        return FileLoader(files, plan, side=32, short_side=36, augment=LargeImageAugment(), workers=count)

    expected, tested = loader(0), loader(workers)
    for epoch in (0, 1):
        assert same(epoch_of(tested, epoch), epoch_of(expected, epoch))
    stopped = loader(workers)
    stopped.load_state_dict({"epoch": 1, "batch": 2})
    stopped.set_epoch(1)
    assert same(list(stopped), epoch_of(loader(0), 1)[2:])


def test_a_worker_is_in_a_process_group_of_its_own(picture_folder: Any) -> None:
    """A signal to the run's group, such as a scheduler sends, is the run's to answer, which needs its workers."""
    files = read(picture_folder, ImageFolderData(name="imagefolder", image_size=32, storage="files")).train
    assert isinstance(files, Files)
    others = multiprocessing.active_children()
    batches = iter(FileLoader(files, BatchPlan(len(files), 5, shuffle=False), side=32, short_side=36, workers=1))
    next(batches)
    (worker,) = (process.pid for process in multiprocessing.active_children() if process not in others)
    assert os.getpgid(worker or 0) == worker


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_may_have_no_share_of_the_last_batch(workers: int, picture_folder: Any) -> None:
    config = ImageFolderData(name="imagefolder", image_size=32, storage="files")
    files = read(picture_folder, config).validation
    assert isinstance(files, Files)
    some = Files(files.paths[:5], files.labels[:5])
    plan = BatchPlan(5, 4, shuffle=False, rank=1, world=2)
    (images, labels), (no_images, no_labels) = FileLoader(some, plan, side=32, short_side=36, workers=workers)
    assert (images.shape, labels.tolist()) == ((2, 32, 32, 3), files.labels[1:5:2].tolist())
    assert (no_images.shape, no_images.dtype) == ((0, 32, 32, 3), torch.uint8)
    assert (no_labels.shape, no_labels.dtype) == ((0,), torch.int64)
