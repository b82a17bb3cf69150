"""Every network that a recipe can name, by its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from models.hourglass import HourglassConfig, StackedHourglass
from models.resnet import ResNet, ResNetConfig

NetworkConfig = Annotated[ResNetConfig | HourglassConfig, Field(discriminator="architecture")]


def build(config: NetworkConfig) -> nn.Module:
    """A freshly initialised network: normalised images [N, 3, H, W] -> logits [N, classes] or heatmaps."""
    return StackedHourglass(config) if isinstance(config, HourglassConfig) else ResNet(config)


def restore(config: NetworkConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """A trained network from its configuration and `state_dict`, in evaluation mode."""
    # The factors are about to be overwritten: random ones save the decomposition's time.
    latent = config.latent.model_copy(update={"init": "random"})
    network = build(config.model_copy(update={"latent": latent}))
    network.load_state_dict(state)
    return network.eval()
