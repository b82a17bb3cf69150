"""Which latent each binary layer of a network gets, and one reconstruction a forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from models.latent.decomposition import (
    HolisticLatent,
    HolisticSlice,
    Init,
    Latent,
    MatrixLatent,
    PlainLatent,
    Rank,
    TuckerLatent,
)
from models.latent.layers import BinaryConv2d, BinaryLinear


class LatentConfig(BaseModel):
    """The latent of a network's binary layers.

    kind : `plain`, `matrix`, `tucker`, or `holistic` (layers of one weight shape share one tensor; a layer whose
        shape no other has gets its own Tucker latent).
    rank : `full`; a fraction (a float; of the channel modes); or explicit (an int for `matrix`, one a mode
        for `tucker` and `holistic`).
    init : `decomposition` of the usual initial weights, or `random` factors of the same variance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["plain", "matrix", "tucker", "holistic"] = "holistic"
    rank: (
        Literal["full"]
        | Annotated[int, Field(ge=1, strict=True)]
        | Annotated[float, Field(gt=0, strict=True)]
        | tuple[int, ...]
    ) = "full"
    init: Init = "decomposition"


def assign_latents(network: nn.Module, config: LatentConfig) -> nn.ModuleDict:
    """Give every binary layer of `network` the latent of `config`, keeping the weights that it has.

    Returns the holistic tensors by weight shape (`64x64x3x3`; empty for the other kinds). The network must
    register them as a submodule, because the layers only refer to them.
    """
    layers = [module for module in network.modules() if isinstance(module, BinaryConv2d | BinaryLinear)]
    holistic = nn.ModuleDict()
    if config.kind != "holistic":
        for layer in layers:
            layer.latent = _single(layer, config.kind, config.rank, config.init)
        return holistic
    by_shape: dict[tuple[int, ...], list[BinaryConv2d | BinaryLinear]] = defaultdict(list)
    for layer in layers:
        by_shape[layer.latent.shape].append(layer)
    for shape, members in by_shape.items():
        if len(members) == 1:
            # A rank given a mode describes the groups; a single layer has one mode fewer.
            rank = config.rank[1:] if isinstance(config.rank, tuple) else config.rank
            members[0].latent = _single(members[0], "tucker", rank, config.init)
            continue
        weights = torch.stack([layer.latent.to_tensor().detach() for layer in members])
        group = HolisticLatent(weights, config.rank, config.init)
        holistic["x".join(str(n) for n in shape)] = group
        for index, layer in enumerate(members):
            layer.latent = HolisticSlice(group, index)
    return holistic


def _single(layer: BinaryConv2d | BinaryLinear, kind: str, rank: Rank, init: Init) -> Latent:
    weight = layer.latent.to_tensor().detach()
    if kind == "plain":
        return PlainLatent(weight)
    return (MatrixLatent if kind == "matrix" else TuckerLatent)(weight, rank, init)


@contextmanager
def reconstruct_once(holistic: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context each holistic tensor is reconstructed at most once.

    For one forward pass: inside, parameters must not change and `backward` must not run.
    """
    groups = [group for group in holistic if isinstance(group, HolisticLatent)]
    for group in groups:
        group.hold()
    try:
        yield
    finally:
        for group in groups:
            group.release()
