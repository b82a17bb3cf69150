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

t grows from 0.1 to 10, evenly in its logarithm: at first the gradient is nearly that of the identity, in the end nearly
that of the sign (`annealed_temperature`; training sets it before each step).

The window, 1 here, may be another: the formulas then hold for z / window (ReCU, Xu et al. 2021, takes a quantile of the
weights).
"""

from __future__ import annotations

from math import pow
from typing import Any, Literal

import torch
from torch import Tensor, nn

SteKind = Literal["clip", "identity", "polynomial", "annealed"]
FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.1, 10.0


class _SteSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, kind: SteKind, temperature: Tensor | None, window: Tensor | None) -> Tensor:
        ctx.save_for_backward(z, temperature, window)
        ctx.kind = kind
        return (z >= 0).to(z.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, None]:
        z, temperature, window = ctx.saved_tensors
        if window is not None:
            z = z / window
        return grads[0] * ste_derivative(z, ctx.kind, temperature), None, None, None


def annealed_temperature(progress: float) -> float:
    """t of the `annealed` kind after the share `progress` of the run, from 0 to 1 (Qin et al. 2020, eq. 9)."""
    return FIRST_TEMPERATURE * pow(LAST_TEMPERATURE / FIRST_TEMPERATURE, progress)


def ste_derivative(z: Tensor, kind: SteKind = "clip", temperature: Tensor | None = None) -> Tensor:
    """What stands in for d sign(z) / dz, elementwise; the table above gives the formulas."""
    if kind == "clip":
        return (z.abs() < 1).to(z.dtype)
    if kind == "identity":
        return torch.ones_like(z)
    if kind == "polynomial":
        return (2 - 2 * z.abs()).clamp_min(0)
    if kind == "annealed":
        t = torch.ones((), device=z.device) if temperature is None else temperature
        return t.clamp_min(1) * (1 - torch.tanh(t * z) ** 2)
    raise ValueError(f"STE kind is {kind!r}, expected clip, identity, polynomial or annealed")


def ste_sign(
    z: Tensor, kind: SteKind = "clip", temperature: Tensor | None = None, window: Tensor | None = None
) -> Tensor:
    """sign(z) in {-1, +1} of z's dtype and shape, sign(0) = +1, with a straight-through gradient.

    `temperature` (0-d) is t of the `annealed` kind, 1 if None; the others ignore it. `window` (0-d) stands in for 1.
    """
    result: Tensor = _SteSign.apply(z, kind, temperature, window)  # type: ignore[no-untyped-call]
    return result


def temperature_of(kind: SteKind) -> Tensor | None:
    """What a module keeps as its buffer `temperature`: t of the `annealed` kind (0-d), at the start of training."""
    return torch.tensor(annealed_temperature(0)) if kind == "annealed" else None


class Sign(nn.Module):
    """sign(x) of activations. `temperature` (a buffer, 0-d) belongs to the `annealed` kind."""

    temperature: Tensor | None

    def __init__(self, kind: SteKind = "clip") -> None:
        super().__init__()
        self.kind: SteKind = kind
        self.register_buffer("temperature", temperature_of(kind))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape in {-1, +1}."""
        return ste_sign(x, self.kind, self.temperature)

    def extra_repr(self) -> str:
        return self.kind
