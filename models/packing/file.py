"""The packed file: one `model.safetensors`, format version 1.

The tensors are the graph's weights. The safetensors `__metadata__` holds three strings: `format`
(`signet`), `format_version` (`1`) and `model`, the JSON of `PackedHeader`. Nothing is pickled.
`read` maps the file read-only and checks everything, sizes before contents, so a file that
somebody else made can do no harm beyond an error message that names the file and the field.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError, model_validator

from models.packing.graph import Graph, GraphError, Name, Side, Strict, TensorInfo, Value, first_problem

FORMAT = "signet"
FORMAT_VERSION = "1"
MAX_HEADER_BYTES = 16 << 20
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U64": np.dtype("<u8"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}


class PackedFileError(ValueError):
    """A packed file that cannot be used: `path: field: what is wrong`."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.problem = problem


class Resize(Strict):
    """How a picture of any size becomes the network's input.

    `crop`: the shorter side is resized to `short_side_px`, then the middle is cut out.
    `stretch`: resized to the input's size, whatever the aspect ratio.
    `letterbox`: resized to fit inside, the rest filled with the mean colour.
    """

    mode: Literal["crop", "stretch", "letterbox"] = "crop"
    short_side_px: Side | None = None
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"


class InputSpec(Strict):
    """The network's input in pixels, and how pixels become numbers: `(pixel / 255 - mean) / std`, RGB."""

    height: Side
    width: Side
    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    resize: Resize = Resize()

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The mean as a pixel: what fills the input where there is no picture."""
        red, green, blue = (round(min(max(channel, 0.0), 1.0) * 255) for channel in self.mean)
        return red, green, blue


class Keypoints(Strict):
    """Names of the keypoints, the limbs between them, and the left/right pairs that a flip swaps (indices)."""

    names: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    skeleton: Annotated[list[tuple[int, int]], Field(max_length=10_000)]
    flip_pairs: Annotated[list[tuple[int, int]], Field(max_length=500)]

    @model_validator(mode="after")
    def _indices_exist(self) -> Keypoints:
        for field, pairs in (("skeleton", self.skeleton), ("flip_pairs", self.flip_pairs)):
            for pair in pairs:
                if not all(0 <= index < len(self.names) for index in pair):
                    raise ValueError(f"{field}: {list(pair)} names no keypoints, there are {len(self.names)}")
        swapped = [index for pair in self.flip_pairs for index in pair]
        if len(set(swapped)) != len(swapped):
            raise ValueError("flip_pairs: a keypoint stands in two pairs")
        return self


class Sizes(Strict):
    """Bytes of the weights: as stored here, and as the same network in float32."""

    packed_bytes: Annotated[int, Field(ge=0)]
    float32_bytes: Annotated[int, Field(ge=0)]


class PackedHeader(Strict):
    """Everything about a packed network except its weights.

    `labels` belongs to classification (one a class, in the order of the logits), `keypoints` to pose.
    `provenance` is free-form JSON: recipe, data set, seed, commit, metrics.
    """

    architecture: Annotated[str, Field(max_length=200)]
    task: Literal["classification", "pose"]
    input: InputSpec
    graph: Graph
    labels: Annotated[list[str], Field(max_length=100_000)] | None = None
    keypoints: Keypoints | None = None
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    sizes: Sizes

    @model_validator(mode="after")
    def _task_has_its_names(self) -> PackedHeader:
        if self.task == "classification" and (not self.labels or "logits" not in self.graph.outputs):
            raise ValueError("a classification model needs labels and an output named 'logits'")
        if self.task == "pose" and (self.keypoints is None or "heatmaps" not in self.graph.outputs):
            raise ValueError("a pose model needs keypoints and an output named 'heatmaps'")
        return self

    def check_outputs(self, values: Mapping[str, Value]) -> None:
        """Raise GraphError unless the outputs have one channel a label or keypoint, and heatmaps fit the input."""
        if self.task == "classification" and self.labels is not None:
            expected, name = Value("float", 1, 1, len(self.labels)), "logits"
            value = values[self.graph.outputs[name]]
        else:
            name = "heatmaps"
            value = values[self.graph.outputs[name]]
            names = self.keypoints.names if self.keypoints is not None else []
            expected = Value("float", value.height, value.height, len(names))
            side = self.input.height
            if self.input.width != side or side % value.height:
                raise GraphError(
                    f"graph.outputs.heatmaps: has {value.height} rows for an input of {self.input.width} x {side} px, "
                    "expected a square input, whose side they divide"
                )
        if value != expected:
            raise GraphError(f"graph.outputs.{name}: is {value}, expected {expected}")


@dataclass(frozen=True)
class PackedFile:
    """A packed file that was read and proven sound.

    Attributes
    ----------
    path : where it lies.
    header : its description.
    values : the shape of every value of the graph, by name.
    tensors : the stored arrays by name; read-only views of the mapped file.
    file_bytes : the file's size.
    """

    path: Path
    header: PackedHeader
    values: Mapping[str, Value]
    tensors: Mapping[str, NDArray[Any]]
    file_bytes: int


def read(path: str | os.PathLike[str]) -> PackedFile:
    """Map, check and describe a packed file. Raises PackedFileError naming the field that is wrong."""
    path = Path(path)
    try:
        with path.open("rb") as handle:
            file_bytes = os.fstat(handle.fileno()).st_size
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if file_bytes else b""
    except OSError as error:
        raise PackedFileError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path that no file can have
        raise PackedFileError(path, f"cannot be read: {error}") from error
    if file_bytes < 8:
        raise PackedFileError(path, f"header: the file has {file_bytes} bytes, too short for a packed model")
    try:
        header_bytes = int.from_bytes(mapped[:8], "little")
        if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise GraphError(f"header: claims {header_bytes} bytes, the file has {file_bytes}")
        if header_bytes % 8:
            raise GraphError(f"header: its {header_bytes} bytes are not padded to a multiple of 8")
        raw = _parse_header(mapped[8 : 8 + header_bytes])
        metadata = raw.pop("__metadata__", None)
        header = _parse_model(metadata)
        infos, offsets = _parse_tensors(raw, file_bytes - 8 - header_bytes)
        values = header.graph.infer(infos, header.input.height, header.input.width)
        header.check_outputs(values)
    except GraphError as error:
        raise PackedFileError(path, str(error)) from error
    start = 8 + header_bytes
    tensors = {
        name: np.frombuffer(
            mapped, dtype=DTYPES[info.dtype], count=prod(info.shape), offset=start + offsets[name]
        ).reshape(info.shape)
        for name, info in infos.items()
    }
    return PackedFile(path, header, values, tensors, file_bytes)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise GraphError("header: a name stands twice")
    return found


def _parse_header(data: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, GraphError):
            raise
        raise GraphError(f"header: is not JSON ({type(error).__name__})") from error
    if not isinstance(raw, dict):
        raise GraphError("header: is not a JSON object")
    return raw


def _parse_model(metadata: object) -> PackedHeader:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise GraphError("__metadata__.format: not a packed Signet model")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise GraphError(f"__metadata__.format_version: is {version!r}, this program reads {FORMAT_VERSION!r}")
    text = metadata.get("model")
    if not isinstance(text, str):
        raise GraphError("__metadata__.model: is missing")
    try:
        return PackedHeader.model_validate_json(text)
    except ValidationError as error:
        raise GraphError(first_problem(error)) from error
    except RecursionError as error:
        raise GraphError("__metadata__.model: nested too deep") from error


def _parse_tensors(raw: dict[str, Any], data_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    infos: dict[str, TensorInfo] = {}
    offsets: dict[str, int] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in raw.items():
        where = f"tensors.{name}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise GraphError(f"{where}: expected dtype, shape and data_offsets")
        dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise GraphError(f"{where}.dtype: is {dtype!r}, expected one of {', '.join(DTYPES)}")
        if not _naturals(shape) or len(shape) > 8:
            raise GraphError(f"{where}.shape: expected up to 8 whole numbers")
        if not _naturals(span) or len(span) != 2:
            raise GraphError(f"{where}.data_offsets: expected two whole numbers")
        begin, end = span
        info = TensorInfo(dtype, tuple(shape))
        if not begin <= end <= data_bytes or end - begin != info.bytes:
            raise GraphError(
                f"{where}.data_offsets: {begin} to {end} does not hold {dtype} {shape} within {data_bytes} bytes"
            )
        if begin % DTYPES[dtype].itemsize:
            raise GraphError(f"{where}.data_offsets: {begin} is not aligned to {dtype}")
        infos[name], offsets[name] = info, begin
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise GraphError(f"tensors.{name}.data_offsets: begins at {begin}, expected {position}")
        position = end
    if position != data_bytes:
        raise GraphError(f"tensors: end at byte {position} of {data_bytes}")
    return infos, offsets


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def write(path: str | os.PathLike[str], header: PackedHeader, tensors: Mapping[str, NDArray[Any]]) -> PackedFile:
    """Write a packed file and read it back. Raises PackedFileError if the result would not be sound."""
    from safetensors.numpy import save

    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, array in tensors.items():
        if array.dtype not in names:
            raise PackedFileError(path, f"tensors.{name}.dtype: {array.dtype} cannot be stored")
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": header.model_dump_json(exclude_defaults=False),
    }
    data = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata=metadata)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    try:
        read(partial)
    except PackedFileError as error:
        partial.unlink()
        raise PackedFileError(path, error.problem) from error
    partial.replace(path)
    return read(path)
