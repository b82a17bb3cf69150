"""A small hand to write packed graphs, for tests and benchmarks. Weights are given as +-1 floats, OIHW as torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.packing.file import InputSpec, PackedFile, PackedHeader, Sizes, write
from models.packing.graph import Graph, words


def pack_bits(signs: NDArray[Any]) -> NDArray[np.uint64]:
    """`[..., channels]` of +-1 -> `[..., words]`, bit i of word j = channel 64 j + i."""
    channels = signs.shape[-1]
    padded = np.zeros((*signs.shape[:-1], words(channels) * 64), np.uint8)
    padded[..., :channels] = signs > 0
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return packed.view("<u8")


def random_images(file: PackedFile, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """A batch of noise of the input's size."""
    size = file.header.input
    return np.random.default_rng(seed).integers(0, 256, (count, size.height, size.width, 3), dtype=np.uint8)


class Builder:
    """Collects ops and tensors; every method returns the name of the value that it writes."""

    def __init__(self) -> None:
        self.ops: list[dict[str, Any]] = []
        self.tensors: dict[str, NDArray[Any]] = {}

    def op(self, op: str, **fields: Any) -> str:
        """Append an op. Arrays among the fields become tensors."""
        name = f"v{len(self.ops)}"
        for key, value in fields.items():
            if isinstance(value, np.ndarray):
                self.tensors[f"{name}.{key}"] = value
                fields[key] = f"{name}.{key}"
        self.ops.append({"op": op, "output": name, **{k: v for k, v in fields.items() if v is not None}})
        return name

    def conv2d(self, x: str, weight: NDArray[Any], **fields: Any) -> str:
        """`weight` float OIHW."""
        stored = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
        return self.op(
            "conv2d", input=x, weight=stored, out_channels=weight.shape[0], kernel=weight.shape[2:], **fields
        )

    def pixel_conv2d(self, weight: NDArray[Any], **fields: Any) -> str:
        """`weight` int8 OIHW, on the picture."""
        stored = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
        return self.op("pixel_conv2d", weight=stored, out_channels=weight.shape[0], kernel=weight.shape[2:], **fields)

    def int8_conv2d(self, x: str, weight: NDArray[Any], **fields: Any) -> str:
        """`weight` int8 `[out, in]`."""
        stored = np.ascontiguousarray(weight[:, None, None, :])
        return self.op("int8_conv2d", input=x, weight=stored, out_channels=weight.shape[0], **fields)

    def binary_conv2d(self, x: str, weight: NDArray[Any], **fields: Any) -> str:
        """`weight` +-1, OIHW."""
        stored = pack_bits(weight.transpose(0, 2, 3, 1))
        return self.op(
            "binary_conv2d", input=x, weight=stored, out_channels=weight.shape[0], kernel=weight.shape[2:], **fields
        )

    def threshold(self, x: str, threshold: NDArray[np.float32], flip: NDArray[np.uint8] | None = None) -> str:
        return self.op("threshold", input=x, threshold=threshold, flip=flip)

    def write(
        self,
        path: Path,
        output: str,
        channels: int,
        size: tuple[int, int],
        *,
        labels: bool = False,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        more: dict[str, str] | None = None,
    ) -> PackedFile:
        """A file whose output is the value `output`: `logits` where it has labels, else `map`, of any size.

        The format wants logits too, so beside a map these are its means.
        """
        outputs = {"logits": output, **(more or {})}
        if not labels:
            outputs = {"map": output, **outputs, "logits": self.op("global_avg_pool", input=output)}
        header = PackedHeader(
            architecture="test",
            task="classification",
            input=InputSpec(height=size[0], width=size[1], mean=mean, std=std),
            graph=Graph.model_validate({"ops": self.ops, "outputs": outputs}),
            labels=[str(i) for i in range(channels)],
            sizes=Sizes(packed_bytes=0, float32_bytes=0),
        )
        return write(path, header, self.tensors)


def add_resnet18(builder: Builder, rng: np.random.Generator, *, classes: int, small_stem: bool, width: int = 64) -> str:
    """A ResNet-18 of random weights: real stem, shortcuts and head, binary 3x3 convolutions; returns the logits."""

    def real(x: str, out: int, channels: int, kernel: int, stride: int = 1, bias: bool = True) -> str:
        scale = (2 / (channels * kernel * kernel)) ** 0.5
        weight = (rng.standard_normal((out, channels, kernel, kernel)) * scale).astype(np.float16)
        vector = rng.standard_normal(out).astype(np.float32) * np.float32(0.1) if bias else None
        return builder.conv2d(x, weight, stride=(stride, stride), padding=(kernel // 2, kernel // 2), bias=vector)

    def vector(channels: int, middle: float, spread: float) -> NDArray[np.float32]:
        return (middle + spread * rng.standard_normal(channels)).astype(np.float32)

    def convolution(x: str, shortcut: str, out: int, channels: int, stride: int) -> str:
        bits = builder.threshold(x, vector(channels, 0, 0.3), (rng.random(channels) < 0.1).astype(np.uint8))
        signs = np.where(rng.random((out, channels, 3, 3)) < 0.5, -1.0, 1.0)
        acc = builder.binary_conv2d(
            bits, signs, stride=(stride, stride), padding=(1, 1),
            scale=np.abs(vector(out, 1, 0.2)) / np.float32(3 * channels**0.5), bias=vector(out, 0, 0.1),
        )  # fmt: skip
        active = builder.op("prelu", input=acc, slope=vector(out, 0.25, 0.05))
        return builder.op("add", inputs=(active, shortcut))

    x = real("image", width, 3, 3 if small_stem else 7, 1 if small_stem else 2)
    x = builder.op("prelu", input=x, slope=vector(width, 0.25, 0.05))
    if not small_stem:
        x = builder.op("max_pool2d", input=x, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    channels = width
    for stage in range(4):
        out = width << stage
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = builder.op("avg_pool2d", input=x, kernel=(2, 2), stride=(2, 2))
                shortcut = real(shortcut, out, channels, 1)
            x = convolution(x, shortcut, out, channels, stride)
            x = convolution(x, x, out, out, 1)
            channels = out
    x = builder.op("global_avg_pool", input=x)
    return real(x, classes, channels, 1)
