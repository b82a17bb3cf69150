"""The sign and its straight-through gradients, against their formulas."""

import math

import pytest
import torch

from models.latent import BinaryConv2d, BinaryLinear, Sign, anneal, ste_sign


def test_sign_of_zero_is_plus_one():
    z = torch.tensor([-1.5, -1e-30, -0.0, 0.0, 1e-30, 2.0])
    assert ste_sign(z).tolist() == [-1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sign_keeps_the_dtype(dtype):
    assert ste_sign(torch.randn(5, dtype=dtype)).dtype == dtype


FORMULAS = {
    "clip": lambda z, t: 1.0 if abs(z) < 1 else 0.0,
    "identity": lambda z, t: 1.0,
    "polynomial": lambda z, t: 2 - 2 * abs(z) if abs(z) < 1 else 0.0,
    "annealed": lambda z, t: max(1.0, 1 / t) * t * (1 - math.tanh(t * z) ** 2),
}


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_gradient_is_the_formula(kind, temperature):
    z = torch.tensor([-3.0, -1.0, -0.999, -0.3, 0.0, 0.3, 0.999, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    upstream = torch.linspace(-2, 2, len(z), dtype=torch.float64)
    ste_sign(z, kind, torch.tensor(temperature)).backward(upstream)
    expected = [float(u) * FORMULAS[kind](float(v), temperature) for u, v in zip(upstream, z.detach(), strict=True)]
    assert z.grad.tolist() == pytest.approx(expected, rel=1e-12)


def test_unknown_kind_is_refused():
    z = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="'tanh'"):
        ste_sign(z, "tanh").backward()


def test_annealed_temperature_travels_with_the_state():
    module = Sign("annealed")
    module.temperature.fill_(7.0)
    other = Sign("annealed")
    other.load_state_dict(module.state_dict())
    assert float(other.temperature) == 7.0


@pytest.mark.parametrize(("progress", "temperature"), [(0, 0.1), (0.25, 10**-0.5), (0.5, 1), (1, 10)])
def test_the_temperature_grows_evenly_in_its_logarithm(progress, temperature):
    """t_min 10^(progress log10(t_max / t_min)) with t_min 0.1 and t_max 10: IR-Net's equation 9."""
    annealed = [Sign("annealed"), BinaryConv2d(2, 3, 3, ste="annealed"), BinaryLinear(2, 3, ste="annealed")]
    network = torch.nn.Sequential(*annealed, Sign("clip"), BinaryConv2d(2, 3, 3))
    anneal(network, progress)
    assert [float(module.temperature) for module in annealed] == pytest.approx([temperature] * 3)
    assert len(dict(network.named_buffers())) == 3
    layer = annealed[1]
    layer.binary_weight().sum().backward()
    weight = layer.latent.weight
    expected = max(1, temperature) * (1 - torch.tanh(temperature * weight.detach()) ** 2)
    torch.testing.assert_close(weight.grad, expected)
