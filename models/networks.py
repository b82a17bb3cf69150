"""Every network that a recipe can name, by its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from models.convnet import ConvNet, ConvNetConfig
from models.hourglass import HourglassConfig, StackedHourglass
from models.latent import (
    BinaryConv2d,
    BinaryLinear,
    HolisticLatent,
    Latent,
    LatentConfig,
    MatrixLatent,
    PlainLatent,
    TuckerLatent,
    assign_latents,
    fresh_spread,
    reconstruct_once,
)
from models.quantized import PixelConv2d
from models.resnet import ResNet, ResNetConfig

NetworkConfig = Annotated[ResNetConfig | HourglassConfig | ConvNetConfig, Field(discriminator="architecture")]

OF_OUTPUTS = ("head", "heads", "heatmaps_back")
"""The parts of a network whose shape depends on its classes or keypoints."""

DISTANCES = (0.1, 1.9)
"""How far from 0 the copies of a weight are put, in its own distance: near enough to part soon, none at 0 itself."""


def build(config: NetworkConfig) -> nn.Module:
    """A freshly initialised network: normalised images [N, 3, H, W] -> logits [N, classes] or heatmaps."""
    if isinstance(config, ConvNetConfig):
        return ConvNet(config)
    return StackedHourglass(config) if isinstance(config, HourglassConfig) else ResNet(config)


def restore(config: NetworkConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """A trained network from its configuration and `state_dict`, in evaluation mode.

    Its latents are those of the state: a run may have ended them, see `end_latents`.
    """
    # The factors are about to be overwritten: random ones save the decomposition's time.
    plain = any(name.endswith(".latent.weight") for name in state)
    latent = LatentConfig(kind="plain") if plain else config.latent.model_copy(update={"init": "random"})
    network = build(config.model_copy(update={"latent": latent}))
    network.load_state_dict(state)
    return network.eval()


def start_from(network: nn.Module, source: nn.Module) -> None:
    """Give `network` (of `build`) the weights of `source`, a trained network of the same shape, or a narrower one.

    `source` may be the real-valued twin, the first of two stages, or have another latent: the signs of each binary
    layer become those of the source's weights, decomposed anew, and their spread that of fresh weights, so that the
    straight-through window is as open as at any start. Real convolutions, linear layers and norms must be the source's
    too, but for what depends on the classes or keypoints. Other parameters and statistics are copied where both have
    them (so an RPReLU takes the slopes of a PReLU); how pixels are normalised is the network's own.

    If `network` has a whole number of times the source's width, it starts as the same function (Net2Net's wider
    network, Chen et al. 2016): every channel stands there so many times over, and what reads them is divided by that
    number. Copies that stay alike would be of no use; so each binary weight has its own distance from 0, drawn
    at random, and after a few steps they have other signs. A binary layer takes the division in its learned scale; one
    of scale `none` or `analytic` has none, and then the function is another.

    Raises ValueError for a source of another architecture, or naming a layer that it lacks or has in another shape.
    """
    config: NetworkConfig = network.config  # type: ignore[assignment]
    architecture = source.config.architecture  # type: ignore[union-attr]
    if architecture != config.architecture:
        raise ValueError(f"is a {architecture}; this network is a {config.architecture}")
    modules = dict(source.named_modules())
    own = {id(p) for module in network.modules() if isinstance(module, Latent) for p in module.parameters()}
    own |= {id(b) for module in network.modules() if isinstance(module, PixelConv2d) for b in module.buffers()}
    theirs = source.state_dict()
    copies = _copies(config, source.config)  # type: ignore[arg-type]
    copied: set[str] = set()
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if id(value) in own or name not in theirs:
                continue
            start = _widened(theirs[name], value.shape, copies)
            if start is not None:
                value.copy_(start)
                copied.add(name)
        for name, layer in network.named_modules():
            if not isinstance(layer, BinaryConv2d | BinaryLinear):
                continue
            weight = _real_weight(modules.get(name))
            start = None if weight is None else _widened(weight, layer.latent.shape, copies)
            if start is None:
                found = "no weights there" if weight is None else f"weights of shape {tuple(weight.shape)}"
                raise ValueError(f"{name}: has weights of shape {layer.latent.shape}; the source has {found}")
            if copies > 1:
                start = start * torch.empty_like(start).uniform_(*DISTANCES)
                if f"{name}.scale.alpha" in theirs:
                    layer.scale.get_parameter("alpha").div_(copies)
            layer.latent = PlainLatent(_as_fresh(start))
    for name, parameter in _real_parameters(network):
        if name not in copied:
            found = f"the shape {tuple(theirs[name].shape)}" if name in theirs else "none there"
            raise ValueError(f"{name}: has the shape {tuple(parameter.shape)}; the source has {found}")
    # Random factors would forget what was trained.
    network.holistic = assign_latents(network, config.latent.model_copy(update={"init": "decomposition"}))


def end_latents(network: nn.Module) -> None:
    """Make each binary layer's weights plain: W itself is the parameter from now on.

    Its signs stay; its spread becomes that of fresh weights, as factors may have made W large, and far from a change
    of sign.
    """
    layers = [module for module in network.modules() if isinstance(module, BinaryConv2d | BinaryLinear)]
    with torch.no_grad(), reconstruct_once(network.modules()):
        weights = [_as_fresh(layer.latent.to_tensor()) for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        layer.latent = PlainLatent(weight)
    network.holistic = nn.ModuleDict()


def renew_latents(network: nn.Module) -> list[nn.Parameter]:
    """Decompose W of each binary layer anew, in place, with the spread of fresh weights.

    Steps through factors make them ever more unequal, and W with them: large, and nearly low in rank. Afterwards
    factors are orthonormal, as at the start of training, and the signs are those of before (where a rank is cut in the
    mode of the layers, as near to them as it allows). Plain weights get the spread alone.

    Returns the latent parameters, all of which have changed.
    """
    changed: list[nn.Parameter] = []
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, PlainLatent | MatrixLatent | TuckerLatent):
                weight = module.to_tensor()
                if not weight.isfinite().all():  # of a run that diverged; it has no decomposition
                    continue
                holistic = isinstance(module, HolisticLatent)
                module.decompose(torch.stack([_as_fresh(one) for one in weight]) if holistic else _as_fresh(weight))
                changed += module.parameters()
    return changed


def _real_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Those of real convolutions, linear layers and norms that do not depend on the classes or keypoints."""
    for prefix, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and prefix.split(".")[0] not in OF_OUTPUTS:
            yield from module.named_parameters(prefix, recurse=False)


