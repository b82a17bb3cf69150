"""The real layers that stand beside binary ones, with weights of 8 bits: stem, 1x1 shortcuts and head.

Weights are the nearest of 255 levels a channel, W' = scale q, q in -127..127, scale = max |W| / 127; the gradient
passes the rounding unchanged (straight-through). What they read has 8 bits too: the picture's own pixels, exactly, or
activations that are rounded to the nearest of 255 levels a pixel. Both sums are then sums of integers below 2^24, which
float32 holds exactly in any order: what was trained is what an integer engine computes, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 127
SMALLEST, LARGEST = 1e-30, 1e30


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient is 1."""
    return x + (torch.round(x) - x).detach()


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [O, ...] as integers -127..127 of the same shape, with gradients, and the scale [O] of each channel."""
    largest = weight.detach().abs().flatten(1).amax(1).clamp(min=SMALLEST)
    scale = largest / LEVELS
    return round_through(weight / scale.reshape(-1, *[1] * (weight.dim() - 1))), scale


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [N, C, ...] as integers -127..127, with gradients, and the step [N, 1, ...] of each pixel.

    A pixel whose largest value is not between 1e-30 and 1e30 becomes zeros.
    """
    largest = x.detach().abs().amax(1, keepdim=True)
    usable = (largest > SMALLEST) & (largest < LARGEST)
    safe = torch.where(usable, largest, 1.0)
    zero = torch.zeros_like(safe)
    factor = torch.where(usable, LEVELS / safe, zero)
    return round_through(x * factor), torch.where(usable, safe / LEVELS, zero)


class PixelConv2d(nn.Conv2d):
    """A convolution of the picture: 8-bit weights on the pixels' own 8 bits.

    Its weight is that of a convolution of normalised pixels; `set_pixels` says how they were normalised. A padded tap
    is the mean colour, rounded to a pixel, and adds 0.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(3, out_channels, kernel_size, stride, padding, bias=False)
        self.register_buffer("pixel_mean", torch.full((3,), 0.5))
        self.register_buffer("pixel_std", torch.full((3,), 0.25))

    @property
    def zero(self) -> Tensor:
        """The pixel that counts as nothing, [3]: whole numbers from 0 to 255."""
        return torch.round(255 * self.pixel_mean)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Weights on pixels, [O, 3, kh, kw] of integers, and the scale [O] of each channel."""
        return quantize_weight(self.weight / (255 * self.pixel_std).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels [N, 3, H, W] -> [N, O, h, w]."""
        spread, mean = (255 * v.reshape(3, 1, 1) for v in (self.pixel_std, self.pixel_mean))
        pixels = torch.round(x * spread + mean) - self.zero.reshape(3, 1, 1)
        weight, scale = self.integers()
        sums = functional.conv2d(pixels, weight, None, self.stride, self.padding)
        return sums * scale.reshape(-1, 1, 1)


class Int8Conv2d(nn.Conv2d):
    """A 1x1 convolution of 8-bit weights and activations."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        quantized, step = quantize_activation(x)
        weight, scale = quantize_weight(self.weight)
        y = functional.conv2d(quantized, weight) * step * scale.reshape(-1, 1, 1)
        return y if self.bias is None else y + self.bias.reshape(-1, 1, 1)


class Int8Linear(nn.Linear):
    """A linear layer of 8-bit weights and activations."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        quantized, step = quantize_activation(input)
        weight, scale = quantize_weight(self.weight)
        y = functional.linear(quantized, weight) * step * scale
        return y if self.bias is None else y + self.bias


def set_pixels(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Tell a network's `PixelConv2d` layers how the pixels it reads were normalised, (pixel / 255 - mean) / std."""
    for module in network.modules():
        if isinstance(module, PixelConv2d):
            module.pixel_mean.copy_(torch.tensor(mean))
            module.pixel_std.copy_(torch.tensor(std))
