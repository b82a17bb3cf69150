"""Random crop, flip and cutout of a whole batch at once, as one gather from the images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.recipe import SmallImageAugment


@dataclass(frozen=True)
class Draw:
    """What was drawn for each image of a batch.

    `top`, `left` int64 [B]: offset of the crop in the image, -padding..padding; `flip` bool [B];
    `cut_y`, `cut_x` int64 [B]: centre of the cutout square in the crop.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    cut_y: Tensor
    cut_x: Tensor

    def share(self, rank: int, world: int) -> Draw:
        """Every `world`-th image's, beginning with `rank`'s."""
        mine = slice(rank, None, world)
        return Draw(self.top[mine], self.left[mine], self.flip[mine], self.cut_y[mine], self.cut_x[mine])


def draw(count: int, height: int, width: int, augment: SmallImageAugment, generator: torch.Generator) -> Draw:
    """Draw for `count` images of `height` x `width` pixels."""
    padding = augment.crop_padding_px

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (count,), generator=generator)

    return Draw(
        top=integers(-padding, padding + 1),
        left=integers(-padding, padding + 1),
        flip=torch.rand(count, generator=generator) < (0.5 if augment.flip else 0.0),
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
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = y + drawn.top.to(device)[:, None]
    columns = torch.where(drawn.flip.to(device)[:, None], width - 1 - x, x) + drawn.left.to(device)[:, None]
    crop = images[index.to(device)[:, None, None], _inside(rows, height)[:, :, None], _inside(columns, width)[:, None]]
    if augment.crop_fill == "zero" and augment.crop_padding_px:
        outside_y, outside_x = (rows < 0) | (rows >= height), (columns < 0) | (columns >= width)
        crop = crop.masked_fill((outside_y[:, :, None] | outside_x[:, None])[..., None], 0)
    if augment.cutout_px:
        near_y = _within(y, drawn.cut_y.to(device), augment.cutout_px)
        near_x = _within(x, drawn.cut_x.to(device), augment.cutout_px)
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
