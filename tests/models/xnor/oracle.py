"""What torch says each op of a graph computes: the oracle of the engine's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.packing.file import PackedFile

EXACT = {
    "pixel_conv2d",
    "int8_conv2d",
    "binary_conv2d",
    "threshold",
    "affine",
    "prelu",
    "add",
    "concat",
    "max_pool2d",
    "upsample",
}


def unpack_bits(words: NDArray[np.uint64], channels: int) -> NDArray[np.float32]:
    """`[..., words]` -> `[..., channels]` of +-1; unused bits must be 0."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    assert not bits[..., channels:].any(), "unused bits are set"
    return bits[..., :channels].astype(np.float32) * 2 - 1


def normalised(file: PackedFile, images: NDArray[np.uint8]) -> Tensor:
    """`(pixel / 255 - mean) / std` as NCHW float32."""
    spec = file.header.input
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div(255)
    mean, std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    return x.sub(mean).div(std)


def apply(file: PackedFile, op: Any, inputs: list[Tensor]) -> Tensor:
    """One op on NCHW float tensors (bits are +-1)."""

    def tensor(name: str | None, channels: bool = True) -> Tensor | None:
        if name is None:
            return None
        array = torch.from_numpy(np.array(file.tensors[name])).to(torch.float32)
        return array.view(1, -1, 1, 1) if channels else array

    x = inputs[0]
    window = {"stride": getattr(op, "stride", None), "padding": getattr(op, "padding", None)}
    match op.op:
        case "conv2d":
            weight = tensor(op.weight, channels=False).permute(0, 3, 1, 2)
            return F.conv2d(
                x, weight, tensor(op.bias, channels=False), dilation=op.dilation, groups=op.groups, **window
            )
        case "pixel_conv2d":
            spec = file.header.input
            mean, std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
            pixels = torch.round((x * std + mean) * 255) - torch.tensor(op.zero, dtype=torch.float32).view(1, 3, 1, 1)
            weight = tensor(op.weight, channels=False).permute(0, 3, 1, 2)
            y = F.conv2d(pixels.double(), weight.double(), **window).float() * tensor(op.scale)
            return y if op.bias is None else y + tensor(op.bias)
        case "int8_conv2d":
            largest = x.abs().amax(1, keepdim=True)
            usable = (largest > 1e-30) & (largest < 1e30)
            levels = torch.where(usable, torch.round(x * (127 / largest)), 0.0)
            step = torch.where(usable, largest / 127, 0.0)
            weight = tensor(op.weight, channels=False).permute(0, 3, 1, 2)
            y = F.conv2d(levels.double(), weight.double()).float() * step * tensor(op.scale)
            return y if op.bias is None else y + tensor(op.bias)
        case "binary_conv2d":
            signs = torch.from_numpy(unpack_bits(file.tensors[op.weight], x.shape[1] // op.groups))
            y = F.conv2d(x, signs.permute(0, 3, 1, 2), dilation=op.dilation, groups=op.groups, **window)
            if op.scale is not None:
                y = y * tensor(op.scale)
            if op.scale_height is not None:
                y = y * tensor(op.scale_height).view(1, 1, -1, 1)
            if op.scale_width is not None:
                y = y * tensor(op.scale_width).view(1, 1, 1, -1)
            return y if op.bias is None else y + tensor(op.bias)
        case "threshold":
            threshold = tensor(op.threshold)
            flip = torch.zeros_like(threshold) if op.flip is None else tensor(op.flip)
            return torch.where(torch.where(flip != 0, x <= threshold, x >= threshold), 1.0, -1.0)
        case "affine":
            return x * tensor(op.scale) + tensor(op.bias)
        case "prelu":
            x = x if op.shift_in is None else x - tensor(op.shift_in)
            x = F.relu(x) if op.slope is None else F.prelu(x, tensor(op.slope, channels=False))
            return x if op.shift_out is None else x + tensor(op.shift_out)
        case "add":
            return inputs[0] + inputs[1]
        case "concat":
            return torch.cat(inputs, dim=1)
        case "max_pool2d":
            return F.max_pool2d(x, op.kernel, **window)
        case "avg_pool2d":
            return F.avg_pool2d(x, op.kernel, **window)
        case "global_avg_pool":
            return x.mean(dim=(2, 3), keepdim=True)
        case "upsample":
            return F.interpolate(x, scale_factor=op.factor, mode="nearest")
    raise AssertionError(op.op)


def run(file: PackedFile, images: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Every value of the graph, NCHW."""
    values = {"image": normalised(file, images)}
    for op in file.header.graph.ops:
        values[op.output] = apply(file, op, [values[name] for name in op.reads()])
    return values


def check_each_op(file: PackedFile, images: NDArray[np.uint8], kept: dict[str, NDArray[Any]]) -> None:
    """Give each op the engine's own inputs and compare what it wrote: bit for bit wherever order cannot matter."""

    def as_torch(name: str) -> Tensor:
        value = file.values[name]
        array = kept[name]
        if value.kind == "bits":
            array = unpack_bits(array, value.channels)
        return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()

    assert torch.equal(as_torch("image"), normalised(file, images))
    for op in file.header.graph.ops:
        inputs = [as_torch(name) for name in op.reads()]
        expected, found = apply(file, op, inputs), as_torch(op.output)
        assert found.shape == expected.shape, op
        if op.op in EXACT:
            assert torch.equal(found, expected), f"{op.op} {op.output}: {int((found != expected).sum())} differ"
        else:
            scale = max(1e-6, float(expected.abs().max()))
            assert float((found - expected).abs().max()) <= 2e-6 * scale * max(1, inputs[0].shape[1] ** 0.5), op.output
