"""The network of plain convolutions: its first layer, its start, its sizes."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from models.convnet import ConvNet, ConvNetConfig
from models.networks import build, restore, start_from
from models.resnet import ResNet, ResNetConfig


def correlated_images(count: int = 64) -> torch.Tensor:
    """Images whose neighbouring pixels and colours go together, as those of photographs do."""
    smooth = functional.interpolate(torch.randn(count, 3, 8, 8), size=(32, 32), mode="bilinear")
    return smooth + 0.5 * smooth.mean(1, keepdim=True) + 0.05 * torch.randn(count, 3, 32, 32)


def test_the_first_layer_whitens_the_patches_of_the_images_it_saw():
    network, images = ConvNet(ConvNetConfig()), correlated_images()
    network.whiten(images)
    seen = network.patches(images).permute(1, 0, 2, 3).flatten(1).detach()
    half = len(seen) // 2
    torch.testing.assert_close(seen[half:], -seen[:half])
    second_moments = seen[:half] @ seen[:half].T / seen.shape[1]
    variances = second_moments.diagonal()
    assert ((variances > 0.5) & (variances < 1.001)).all()  # less than 1 by what is added to small variances
    torch.testing.assert_close(second_moments, torch.diag(variances), atol=1e-3, rtol=0)
    raw = functional.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    correlations = torch.corrcoef(raw.T)
    assert (correlations - torch.eye(12)).abs().max() > 0.5  # there was something to whiten


def test_training_leaves_the_first_layer_and_begins_with_identities():
    network = ConvNet(ConvNetConfig(width=0.5))
    assert not network.patches.weight.requires_grad
    for pair in network.pairs:
        for conv in (pair.first, pair.second):
            channels = conv.in_channels
            expected = torch.zeros(channels, channels, 3, 3)
            expected[range(channels), range(channels), 1, 1] = 1
            assert torch.equal(conv.weight[:channels], expected)
            assert (conv.weight[channels:].abs() < 1).all()


@pytest.mark.parametrize(("size", "width"), [(16, 1.0), (32, 0.5), (33, 0.25), (64, 0.125)])
def test_sizes_and_widths(size: int, width: float):
    config = ConvNetConfig(input_size=size, width=width, classes=7)
    network = build(config)
    logits = network(torch.randn(3, 3, size, size))
    logits.sum().backward()
    assert logits.shape == (3, 7)
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())
    assert [pair.second.out_channels for pair in network.pairs] == [64 * width, 256 * width, 256 * width]
    assert config.name == ("convnet-real" if width == 1 else f"convnet-w{width:g}-real")


def test_a_shift_moves_sixty_four_times_as_far_as_its_gradient():
    network = ConvNet(ConvNetConfig(width=0.25))
    norm = network.pairs[0].first_norm
    x = torch.randn(4, 16, 5, 5)
    before = norm(x)
    gradient = torch.autograd.grad(before.sum(), norm.shift)[0]
    with torch.no_grad():
        norm.shift -= 0.01 * gradient
    per_output = 4 * 5 * 5  # how many outputs one shift moves: d sum / d output is 1 for each
    torch.testing.assert_close(before - norm(x), torch.full_like(before, 0.01 * 64 * per_output), rtol=1e-3, atol=0)


def test_it_is_restored_from_its_state():
    config = ConvNetConfig(width=0.25)
    network = ConvNet(config)
    network.whiten(correlated_images())
    network(torch.randn(8, 3, 32, 32))  # moves the statistics
    again = restore(config, network.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), network.eval()(x))


def test_a_start_from_another_architecture_is_refused():
    convnet, resnet = ConvNet(ConvNetConfig(width=0.25)), ResNet(ResNetConfig(width=0.125, real=True))
    with pytest.raises(ValueError, match="is a resnet; this network is a convnet"):
        start_from(convnet, resnet)
    with pytest.raises(ValueError, match="is a convnet; this network is a resnet"):
        start_from(resnet, convnet)


@pytest.mark.parametrize("fields", [{"real": False}, {"input_size": 15}, {"classes": 1}, {"depth": 18}])
def test_what_it_cannot_be_is_refused(fields):
    with pytest.raises(ValidationError):
        ConvNetConfig(**fields)
