"""What binary networks of every shape are built from: the convolution unit, its settings, its activation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from models.latent import BinaryConv2d, LatentConfig, RPReLU, ScaleKind, Sign, SteKind
from models.quantized import Int8Conv2d, Int8Linear, PixelConv2d

ActivationKind = Literal["none", "relu", "prelu", "rprelu"]


class BinaryNetworkConfig(BaseModel):
    """The settings that all binary networks share.

    activation : what follows each binary convolution.
    latent, scale, weight_ste, activation_ste : the binary layers, see `models.latent`.
    real_weights : what stays real, stem, 1x1 convolutions and head, in `float32` or `int8`, see `models.quantized`.
    weight_clamp : a quantile such as 0.99 at which the window of the weights' gradient ends, in place of 1 (ReCU): the
        share of weights that it no longer reaches then stays small however W grows.
    binarize : `activations` is the first of two stages: weights are real still; see `training.start_from`.
    real : build the real-valued twin; the binary settings are then without effect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    activation: ActivationKind = "prelu"
    latent: LatentConfig = LatentConfig()
    scale: ScaleKind = "channel"
    weight_ste: SteKind = "clip"
    activation_ste: SteKind = "clip"
    real_weights: Literal["float32", "int8"] = "float32"
    weight_clamp: Annotated[float, Field(gt=0.5, lt=1)] | None = None
    binarize: Literal["both", "activations"] = "both"
    real: bool = False

    @property
    def int8(self) -> bool:
        """Whether stem, 1x1 convolutions and head have 8-bit weights."""
        return self.real_weights == "int8" and not self.real

    @property
    def weights(self) -> str:
        """The kind of its weights, for names: `real` or that of the latent."""
        return "real" if self.real else self.latent.kind

    def real_twin(self) -> Self:
        """The configuration of the same network with real weights and activations."""
        return self.model_copy(update={"real": True})


def conv_unit(
    in_channels: int, out_channels: int, kernel: int, stride: int, output_size: int, config: BinaryNetworkConfig
) -> nn.Sequential:
    """BN -> sign -> binary convolution -> activation; BN -> ReLU -> convolution in the real twin.

    `output_size` is the height and width of the output in pixels.
    """
    norm, padding = nn.BatchNorm2d(in_channels), kernel // 2
    if config.real:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        return nn.Sequential(norm, nn.ReLU(), conv)
    binary = BinaryConv2d(
        in_channels,
        out_channels,
        kernel,
        stride,
        padding,
        scale=config.scale,
        ste=config.weight_ste,
        output_size=(output_size, output_size),
        clamp_quantile=config.weight_clamp,
        real_weights=config.binarize == "activations",
    )
    return nn.Sequential(norm, Sign(config.activation_ste), binary, activation(config.activation, out_channels))


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, as a multiple of 8."""
    return max(8, round(channels * width / 8) * 8)


def stem_conv(out_channels: int, kernel: int, stride: int, config: BinaryNetworkConfig) -> nn.Conv2d:
    """The convolution of the picture, without bias; it pads half its kernel."""
    if config.int8:
        return PixelConv2d(out_channels, kernel, stride, kernel // 2)
    return nn.Conv2d(3, out_channels, kernel, stride, kernel // 2, bias=False)


def pointwise(in_channels: int, out_channels: int, config: BinaryNetworkConfig, *, bias: bool) -> nn.Conv2d:
    """A real 1x1 convolution."""
    if config.int8:
        return Int8Conv2d(in_channels, out_channels, bias)
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias)


def linear_head(in_features: int, out_features: int, config: BinaryNetworkConfig) -> nn.Linear:
    """The classifier's last layer."""
    return (Int8Linear if config.int8 else nn.Linear)(in_features, out_features)


def tail(channels: int, config: BinaryNetworkConfig) -> nn.Sequential:
    """What stands between the residual stream and a real head: BN -> PReLU (ReLU in the real twin)."""
    return nn.Sequential(nn.BatchNorm2d(channels), activation("relu" if config.real else "prelu", channels))


def activation(kind: ActivationKind, channels: int) -> nn.Module:
    """The module of an activation's name."""
    if kind == "relu":
        return nn.ReLU()
    if kind == "prelu":
        return nn.PReLU(channels)
    return RPReLU(channels) if kind == "rprelu" else nn.Identity()
