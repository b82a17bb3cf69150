"""Files that nobody vouches for: any change of a packed file loads and runs, or is refused with its one error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.packing.file import PackedFileError
from models.packing.graph import GraphError
from models.xnor import EngineError, Session, available_isas
from tests.models.xnor.builder import Builder, random_images

FUZZ = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Hidden(bytes):
    """Bytes that no failure message prints."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def mixed(b: Builder, rng: np.random.Generator) -> str:
    """Ops of every kind, real and binary."""
    x = b.conv2d("image", rng.standard_normal((20, 3, 3, 3)).astype(np.float16), padding=(1, 1))
    x = b.op("max_pool2d", input=x, kernel=(2, 2), stride=(2, 2))
    bits = b.threshold(x, np.zeros(20, np.float32), np.zeros(20, np.uint8))
    signs = np.where(rng.random((20, 10, 3, 3)) < 0.5, -1.0, 1.0)
    y = b.binary_conv2d(bits, signs, padding=(1, 1), groups=2, scale=np.ones(20, np.float32))
    y = b.op("add", inputs=(b.op("prelu", input=y, slope=np.ones(20, np.float32)), x))
    y = b.op("concat", inputs=(y, b.op("affine", input=x, scale=np.ones(20, np.float32), bias=np.ones(20, np.float32))))
    y = b.op("global_avg_pool", input=b.op("upsample", input=y, factor=2))
    return b.conv2d(y, np.ones((4, 40, 1, 1), np.float32))


