"""What a pose network is trained towards: a Gaussian a joint, and the distance from it."""

from __future__ import annotations

import torch
from torch import Tensor

from models.pose import STRIDE


def targets(joints: Tensor, size: int, sigma: float) -> Tensor:
    """Heatmaps with a Gaussian of height 1 around each joint.

    Parameters
    ----------
    joints : [B, K, 2] in pixels of the network's input.
    size : height and width of the heatmaps in cells.
    sigma : standard deviation in cells.

    Returns
    -------
    float32 [B, K, size, size].
    """
    centre = (joints.float() + 0.5) / STRIDE - 0.5
    cells = torch.arange(size, device=joints.device, dtype=torch.float32)
    x, y = torch.exp(-((cells - centre[..., None]) ** 2) / (2 * sigma**2)).unbind(dim=2)
    return y[..., :, None] * x[..., None, :]


def loss(predicted: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """Squared error summed over a heatmap's cells, the mean over the visible joints: a scalar.

    A sum over cells does not shrink as heatmaps grow: to predict nothing costs about pi sigma^2 whatever their size.

    Parameters
    ----------
    predicted, target : [B, K, h, w].
    visible : bool [B, K]; the heatmaps of other joints count for nothing.
    """
    error = (predicted.float() - target).square().sum(dim=(2, 3))
    mask = visible.to(error.dtype)
    return (error * mask).sum() / mask.sum().clamp_min(1)