def _as_fresh(weight: Tensor) -> Tensor:
    """W [out, ...] with the spread of fresh weights."""
    return weight * (fresh_spread(weight.shape) / weight.square().mean().sqrt().clamp_min(1e-12))


def _copies(ours: NetworkConfig, theirs: NetworkConfig) -> int:
    """How many times wider our network is; 1 if that is no whole number."""
    times = round(ours.width / theirs.width)
    return times if times > 1 and isclose(times * theirs.width, ours.width) else 1


def _widened(value: Tensor, shape: Sequence[int], copies: int) -> Tensor | None:
    """`value` with each element `copies` times in a row along the dimensions in which `shape` is that much larger.

    None if that does not give `shape`. A weight's inputs are divided by their copies, so that its sums stay.
    """
    if value.ndim != len(shape):
        return None
    for dim, (ours, theirs) in enumerate(zip(shape, value.shape, strict=True)):
        if ours == copies * theirs and copies > 1:
            value = value.repeat_interleave(copies, dim) / (copies if dim == 1 else 1)
    return value if value.shape == tuple(shape) else None


def _real_weight(module: nn.Module | None) -> Tensor | None:
    if isinstance(module, BinaryConv2d | BinaryLinear):
        return module.latent.to_tensor()
    return module.weight if isinstance(module, nn.Conv2d | nn.Linear) else None
