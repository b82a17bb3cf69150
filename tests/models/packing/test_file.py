"""The packed file: read by a program that is not ours, and hostile variants refused by field."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from models.packing.file import InputSpec, PackedFileError, PackedHeader, Sizes, read, write
from models.packing.graph import BinaryConv2d, Conv2d, GlobalAvgPool, Graph, Threshold

INPUT = InputSpec(height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def ops():
    return [
        Conv2d(output="a", input="image", weight="stem", out_channels=70, kernel=(3, 3), padding=(1, 1)),
        Threshold(output="b", input="a", threshold="t"),
        BinaryConv2d(output="c", input="b", weight="w", out_channels=5, kernel=(3, 3), scale="s", source="blocks.0"),
        GlobalAvgPool(output="d", input="c"),
        Conv2d(output="e", input="d", weight="head", out_channels=2, kernel=(1, 1)),
    ]


def tensors():
    rng = np.random.default_rng(0)
    return {
        "stem": rng.standard_normal((70, 3, 3, 3), np.float32),
        "t": rng.standard_normal(70, np.float32),
        "w": rng.integers(0, 2**63, (5, 3, 3, 2), np.uint64),
        "s": rng.standard_normal(5, np.float32),
        "head": rng.standard_normal((2, 1, 1, 5)).astype(np.float16),
    }


def header(**changes):
    fields = {
        "architecture": "tiny",
        "task": "classification",
        "input": INPUT,
        "graph": Graph(ops=ops(), outputs={"logits": "e"}),
        "labels": ["yes", "no"],
        "provenance": {"seed": 1, "nested": {"list": [1, 2.5, None, "x"]}},
        "sizes": Sizes(packed_bytes=1, float32_bytes=2),
    }
    return PackedHeader(**{**fields, **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_what_is_written_is_read_back(path):
    write(path, header(), tensors())
    packed = read(path)
    assert packed.header == header()
    assert packed.file_bytes == path.stat().st_size
    for name, array in tensors().items():
        assert packed.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(packed.tensors[name], array)
        with pytest.raises(ValueError, match="read-only"):
            packed.tensors[name][...] = 0
    assert str(packed.values["c"]) == "float[6, 6, 5]"


def test_the_safetensors_library_reads_it(path):
    write(path, header(), tensors())
    with safe_open(path, framework="numpy") as other:
        assert set(other.keys()) == set(tensors())
        assert other.metadata()["format_version"] == "1"
        np.testing.assert_array_equal(other.get_tensor("w"), tensors()["w"])


def raw(path, metadata_changes=None, model_changes=None, tensor_changes=None):
    """A file made by the safetensors library, with changes that our writer would refuse."""
    model = json.loads(header().model_dump_json())
    for keys, value in (model_changes or {}).items():
        target = model
        *parents, last = keys
        for key in parents:
            target = target[key]
        target[last] = value
    metadata = {"format": "signet", "format_version": "1", "model": json.dumps(model), **(metadata_changes or {})}
    arrays = {**tensors(), **(tensor_changes or {})}
    path.write_bytes(save({k: v for k, v in arrays.items() if v is not None}, metadata=metadata))
    return path


BAD_HEADERS = {
    "unknown version": ({"metadata_changes": {"format_version": "99"}}, "format_version: is '99'"),
    "other program": ({"metadata_changes": {"format": "other"}}, "format: not a packed Signet model"),
    "model is no JSON": ({"metadata_changes": {"model": "{"}}, "JSON"),
    "model is deep": ({"metadata_changes": {"model": "[" * 100_000}}, "model"),
    "unknown field": ({"model_changes": {("extra",): 1}}, "extra"),
    "unknown op": ({"model_changes": {("graph", "ops", 0, "op"): "eval"}}, "graph.ops.0"),
    "unknown op field": ({"model_changes": {("graph", "ops", 1, "code"): "x"}}, "graph.ops.1.threshold.code"),
    "loop": (
        {"model_changes": {("graph", "ops", 0, "input"): "e"}},
        r"graph.ops\[0\].*'e' is not written by an earlier op",
    ),
    "written twice": ({"model_changes": {("graph", "ops", 3, "output"): "c"}}, r"graph.ops\[3\].*written twice"),
    "writes the image": ({"model_changes": {("graph", "ops", 0, "output"): "image"}}, "'image' is written twice"),
    "missing tensor": (
        {"model_changes": {("graph", "ops", 2, "weight"): "zzz"}},
        r"graph.ops\[2\].*blocks.0.*no tensor 'zzz'",
    ),
    "unused tensor": ({"tensor_changes": {"spare": np.zeros(3, np.float32)}}, "'spare' is stored but no op names it"),
    "absent tensor": ({"tensor_changes": {"s": None}}, "no tensor 's'"),
    "wrong shape": (
        {"tensor_changes": {"s": np.zeros(6, np.float32)}},
        r"scale: tensor 's' has shape \[6\], expected \[5\]",
    ),
    "wrong dtype": ({"tensor_changes": {"t": np.zeros(70, np.float16)}}, "threshold: tensor 't' is F16, expected F32"),
    "foreign dtype": ({"tensor_changes": {"s": np.zeros(5, np.float64)}}, "tensors.s.dtype: is 'F64'"),
    "wrong words": ({"tensor_changes": {"w": np.zeros((5, 3, 3, 1), np.uint64)}}, "weight: tensor 'w'"),
    "wrong kind": ({"model_changes": {("graph", "ops", 2, "input"): "a"}}, "expected a bits value"),
    "terabytes": (
        {
            "model_changes": {
                ("graph", "ops", 0, "padding"): [64, 64],
                ("input", "height"): 8192,
                ("input", "width"): 8192,
            }
        },
        "beyond|more than",
    ),
    "huge input": ({"model_changes": {("input", "height"): 1 << 40}}, "input.height"),
    "negative stride": ({"model_changes": {("graph", "ops", 0, "stride"): [-1, 1]}}, "graph.ops.0.conv2d.stride"),
    "huge kernel": ({"model_changes": {("graph", "ops", 0, "kernel"): [1 << 30, 3]}}, "graph.ops.0.conv2d.kernel"),
    "kernel too large": ({"model_changes": {("graph", "ops", 2, "dilation"): [9, 9]}}, "does not fit"),
    "groups": ({"model_changes": {("graph", "ops", 0, "groups"): 2}}, "groups: 2 divides not both"),
    "too few labels": ({"model_changes": {("labels",): ["yes"]}}, "graph.outputs.logits"),
    "no labels": ({"model_changes": {("labels",): None}}, "labels"),
    "no output": ({"model_changes": {("graph", "outputs"): {"other": "e"}}}, "logits"),
    "output is missing": ({"model_changes": {("graph", "outputs"): {"logits": "zzz"}}}, "'zzz'"),
    "zero std": ({"model_changes": {("input", "std"): [0, 1, 1]}}, "input.std"),
    "nan mean": ({"model_changes": {("input", "mean"): [float("nan"), 1, 1]}}, "input.mean"),
    "control character": (
        {"model_changes": {("graph", "ops", 0, "output"): "a\0bytes"}},
        r"graph.ops.0.conv2d.output: String should match pattern",
    ),
    "empty graph": ({"model_changes": {("graph", "ops"): []}}, "graph.ops"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_an_unsound_file_is_refused_by_field(path, case):
    changes, message = BAD_HEADERS[case]
    raw(path, **changes)
    with pytest.raises(PackedFileError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


SQUARE = {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}


def pose_header(**changes):
    """One convolution of stride 4 to two heatmaps."""
    conv = Conv2d(output="maps", input="image", weight="cells", out_channels=2, kernel=(4, 4), stride=(4, 4))
    fields = {
        "task": "pose",
        "labels": None,
        "input": {**SQUARE, "height": 16, "width": 16},
        "graph": Graph(ops=[conv], outputs={"heatmaps": "maps"}),
        "keypoints": {"names": ["a", "b"], "skeleton": [[0, 1]], "flip_pairs": [[0, 1]]},
    }
    return {**json.loads(header().model_dump_json()), **fields, "graph": fields["graph"].model_dump(), **changes}


BAD_POSES = {
    "limb beyond": (
        {"keypoints": {"names": ["a", "b"], "skeleton": [[0, 2]], "flip_pairs": []}},
        "skeleton",
    ),
    "negative limb": ({"keypoints": {"names": ["a", "b"], "skeleton": [[-1, 0]], "flip_pairs": []}}, "skeleton"),
    "pair beyond": ({"keypoints": {"names": ["a", "b"], "skeleton": [], "flip_pairs": [[0, 9]]}}, "flip_pairs"),
    "two pairs": ({"keypoints": {"names": ["a", "b"], "skeleton": [], "flip_pairs": [[0, 1], [1, 0]]}}, "flip_pairs"),
    "three keypoints": ({"keypoints": {"names": ["a", "b", "c"], "skeleton": [], "flip_pairs": []}}, "heatmaps"),
    "wide input": ({"input": {**SQUARE, "height": 16, "width": 32}}, "heatmaps: .* square"),
    "cells that do not fit": ({"input": {**SQUARE, "height": 18, "width": 18}}, "heatmaps: .* square"),
    "no keypoints": ({"keypoints": None}, "keypoints"),
}


def write_pose_file(path, **changes):
    metadata = {"format": "signet", "format_version": "1", "model": json.dumps(pose_header(**changes))}
    path.write_bytes(save({"cells": np.zeros((2, 4, 4, 3), np.float32)}, metadata=metadata))


def test_a_pose_model_is_read(path):
    write_pose_file(path)
    assert read(path).header.keypoints.names == ["a", "b"]


@pytest.mark.parametrize("case", BAD_POSES)
def test_an_unsound_pose_model_is_refused_by_field(path, case):
    changes, message = BAD_POSES[case]
    write_pose_file(path, **changes)
    with pytest.raises(PackedFileError, match=message):
        read(path)


def container(entries, data=b"", metadata=True):
    head = dict(entries)
    if metadata:
        head["__metadata__"] = {"format": "signet", "format_version": "1", "model": header().model_dump_json()}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2]}
BAD_CONTAINERS = {
    "empty": (b"", "too short"),
    "short": (b"\0" * 7, "too short"),
    "no header": (struct.pack("<Q", 100) + b"{}", "claims 100 bytes"),
    "terabytes of header": (struct.pack("<Q", 1 << 50) + b"{}", "claims"),
    "all ones": (b"\xff" * 64, "claims"),
    "header is no JSON": (struct.pack("<Q", 8) + b"not json", "is not JSON"),
    "header is a list": (struct.pack("<Q", 8) + b"[      ]", "not a JSON object"),
    "header is not UTF-8": (struct.pack("<Q", 8) + b"\xff" * 8, "is not JSON"),
    "unpadded header": (struct.pack("<Q", 2) + b"{}", "not padded"),
    "no metadata": (container({}, metadata=False), "not a packed Signet model"),
    "name twice": (struct.pack("<Q", 16) + b'{"a":1, "a":2}  ', "stands twice"),
    "beyond the end": (container({"x": {**F32, "data_offsets": [0, 8]}}, b"\0" * 4), "does not hold"),
    "backwards": (container({"x": {**F32, "data_offsets": [8, 0]}}, b"\0" * 8), "does not hold"),
    "negative": (container({"x": {**F32, "data_offsets": [-8, 0]}}, b"\0" * 8), "two whole numbers"),
    "negative dimension": (
        container({"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        "whole numbers",
    ),
    "size overflow": (
        container({"x": {"dtype": "F32", "shape": [1 << 40] * 8, "data_offsets": [0, 8]}}, b"\0" * 8),
        "does not hold",
    ),
    "overlap": (
        container({"x": {**F32, "data_offsets": [0, 8]}, "y": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12),
        "begins at 4",
    ),
    "gap": (container({"x": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12), "begins at 4, expected 0"),
    "bytes left over": (container({"x": {**F32, "data_offsets": [0, 8]}}, b"\0" * 12), "end at byte 8 of 12"),
    "unaligned": (
        container(
            {"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "y": {**F32, "data_offsets": [1, 9]}},
            b"\0" * 9,
        ),
        "not aligned",
    ),
    "odd entry": (container({"x": 3}), "expected dtype, shape"),
}


@pytest.mark.parametrize("case", BAD_CONTAINERS)
def test_an_unsound_container_is_refused(path, case):
    data, message = BAD_CONTAINERS[case]
    path.write_bytes(data)
    with pytest.raises(PackedFileError, match=message):
        read(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(PackedFileError, match=r"absent\.safetensors: cannot be read"):
        read(tmp_path / "absent.safetensors")
    for name in (".", "no\0name"):
        with pytest.raises(PackedFileError, match="cannot be read"):
            read(tmp_path / name)


def test_a_failed_write_leaves_the_old_file(path):
    write(path, header(), tensors())
    before = path.read_bytes()
    with pytest.raises(PackedFileError, match="no tensor 's'"):
        write(path, header(), {k: v for k, v in tensors().items() if k != "s"})
    with pytest.raises(PackedFileError, match="float64 cannot be stored"):
        write(path, header(), {**tensors(), "s": np.zeros(5)})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
