"""Stacked hourglasses for human pose (Newell et al. 2016) of binary blocks (Bulat and Tzimiropoulos 2017).

The residual block is hierarchical, parallel and multi-scale: three 3x3 convolutions in a row with a half, a
quarter and a quarter of the output channels, each `BN -> sign -> binary convolution -> activation`; their three
outputs are concatenated and added to the block's input. Of `width` channels and a picture of 4s pixels:

stem       7x7 convolution of stride 2 to width/4 channels, block to width/2, max-pool, blocks to width/2 and width
hourglass  at each of `depth` levels a block at the present size, beside it max-pool, block, the next level, block,
           upsampling; both are added
head       block, BN, PReLU, 1x1 convolution to one heatmap a keypoint, of s x s cells

With several stacks every one has its own hourglass and head; features and heatmaps of each return, through 1x1
convolutions, to the input of the next, and all heatmaps are supervised.

Stem convolution, 1x1 convolutions and batch norms stay real. `real=True` builds the twin of the same shape with real
weights and activations (`BN -> ReLU -> convolution`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.latent import assign_latents, reconstruct_once
from models.pose import STRIDE
from models.units import BinaryNetworkConfig, conv_unit, pointwise, stem_conv, tail


class HourglassConfig(BinaryNetworkConfig):
    """A stacked hourglass in full.

    stacks : hourglasses one after the other.
    depth : levels of an hourglass, each at half the size of the one before.
    width : channels inside the hourglass; the parts that a block concatenates then have width / 2, width / 4 and
        width / 4 (128, 64 and 64, whole words of 64 bits, at the published 256).
    input_size : height and width in pixels of the pictures; a multiple of 4 * 2^depth.
    keypoints : heatmaps of the head.
    The other fields are those of every binary network, see `models.units`.
    """

    architecture: Literal["hourglass"] = "hourglass"
    stacks: Annotated[int, Field(ge=1, le=16)] = 1
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    width: Annotated[int, Field(ge=16, le=4096, multiple_of=16)] = 256
    input_size: Annotated[int, Field(ge=8, le=4096)] = 256
    keypoints: Annotated[int, Field(ge=1, le=1000)] = 16

    @model_validator(mode="after")
    def _sizes_halve_evenly(self) -> HourglassConfig:
        stride = STRIDE * 2**self.depth
        if self.input_size % stride:
            raise ValueError(
                f"input_size is {self.input_size}, expected a multiple of {stride} for an hourglass of "
                f"depth {self.depth}"
            )
        return self

    @property
    def name(self) -> str:
        """A short name for tables and cards, such as `hourglass1-w256-holistic`."""
        return f"hourglass{self.stacks}-w{self.width}-{self.weights}"

    @property
    def heatmap_size(self) -> int:
        """Height and width of the heatmaps in cells."""
        return self.input_size // STRIDE


class StackedHourglass(nn.Module):
    """The network of an `HourglassConfig`."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.config = config
        width, half, size = config.width, config.input_size // 2, config.heatmap_size
        self.stem = nn.Sequential(
            stem_conv(width // 4, 7, 2, config),
            nn.BatchNorm2d(width // 4),
            Block(width // 4, width // 2, half, config),
            nn.MaxPool2d(2),
            Block(width // 2, width // 2, size, config),
            Block(width // 2, width, size, config),
        )
        self.stacks = nn.ModuleList(
            nn.Sequential(
                Hourglass(config.depth, size, config), Block(width, width, size, config), *tail(width, config)
            )
            for _ in range(config.stacks)
        )
        self.heads = nn.ModuleList(pointwise(width, config.keypoints, config, bias=True) for _ in range(config.stacks))
        self.features_back = nn.ModuleList(pointwise(width, width, config, bias=True) for _ in range(config.stacks - 1))
        self.heatmaps_back = nn.ModuleList(
            pointwise(config.keypoints, width, config, bias=True) for _ in range(config.stacks - 1)
        )
        self._initialise_real_layers()
        self.holistic = nn.ModuleDict() if config.real else assign_latents(self, config.latent)

    def _initialise_real_layers(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in self.heads:
            assert isinstance(head, nn.Conv2d)
            # Heatmaps are zero almost everywhere: begin there.
            nn.init.normal_(head.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalised images [N, 3, H, W] -> heatmaps [N, keypoints, H / 4, W / 4].

        In training mode the heatmaps of every stack, a tuple; in evaluation mode those of the last.
        """
        heatmaps: list[Tensor] = []
        with reconstruct_once(self.holistic.values()):
            x = self.stem(x)
            for index, (stack, head) in enumerate(zip(self.stacks, self.heads, strict=True)):
                features = stack(x)
                heatmaps.append(head(features))
                if index < len(self.features_back):
                    x = x + self.features_back[index](features) + self.heatmaps_back[index](heatmaps[-1])
        return tuple(heatmaps) if self.training else heatmaps[-1]


class Hourglass(nn.Module):
    """`depth` levels: at each a block at this size, and beside it the way down to half the size and up again."""

    def __init__(self, depth: int, size: int, config: HourglassConfig) -> None:
        super().__init__()
        width, half = config.width, size // 2
        self.beside = Block(width, width, size, config)
        self.down = nn.Sequential(nn.MaxPool2d(2), Block(width, width, half, config))
        self.inner = Hourglass(depth - 1, half, config) if depth > 1 else Block(width, width, half, config)
        self.up = nn.Sequential(Block(width, width, half, config), nn.Upsample(scale_factor=2, mode="nearest"))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, size, size] -> the same shape."""
        return self.beside(x) + self.up(self.inner(self.down(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """The hierarchical, parallel, multi-scale residual block; see the module's description."""

    def __init__(self, in_channels: int, out_channels: int, size: int, config: HourglassConfig) -> None:
        super().__init__()
        half, quarter = out_channels // 2, out_channels // 4
        self.first = conv_unit(in_channels, half, 3, 1, size, config)
        self.second = conv_unit(half, quarter, 3, 1, size, config)
        self.third = conv_unit(quarter, quarter, 3, 1, size, config)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            conv = pointwise(in_channels, out_channels, config, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, size, size] -> [N, out, size, size]."""
        first = self.first(x)
        second = self.second(first)
        third = self.third(second)
        return torch.cat([first, second, third], 1) + self.shortcut(x)  # type: ignore[no-any-return]
