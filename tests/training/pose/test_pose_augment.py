"""Augmented joints stay on their pixels, and left and right change places in a mirror."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.pose import LSP, Square, crop, flip_order
from tests.helpers.people import dotted, find_dots, spread
from training.data.plan import generator
from training.pose import augment as augmentation
from training.pose.augment import MARGIN, Draw
from training.pose.config import PoseAugment

SIZE = 128
FILL = torch.tensor([124, 116, 104], dtype=torch.uint8)
ORDER = torch.from_numpy(flip_order(LSP))
K = len(LSP.names)


def person(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A loose crop uint8 [1, L, L, 3] and joints [1, K, 2] in pixels of the crop that is not loose."""
    joints = spread(np.random.default_rng(seed), K, 90, 230)
    square = Square(64, 64, 192)
    loose = crop(
        dotted(320, 320, joints, radius=4), Square.around((160, 160), 192 * MARGIN), int(SIZE * MARGIN), (0, 0, 0)
    )
    return torch.from_numpy(loose)[None], torch.from_numpy(square.to_crop(joints, SIZE)).float()[None]


def nothing(**changes: torch.Tensor) -> Draw:
    fields = {
        "scale": torch.ones(1),
        "angle": torch.zeros(1),
        "shift": torch.zeros(1, 2),
        "flip": torch.ones(1),
        "colour": torch.ones(1, 3),
    }
    return Draw(**{**fields, **changes})


CHANGES = {
    "nothing": {},
    "larger": {"scale": torch.tensor([1.25])},
    "smaller": {"scale": torch.tensor([0.75])},
    "turned": {"angle": torch.tensor([0.5])},
    "turned back": {"angle": torch.tensor([-0.5])},
    "shifted": {"shift": torch.tensor([[0.2, -0.3]])},
    "mirrored": {"flip": -torch.ones(1)},
    "all": {
        "scale": torch.tensor([0.9]),
        "angle": torch.tensor([0.4]),
        "shift": torch.tensor([[0.1, 0.05]]),
        "flip": -torch.ones(1),
    },
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_joints_stay_on_their_dots(change: str, seed: int) -> None:
    loose, joints = person(seed)
    drawn = nothing(**CHANGES[change])
    visible = torch.ones(1, K, dtype=torch.bool)
    images, moved, seen = augmentation.apply(loose, joints, visible, drawn, size=SIZE, flip_order=ORDER, fill=FILL)
    assert images.shape == (1, SIZE, SIZE, 3)
    assert images.dtype == torch.uint8
    dots = find_dots(images[0].numpy(), K)
    if drawn.flip < 0:
        dots = dots[ORDER.numpy()]  # what was a left ankle is a right one in the mirror
    checked = 0
    for k in range(K):
        x, y = moved[0, k].tolist()
        assert bool(seen[0, k]) == (-0.5 <= x <= SIZE - 0.5 and -0.5 <= y <= SIZE - 0.5)
        if 6 < x < SIZE - 6 and 6 < y < SIZE - 6:
            assert np.abs(dots[k] - (x, y)).max() < 0.75, (change, LSP.names[k])
            checked += 1
    assert checked >= 9


def test_no_change_is_the_plain_crop() -> None:
    loose, joints = person(0)
    visible = torch.ones(1, K, dtype=torch.bool)
    images, moved, _ = augmentation.apply(loose, joints, visible, nothing(), size=SIZE, flip_order=ORDER, fill=FILL)
    inner = loose[0, SIZE // 4 : SIZE // 4 + SIZE, SIZE // 4 : SIZE // 4 + SIZE]
    assert (images[0].int() - inner.int()).abs().max() <= 1
    torch.testing.assert_close(moved, joints, atol=1e-3, rtol=0)


def test_a_mirror_changes_left_and_right() -> None:
    loose, joints = person(1)
    visible = torch.ones(1, K, dtype=torch.bool)
    visible[0, LSP.names.index("left_wrist")] = False
    drawn = nothing(flip=-torch.ones(1))
    images, moved, seen = augmentation.apply(loose, joints, visible, drawn, size=SIZE, flip_order=ORDER, fill=FILL)
    plain, _, _ = augmentation.apply(loose, joints, visible, nothing(), size=SIZE, flip_order=ORDER, fill=FILL)
    assert (images.int() - plain.flip(2).int()).abs().max() <= 1
    for name in LSP.names:
        other = name.replace("left_", "\0").replace("right_", "left_").replace("\0", "right_")
        x, y = joints[0, LSP.names.index(name)].tolist()
        expected = torch.tensor([SIZE - 1 - x, y])
        torch.testing.assert_close(moved[0, LSP.names.index(other)], expected, atol=1e-3, rtol=0)
    assert [LSP.names[k] for k in np.flatnonzero(~seen[0].numpy())] == ["right_wrist"]


def test_what_leaves_the_picture_is_no_longer_visible_and_the_fill_comes_in() -> None:
    loose, joints = person(2)
    visible = torch.ones(1, K, dtype=torch.bool)
    drawn = nothing(shift=torch.tensor([[3.0, 0.0]]))
    images, _, seen = augmentation.apply(loose, joints, visible, drawn, size=SIZE, flip_order=ORDER, fill=FILL)
    assert not seen.any()
    assert (images == FILL).all()


def test_colours_are_multiplied() -> None:
    loose, joints = person(2)
    visible = torch.ones(1, K, dtype=torch.bool)
    drawn = nothing(colour=torch.tensor([[0.5, 1.0, 3.0]]))
    images, _, _ = augmentation.apply(loose, joints, visible, drawn, size=SIZE, flip_order=ORDER, fill=FILL)
    assert images[0, 2, 2].tolist() == [64, 128, 255]


def test_draws_keep_their_ranges_and_depend_on_the_key_alone() -> None:
    augment = PoseAugment(scale=0.3, rotation_degrees=40, rotation_share=0.5, shift=0.1, colour=0.2)
    drawn = augmentation.draw(4000, augment, generator(1, 2, 3))
    again = augmentation.draw(4000, augment, generator(1, 2, 3))
    other = augmentation.draw(4000, augment, generator(1, 2, 4))
    for name in ("scale", "angle", "shift", "flip", "colour"):
        assert torch.equal(getattr(drawn, name), getattr(again, name))
        assert not torch.equal(getattr(drawn, name), getattr(other, name))
    assert 0.7 <= drawn.scale.min() < 0.72
    assert 1.28 < drawn.scale.max() <= 1.3
    degrees = drawn.angle.rad2deg()
    assert 39 < degrees.abs().max() <= 40.001
    assert 0.45 < (degrees == 0).float().mean() < 0.55
    assert 0.19 < drawn.shift.abs().max() <= 0.2
    assert 0.45 < (drawn.flip < 0).float().mean() < 0.55
    assert drawn.colour.min() >= 0.8
    assert drawn.colour.max() <= 1.2
    shares = [drawn.share(rank, 4) for rank in range(4)]
    assert torch.equal(torch.stack([s.angle for s in shares], 1).flatten(), drawn.angle)


def test_everything_off_is_no_change() -> None:
    off = PoseAugment(scale=0, rotation_degrees=0, shift=0, flip=False, colour=0)
    drawn = augmentation.draw(50, off, generator(0))
    expected = nothing()
    for name in ("scale", "angle", "shift", "flip", "colour"):
        value = getattr(drawn, name)
        assert (value == getattr(expected, name)).all()
