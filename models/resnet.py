"""Binary residual networks (He et al. 2016 in the shapes, arXiv 1904.07852 in the binary block).

A binary convolution is `BN -> sign -> binary convolution -> activation`. Two blocks are built from it:

`residual`  two of them and one shortcut around both (the paper's);
`bireal`    a shortcut around each (Bi-Real Net, Liu et al. 2018), which keeps real values flowing.

Stem, head, batch norms and 1x1 shortcut convolutions stay real. `real=True` builds the twin of the same
shape with real weights and activations (`BN -> ReLU -> convolution`), a teacher or a yardstick.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from models.latent import assign_latents, reconstruct_once
from models.units import BinaryNetworkConfig, conv_unit, linear_head, pointwise, scaled, stem_conv, tail

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ResNetConfig(BinaryNetworkConfig):
    """A ResNet in full.

    depth : 18 or 34.
    stem : `cifar` (3x3 stride 1, no pooling) or `imagenet` (7x7 stride 2, max-pool).
    classes : size of the head.
    input_size : height and width in pixels of the pictures that it is trained on; a multiple of the whole
        network's stride, 8 (`cifar`) or 32 (`imagenet`), so that shortcuts and convolutions agree on every size.
    width : multiplies the 64, 128, 256, 512 channels of the stages.
    block : see the module's description.
    shortcut : that of blocks which change shape: `real` (average pooling, 1x1 convolution, BN) or `binary` (BN, sign,
        strided binary 1x1).
    The other fields are those of every binary network, see `models.units`.
    """

    architecture: Literal["resnet"] = "resnet"
    depth: Literal[18, 34] = 18
    stem: Literal["cifar", "imagenet"] = "cifar"
    classes: Annotated[int, Field(ge=2, le=65_536)] = 10
    input_size: Annotated[int, Field(ge=8, le=4096)] = 32
    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    block: Literal["residual", "bireal"] = "bireal"
    shortcut: Literal["real", "binary"] = "real"

    @model_validator(mode="after")
    def _sizes_halve_evenly(self) -> ResNetConfig:
        stride = 8 if self.stem == "cifar" else 32
        if self.input_size % stride:
            raise ValueError(
                f"input_size is {self.input_size}, expected a multiple of {stride} for the {self.stem} stem"
            )
        return self

    @property
    def name(self) -> str:
        """A short name for tables and cards, such as `resnet18-w0.5-holistic`."""
        width = "" if self.width == 1 else f"-w{self.width:g}"
        return f"resnet{self.depth}{width}-{self.weights}"


class ResNet(nn.Module):
    """The network of a `ResNetConfig`."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [scaled(64 * 2**stage, config.width) for stage in range(4)]
        size = config.input_size
        if config.stem == "cifar":
            self.stem = nn.Sequential(stem_conv(widths[0], 3, 1, config), nn.BatchNorm2d(widths[0]))
        else:
            self.stem = nn.Sequential(
                stem_conv(widths[0], 7, 2, config),
                nn.BatchNorm2d(widths[0]),
                nn.MaxPool2d(3, 2, 1),
            )
            size //= 4
        blocks: list[nn.Module] = []
        channels = widths[0]
        for stage, count in enumerate(BLOCKS[config.depth]):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                size //= stride
                blocks.append(Block(channels, widths[stage], stride, size, config))
                channels = widths[stage]
        self.blocks = nn.Sequential(*blocks)
        self.tail = tail(channels, config)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = linear_head(channels, config.classes, config)
        self._initialise_real_layers()
        self.holistic = nn.ModuleDict() if config.real else assign_latents(self, config.latent)

    def _initialise_real_layers(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, classes]."""
        with reconstruct_once(self.holistic.values()):
            x = self.blocks(self.stem(x))
            return self.head(self.pool(self.tail(x)).flatten(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two 3x3 convolutions with one shortcut around both (`residual`) or one around each (`bireal`)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, output_size: int, config: ResNetConfig
    ) -> None:
        super().__init__()
        self.first = conv_unit(in_channels, out_channels, 3, stride, output_size, config)
        self.second = conv_unit(out_channels, out_channels, 3, 1, output_size, config)
        self.shortcut_each = config.block == "bireal"
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _shape_shortcut(in_channels, out_channels, stride, output_size, config)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / stride, W / stride]."""
        shortcut = self.shortcut(x)
        y = self.first(x)
        if self.shortcut_each:
            y = shortcut = y + shortcut
        return self.second(y) + shortcut  # type: ignore[no-any-return]


def _shape_shortcut(
    in_channels: int, out_channels: int, stride: int, output_size: int, config: ResNetConfig
) -> nn.Sequential:
    if config.shortcut == "binary" and not config.real:
        return conv_unit(in_channels, out_channels, 1, stride, output_size, config)
    pool: nn.Module = nn.Identity() if stride == 1 else nn.AvgPool2d(stride)
    conv = pointwise(in_channels, out_channels, config, bias=False)
    return nn.Sequential(pool, conv, nn.BatchNorm2d(out_channels))
