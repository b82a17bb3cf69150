"""Plans that fuse, share places and make concatenations in place compute what the ops do one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from models.packing.graph import Value
from models.xnor import Session
from tests.models.xnor.builder import Builder, random_images

Check = Callable[..., dict[str, NDArray[Any]]]


class Small(Builder):
    """A builder of the few ops that these graphs need, with random weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def vector(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape).astype(np.float32)

    def mix(self, channels: int) -> str:
        return self.conv2d("image", self.vector(channels, 3, 1, 1))

    def sign(self, x: str, channels: int) -> str:
        return self.threshold(x, self.vector(channels), (self.rng.random(channels) < 0.3).astype(np.uint8))

    def binary(self, bits: str, out: int, channels: int) -> str:
        signs = np.where(self.rng.random((out, channels, 3, 3)) < 0.5, -1.0, 1.0)
        return self.binary_conv2d(bits, signs, padding=(1, 1))

    def pool(self, x: str) -> str:
        return self.op("max_pool2d", input=x, kernel=(3, 3), stride=(1, 1), padding=(1, 1))

    def add(self, x: str, y: str) -> str:
        return self.op("add", inputs=(x, y))

    def concat(self, *parts: str) -> str:
        return self.op("concat", inputs=parts)


def added_again_after_a_sum_was_stored(b: Small) -> tuple[str, int]:
    x, y = b.mix(16), b.mix(16)
    total = b.add(y, x)
    again = b.add(total, x)
    return b.add(b.pool(total), again), 16


def shortcut_between_the_parts_of_a_concatenation(b: Small) -> tuple[str, int]:
    bits = b.sign(b.mix(16), 16)
    first = b.binary(bits, 16, 16)
    shortcut = b.binary(bits, 32, 16)
    second = b.binary(b.sign(first, 16), 16, 16)
    return b.add(b.concat(first, second), shortcut), 32


def second_part_made_before_the_first(b: Small) -> tuple[str, int]:
    other = b.mix(32)
    bits = b.sign(other, 32)
    x = b.mix(16)
    first = b.binary(bits, 16, 32)
    second = b.op("prelu", input=x, slope=b.vector(16))
    return b.add(b.concat(first, second), other), 32


def addend_read_by_another_sum_between_two_parts(b: Small) -> tuple[str, int]:
    other = b.mix(32)
    bits = b.sign(other, 32)
    first = b.binary(bits, 16, 32)
    between = b.add(b.binary(bits, 32, 32), other)
    second = b.binary(b.sign(first, 16), 16, 16)
    total = b.add(b.concat(first, second), other)
    return b.add(b.pool(total), b.pool(between)), 32


def a_part_is_a_shortcut_too(b: Small) -> tuple[str, int]:
    first = b.binary(b.sign(b.mix(16), 16), 16, 16)
    second = b.binary(b.sign(first, 16), 16, 16)
    both = b.concat(first, second)
    total = b.add(b.binary(b.sign(both, 32), 16, 32), first)
    return b.concat(total, both), 48


def a_part_is_enlarged_too(b: Small) -> tuple[str, int]:
    first, second = b.mix(16), b.mix(16)
    both = b.concat(first, second)
    large = b.op("upsample", input=first, factor=2)
    return b.concat(b.op("max_pool2d", input=large, kernel=(2, 2), stride=(2, 2)), both), 48


def a_sum_of_parts_is_a_part(b: Small) -> tuple[str, int]:
    other = b.mix(32)
    bits = b.sign(other, 32)
    total = b.add(b.concat(b.binary(bits, 16, 32), b.binary(bits, 16, 32)), other)
    return b.pool(b.concat(total, b.mix(16))), 48


def one_addend_of_two_sums_of_other_parts(b: Small) -> tuple[str, int]:
    other = b.mix(48)
    bits = b.sign(other, 48)
    first = b.add(b.concat(b.binary(bits, 16, 48), b.binary(bits, 32, 48)), other)
    second = b.add(b.concat(b.binary(bits, 32, 48), b.binary(bits, 16, 48)), other)
    return b.add(first, second), 48


def bits_made_in_parts_are_read_in_groups(b: Small) -> tuple[str, int]:
    """As many groups as the second part's first channel."""
    other = b.mix(64)
    bits = b.sign(other, 64)
    total = b.add(b.concat(b.binary(bits, 32, 64), b.binary(bits, 32, 64)), other)
    signs = np.where(b.rng.random((32, 2, 1, 1)) < 0.5, -1.0, 1.0)
    return b.binary_conv2d(b.sign(total, 64), signs, groups=32), 32


@pytest.mark.parametrize(
    "graph",
    [
        added_again_after_a_sum_was_stored,
        shortcut_between_the_parts_of_a_concatenation,
        second_part_made_before_the_first,
        addend_read_by_another_sum_between_two_parts,
        a_part_is_a_shortcut_too,
        a_part_is_enlarged_too,
        a_sum_of_parts_is_a_part,
        one_addend_of_two_sums_of_other_parts,
        bits_made_in_parts_are_read_in_groups,
    ],
)
def test_what_is_still_read_is_left_alone(
    tmp_path: Path, isa: str, check: Check, graph: Callable[[Small], tuple[str, int]]
) -> None:
    b = Small()
    output, channels = graph(b)
    b.write(tmp_path / "m", output, channels, (6, 7))
    check(tmp_path / "m", isa)


