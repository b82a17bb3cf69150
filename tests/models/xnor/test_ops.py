"""Every op against torch, for every instruction set: bits and integer sums exactly, fused and not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.xnor import Session
from models.xnor.plan import make_plan
from tests.models.xnor.builder import Builder, random_images

Check = Callable[..., dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Case:
    """A convolution: channels in and out, window, groups, and the size of its input."""

    channels: int
    out: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int] = (7, 9)
    batch: int = 1


CASES = [
    *[Case(c, 64) for c in (1, 3, 63, 64, 65, 200, 512)],
    *[Case(64, o) for o in (1, 7, 8, 16, 17, 31, 33, 40, 200)],
    *[Case(65, 24, (k, k), (s, s), (p, p), batch=3) for k in (1, 3, 5, 7) for s in (1, 2) for p in (0, k // 2)],
    Case(200, 48, (7, 7), padding=(9, 9)),
    Case(128, 32, (3, 3), dilation=(2, 2), padding=(2, 2)),
    Case(64, 32, (3, 5), (2, 1), (0, 2), (2, 1), size=(13, 11)),
    Case(64, 32, (5, 3), (1, 3), (4, 1), (3, 2), size=(14, 17)),
    Case(128, 64, groups=2),
    Case(128, 32, groups=4, batch=2),
    Case(96, 96, groups=3),
    Case(30, 30, groups=30),
    Case(130, 20, groups=10, dilation=(2, 2), padding=(2, 2)),
    Case(512, 512, size=(4, 4)),
    Case(512, 10, (1, 1), padding=(0, 0), size=(1, 1), batch=5),
    Case(64, 64, size=(23, 31)),
    Case(2048, 16, (5, 5), padding=(2, 2), size=(5, 5)),
]


def test_every_binary_convolution_equals_torch(tmp_path: Path, isa: str, check: Check) -> None:
    rng = np.random.default_rng(1)
    for index, case in enumerate(CASES):
        b = Builder()
        mix = b.conv2d("image", rng.standard_normal((case.channels, 3, 1, 1)).astype(np.float32))
        bits = b.threshold(mix, rng.standard_normal(case.channels).astype(np.float32))
        shape = (case.out, case.channels // case.groups, *case.kernel)
        signs = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
        out = b.binary_conv2d(
            bits, signs, stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups
        )
        path = tmp_path / f"{index}.safetensors"
        b.write(path, out, case.out, case.size)
        kept = check(path, isa, case.batch)
        sums = kept[out]
        assert np.array_equal(sums, np.round(sums)), case
        assert np.abs(sums).max() <= case.channels // case.groups * case.kernel[0] * case.kernel[1]


SHAPES = json.loads((Path(__file__).parents[3] / "benchmarks" / "shapes.json").read_text())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['network']} {s['layer']}")
def test_the_benchmarked_shapes_equal_torch(tmp_path: Path, isa: str, check: Check, shape: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    channels, out, kernel = shape["channels"], shape["out"], shape["kernel"]
    stride, padding = shape["stride"], shape["padding"]
    b = Builder()
    bits = b.threshold(
        b.conv2d("image", rng.standard_normal((channels, 3, 1, 1)).astype(np.float32)), np.zeros(channels, np.float32)
    )
    signs = np.where(rng.random((out, channels, kernel, kernel)) < 0.5, -1.0, 1.0)
    sums = b.binary_conv2d(bits, signs, stride=(stride, stride), padding=(padding, padding))
    b.write(tmp_path / "m", sums, out, (shape["size"], shape["size"]))
    check(tmp_path / "m", isa, 1)


FLOAT_CASES = [
    Case(3, 64, (7, 7), (2, 2), (3, 3), size=(20, 22)),
    Case(3, 16, size=(8, 8), batch=3),
    Case(1, 5, (1, 1), padding=(0, 0)),
    Case(64, 128, (1, 1), (2, 2), (0, 0)),
    Case(65, 33, (3, 3), (1, 2), (0, 1), (2, 1)),
    Case(48, 40, (5, 5), padding=(2, 2)),
    Case(512, 100, (1, 1), padding=(0, 0), size=(1, 1), batch=4),
    Case(32, 32, groups=32),
    Case(24, 36, groups=3),
    Case(64, 64, groups=2),
    Case(20, 200, padding=(5, 5), kernel=(7, 7)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_real_convolution_equals_torch(tmp_path: Path, isa: str, check: Check, dtype: type) -> None:
    rng = np.random.default_rng(2)
    for index, case in enumerate(FLOAT_CASES):
        b = Builder()
        mix = b.conv2d("image", rng.standard_normal((case.channels, 3, 1, 1)).astype(dtype))
        shape = (case.out, case.channels // case.groups, *case.kernel)
        out = b.conv2d(
            mix, rng.standard_normal(shape).astype(dtype), stride=case.stride, padding=case.padding,
            dilation=case.dilation, groups=case.groups,
            bias=rng.standard_normal(case.out).astype(dtype) if index % 2 else None,
        )  # fmt: skip
        path = tmp_path / f"{index}.safetensors"
        b.write(path, out, case.out, case.size)
        check(path, isa, case.batch)


def levels(rng: np.random.Generator, *shape: int) -> NDArray[np.int8]:
    return rng.integers(-127, 128, shape, dtype=np.int8)


PICTURE_CASES = [
    # channels out, kernel, stride, padding, size, the max-pool behind it (kernel, stride, padding)
    (64, 7, 2, 3, (64, 48), (3, 2, 1)),
    (64, 7, 2, 3, (61, 47), (2, 2, 0)),
    (32, 3, 1, 1, (32, 32), None),
    (7, 1, 1, 0, (5, 3), None),
    (130, 5, 3, 4, (17, 23), (5, 3, 2)),
    (16, 13, 2, 6, (40, 33), (3, 1, 1)),
    (1, 3, 2, 0, (9, 8), (2, 1, 0)),
    (512, 3, 1, 1, (40, 64), (3, 2, 1)),  # three rows of it are too long to be kept
]


@pytest.mark.parametrize("case", PICTURE_CASES, ids=str)
def test_the_pictures_convolution_equals_torch(tmp_path: Path, isa: str, check: Check, case: Any) -> None:
    out, kernel, stride, padding, size, pool = case
    rng = np.random.default_rng(5)
    for zero in ((124, 116, 104), (0, 255, 1)):
        b = Builder()
        vector = rng.standard_normal((3, out)).astype(np.float32)
        pair = {"stride": (stride, stride), "padding": (padding, padding)}
        weight = levels(rng, out, 3, kernel, kernel)
        weight[0], weight[-1] = 127, -127
        x = b.pixel_conv2d(weight, zero=zero, scale=np.abs(vector[0]), bias=vector[1], **pair)
        if pool:
            x = b.op("prelu", input=x, slope=vector[2])
            window, step, pad = pool
            x = b.op("max_pool2d", input=x, kernel=(window, window), stride=(step, step), padding=(pad, pad))
            bits = b.threshold(x, vector[2])
            x = b.op("add", inputs=(b.binary_conv2d(bits, np.where(rng.random((out, out, 1, 1)) < 0.5, -1.0, 1.0)), x))
        b.write(tmp_path / f"{zero}.safetensors", x, out, size)
        check(tmp_path / f"{zero}.safetensors", isa, 2)


@pytest.mark.parametrize(("channels", "out"), [(3, 5), (16, 16), (50, 100), (64, 128), (130, 7), (1030, 64)])
def test_8_bit_convolutions_equal_torch(tmp_path: Path, isa: str, check: Check, channels: int, out: int) -> None:
    rng = np.random.default_rng(6)
    b = Builder()
    mix = b.conv2d("image", rng.standard_normal((channels, 3, 1, 1)).astype(np.float32))
    weight = levels(rng, out, channels)
    weight[0] = 127
    vector = rng.standard_normal((2, out)).astype(np.float32)
    wide = b.int8_conv2d(mix, weight, scale=np.abs(vector[0]), bias=vector[1])
    b.write(tmp_path / "wide.safetensors", wide, out, (7, 9))
    check(tmp_path / "wide.safetensors", isa, 2)


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e38])
def test_what_8_bits_cannot_hold_counts_as_nothing(tmp_path: Path, isa: str, value: float) -> None:
    b = Builder()
    flat = b.conv2d("image", np.zeros((20, 3, 1, 1), np.float32), bias=np.full(20, value, np.float32))
    bias = np.arange(4, dtype=np.float32)
    out = b.int8_conv2d(flat, np.full((4, 20), 127, np.int8), scale=np.ones(4, np.float32), bias=bias)
    file = b.write(tmp_path / "m.safetensors", out, 4, (3, 3))
    found = Session.load(file.path, isa=isa).run(random_images(file, 1))["map"]
    assert np.array_equal(found, np.broadcast_to(bias, found.shape))


@pytest.mark.parametrize("channels", [1, 16, 50, 64, 130])
def test_the_whole_epilogue_equals_torch_op_by_op(tmp_path: Path, isa: str, check: Check, channels: int) -> None:
    rng = np.random.default_rng(channels)

    def vector(n: int = channels) -> NDArray[np.float32]:
        return rng.standard_normal(n).astype(np.float32)

    b = Builder()
    mix = b.conv2d("image", rng.standard_normal((70, 3, 1, 1)).astype(np.float32))
    short = b.conv2d("image", rng.standard_normal((channels, 3, 1, 1)).astype(np.float32))
    signs = np.where(rng.random((channels, 70, 3, 3)) < 0.5, -1.0, 1.0)
    x = b.binary_conv2d(
        b.threshold(mix, vector(70)), signs, padding=(1, 1), scale=vector(), scale_height=vector(6),
        scale_width=vector(11), bias=vector(),
    )  # fmt: skip
    x = b.op("prelu", input=x, slope=vector(), shift_in=vector(), shift_out=vector())
    x = b.op("add", inputs=(x, short))
    first = b.threshold(x, vector(), (rng.random(channels) < 0.5).astype(np.uint8))
    y = b.op("affine", input=x, scale=vector(), bias=vector())
    second = b.threshold(y, vector())
    z = b.op("prelu", input=y)
    signs = np.where(rng.random((channels, channels, 1, 1)) < 0.5, -1.0, 1.0)
    p, q = b.binary_conv2d(first, signs), b.binary_conv2d(second, signs, scale=vector())
    z = b.op("add", inputs=(b.op("add", inputs=(p, q)), b.op("add", inputs=(z, x))))
    b.write(tmp_path / "m", z, channels, (6, 11))
    check(tmp_path / "m", isa)


def test_thresholds_on_exact_values(tmp_path: Path, isa: str, check: Check) -> None:
    """Sums of 9 taps x 4 channels are even numbers: thresholds on them, just beside them, infinite, and flipped."""
    around = [-np.inf, -36.0, -2.0, np.nextafter(np.float32(0), np.float32(-1)), -0.0, 0.0, 1e-30, 2.0, 36.0, np.inf]
    thresholds = np.array([t for t in around for _ in range(2)], np.float32)
    flips = np.array([0, 1] * len(around), np.uint8)
    rng = np.random.default_rng(3)
    b = Builder()
    mix = b.conv2d("image", rng.standard_normal((4, 3, 1, 1)).astype(np.float32))
    bits = b.threshold(mix, np.zeros(4, np.float32))
    filters = np.where(rng.random((1, 4, 3, 3)) < 0.5, -1.0, 1.0).repeat(len(thresholds), axis=0)
    sums = b.binary_conv2d(bits, filters, padding=(1, 1))
    out = b.threshold(sums, thresholds, flips)
    back = b.binary_conv2d(out, np.ones((1, len(thresholds), 1, 1)))
    b.write(tmp_path / "m", back, 1, (12, 12))
    kept = check(tmp_path / "m", isa)
    assert {-2.0, 0.0, 2.0} <= set(np.unique(kept[sums]))
    on = np.unpackbits(kept[out].view(np.uint8), axis=-1, bitorder="little")
    assert not on[..., 0 + 1].any()  # x <= -inf
    assert on[..., 0].all()  # x >= -inf
    assert on[..., 19].all()  # x <= +inf
    assert not on[..., 18].any()  # x >= +inf


def test_pools_upsampling_and_concatenation(tmp_path: Path, isa: str, check: Check) -> None:
    rng = np.random.default_rng(4)
    b = Builder()

    def mix(channels: int) -> str:
        return b.conv2d("image", rng.standard_normal((channels, 3, 1, 1)).astype(np.float32))

    def zeros(channels: int) -> NDArray[np.float32]:
        return np.zeros(channels, np.float32)

    wide = b.op("concat", inputs=(mix(64), mix(16), mix(5), "image", mix(80)))
    pooled = [
        b.op("max_pool2d", input=wide, kernel=(2, 2), stride=(2, 2)),
        b.op("max_pool2d", input=wide, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        b.op("avg_pool2d", input=wide, kernel=(2, 2), stride=(2, 2)),
        b.op("avg_pool2d", input=wide, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    ]
    joined = b.op("concat", inputs=tuple(pooled))
    up = b.op("upsample", input=joined, factor=2)
    kinds = [b.threshold(p, zeros(168)) for p in pooled[:2]]
    bits = b.op("concat", inputs=(*kinds, b.threshold(b.op("prelu", input=pooled[2]), zeros(168))))
    bits_up = b.op("upsample", input=bits, factor=2)
    signs = np.where(rng.random((672, 504, 3, 3)) < 0.5, -1.0, 1.0)
    out = b.op("add", inputs=(up, b.binary_conv2d(bits_up, signs, padding=(1, 1))))
    small = b.op("global_avg_pool", input=out)
    b.write(tmp_path / "m", b.conv2d(small, rng.standard_normal((10, 672, 1, 1)).astype(np.float32)), 10, (10, 14))
    check(tmp_path / "m", isa)


@pytest.mark.parametrize("parts", [(64, 32, 32), (48, 16, 64), (16, 16), (32, 5), (24, 8)], ids=str)
@pytest.mark.parametrize("sum_first", [True, False])
def test_concatenations_made_in_place(
    tmp_path: Path, isa: str, check: Check, parts: tuple[int, ...], sum_first: bool
) -> None:
    """Parts that feed one another are joined, and a value is added that is there before them, or only after."""
    rng = np.random.default_rng(8)
    channels = sum(parts)
    b = Builder()

    def vector(size: int) -> NDArray[np.float32]:
        return rng.standard_normal(size).astype(np.float32)

    def mix() -> str:
        return b.conv2d("image", vector(3 * channels).reshape(channels, 3, 1, 1))

    x = mix()
    before = mix() if sum_first else None
    bits, joined = b.threshold(x, vector(channels)), []
    width = channels
    for part in parts:
        signs = np.where(rng.random((part, width, 3, 3)) < 0.5, -1.0, 1.0)
        joined.append(b.binary_conv2d(bits, signs, padding=(1, 1), scale=vector(part)))
        bits, width = b.threshold(joined[-1], vector(part)), part
    whole = b.op("concat", inputs=tuple(joined))
    total = b.op("add", inputs=(whole, before if before is not None else mix()))
    after = b.binary_conv2d(
        b.threshold(total, vector(channels)), np.where(rng.random((7, channels, 1, 1)) < 0.5, -1.0, 1.0)
    )
    pooled = b.op("max_pool2d", input=total, kernel=(2, 2), stride=(2, 2))
    file = b.write(tmp_path / "m.safetensors", after, 7, (6, 8), more={"pooled": pooled})
    check(file.path, isa, 2)
    aligned = all(sum(parts[:i]) % 16 == 0 for i in range(len(parts)))
    steps = [step.ops[0] for step in make_plan(file).steps]
    assert any(name.startswith("concat") for name in steps) != aligned


def test_ops_may_read_the_image_itself(tmp_path: Path, isa: str, check: Check) -> None:
    b = Builder()
    x = b.op("add", inputs=("image", "image"))
    x = b.op("affine", input=x, scale=np.float32([1, -2, 3]), bias=np.float32([0.5, 0, -1]))
    bits = b.threshold("image", np.float32([0, 1, -1]), np.uint8([0, 1, 0]))
    y = b.binary_conv2d(bits, np.where(np.arange(27).reshape(1, 3, 3, 3) % 2, 1.0, -1.0), padding=(1, 1))
    z = b.op("max_pool2d", input=x, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    b.write(tmp_path / "m", b.op("concat", inputs=(z, y, "image")), 7, (9, 5))
    check(tmp_path / "m", isa)


@pytest.mark.parametrize("channels", [1, 16, 63, 64, 65, 200])
@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0)], ids=str)
def test_a_max_pool_that_only_thresholds_read_pools_bits(
    tmp_path: Path, isa: str, check: Check, channels: int, pool: tuple[int, int, int]
) -> None:
    """Thresholds of both directions, two of one pool; a second pool, which the output reads too, keeps its floats."""
    rng = np.random.default_rng(9)
    window, step, pad = pool

    def pooled(x: str) -> str:
        return b.op("max_pool2d", input=x, kernel=(window, window), stride=(step, step), padding=(pad, pad))

    def bits(x: str) -> str:
        flip = (rng.random(channels) < 0.5).astype(np.uint8)
        return b.threshold(x, rng.standard_normal(channels).astype(np.float32), flip)

    def conv(x: str) -> str:
        return b.binary_conv2d(x, np.where(rng.random((channels, channels, 3, 3)) < 0.5, -1.0, 1.0), padding=(1, 1))

    b = Builder()
    mix = b.conv2d("image", rng.standard_normal((channels, 3, 1, 1)).astype(np.float32))
    first = pooled(mix)
    total = b.op("add", inputs=(conv(bits(first)), conv(bits(first))))
    second = pooled(total)
    out = b.op("add", inputs=(conv(bits(second)), second))
    file = b.write(tmp_path / "m.safetensors", out, channels, (11, 14))
    check(file.path, isa, 2)
    pools = [layout for step in make_plan(file).steps if step.ops[0].startswith("max_pool") for layout in step.reads]
    assert [name.endswith("unpooled") for name in pools] == [True, True, False]


def test_an_unused_op_costs_nothing(tmp_path: Path, check: Check) -> None:
    b = Builder()
    b.op("upsample", input="image", factor=8)
    kept = b.op("max_pool2d", input="image", kernel=(2, 2), stride=(2, 2))
    b.write(tmp_path / "m", kept, 3, (8, 8))
    assert Session.load(tmp_path / "m").arena_bytes < 8 * 8 * 8 * 8 * 3 * 4
