"""The sign function and its straight-through gradients.

`sign(z)` is +1 where z >= 0 and -1 elsewhere, so sign(0) = +1 and no weight or activation is ever 0.
Its derivative is 0 almost everywhere, so training replaces it (a straight-through estimator, STE):

===========  ==========================================  =============================================
kind         d sign(z) / dz                              source
===========  ==========================================  =============================================
clip         1 where |z| < 1, else 0                     Courbariaux et al. 2016; the paper's choice
identity     1                                           Bengio et al. 2013
polynomial   2 - 2 |z| where |z| < 1, else 0             Bi-Real Net, Liu et al. 2018
annealed     max(1, 1/t) t (1 - tanh(t z)^2)             IR-Net, Qin et al. 2020; t grows while training
===========  ==========================================  =============================================

The window, 1 here, may be another: the formulas then hold for z / window (ReCU, Xu et al. 2021, takes a quantile of the
weights).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

SteKind = Literal["clip", "identity", "polynomial", "annealed"]


class _SteSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, kind: SteKind, temperature: float, window: Tensor | None) -> Tensor:
        ctx.save_for_backward(*((z,) if window is None else (z, window)))
        ctx.kind, ctx.temperature = kind, temperature
        return (z >= 0).to(z.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, None]:
        z, *window = ctx.saved_tensors
        if window:
            z = z / window[0]
        return grads[0] * ste_derivative(z, ctx.kind, ctx.temperature), None, None, None


def ste_derivative(z: Tensor, kind: SteKind = "clip", temperature: float = 1.0) -> Tensor:
    """What stands in for d sign(z) / dz, elementwise; the table above gives the formulas."""
    if kind == "clip":
        return (z.abs() < 1).to(z.dtype)
    if kind == "identity":
        return torch.ones_like(z)
    if kind == "polynomial":
        return (2 - 2 * z.abs()).clamp_min(0)
    if kind == "annealed":
        return max(1.0, 1.0 / temperature) * temperature * (1 - torch.tanh(temperature * z) ** 2)
    raise ValueError(f"STE kind is {kind!r}, expected clip, identity, polynomial or annealed")


def ste_sign(z: Tensor, kind: SteKind = "clip", temperature: float = 1.0, window: Tensor | None = None) -> Tensor:
    """sign(z) in {-1, +1} of z's dtype and shape, sign(0) = +1, with a straight-through gradient.

    `temperature` is t of the `annealed` kind; the others ignore it. `window` (0-d) stands in for 1.
    """
    result: Tensor = _SteSign.apply(z, kind, temperature, window)  # type: ignore[no-untyped-call]
    return result


class Sign(nn.Module):
    """sign(x) of activations. `temperature` (a buffer, 0-d) belongs to the `annealed` kind."""

    temperature: Tensor

    def __init__(self, kind: SteKind = "clip") -> None:
        super().__init__()
        self.kind: SteKind = kind
        if kind == "annealed":
            self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape in {-1, +1}."""
        return ste_sign(x, self.kind, float(self.temperature) if self.kind == "annealed" else 1.0)

    def extra_repr(self) -> str:
        return self.kind
