"""Torch networks to compare the packed engine with: varied parameters, exact real layers, what each module gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.packing.graph import Prelu, Threshold

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def vary(net: nn.Module) -> None:
    """Make batch norms, slopes, scales and real biases as varied as training makes them; some gammas are 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(0.3, 1, generator=generator)
                module.bias.normal_(generator=generator)
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 4, generator=generator)
                module.weight[::9] = 0
            elif isinstance(module, nn.PReLU):
                module.weight.uniform_(-0.5, 1.5, generator=generator)
            elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                module.bias.normal_(generator=generator)
        for name, parameter in net.named_parameters():
            if name.endswith((".beta", ".gamma", ".shift_in", ".shift_out")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if name.endswith(".alpha"):
                parameter.mul_(torch.randn(parameter.shape, generator=generator))


def pictures(n: int, size: int) -> np.ndarray[Any, Any]:
    """uint8 [n, size, size, 3]."""
    return np.random.default_rng(2).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def normalised(images: np.ndarray[Any, Any]) -> Tensor:
    """What torch's network gets for `images`: float32 [n, 3, size, size]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def make_exact(conv: nn.Conv2d) -> None:
    """Let a real convolution copy one input each, so that no order of summation can round differently."""
    with torch.no_grad():
        conv.weight.zero_()
        middle = conv.kernel_size[0] // 2
        for o in range(conv.out_channels):
            conv.weight[o, o % conv.in_channels, middle, middle] = 2.0 ** (o % 3)
        if conv.bias is not None:
            conv.bias.zero_()


def make_neutral(norm: nn.BatchNorm2d) -> None:
    """Let a batch norm change nothing."""
    with torch.no_grad():
        norm.weight.fill_(1)
        norm.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


def make_real_layers_exact(net: nn.Module) -> None:
    """`make_exact` and `make_neutral` for every real convolution that a batch norm follows."""
    for module in net.modules():
        if isinstance(module, nn.Sequential):
            for conv, norm in zip(list(module)[:-1], list(module)[1:], strict=True):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    make_exact(conv)
                    make_neutral(norm)


def observe(net: nn.Module, images: np.ndarray[Any, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """What each module gave for `images`, by name, and what the network did."""
    seen: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        return seen, net(normalised(images))


def check_equal(
    ops: Iterable[Threshold | Prelu], found: Mapping[str, np.ndarray[Any, Any]], seen: Mapping[str, Tensor]
) -> int:
    """Hold the engine's bits and activations against torch's modules, bit for bit. Returns the number of signs."""
    signs = 0
    for op in ops:
        expected = seen[op.source].permute(0, 2, 3, 1).numpy()
        value = found[op.output]
        if isinstance(op, Threshold):
            signs += 1
            unpacked = np.unpackbits(value.view(np.uint8), axis=-1, bitorder="little")
            assert not unpacked[..., expected.shape[-1] :].any(), op.source
            np.testing.assert_array_equal(unpacked[..., : expected.shape[-1]], expected > 0, err_msg=op.source)
        else:
            np.testing.assert_array_equal(value, expected, err_msg=op.source)
    return signs
