"""A small real-valued network of plain convolutions that learns fast: a teacher, never packed.

After Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024, arXiv 2404.00498): a fixed first layer that
whitens the images' patches, three pairs of 3x3 convolutions of which the first of each pair is pooled at once, so that
little work is done at full size, filters that begin as the identity, and batch norms whose statistics follow fast.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.units import BinaryNetworkConfig, scaled

PATCH_PX = 2
SMALLEST_VARIANCE = 5e-4  # of a patch's principal component, added before its root divides
NORM_MOMENTUM = 0.4
SHIFT_SCALE = 8.0  # of a norm's shift: a step by its gradient moves it 64 times as far
LOGIT_SCALE = 1 / 9


class ConvNetConfig(BinaryNetworkConfig):
    """A network of three pairs of convolutions.

    classes : size of the head.
    input_size : height and width in pixels of the pictures that it is trained on.
    width : multiplies the 64, 256, 256 channels of the pairs.
    real : always; the binary settings are without effect.
    """

    architecture: Literal["convnet"] = "convnet"
    classes: Annotated[int, Field(ge=2, le=65_536)] = 10
    input_size: Annotated[int, Field(ge=16, le=4096)] = 32
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    real: Literal[True] = True

    @property
    def name(self) -> str:
        """A short name for tables and cards, such as `convnet-w0.5-real`."""
        return f"convnet{'' if self.width == 1 else f'-w{self.width:g}'}-{self.weights}"


class ConvNet(nn.Module):
    """The network of a `ConvNetConfig`. Its first layer is random until `whiten` has seen images."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(3, 2 * 3 * PATCH_PX**2, PATCH_PX, bias=False).requires_grad_(False)
        widths = [scaled(channels, config.width) for channels in (64, 256, 256)]
        inputs = [self.patches.out_channels, *widths]
        self.pairs = nn.Sequential(*(Pair(*channels) for channels in zip(inputs, widths, strict=False)))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(widths[-1], config.classes, bias=False)

    def whiten(self, images: Tensor) -> None:
        """Make the first layer that of normalised images [N, 3, H, W]: the principal components of their patches.

        Each stands there twice, with either sign, divided by its standard deviation.
        """
        patches = functional.unfold(images.float(), PATCH_PX).transpose(1, 2).flatten(0, 1)
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (components / (variances + SMALLEST_VARIANCE).sqrt()).T.reshape(-1, 3, PATCH_PX, PATCH_PX)
        with torch.no_grad():
            self.patches.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, classes]."""
        x = functional.gelu(self.patches(x))
        return self.head(self.pool(self.pairs(x)).flatten(1)) * LOGIT_SCALE  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Convolution, pooling, norm, GELU; convolution, norm, GELU: [N, in, H, W] -> [N, out, H / 2, W / 2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first, self.first_norm = _conv(in_channels, out_channels), Norm(out_channels)
        self.second, self.second_norm = _conv(out_channels, out_channels), Norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = functional.gelu(self.first_norm(functional.max_pool2d(self.first(x), 2)))
        return functional.gelu(self.second_norm(self.second(x)))


class Norm(nn.BatchNorm2d):
    """Batch norm with a shift and no gain."""

    weight: None  # type: ignore[assignment]

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=NORM_MOMENTUM, affine=False)
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return super().forward(input) + SHIFT_SCALE * self.shift


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:in_channels].detach())
    return conv