class RandomGraph:
    """Random ops over values of few shapes, so that sums and concatenations fit often; recent values are read most."""

    FLOAT_OPS = ("conv", "int8", "affine", "prelu", "pool", "upsample", *["threshold", "add", "concat", "block"] * 3)
    WIDTHS: ClassVar = {32: [(16, 16)], 48: [(16, 32), (32, 16), (16, 16, 16)]}
    BITS_OPS = ("upsample", "concat", *["binary"] * 6)

    def __init__(self, seed: int) -> None:
        self.b = Small(seed)
        self.rng = self.b.rng
        self.values = {"image": Value("float", 6, 6, 3)}
        for _ in range(int(self.rng.integers(8, 26))):
            self.grow(self.recent())

    @property
    def outputs(self) -> list[str]:
        """The real values that no op reads."""
        read = {name for op in self.b.ops for name in op.get("inputs", (op.get("input"),))}
        return [name for name, value in self.values.items() if value.kind == "float" and name not in read]

    def recent(self) -> str:
        names = list(self.values)
        return names[-1 - min(int(self.rng.exponential(2.5)), len(names) - 1)]

    def grow(self, x: str) -> None:
        """Append an op that reads `x`, if it is one that can."""
        rng, b, value = self.rng, self.b, self.values[x]
        kind, height, width, channels = value.kind, value.height, value.width, value.channels
        out = int(rng.choice([16, 32, 48]))
        match rng.choice(self.FLOAT_OPS if kind == "float" else self.BITS_OPS):
            case "conv":
                self.values[b.conv2d(x, b.vector(out, channels, 1, 1))] = Value("float", height, width, out)
            case "int8":
                weight = rng.integers(-127, 128, (out, channels), dtype=np.int8)
                self.values[b.int8_conv2d(x, weight, scale=b.vector(out))] = Value("float", height, width, out)
            case "binary":
                self.values[b.binary(x, out, channels)] = Value("float", height, width, out)
            case "threshold":
                self.values[b.sign(x, channels)] = Value("bits", height, width, channels)
            case "affine":
                self.values[b.op("affine", input=x, scale=b.vector(channels), bias=b.vector(channels))] = value
            case "prelu":
                self.values[b.op("prelu", input=x, slope=b.vector(channels))] = value
            case "pool":
                self.values[b.pool(x)] = value
            case "upsample" if height < 12:
                self.values[b.op("upsample", input=x, factor=2)] = Value(kind, 2 * height, 2 * width, channels)
            case "add":
                other = str(rng.choice([name for name, found in self.values.items() if found == value]))
                self.values[b.add(*((x, other) if rng.random() < 0.5 else (other, x)))] = value
            case "block" if channels in self.WIDTHS:
                self.block(x)
            case "concat":
                alike = [name for name, v in self.values.items() if (v.kind, v.height) == (kind, height)]
                fitting = [name for name in alike if self.values[name].channels < 99]
                parts = [name for name in fitting if rng.random() < 3 / len(fitting)]
                if len(parts) > 1:
                    joined = sum(self.values[name].channels for name in parts)
                    self.values[b.concat(*parts)] = Value(kind, height, width, joined)

    def block(self, shortcut: str) -> None:
        """Binary convolutions that may feed one another, joined and added to a value; other ops come in between."""
        b, rng, value = self.b, self.rng, self.values[shortcut]
        bits, parts = b.sign(shortcut, value.channels), []
        self.values[bits] = Value("bits", value.height, value.width, value.channels)
        widths = self.WIDTHS[value.channels]
        for width in widths[rng.integers(len(widths))]:
            parts.append(b.binary(bits, width, self.values[bits].channels))
            self.values[parts[-1]] = Value("float", value.height, value.width, width)
            if rng.random() < 0.5:
                bits = b.sign(parts[-1], width)
                self.values[bits] = Value("bits", value.height, value.width, width)
            if rng.random() < 0.5:
                self.grow(self.recent())
        joined = b.concat(*parts)
        self.values[joined] = value
        self.values[b.add(joined, shortcut)] = value


def test_random_graphs_fused_or_not(tmp_path: Path, isa: str) -> None:
    for seed in range(150):
        graph = RandomGraph(seed)
        outputs = graph.outputs
        if not outputs:
            continue
        channels = graph.values[outputs[0]].channels
        more = {name: name for name in outputs}
        file = graph.b.write(tmp_path / f"{seed}.safetensors", outputs[0], channels, (6, 6), more=more)
        images = random_images(file, 1, seed)
        apart, fused = (Session.load(file.path, isa=isa, threads=1, fuse=fuse).run(images) for fuse in (False, True))
        for name, expected in apart.items():
            assert np.array_equal(fused[name], expected, equal_nan=True), (seed, name)
