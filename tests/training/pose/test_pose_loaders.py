"""Batches of people: the same from memory and from files, resumable, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.people import find_dots
from training.data.plan import BatchPlan
from training.errors import TrainingError
from training.pose import coco, lspet
from training.pose.config import CocoData, LspetData, PoseAugment
from training.pose.loaders import PoseBatch, PoseLoader
from training.pose.people import People

SIZE = 96
AUGMENT = PoseAugment(shift=0.05)


@pytest.fixture(scope="module")
def people(lspet_root: Path) -> People:
    return lspet.read(lspet_root, LspetData(name="lspet")).train


def loader(people: People, *, shuffle: bool = True, rank: int = 0, world: int = 1, **fields) -> PoseLoader:
    plan = BatchPlan(len(people), 8, shuffle, seed=3, rank=rank, world=world)
    return PoseLoader(people, plan, size=SIZE, **{"augment": AUGMENT if shuffle else None, **fields})


def assert_same(left: list[PoseBatch], right: list[PoseBatch]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_files_and_memory_give_the_same_batches(people: People, shuffle: bool, workers: int) -> None:
    memory = list(loader(people, shuffle=shuffle, storage="memory"))
    files = list(loader(people, shuffle=shuffle, storage="files", workers=workers))
    assert_same(memory, files)


def test_measuring_sees_each_person_once_as_it_is(people: People) -> None:
    batches = list(loader(people, shuffle=False))
    assert torch.cat([b.people for b in batches]).tolist() == list(range(24))
    for batch in batches:
        for pixels, joints, visible, index in zip(*batch, strict=True):
            sample = people.sample(int(index), SIZE)
            np.testing.assert_array_equal(pixels, sample.crop)
            np.testing.assert_allclose(joints[visible], sample.joints[sample.visible], atol=1e-3)
            np.testing.assert_array_equal(visible, sample.visible)


def test_training_joints_lie_on_their_dots(people: People) -> None:
    checked = 0
    for epoch in range(2):
        stream = loader(people, augment=PoseAugment(colour=0, flip=False, shift=0.05))
        stream.set_epoch(epoch)
        for batch in stream:
            assert batch.images.shape == (8, SIZE, SIZE, 3)
            for pixels, joints, visible in zip(batch.images.numpy(), batch.joints.numpy(), batch.visible, strict=True):
                dots = find_dots(pixels, 14)
                sure = visible.numpy() & ~np.isnan(dots[:, 0]) & ((joints > 5) & (joints < SIZE - 6)).all(axis=1)
                assert np.median(np.abs(dots - joints)[sure]) < 0.7
                checked += sure.sum()
    assert checked > 200


def test_epochs_differ_and_repeat(people: People) -> None:
    first, again, second = loader(people), loader(people), loader(people)
    second.set_epoch(1)
    a, b, c = list(first), list(again), list(second)
    assert_same(a, b)
    assert not torch.equal(a[0].people, c[0].people)
    assert not torch.equal(a[0].images, c[0].images)


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_an_epoch_goes_on_where_it_stood(people: People, storage: str) -> None:
    whole = loader(people, storage=storage)
    batches = list(whole)
    interrupted = loader(people, storage=storage)
    stream = iter(interrupted)
    next(stream)
    state = interrupted.state_dict()
    assert state == {"epoch": 0, "batch": 1}
    resumed = loader(people, storage=storage)
    resumed.load_state_dict(state)
    assert_same(batches[1:], list(resumed))


def test_processes_share_what_one_would_see(people: People) -> None:
    alone = list(loader(people))
    shares = [list(loader(people, rank=rank, world=2)) for rank in range(2)]
    for number, batch in enumerate(alone):
        for rank in range(2):
            for whole, part in zip(batch, shares[rank][number], strict=True):
                assert torch.equal(whole[rank::2], part)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_picture_is_named(coco_root: Path, workers: int) -> None:
    people = coco.read(coco_root, CocoData(name="coco")).train
    (coco_root / "train2017" / "000000000007.jpg").unlink()
    plan = BatchPlan(2, 2, shuffle=False)
    with pytest.raises(TrainingError, match=r"^\S*000000000007\.jpg: cannot be decoded as a picture"):
        list(PoseLoader(people, plan, size=64, storage="files", workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_may_have_no_share_of_the_last_batch(people: People, workers: int) -> None:
    plan = BatchPlan(5, 4, shuffle=False, rank=1, world=2)
    batches = list(PoseLoader(people.first(5), plan, size=SIZE, storage="files", workers=workers))
    assert [batch.people.tolist() for batch in batches] == [[1, 3], []]
    assert (batches[1].images.shape, batches[1].images.dtype) == ((0, SIZE, SIZE, 3), torch.uint8)
    assert batches[1].joints.shape == (0, 14, 2)


def test_a_worker_is_in_a_process_group_of_its_own(people: People) -> None:
    others = multiprocessing.active_children()
    batches = iter(loader(people, storage="files", workers=1))
    next(batches)
    (worker,) = (process.pid for process in multiprocessing.active_children() if process not in others)
    assert os.getpgid(worker or 0) == worker
