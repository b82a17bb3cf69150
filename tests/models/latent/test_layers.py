"""Binary layers and their output scales against explicit torch."""

import pytest
import torch
from torch.nn import functional as F

from models.latent import BinaryConv2d, BinaryLinear, RPReLU


def signs(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).float() * 2 - 1


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [(3, 1, 1, 1, 1), (1, 2, 0, 1, 1), (5, 1, 2, 1, 2), (3, 2, 2, 2, 4), ((3, 1), (2, 1), (1, 0), (1, 1), 1)],
)
def test_convolution_is_torchs_with_signs_and_scale(kernel, stride, padding, dilation, groups):
    layer = BinaryConv2d(8, 12, kernel, stride, padding, dilation, groups, scale="channel")
    x = signs(2, 8, 9, 7)
    w = layer.latent.to_tensor().detach()
    expected = F.conv2d(x, torch.where(w >= 0, 1.0, -1.0), None, stride, padding, dilation, groups)
    expected = expected * w.abs().mean((1, 2, 3))[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_linear_is_torchs_with_signs_and_scale():
    layer = BinaryLinear(20, 6)
    x, w = signs(3, 20), layer.latent.to_tensor().detach()
    expected = x @ torch.where(w >= 0, 1.0, -1.0).T * w.abs().mean(1)
    torch.testing.assert_close(layer(x), expected)


def test_every_learned_scale_starts_as_the_analytic_one():
    outputs = []
    for scale in ("analytic", "channel", "rank1"):
        torch.manual_seed(3)
        layer = BinaryConv2d(8, 4, 3, padding=1, scale=scale, output_size=(5, 6))
        outputs.append(layer(signs(1, 8, 5, 6)))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_analytic_scale_follows_the_latent_weight():
    layer = BinaryConv2d(8, 4, 3, scale="analytic")
    before = layer(signs(1, 8, 5, 5))
    with torch.no_grad():
        layer.latent.weight.mul_(2.0)
    torch.testing.assert_close(layer(signs(1, 8, 5, 5)), 2 * before)


def test_rank1_scale_is_an_outer_product():
    layer = BinaryConv2d(8, 4, 3, padding=1, scale="rank1", output_size=(5, 6))
    with torch.no_grad():
        for parameter in layer.scale.parameters():
            parameter.uniform_(0.5, 2)
    x = signs(2, 8, 5, 6)
    bare = F.conv2d(x, layer.binary_weight().detach(), padding=1)
    outer = torch.einsum("o,h,w->ohw", layer.scale.alpha, layer.scale.beta, layer.scale.gamma)
    torch.testing.assert_close(layer(x), bare * outer)


def test_no_scale_gives_whole_numbers():
    y = BinaryConv2d(8, 4, 3, scale="none")(signs(1, 8, 5, 5))
    assert torch.equal(y, y.round())


def test_rank1_needs_the_output_size():
    with pytest.raises(ValueError, match="output_size"):
        BinaryConv2d(8, 4, 3, scale="rank1")
    with pytest.raises(ValueError, match="rank1"):
        BinaryLinear(8, 4, scale="rank1")


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="groups 3"):
        BinaryConv2d(8, 12, 3, groups=3)


def test_rprelu_is_a_shifted_prelu():
    module = RPReLU(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    x = torch.randn(2, 3, 4, 4)
    a, s, b = (p.detach()[:, None, None] for p in (module.shift_in, module.weight, module.shift_out))
    z = x - a
    torch.testing.assert_close(module(x), torch.where(z >= 0, z, s * z) + b)
