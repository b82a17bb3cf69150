"""8-bit real layers: integers are what they say, gradients pass, and the picture's pixels come back exactly."""

import pytest
import torch
from torch.nn import functional

from models.quantized import Int8Conv2d, Int8Linear, PixelConv2d, quantize_activation, quantize_weight, set_pixels
from tests.helpers.networks import MEAN, STD, normalised, pictures


def test_weights_are_the_nearest_of_255_levels():
    weight = torch.randn(5, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    levels, scale = quantize_weight(weight)
    assert torch.equal(levels, levels.round())
    assert levels.abs().amax((1, 2, 3)).tolist() == [127, 127, 0, 127, 127]
    error = (levels * scale.reshape(-1, 1, 1, 1) - weight).abs().amax((1, 2, 3))
    assert bool((error <= scale * 0.5001).all())


def test_activations_are_rounded_a_pixel_and_what_is_out_of_range_is_nothing():
    x = torch.tensor([[1.0, -2.0, 0.25], [0.0, 0.0, 0.0], [1e31, 1.0, 1.0], [1e-31, 0.0, 0.0]])
    levels, step = quantize_activation(x)
    assert levels[0].tolist() == [64, -127, 16]  # 63.5 and 15.875: half to even
    assert step[0].item() == pytest.approx(2 / 127)
    assert not levels[1:].any()
    assert not step[1:].any()


def test_the_picture_is_read_pixel_by_pixel():
    conv = PixelConv2d(6, 5, stride=2, padding=2)
    set_pixels(conv, MEAN, STD)
    images = pictures(2, 32)
    levels, scale = conv.integers()
    zero = torch.tensor([round(255 * m) for m in MEAN], dtype=torch.float64)
    centred = torch.from_numpy(images).double().sub(zero).permute(0, 3, 1, 2)
    sums = functional.conv2d(centred, levels.double(), None, 2, 2)
    with torch.no_grad():
        assert torch.equal(conv(normalised(images)), sums.float() * scale.reshape(-1, 1, 1))


def test_it_is_close_to_the_convolution_that_it_rounds():
    conv = PixelConv2d(16, 7, 2, 3)
    set_pixels(conv, MEAN, STD)
    x = normalised(pictures(2, 64))
    expected = functional.conv2d(x, conv.weight, None, 2, 3)
    assert (conv(x) - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("layer", [Int8Conv2d(12, 5), Int8Conv2d(12, 5, bias=False), Int8Linear(12, 5)], ids=str)
def test_gradients_are_those_of_the_real_layer(layer):
    generator = torch.Generator().manual_seed(3)
    linear = isinstance(layer, Int8Linear)
    x = torch.randn((4, 12) if linear else (4, 12, 3, 3), generator=generator, requires_grad=True)
    y = layer(x)
    real = (functional.linear if linear else functional.conv2d)(x, layer.weight, layer.bias)
    assert (y - real).abs().max() < 0.05 * real.abs().max()
    upstream = torch.randn(y.shape, generator=generator)
    found = torch.autograd.grad(y, (x, layer.weight), upstream)
    expected = torch.autograd.grad(real, (x, layer.weight), upstream)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 0.05 * other.abs().max()