def of_8_bits(b: Builder, rng: np.random.Generator) -> str:
    """A stem of the picture's own bytes, pooled as it is made, and 8-bit layers behind it."""

    def levels(*shape: int) -> NDArray[np.int8]:
        return rng.integers(-128, 128, shape, dtype=np.int8)

    ones = np.ones(20, np.float32)
    x = b.pixel_conv2d(levels(20, 3, 3, 5), zero=(124, 0, 255), scale=ones, bias=ones, stride=(1, 2), padding=(1, 2))
    x = b.op("max_pool2d", input=b.op("prelu", input=x, slope=ones), kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    bits = b.threshold(x, np.zeros(20, np.float32))
    signs = np.where(rng.random((18, 20, 3, 3)) < 0.5, -1.0, 1.0)
    y = b.binary_conv2d(bits, signs, padding=(1, 1))
    y = b.op("add", inputs=(y, b.int8_conv2d(x, levels(18, 20), scale=ones[:18], bias=ones[:18])))
    return b.int8_conv2d(b.op("global_avg_pool", input=y), levels(4, 18), scale=ones[:4])


@pytest.fixture(scope="module", params=[mixed, of_8_bits])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    b = Builder()
    output = request.param(b, np.random.default_rng(7))
    path = tmp_path_factory.mktemp("good") / "m"
    b.write(path, output, 4, (8, 8), labels=True)
    return Hidden(path.read_bytes())


def attempt(path: Path, data: bytes) -> str | None:
    """The refusal, or None where the file loaded and ran."""
    path.write_bytes(data)
    refusal: str | None = None
    try:
        session = Session.load(path, threads=1)
    except (PackedFileError, EngineError) as error:
        refusal = str(error)
    if refusal is not None:
        assert str(path) in refusal
        return refusal
    if session.arena_bytes < 1 << 26:
        session.run(random_images(session.file, 1))
    return None


@FUZZ
@given(data=st.data())
def test_changed_bytes(good: bytes, tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(good)
    header_end = 8 + int.from_bytes(good[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        last = data.draw(st.sampled_from([8, header_end, len(good)])) - 1
        changed[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    attempt(tmp_path / "m", bytes(changed))


@FUZZ
@given(cut=st.integers(0, 1 << 16), extra=st.binary(max_size=32))
def test_truncated_and_extended(good: bytes, tmp_path: Path, cut: int, extra: bytes) -> None:
    changed = good[: cut % (len(good) + 1)] + extra
    if changed != good:
        assert attempt(tmp_path / "m", changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["image", "v0", "v3", "v4", "U64", "F32", "I8", "conv2d", "int8_conv2d", "bits"])
    | st.integers(-2, 70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(node: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [path, *(p for key, child in children for p in places(child, (*path, key)))]


def rebuilt(good: bytes, header: object, model: object) -> bytes:
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict) and model is not None:
        header["__metadata__"]["model"] = json.dumps(model)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + good[8 + int.from_bytes(good[:8], "little") :]


@FUZZ
@given(data=st.data(), in_model=st.booleans(), value=JSON)
def test_any_field_of_the_header_replaced(
    good: bytes, tmp_path: Path, data: st.DataObject, in_model: bool, value: object
) -> None:
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    model = json.loads(header["__metadata__"]["model"])
    root = model if in_model else header
    where = data.draw(st.sampled_from(places(root)[1:]))
    parent = root
    for key in where[:-1]:
        parent = parent[key]
    if data.draw(st.booleans()):
        parent[where[-1]] = value
    else:
        del parent[where[-1]]
    attempt(tmp_path / "m", rebuilt(good, header, model if in_model else None))


def test_the_good_file_is_good(good: bytes, tmp_path: Path) -> None:
    assert attempt(tmp_path / "m", good) is None


SIZES = st.sampled_from([(1, 1), (1, 700), (700, 1), (2, 513), (13, 13), (14, 31), (40, 3)])
CHANNELS = st.sampled_from([1, 3, 15, 16, 17, 63, 64, 65, 130, 515])
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
WINDOWS = st.sampled_from([(1, 1), (2, 2), (3, 3), (1, 13), (13, 1), (5, 7), (13, 13)])


@settings(FUZZ, max_examples=100)
@given(data=st.data(), size=SIZES, out=CHANNELS, last=CHANNELS)
def test_shapes_at_the_edge_run_and_do_not_depend_on_the_kernels(
    tmp_path: Path, data: st.DataObject, size: tuple[int, int], out: int, last: int
) -> None:
    """One channel, wide and tiny pictures, windows larger than the picture, pools of more rows than are kept."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def draw(kernel: tuple[int, int], most: int) -> dict[str, tuple[int, int]]:
        padding = tuple(data.draw(st.integers(0, min(most, side // 2))) for side in kernel)
        return {"stride": data.draw(PAIRS), "padding": (padding[0], padding[1])}

    def vector(channels: int) -> NDArray[np.float32]:
        return rng.standard_normal(channels).astype(np.float32)

    b = Builder()
    kernel, pool = data.draw(WINDOWS), data.draw(WINDOWS)
    weight = rng.integers(-128, 128, (out, 3, *kernel), dtype=np.int8)
    zero = tuple(data.draw(st.integers(0, 255)) for _ in range(3))
    x = b.pixel_conv2d(weight, zero=zero, scale=vector(out), bias=vector(out), **draw(kernel, 6))
    if data.draw(st.booleans()):
        x = b.op("prelu", input=x, slope=vector(out))
    if data.draw(st.booleans()):
        x = b.op("max_pool2d", input=x, kernel=pool, **draw(pool, 6))
    bits = b.threshold(x, vector(out))
    y = b.binary_conv2d(bits, np.where(rng.random((last, out, 1, 1)) < 0.5, -1.0, 1.0))
    levels = rng.integers(-128, 128, (last, out), dtype=np.int8)
    y = b.op("add", inputs=(y, b.int8_conv2d(x, levels, scale=vector(last))))
    try:
        file = b.write(tmp_path / "m", y, last, size)
    except (GraphError, PackedFileError):
        assume(False)  # a window larger than what it slides over
    images = random_images(file, 1)
    plain = Session.load(file.path, isa="portable", threads=1, fuse=False).run(images)["map"]
    for isa in available_isas():
        assert np.array_equal(Session.load(file.path, isa=isa, threads=1).run(images)["map"], plain), isa
