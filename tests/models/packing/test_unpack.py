"""A packed file becomes a network again: of the same signs, thresholds and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.hourglass import HourglassConfig
from models.latent import LatentConfig, RPReLU
from models.networks import NetworkConfig, build
from models.packing.file import InputSpec, Keypoints, PackedFile, PackedFileError, write
from models.packing.graph import BinaryConv2d
from models.packing.pack import pack_network
from models.packing.trace import pack_signs
from models.packing.unpack import unpack, unpack_signs
from models.quantized import set_pixels
from models.resnet import ResNetConfig

SPEC = InputSpec(height=32, width=32, mean=(0.49, 0.48, 0.45), std=(0.27, 0.26, 0.25))
NETWORKS: dict[str, NetworkConfig] = {
    "plain": ResNetConfig(width=0.125),
    "holistic, shared scales": ResNetConfig(
        width=0.25, latent=LatentConfig(kind="holistic"), scale="rank1", activation="rprelu"
    ),
    "analytic scales, binary shortcuts": ResNetConfig(
        width=0.125, latent=LatentConfig(kind="matrix"), scale="analytic", shortcut="binary", activation="relu"
    ),
    "no scales, the paper's blocks": ResNetConfig(width=0.125, scale="none", block="residual", activation="none"),
    "stem of seven": ResNetConfig(width=0.125, stem="imagenet"),
    "8 bits": ResNetConfig(width=0.125, real_weights="int8"),
    "hourglass": HourglassConfig(width=16, stacks=1, depth=2, keypoints=3, input_size=32),
}


def images(count: int, seed: int) -> torch.Tensor:
    """Normalised images whose pixels have 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (SPEC.mean, SPEC.std))
    return (pixels - mean) / std


def trained(config: NetworkConfig) -> nn.Module:
    """A network whose statistics, norms, slopes and scales are no longer those of a fresh one."""
    network = build(config)
    set_pixels(network, SPEC.mean, SPEC.std)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1, 0.6)
                module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(-0.5, 0.5)
            elif isinstance(module, RPReLU):
                module.weight.uniform_(-0.5, 0.5)
                module.shift_in.normal_(0, 0.2)
                module.shift_out.normal_(0, 0.2)
        for name, parameter in network.named_parameters():
            if ".scale." in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(-2, 2))
        for seed in range(5):
            network(images(64, seed))
    return network.eval()


def packed(network: nn.Module, path: Path, config: NetworkConfig, **options: Any) -> PackedFile:
    pose = isinstance(config, HourglassConfig)
    return pack_network(
        network,
        path,
        architecture="test",
        input_spec=SPEC,
        task="pose" if pose else "classification",
        labels=None if pose else [str(n) for n in range(10)],
        keypoints=Keypoints(names=["a", "b", "c"], skeleton=[], flip_pairs=[]) if pose else None,
        provenance={"recipe": {"model": config.model_dump(mode="json")}},
        **options,
    )


@pytest.mark.parametrize("stem", ["float32", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_packing_again_gives_the_same_file(name: str, stem: Any, tmp_path: Path) -> None:
    config = NETWORKS[name]
    if stem == "int8" and (name == "8 bits" or isinstance(config, HourglassConfig)):
        stem = "float32"
    file = packed(trained(config), tmp_path / "a.safetensors", config, stem=stem)
    network = unpack(file, images(100, 9))
    again = packed(network, tmp_path / "b.safetensors", config, stem=stem)
    assert again.header.graph == file.header.graph
    for tensor, expected in file.tensors.items():
        found = again.tensors[tensor]
        if expected.dtype == np.float32:
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max(), err_msg=tensor)
        else:
            assert np.array_equal(found, expected), tensor


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_was_trained(name: str, tmp_path: Path) -> None:
    config = NETWORKS[name]
    network = trained(config)
    ours = unpack(packed(network, tmp_path / "m.safetensors", config), images(100, 9))
    assert not ours.training
    with torch.no_grad():
        expected, found = network(images(16, 10)), ours(images(16, 10))
    if isinstance(expected, list | tuple):
        expected, found = expected[-1], found[-1]
    # Rounding turns a bit here and there; a wrong scale or threshold would turn many.
    assert (found - expected).abs().median() < 0.02 * expected.std()


@pytest.mark.parametrize("measured", [images(100, 9), torch.full((8, 3, 32, 32), 0.3)], ids=["noise", "one colour"])
def test_channels_that_never_change_sign_stay_so(tmp_path: Path, measured: torch.Tensor) -> None:
    config = ResNetConfig(width=0.125)
    network = trained(config)
    norm = network.get_submodule("blocks.0.first.0")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[:2] = 0
        norm.bias[:2] = torch.tensor([1.0, -1.0])
    file = packed(network, tmp_path / "m.safetensors", config)
    assert np.isinf(file.tensors["blocks.0.first.1.threshold"][:2]).all()
    ours = unpack(file, measured)
    seen: list[torch.Tensor] = []
    ours.get_submodule("blocks.0.first.1").register_forward_hook(lambda module, x, y: seen.append(y))
    ours(images(16, 10))
    assert torch.all(seen[0][:, 0] == 1)
    assert torch.all(seen[0][:, 1] == -1)


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 130])
def test_signs_come_back(channels: int) -> None:
    signs = torch.randint(0, 2, (3, 2, channels)) * 2.0 - 1
    assert np.array_equal(unpack_signs(pack_signs(signs), channels), signs.numpy())


def test_what_cannot_be_unpacked_says_why(tmp_path: Path) -> None:
    config = NETWORKS["plain"]
    file = packed(trained(config), tmp_path / "m.safetensors", config)
    for recipe, problem in (
        (None, r"provenance\.recipe\.model: is missing"),
        ({"model": {**config.model_dump(mode="json"), "width": -1}}, r"provenance\.recipe\.model\.resnet\.width: "),
        ({"model": {**config.model_dump(mode="json"), "block": "residual"}}, r"graph\.ops: are not those of the netw"),
        ({"model": {**config.model_dump(mode="json"), "width": 0.25}}, r"stem\.0: has the shape \[8, 3, 3, 3\]"),
    ):
        header = file.header.model_copy(update={"provenance": json.loads(json.dumps({"recipe": recipe}))})
        other = write(tmp_path / "other.safetensors", header, file.tensors)
        with pytest.raises(PackedFileError, match=problem):
            unpack(other, images(4, 0))
    ops = list(file.header.graph.ops)
    index = next(i for i, op in enumerate(ops) if isinstance(op, BinaryConv2d))
    ops[index] = ops[index].model_copy(update={"bias": "folded"})
    folded = {**file.tensors, "folded": np.zeros(ops[index].out_channels, np.float32)}
    graph = file.header.graph.model_copy(update={"ops": ops})
    other = write(tmp_path / "other.safetensors", file.header.model_copy(update={"graph": graph}), folded)
    with pytest.raises(PackedFileError, match=r"blocks\.0\..*: a batch norm was folded into its scale"):
        unpack(other, images(4, 0))
    shared = NETWORKS["holistic, shared scales"]
    file = packed(trained(shared), tmp_path / "shared.safetensors", shared)
    with pytest.raises(PackedFileError, match=r"input: its scales are for 32 x 32 px alone"):
        unpack(file, torch.zeros(4, 3, 64, 64))
    people = NETWORKS["hourglass"]
    file = packed(trained(people), tmp_path / "people.safetensors", people)
    with pytest.raises(PackedFileError, match=r"input: cannot be 8 x 8 px: .* expected a multiple of 16 for an hourgl"):
        unpack(file, torch.zeros(4, 3, 8, 8))
