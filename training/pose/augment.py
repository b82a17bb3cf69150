"""Scale, rotation, shift, flip and colour of a whole batch of people at once, on whatever device they lie.

A batch comes as loose crops, `MARGIN` times as large as what the network sees, so that what a turn or a smaller scale
brings into view is there. One bilinear resampling makes the network's input of it.
"""

from __future__ import annotations

from math import pi
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.pose.config import PoseAugment

MARGIN = 1.5


class Draw(NamedTuple):
    """What was drawn for each person of a batch.

    `scale` [B], factor by which it is enlarged; `angle` [B], radians, clockwise in the picture; `shift` [B, 2], in
    half sides of the crop; `flip` [B], 1 or, mirrored, -1; `colour` [B, 3], factors of red, green and blue.
    """

    scale: Tensor
    angle: Tensor
    shift: Tensor
    flip: Tensor
    colour: Tensor

    def share(self, rank: int, world: int) -> Draw:
        """Every `world`-th person's, beginning with `rank`'s."""
        return Draw(*(values[rank::world] for values in self))


def draw(count: int, augment: PoseAugment, generator: torch.Generator) -> Draw:
    """Draw for `count` people."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    turned = uniform(0, 1) < augment.rotation_share
    degrees = augment.rotation_degrees
    return Draw(
        scale=uniform(1 - augment.scale, 1 + augment.scale),
        angle=torch.where(turned, uniform(-degrees, degrees) * (pi / 180), 0),
        shift=uniform(-2 * augment.shift, 2 * augment.shift, 2),
        flip=torch.where(uniform(0, 1) < (0.5 if augment.flip else 0.0), -1.0, 1.0),
        colour=uniform(1 - augment.colour, 1 + augment.colour, 3),
    )


def apply(
    loose: Tensor, joints: Tensor, visible: Tensor, drawn: Draw, *, size: int, flip_order: Tensor, fill: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the network's inputs of loose crops, and move the joints with them.

    Parameters
    ----------
    loose : uint8 [B, L, L, 3], `MARGIN` times what the network would see unchanged.
    joints : float32 [B, K, 2] in pixels of the unchanged crop of `size` pixels.
    visible : bool [B, K].
    drawn : one draw for each person.
    size : side of the inputs in pixels.
    flip_order : int64 [K], see `models.pose.flip_order`.
    fill : uint8 [3], the colour of what lies outside.

    Returns
    -------
    Images uint8 [B, size, size, 3], joints float32 [B, K, 2], and visible bool [B, K], false for joints that have
    left the picture.
    """
    device = loose.device
    # One transfer to the device, not five.
    together = torch.cat([values.reshape(len(loose), -1) for values in drawn], dim=1).to(device)
    scale, angle, mirror = together[:, 0], together[:, 1], together[:, 4]
    shift, colour = together[:, 2:4], together[:, 5:]
    cos, sin = torch.cos(angle), torch.sin(angle)
    # In coordinates from -1 to 1 over the crop: what stands at v in the result came from turn @ (mirror v) / scale +
    # shift of the unchanged crop.
    turn = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    mirrored = torch.stack([mirror, torch.ones_like(mirror)], -1)
    linear = turn * mirrored[:, None, :] / scale[:, None, None]
    theta = torch.cat([linear, shift[:, :, None]], dim=2) / MARGIN
    grid = F.affine_grid(theta, [len(loose), 3, size, size], align_corners=False)
    background = fill.to(device).float()[:, None, None]
    pixels = loose.permute(0, 3, 1, 2).float() - background
    images = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + background
    images = (images * colour[:, :, None, None]).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    unchanged = (joints.to(device) + 0.5) * (2 / size) - 1 - shift[:, None]
    moved = (unchanged @ turn) * scale[:, None, None] * mirrored[:, None]
    moved = (moved + 1) * (size / 2) - 0.5
    visible = visible.to(device)
    order = torch.where(mirror[:, None] < 0, flip_order.to(device), torch.arange(joints.shape[1], device=device))
    moved = moved.gather(1, order[..., None].expand(-1, -1, 2))
    inside = ((moved >= -0.5) & (moved <= size - 0.5)).all(dim=2)
    return images, moved, visible.gather(1, order) & inside
