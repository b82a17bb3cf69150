"""Random crop, flip and cutout of a whole batch at once, as one gather from the images in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from training.recipe import SmallImageAugment


class Draw(NamedTuple):
    """What was drawn for each image of a batch; all int64 [B].

    `top`, `left`: offset of the crop in the image, -padding..padding; `flip`: 1 = mirrored;
    `cut_y`, `cut_x`: centre of the cutout square in the crop.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    cut_y: Tensor
    cut_x: Tensor

    def share(self, rank: int, world: int) -> Draw:
        """Every `world`-th image's, beginning with `rank`'s."""
        return Draw(*(values[rank::world] for values in self))


def draw(count: int, height: int, width: int, augment: SmallImageAugment, generator: torch.Generator) -> Draw:
    """Draw for `count` images of `height` x `width` pixels."""
    padding = augment.crop_padding_px

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    return Draw(
        top=integers(-padding, padding + 1),
        left=integers(-padding, padding + 1),
        flip=integers(0, 2) if augment.flip else torch.zeros(count, dtype=torch.int64),
        cut_y=integers(0, height),
        cut_x=integers(0, width),
    )


def apply(images: Tensor, index: Tensor, drawn: Draw, augment: SmallImageAugment, fill: Tensor) -> Tensor:
    """Cut the drawn crops out of `images`.

    Parameters
    ----------
    images : uint8 [N, H, W, 3], all images of the split.
    index : int64 [B], which of them.
    drawn : one draw for each of the B.
    fill : uint8 [3], the colour of cutout squares.

    Returns
    -------
    uint8 [B, H, W, 3] on the device of `images`.
    """
    device, (height, width) = images.device, images.shape[1:3]
    # One transfer to the device, not six.
    index, top, left, flip, cut_y, cut_x = torch.stack([index, *drawn]).to(device)
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = y + top[:, None]
    columns = torch.where(flip[:, None] == 1, width - 1 - x, x) + left[:, None]
    crop = images[index[:, None, None], _inside(rows, height)[:, :, None], _inside(columns, width)[:, None]]
    if augment.crop_fill == "zero" and augment.crop_padding_px:
        outside_y, outside_x = (rows < 0) | (rows >= height), (columns < 0) | (columns >= width)
        crop = crop.masked_fill((outside_y[:, :, None] | outside_x[:, None])[..., None], 0)
    if augment.cutout_px:
        near_y = _within(y, cut_y, augment.cutout_px)
        near_x = _within(x, cut_x, augment.cutout_px)
        crop = torch.where((near_y[:, :, None] & near_x[:, None])[..., None], fill.to(device), crop)
    return crop


def _inside(position: Tensor, size: int) -> Tensor:
    """Reflect positions beyond the border back into 0..size-1, without repeating the border pixel."""
    last = size - 1
    return (last - (position.abs() - last).abs()).clamp_(0, last)


def _within(position: Tensor, centre: Tensor, side: int) -> Tensor:
    """bool [B, P]: positions of a square of `side` pixels around each centre."""
    offset = position - centre[:, None] + side // 2
    return (offset >= 0) & (offset < side)
