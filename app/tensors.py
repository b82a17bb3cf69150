"""The Open Inference Protocol V2 on the wire: requests become pictures, outputs become tensors.

A model has one input, `image`. It is advertised as UINT8 `[N, height, width, 3]`, the pixels that the network takes. It
takes as well FP32 of that shape or `[N, 3, height, width]`: pixels that the client has normalised; and BYTES `[N]` (or
`[N, 1]`): encoded pictures, prepared as those of the other routes. One input and not three, because clients fill every
input that they find. Tensors come and go as JSON or, under the binary tensor
extension, as raw bytes behind the JSON. A JSON string of a BYTES tensor is a picture in base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from app.errors import Problem, ServiceError
from models.packing.file import InputSpec, PackedFile
from models.packing.graph import words

INPUT = "image"
MAX_JSON_BYTES = 4 << 20
"""Numbers in JSON are read on the event loop and take ten times their bytes in memory; larger tensors come binary."""
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT64": np.dtype("<u8")}
MAX_SIDE = (1 << 31) - 1
"""A larger batch is no batch but an attack on somebody's arithmetic."""
_LENGTH = re.compile(r"[0-9]{1,15}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: Annotated[StrictStr, Field(max_length=200)]
    parameters: dict[str, Any] = Field(default_factory=dict)


class InputTensor(_Part):
    """A tensor of a request; its data stand here or, with `binary_data_size`, behind the JSON."""

    shape: Annotated[list[StrictInt], Field(min_length=1, max_length=8)]
    datatype: StrictStr
    data: list[Any] | None = None


class RequestedOutput(_Part):
    """An output that the client wants; `classification` and `binary_data` are its known parameters."""


class InferRequest(BaseModel):
    """The JSON of an inference request."""

    id: Annotated[StrictStr, Field(max_length=1000)] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: Annotated[list[InputTensor], Field(max_length=16)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=64)] | None = None


