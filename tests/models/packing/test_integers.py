"""A stem rounded to 8 bits after training: the same convolution, to the precision of its weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from models.packing.file import InputSpec
from models.packing.graph import PixelConv2d
from models.packing.integers import integer_stem
from models.packing.pack import pack_network
from models.packing.trace import PackingError, trace
from models.resnet import ResNet, ResNetConfig
from models.xnor import Session
from tests.helpers.networks import MEAN, STD, normalised, pictures, vary


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = ResNet(ResNetConfig(width=0.25, stem="imagenet", input_size=64, classes=7)).eval()
    vary(net)
    return net


def pack(net, path, **options):
    spec = InputSpec(height=64, width=64, mean=MEAN, std=STD)
    return pack_network(net, path, architecture="r", input_spec=spec, labels=list("abcdefg"), **options)


def test_the_rounded_stem_gives_nearly_what_torchs_does(network, tmp_path):
    packed = pack(network, tmp_path / "m.safetensors", stem="int8")
    stem = next(op for op in packed.header.graph.ops if isinstance(op, PixelConv2d))
    assert packed.header.provenance["stem"] == "stem.0: rounded to 8 bits after training"
    images = pictures(2, 64)
    found = Session.load(packed.path, fuse=False, keep=[stem.output]).run(images)[stem.output]
    with torch.no_grad():
        conv, norm = network.stem[0], network.stem[1]
        expected = norm(functional.conv2d(normalised(images), conv.weight, None, 2, 3)).permute(0, 2, 3, 1).numpy()
    error = np.abs(found - expected)
    # A weight is off by at most half a level, so a sum of 147 by far less than 147 halves.
    assert error.mean() < 0.01 * np.abs(expected - expected.mean()).mean()
    assert error.max() < 0.05 * np.abs(expected).max()


def test_networks_without_one_real_stem_are_refused(network):
    spec = InputSpec(height=64, width=64, mean=MEAN, std=STD)
    wide = nn.Sequential(nn.Conv2d(3, 4, 15, padding=7), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(PackingError, match=r"0: .* kernel of \(15, 15\)"):
        integer_stem(trace(wide), spec)
    traced = trace(network)
    integer_stem(traced, spec)
    with pytest.raises(PackingError, match="no single real convolution"):
        integer_stem(traced, spec)
