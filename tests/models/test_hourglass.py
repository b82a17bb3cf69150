"""The hourglass's shapes, groups, latents and twin."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models.hourglass import HourglassConfig, StackedHourglass
from models.latent import BinaryConv2d, LatentConfig, Sign
from models.networks import build, restore

PLAIN = LatentConfig(kind="plain")


def small(**fields):
    torch.manual_seed(0)
    settings = {"width": 16, "depth": 2, "input_size": 32, "keypoints": 5, "latent": PLAIN, **fields}
    return StackedHourglass(HourglassConfig(**settings))


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, BinaryConv2d)]


def test_the_published_size():
    """Three blocks in the stem, fourteen of 256 channels at 64 to 4 cells; 7.5 GMAC in binary convolutions."""
    network = StackedHourglass(HourglassConfig(latent=PLAIN)).eval()
    seen = []
    for conv in convolutions(network):
        conv.register_forward_hook(lambda m, _i, out: seen.append((m.in_channels, m.out_channels, out.shape[2])))
    with torch.no_grad():
        assert network(torch.randn(1, 3, 256, 256)).shape == (1, 16, 64, 64)
    stem, blocks = seen[:9], seen[9:]
    assert stem == [
        (64, 64, 128), (64, 32, 128), (32, 32, 128),
        (128, 64, 64), (64, 32, 64), (32, 32, 64),
        (128, 128, 64), (128, 64, 64), (64, 64, 64),
    ]  # fmt: skip
    assert all([(i, o) for i, o, _ in blocks[n : n + 3]] == [(256, 128), (128, 64), (64, 64)] for n in range(0, 42, 3))
    sizes = [size for _, _, size in blocks[::3]]
    assert sorted(sizes) == sorted([64, 64, 32, 32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4])
    assert sum(9 * i * o * size * size for i, o, size in seen) == 7_505_510_400


def test_each_shape_of_weights_is_one_tensor_over_all_blocks():
    network = StackedHourglass(HourglassConfig(width=64, input_size=64, keypoints=3, stacks=2))
    groups = {name: group.shape for name, group in network.holistic.items()}
    shapes = [conv.latent.shape for conv in convolutions(network)]
    assert groups["32x64x3x3"] == (2 * 14, 32, 64, 3, 3)
    for shape in set(shapes):
        name, count = "x".join(map(str, shape)), shapes.count(shape)
        assert groups.pop(name, (1, *shape)) == (count, *shape)
    assert not groups


@pytest.mark.parametrize("kind", ["plain", "matrix", "tucker", "holistic"])
def test_every_latent_starts_as_the_same_network(kind):
    plain = small().eval()
    other = small(latent=LatentConfig(kind=kind)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(plain(x), other(x), atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "relu", "prelu", "rprelu"])
@pytest.mark.parametrize("scale", ["none", "analytic", "channel", "rank1"])
def test_binary_layers_see_signs_and_everything_learns(activation, scale):
    network = small(stacks=2, activation=activation, scale=scale)
    inputs = []
    for conv in convolutions(network):
        conv.register_forward_hook(lambda _m, i, _o: inputs.append(i[0]))
    heatmaps = network(torch.randn(4, 3, 32, 32))
    sum((h - 1).square().sum() for h in heatmaps).backward()
    assert len(inputs) == len(convolutions(network)) == 3 * (3 + 2 * (3 * 2 + 2))
    assert all(set(x.unique().tolist()) <= {-1.0, 1.0} for x in inputs)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_every_stack_is_supervised_and_the_last_one_answers():
    network = small(stacks=3)
    x = torch.randn(2, 3, 32, 32)
    heatmaps = network(x)
    assert [tuple(h.shape) for h in heatmaps] == [(2, 5, 8, 8)] * 3
    for parameter in network.heads[2].parameters():
        torch.nn.init.ones_(parameter)
    last = []
    network.heads[2].register_forward_hook(lambda _m, _i, out: last.append(out))
    network.eval()
    assert network(x) is last[0]


def test_a_later_stack_builds_on_the_features_and_heatmaps_of_the_one_before():
    network = small(stacks=2).eval()
    x = torch.randn(1, 3, 32, 32)
    before = network(x)
    for layers in (network.features_back, network.heatmaps_back):
        changed = copy.deepcopy(network)
        other = changed.features_back if layers is network.features_back else changed.heatmaps_back
        nn.init.normal_(other[0].weight, std=3)
        nn.init.normal_(other[0].bias, std=3)
        assert not torch.allclose(before, changed(x))


def test_the_real_twin_has_the_same_convolutions():
    config = HourglassConfig(width=32, input_size=64, latent=PLAIN)
    binary, twin = StackedHourglass(config), StackedHourglass(config.real_twin())
    assert not any(isinstance(m, BinaryConv2d | Sign) for m in twin.modules())
    real = [tuple(m.weight.shape) for m in twin.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert real == [conv.latent.shape for conv in convolutions(binary)]
    assert twin.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 16, 16, 16)


def test_build_and_restore_give_the_trained_network_back():
    torch.manual_seed(0)
    config = HourglassConfig(width=16, depth=2, input_size=32, keypoints=5, stacks=2)
    network = build(config)
    network(torch.randn(8, 3, 32, 32))
    again = restore(config, network.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), network.eval()(x))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input_size": 96}, "input_size is 96, expected a multiple of 64"),
        ({"input_size": 72, "depth": 2}, "multiple of 16"),
        ({"width": 100}, "width"),
        ({"depth": 0}, "depth"),
        ({"stack": 2}, "stack"),
    ],
)
def test_senseless_configurations_are_refused(fields, named):
    with pytest.raises(ValidationError, match=named):
        HourglassConfig(**fields)