M = TypeVar("M", bound=BaseModel)
P = TypeVar("P", bound=_Part)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as metadata describe it; `shape` is without the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """How one output goes back: as JSON or bytes; with `classes`, as the best so many of each row."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferCall:
    """A request understood: its pictures, and how long its client waits.

    Pictures are uint8 pixels or float32 normalised ones, `[N, height, width, 3]`, or encoded.
    """

    images: NDArray[np.uint8] | NDArray[np.float32] | list[bytes]
    wanted: list[Wanted]
    id: str | None = None
    timeout_s: float = math.inf


def input_spec(spec: InputSpec) -> TensorSpec:
    """The input as it is advertised."""
    return TensorSpec(INPUT, "UINT8", (spec.height, spec.width, 3))


def output_specs(file: PackedFile) -> list[TensorSpec]:
    """The outputs of a model, as `Session.run` gives them."""
    specs = []
    for name, value_name in file.header.graph.outputs.items():
        value = file.values[value_name]
        bits = value.kind == "bits"
        last = words(value.channels) if bits else value.channels
        shape = (last,) if (value.height, value.width) == (1, 1) else (value.height, value.width, last)
        specs.append(TensorSpec(name, "UINT64" if bits else "FP32", shape))
    return specs


def parse_call(body: bytes, header_length: str | None, file: PackedFile, max_images: int) -> InferCall:
    """Read an inference request; `header_length` is the `Inference-Header-Content-Length`.

    A length of 0 means that the whole body is pixels. Raises ServiceError EMPTY_BODY, BAD_JSON, BAD_TENSOR,
    BODY_TOO_LARGE, EMPTY_BATCH or BATCH_TOO_LARGE.
    """
    if not body:
        raise ServiceError(Problem.EMPTY_BODY, "Send an inference request as JSON.")
    spec = input_spec(file.header.input)
    length = _json_length(header_length, len(body))
    if length == 0:
        count, rest = divmod(len(body), prod(spec.shape))
        if rest:
            raise _bad(INPUT, f"{len(body)} bytes are no whole number of pictures of {list(spec.shape)}")
        request = InferRequest(
            inputs=[InputTensor(name=INPUT, shape=[count, *spec.shape], datatype="UINT8")],
            parameters={"binary_data_output": True},
        )
        request.inputs[0].parameters["binary_data_size"] = len(body)
    else:
        request = parse_json(body[:length], InferRequest)
    return read_call(request, lambda tensor: _raw(tensor, memoryview(body)[length:]), file, max_images)


def read_call(
    request: InferRequest, raw: Callable[[InputTensor], memoryview | None], file: PackedFile, max_images: int
) -> InferCall:
    """Check a request against a model, whichever protocol it came by.

    `raw` gives a tensor's bytes, None where the tensor has data; elements of BYTES data are base64, or bytes as they
    are. Raises ServiceError BAD_REQUEST, BAD_TENSOR, EMPTY_BATCH or BATCH_TOO_LARGE.
    """
    wanted = _wanted(request, file)
    (tensor,) = _named(request.inputs, {INPUT}, "input", required=True)
    spec = input_spec(file.header.input)
    images = _images(tensor, raw(tensor), spec, max_images)
    return InferCall(images, wanted, request.id, _timeout_s(request.parameters))


def parse_json(data: bytes, model: type[M]) -> M:
    """JSON without NaN and Infinity, at most 200 deep, checked against a model. Raises ServiceError BAD_JSON."""
    if len(data) > MAX_JSON_BYTES:
        detail = f"The JSON is larger than {MAX_JSON_BYTES} bytes; send tensors as binary data."
        raise ServiceError(Problem.BODY_TOO_LARGE, detail)
    try:
        return model.model_validate(from_json(data, allow_inf_nan=False))
    except ValidationError as error:
        raise ServiceError(Problem.BAD_JSON, explained(error)) from error
    except ValueError as error:
        raise ServiceError(Problem.BAD_JSON, f"The body is not sound JSON: {error}.") from error


def explained(error: ValidationError) -> str:
    """Which field of a request is not as it should be, and why."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "request"
    return f"{field[:200]}: {first['msg']}"


def _json_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not _LENGTH.fullmatch(header) or int(header) > size:
        detail = f"Inference-Header-Content-Length has to be a number of bytes from 0 to the body's {size}."
        raise ServiceError(Problem.BAD_REQUEST, detail)
    return int(header)


def _bad(name: str, detail: str) -> ServiceError:
    return ServiceError(Problem.BAD_TENSOR, f"{name[:200]}: {detail}")


def _named(tensors: Sequence[P], known: set[str], what: str, *, required: bool = False) -> Sequence[P]:
    """The tensors, each known and named once."""
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name not in known:
            raise _bad(tensor.name, f"the model has no such {what}; it has {', '.join(sorted(known))}")
        if tensor.name in seen:
            raise _bad(tensor.name, f"the {what} stands more than once")
        if any(key.startswith("shared_memory") for key in tensor.parameters):
            raise _bad(tensor.name, "shared memory is not supported")
        seen.add(tensor.name)
    if required and seen != known:
        raise _bad(", ".join(sorted(known - seen)), f"the {what} is missing")
    return tensors


