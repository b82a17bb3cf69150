"""Real factors that multiply a binary layer's output.

========  ============================================  ==============================================
kind      scale of output (o, h, w)                     source
========  ============================================  ==============================================
none      1                                             BinaryNet
analytic  mean |W| of filter o, from the latent weight  XNOR-Net, Rastegari et al. 2016
channel   alpha_o, learned                              the paper; XNOR-Net++ case 1
rank1     alpha_o beta_h gamma_w, learned               XNOR-Net++ case 4, Bulat and Tzimiropoulos 2019
========  ============================================  ==============================================

Learned scales start at the analytic value, so every kind but `none` starts as the same function.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ScaleKind = Literal["none", "analytic", "channel", "rank1"]


def analytic_scale(weight: Tensor) -> Tensor:
    """Mean |W| a filter: [out, ...] -> [out]."""
    return weight.abs().flatten(1).mean(dim=1)


class OutputScale(nn.Module):
    """Multiplies `[N, out]` or `[N, out, h, w]` by one of the scales above.

    Parameters
    ----------
    weight : the real weight to start from, [out, ...].
    kind : a row of the table.
    output_size : (h, w) of the output, needed by `rank1` alone.
    """

    def __init__(self, weight: Tensor, kind: ScaleKind, output_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.kind: ScaleKind = kind
        if kind in ("channel", "rank1"):
            self.alpha = nn.Parameter(analytic_scale(weight.detach()))
        if kind == "rank1":
            if output_size is None:
                raise ValueError("scale 'rank1' needs output_size, the (height, width) of the layer's output")
            self.beta = nn.Parameter(torch.ones(output_size[0]))
            self.gamma = nn.Parameter(torch.ones(output_size[1]))

    def channel_scale(self, weight: Tensor) -> Tensor | None:
        """The factor a channel, [out], or None where there is none. `weight` is the latent W."""
        if self.kind == "none":
            return None
        return analytic_scale(weight) if self.kind == "analytic" else self.alpha

    def forward(self, y: Tensor, weight: Tensor) -> Tensor:
        """Scale `y`; the order of the products is the packed engine's order."""
        alpha = self.channel_scale(weight)
        if alpha is None:
            return y
        y = y * alpha.to(y.dtype).reshape(-1, *[1] * (y.ndim - 2))
        if self.kind == "rank1":
            y = y * self.beta.to(y.dtype)[:, None]
            y = y * self.gamma.to(y.dtype)
        return y

    def extra_repr(self) -> str:
        return self.kind
