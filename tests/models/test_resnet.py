"""The networks' shapes, latents and twins."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models.latent import BinaryConv2d, LatentConfig, Sign
from models.networks import build, restore
from models.resnet import ResNet, ResNetConfig


def test_resnet18_on_imagenet_has_the_published_shape():
    network = ResNet(ResNetConfig(stem="imagenet", classes=1000, input_size=224, latent=LatentConfig(kind="plain")))
    convolutions = [m for m in network.modules() if isinstance(m, BinaryConv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == (
        [(64, 64, 1)] * 4
        + [(64, 128, 2)] + [(128, 128, 1)] * 3
        + [(128, 256, 2)] + [(256, 256, 1)] * 3
        + [(256, 512, 2)] + [(512, 512, 1)] * 3
    )  # fmt: skip
    sizes = []
    for conv in convolutions:
        conv.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[2:])))
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 3, 224, 224)).shape == (1, 1000)
    assert sizes == [(56, 56)] * 4 + [(28, 28)] * 4 + [(14, 14)] * 4 + [(7, 7)] * 4


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("block", ["residual", "bireal"])
@pytest.mark.parametrize("shortcut", ["real", "binary"])
@pytest.mark.parametrize("activation", ["none", "relu", "prelu", "rprelu"])
def test_every_variant_sees_only_signs_in_its_binary_layers(depth, block, shortcut, activation):
    config = ResNetConfig(
        depth=depth, block=block, shortcut=shortcut, activation=activation, width=0.125, input_size=16,
        scale="rank1", latent=LatentConfig(kind="plain"),
    )  # fmt: skip
    network = ResNet(config)
    inputs = []
    for module in network.modules():
        if isinstance(module, BinaryConv2d):
            module.register_forward_hook(lambda _m, i, _o: inputs.append(i[0]))
    logits = network(torch.randn(2, 3, 16, 16))
    logits.sum().backward()
    assert logits.shape == (2, 10)
    assert len(inputs) == 2 * sum({18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]) + 3 * (shortcut == "binary")
    assert all(set(x.unique().tolist()) <= {-1.0, 1.0} for x in inputs)
    assert all(p.grad is not None for p in network.parameters())


def test_the_real_twin_has_the_same_convolutions():
    config = ResNetConfig(width=0.25, latent=LatentConfig(kind="plain"))
    binary, twin = ResNet(config), ResNet(config.real_twin())
    assert not any(isinstance(m, BinaryConv2d | Sign) for m in twin.modules())
    shapes = [m.latent.shape for m in binary.modules() if isinstance(m, BinaryConv2d)]
    real = [tuple(m.weight.shape) for m in twin.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert real[1:] == shapes
    assert twin(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_one_seed_is_one_network():
    def make(seed):
        torch.manual_seed(seed)
        return build(ResNetConfig(width=0.125)).state_dict()

    first, again, other = make(5), make(5), make(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_restore_gives_the_trained_network_back():
    torch.manual_seed(0)
    config = ResNetConfig(width=0.125)
    network = build(config)
    network(torch.randn(8, 3, 32, 32))
    again = restore(config, network.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not again.training
    assert torch.equal(again(x), network.eval()(x))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"depth": 50}, "depth"),
        ({"input_size": 30}, "input_size is 30, expected a multiple of 8"),
        ({"stem": "imagenet", "input_size": 72}, "multiple of 32"),
        ({"latent": {"kind": "holistic", "rank": -1.0}}, "rank"),
        ({"wdith": 0.5}, "wdith"),
    ],
)
def test_senseless_configurations_are_refused(fields, named):
    with pytest.raises(ValidationError, match=named):
        ResNetConfig(**fields)