def _flag(parameters: Mapping[str, Any], key: str, where: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise _bad(where, f"{key} has to be true or false")
    return value


def _timeout_s(parameters: Mapping[str, Any]) -> float:
    """Triton's request parameter `timeout`, microseconds of which 0 means no limit, in seconds."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ServiceError(
            Problem.BAD_REQUEST, "parameters: timeout has to be a whole number of microseconds, 0 or more."
        )
    return value / 1e6 if value else math.inf


def _wanted(request: InferRequest, file: PackedFile) -> list[Wanted]:
    specs = {spec.name: spec for spec in output_specs(file)}
    default = _flag(request.parameters, "binary_data_output", "parameters")
    if not request.outputs:
        return [Wanted(name, default) for name in specs]
    wanted = []
    for output in _named(request.outputs, set(specs), "output"):
        binary = _flag({"binary_data": default, **output.parameters}, "binary_data", output.name)
        classes = output.parameters.get("classification", 0)
        if "classification" in output.parameters:
            if type(classes) is not int or classes < 1:
                raise _bad(output.name, "classification has to be a number of classes, 1 or more")
            if file.header.labels is None or specs[output.name].shape != (len(file.header.labels),):
                raise _bad(output.name, "classification needs an output with one value a class")
        wanted.append(Wanted(output.name, binary, classes))
    return wanted


def _raw(tensor: InputTensor, rest: memoryview) -> memoryview | None:
    """The tensor's bytes behind the JSON, which nothing else may follow; None where its data stand in the JSON."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if len(rest):
            raise _bad(tensor.name, f"{len(rest)} bytes follow the JSON that no tensor claims")
        return None
    if type(size) is not int or size != len(rest):
        raise _bad(tensor.name, f"binary_data_size does not match the {len(rest)} bytes behind the JSON")
    if tensor.data is not None:
        raise _bad(tensor.name, "has both data and binary_data_size")
    return rest


def _images(
    tensor: InputTensor, raw: memoryview | None, spec: TensorSpec, max_images: int
) -> NDArray[np.uint8] | NDArray[np.float32] | list[bytes]:
    shape = tuple(tensor.shape)
    height, width, channels = spec.shape
    if tensor.datatype == "UINT8":
        expected, fits = f"[N, {height}, {width}, {channels}]", shape[1:] == spec.shape
    elif tensor.datatype == "FP32":
        expected = f"[N, {height}, {width}, {channels}] or [N, {channels}, {height}, {width}]"
        fits = shape[1:] in (spec.shape, (channels, height, width))
    elif tensor.datatype == "BYTES":
        expected, fits = "[N] or [N, 1]", shape[1:] in ((), (1,))
    else:
        known = "UINT8 (pixels), FP32 (normalised pixels) or BYTES (encoded pictures)"
        raise _bad(tensor.name, f"datatype {tensor.datatype[:40]!r} is not {known}")
    if not fits or not 0 <= shape[0] <= MAX_SIDE:
        raise _bad(tensor.name, f"shape {_short(shape)} is not {expected}")
    check_batch(shape[0], max_images)
    if tensor.datatype == "UINT8":
        return _pixels(tensor, raw, shape)
    if tensor.datatype == "FP32":
        values = _floats(tensor, raw, shape)
        return values if shape[1:] == spec.shape else values.transpose(0, 2, 3, 1)
    pictures = _encoded_json(tensor) if raw is None else list(_split(tensor.name, raw))
    if len(pictures) != shape[0]:
        raise _bad(tensor.name, f"holds {len(pictures)} elements, its shape says {shape[0]}")
    return pictures


def _short(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(side) if abs(side) < 1 << 63 else "..." for side in shape) + "]"


def check_batch(images: int, max_images: int) -> None:
    """Raise ServiceError EMPTY_BATCH or BATCH_TOO_LARGE unless a request may have so many pictures."""
    if images == 0:
        raise ServiceError(Problem.EMPTY_BATCH, "The batch has no pictures.")
    if images > max_images:
        raise ServiceError(Problem.BATCH_TOO_LARGE, f"A batch may have at most {max_images} pictures.")


def _pixels(tensor: InputTensor, raw: memoryview | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if raw is not None:
        return _from_bytes(tensor.name, raw, np.dtype(np.uint8), shape)
    values = _from_json(tensor, shape)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise _bad(tensor.name, "UINT8 data have to be whole numbers from 0 to 255")
    return values.astype(np.uint8).reshape(shape)


def _floats(tensor: InputTensor, raw: memoryview | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if raw is not None:
        return _from_bytes(tensor.name, raw, np.dtype("<f4"), shape)
    values = _from_json(tensor, shape)
    if values.dtype.kind not in "iuf":
        raise _bad(tensor.name, "FP32 data have to be numbers")
    with np.errstate(over="ignore"):  # it becomes infinite, and is refused as that
        return values.astype(np.float32).reshape(shape)


def _from_bytes(name: str, raw: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if len(raw) != prod(shape) * dtype.itemsize:
        raise _bad(name, f"{len(raw)} bytes do not fill the shape {_short(shape)}")
    return np.frombuffer(raw, dtype).reshape(shape)


def _from_json(tensor: InputTensor, shape: tuple[int, ...]) -> NDArray[Any]:
    """A tensor's data, flat or in rows as its shape says."""
    try:
        values = np.asarray(tensor.data if tensor.data is not None else [])
    except (ValueError, OverflowError) as error:
        raise _bad(tensor.name, "its rows are not of one length") from error
    if values.size != prod(shape) or (values.ndim > 1 and values.shape != shape):
        raise _bad(tensor.name, f"data of shape {_short(values.shape)} do not fill the shape {_short(shape)}")
    return values


def _split(name: str, raw: memoryview) -> Iterator[bytes]:
    """The elements of a binary BYTES tensor: each a length of four bytes, least first, and so many bytes."""
    position = 0
    while position < len(raw):
        begin = position + 4
        size = int.from_bytes(raw[position:begin], "little")
        position = begin + size
        if position > len(raw):
            raise _bad(name, "an element's length goes beyond the tensor's bytes")
        yield bytes(raw[begin:position])


def _encoded_json(tensor: InputTensor) -> list[bytes]:
    elements = [element for row in tensor.data or [] for element in (row if isinstance(row, list) else [row])]
    return [_encoded(tensor.name, element) for element in elements]


def _encoded(name: str, element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if not isinstance(element, str):
        raise _bad(name, "BYTES data in JSON have to be strings: pictures in base64")
    try:
        return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError):
        return element.encode()  # no picture, as those are not UTF-8; what it is instead, decoding will say


def encode_answer(
    call: InferCall, model: str, version: str, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where tensors follow it."""
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for wanted, values in wanted_values(call, outputs, labels):
        entry: dict[str, Any] = {"name": wanted.name, "datatype": datatype_of(values), "shape": list(values.shape)}
        if wanted.binary:
            raw.append(to_bytes(values))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = values.ravel().tolist()
        described.append(entry)
    answer = {"model_name": model, "model_version": version, "outputs": described}
    if call.id is not None:
        answer["id"] = call.id
    head = json.dumps(answer, separators=(",", ":")).encode()
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)


def wanted_values(
    call: InferCall, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None
) -> Iterator[tuple[Wanted, NDArray[Any]]]:
    """Each output that is wanted, with its values or the text of its best classes."""
    for wanted in call.wanted:
        values = outputs[wanted.name]
        yield wanted, classify_rows(values, labels or (), wanted.classes) if wanted.classes else values


def classify_rows(values: NDArray[np.float32], labels: Sequence[str], classes: int) -> NDArray[np.object_]:
    """The classification extension: `[N, min(classes, all)]` of `value:index:label`, the largest value first."""
    best = np.argsort(-values, axis=1, kind="stable")[:, :classes]
    rows = [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in chosen]
        for row, chosen in zip(values, best, strict=True)
    ]
    return np.array(rows, dtype=object).reshape(best.shape)


def datatype_of(values: NDArray[Any]) -> str:
    """The protocol's name for the type of an output's values."""
    return next((name for name, dtype in _DTYPES.items() if dtype == values.dtype), "BYTES")


def to_bytes(values: NDArray[Any]) -> bytes:
    """An output's values as the binary tensor extension and gRPC carry them."""
    if values.dtype in _DTYPES.values():
        return values.tobytes()
    elements = [text.encode() for text in values.ravel()]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
