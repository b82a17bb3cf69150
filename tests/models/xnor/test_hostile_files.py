"""Files that nobody vouches for: any change of a packed file loads and runs, or is refused with its one error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.packing.file import PackedFileError
from models.xnor import EngineError, Session
from tests.models.xnor.builder import Builder, random_images

FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Hidden(bytes):
    """Bytes that no failure message prints."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    rng = np.random.default_rng(7)
    b = Builder()
    x = b.conv2d("image", rng.standard_normal((20, 3, 3, 3)).astype(np.float16), padding=(1, 1))
    x = b.op("max_pool2d", input=x, kernel=(2, 2), stride=(2, 2))
    bits = b.threshold(x, np.zeros(20, np.float32), np.zeros(20, np.uint8))
    signs = np.where(rng.random((20, 10, 3, 3)) < 0.5, -1.0, 1.0)
    y = b.binary_conv2d(bits, signs, padding=(1, 1), groups=2, scale=np.ones(20, np.float32))
    y = b.op("add", inputs=(b.op("prelu", input=y, slope=np.ones(20, np.float32)), x))
    y = b.op("concat", inputs=(y, b.op("affine", input=x, scale=np.ones(20, np.float32), bias=np.ones(20, np.float32))))
    y = b.op("global_avg_pool", input=b.op("upsample", input=y, factor=2))
    path = tmp_path_factory.mktemp("good") / "m"
    b.write(path, b.conv2d(y, np.ones((4, 40, 1, 1), np.float32)), 4, (8, 8), labels=True)
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
    | st.sampled_from(["image", "v0", "v3", "v4", "U64", "F32", "conv2d", "bits"]) | st.integers(-2, 70),
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
