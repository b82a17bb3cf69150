"""The binary convolution and the binary linear layer, and the activation that goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.latent.decomposition import Latent, PlainLatent
from models.latent.scale import OutputScale, ScaleKind, analytic_scale
from models.latent.sign import Sign, SteKind, annealed_temperature, ste_sign, temperature_of

SMALLEST_SIZE = 1e-12


def fresh_spread(shape: Sequence[int]) -> float:
    """Root mean square of a layer's fresh weights, W of `shape` [out, ...] (He et al. 2015).

    It keeps the variance of a real network's signal, and lies well inside the STE window |W| < 1.
    """
    spread: float = (2 / prod(shape[1:])) ** 0.5
    return spread


class _BinaryLayer(nn.Module):
    """A layer with weights `sign(latent)` and an output scale. Its inputs are in {-1, +1}.

    `real_weights` is for the first of two stages of training: the weights are W itself, each filter divided by its
    mean |W|, so that they are of the size of the signs that replace them in the second. `temperature` (a buffer, 0-d)
    belongs to the `annealed` estimator.
    """

    temperature: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        scale: ScaleKind,
        ste: SteKind,
        output_size: tuple[int, int] | None = None,
        clamp_quantile: float | None = None,
        real_weights: bool = False,
    ) -> None:
        super().__init__()
        weight = torch.randn(shape) * fresh_spread(shape)
        self.latent: Latent = PlainLatent(weight)
        self.scale = OutputScale(weight, scale, output_size)
        self.ste: SteKind = ste
        self.register_buffer("temperature", temperature_of(ste))
        self.clamp_quantile, self.real_weights = clamp_quantile, real_weights

    def binary_weight(self) -> Tensor:
        """sign(W) in {-1, +1}, of the weight's shape, with the straight-through gradient."""
        return self._signs(self.latent.to_tensor())

    def window(self, weight: Tensor) -> Tensor | None:
        """The |W| from which on the clipped gradient is 0: a number (0-d), or None for 1.

        That of `clamp_quantile` is ReCU's estimate (Xu et al. 2021): the quantile of a Laplace distribution.
        """
        if self.clamp_quantile is None:
            return None
        return weight.detach().abs().mean() * -log(2 - 2 * self.clamp_quantile)

    def _signs(self, weight: Tensor) -> Tensor:
        return ste_sign(weight, self.ste, self.temperature, self.window(weight))

    def _weights(self) -> tuple[Tensor, Tensor]:
        """What multiplies the input, and W."""
        weight = self.latent.to_tensor()
        if not self.real_weights:
            return self._signs(weight), weight
        size = analytic_scale(weight).clamp_min(SMALLEST_SIZE).reshape(-1, *[1] * (weight.ndim - 1))
        return weight / size, weight


class BinaryConv2d(_BinaryLayer):
    """y = (x (*) sign(W)) * scale, for x in {-1, +1}; zero padding, so a padded tap adds nothing.

    Starts with a plain latent; `assign_latents` (or setting `latent`) changes the parametrisation and keeps W.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups : as in torch.nn.Conv2d.
    scale : the output scale, see `models.latent.scale`.
    ste : gradient of the weights' sign, see `models.latent.sign`.
    output_size : (height, width) of the output; needed by scale `rank1` alone.
    clamp_quantile : ends the window of the weights' gradient at this quantile of W, not at 1; see `window`.
    real_weights : see `_BinaryLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        scale: ScaleKind = "channel",
        ste: SteKind = "clip",
        output_size: tuple[int, int] | None = None,
        clamp_quantile: float | None = None,
        real_weights: bool = False,
    ) -> None:
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups {groups} must divide in_channels {in_channels} and out_channels {out_channels}")
        kernel = _pair(kernel_size)
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(shape, scale, ste, output_size, clamp_quantile, real_weights)
        self.in_channels, self.out_channels, self.kernel_size, self.groups = in_channels, out_channels, kernel, groups
        self.stride, self.padding, self.dilation = _pair(stride), _pair(padding), _pair(dilation)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] in {-1, +1} -> [N, out_channels, H', W']."""
        factors, weight = self._weights()
        y = F.conv2d(x, factors, None, self.stride, self.padding, self.dilation, self.groups)
        return self.scale(y, weight)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, ste={self.ste}"
        )


class BinaryLinear(_BinaryLayer):
    """y = (x sign(W)^T) * scale, for x in {-1, +1}."""

    def __init__(
        self, in_features: int, out_features: int, *, scale: ScaleKind = "channel", ste: SteKind = "clip"
    ) -> None:
        if scale == "rank1":
            raise ValueError("scale 'rank1' is for convolutions: a linear layer's output has no height and width")
        super().__init__((out_features, in_features), scale, ste)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] in {-1, +1} -> [N, out_features]."""
        factors, weight = self._weights()
        return self.scale(F.linear(x, factors), weight)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, ste={self.ste}"


class RPReLU(nn.Module):
    """p(x - shift_in) + shift_out, p a PReLU; all three learned a channel (ReActNet, Liu et al. 2020)."""

    def __init__(self, channels: int, slope: float = 0.25) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.weight = nn.Parameter(torch.full((channels,), slope))  # named as in PReLU, from which it can start
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, ...] -> the same shape."""
        shape = (-1, *[1] * (x.ndim - 2))
        shifted = x - self.shift_in.to(x.dtype).reshape(shape)
        return F.prelu(shifted, self.weight.to(x.dtype)) + self.shift_out.to(x.dtype).reshape(shape)


def anneal(network: nn.Module, progress: float) -> None:
    """Set the temperature of all `annealed` signs, of activations and weights, after a share of the run."""
    for module in network.modules():
        if isinstance(module, Sign | BinaryConv2d | BinaryLinear) and module.temperature is not None:
            module.temperature.fill_(annealed_temperature(progress))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
