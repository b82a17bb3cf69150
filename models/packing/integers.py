"""A stem with 8-bit weights for a network that was trained with a real one.

Networks that were trained with `real_weights: int8` need none of this: they are packed as they are. Here the real
weights are rounded afterwards, which changes the network; how much, the packer measures (`training.agreement`).
"""

from __future__ import annotations

from math import prod

import numpy as np

from models.packing import graph as g
from models.packing.file import InputSpec
from models.packing.trace import PackingError, Traced

LEVELS = 127


def integer_stem(traced: Traced, spec: InputSpec) -> str:
    """Let the convolution of the picture read pixels with 8-bit weights; returns its name in the trained network.

    A convolution of normalised pixels (p / 255 - mean) / std with weights w is one of pixels p - zero, zero the rounded
    mean, with weights w / (255 std), and a bias for what rounding the mean has changed.

    Raises PackingError where the graph has no single such convolution, or its kernel is too large for exact sums.
    """
    stems = [op for op in traced.ops if isinstance(op, g.Conv2d) and op.input == g.Graph.image]
    if len(stems) != 1 or any(g.Graph.image in op.reads() and op is not stems[0] for op in traced.ops):
        raise PackingError("stem: the network has no single real convolution that reads the picture")
    op = stems[0]
    if op.groups != 1 or op.dilation != (1, 1) or prod(op.kernel) * 3 * 255 * 128 >= g.MAX_EXACT_SUM:
        raise PackingError(f"{op.source}: groups, dilation or a kernel of {op.kernel} do not fit an 8-bit stem")
    mean = 255 * np.asarray(spec.mean)
    zero = np.clip(np.round(mean), 0, 255)
    weight = traced.tensors[op.weight].astype(np.float64) / (255 * np.asarray(spec.std))
    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-30) / LEVELS
    bias = (weight * (zero - mean)).sum(axis=(1, 2, 3))
    if op.bias is not None:
        bias = bias + traced.tensors[op.bias]
    source = op.source or op.output
    scale_name, bias_name = f"{source}.scale", op.bias or f"{source}.bias"
    traced.tensors[op.weight] = np.round(weight / scale[:, None, None, None]).astype(np.int8)
    traced.tensors[scale_name] = scale.astype(np.float32)
    traced.tensors[bias_name] = bias.astype(np.float32)
    traced.ops[traced.ops.index(op)] = g.PixelConv2d(
        output=op.output,
        source=op.source,
        out_channels=op.out_channels,
        kernel=op.kernel,
        stride=op.stride,
        padding=op.padding,
        zero=(int(zero[0]), int(zero[1]), int(zero[2])),
        weight=op.weight,
        scale=scale_name,
        bias=bias_name,
    )
    return source
