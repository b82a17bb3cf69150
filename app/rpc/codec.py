"""Tensors in messages: requests become pictures, outputs become tensors.

Input comes as `raw_input_contents`, which all clients use that care for speed, or as the numbers and byte strings of
`contents`. A BYTES element is an encoded picture as it is. Output always goes as `raw_output_contents`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from app.errors import Problem, ServiceError
from app.rpc.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from app.tensors import (
    InferCall,
    InferRequest,
    InputTensor,
    RequestedOutput,
    datatype_of,
    explained,
    read_call,
    to_bytes,
    wanted_values,
)
from models.packing.file import PackedFile

MAX_VALUES = 1 << 20
"""Of a tensor in `contents`: they are read one by one on the event loop; larger tensors come raw."""
_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents", "BYTES": "bytes_contents"}


def parse(request: ModelInferRequest, file: PackedFile, max_images: int) -> InferCall:
    """Read an inference request. Raises ServiceError as `app.tensors.read_call` does, BAD_REQUEST or BODY_TOO_LARGE."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        detail = f"raw_input_contents: has {len(raw)} elements for {len(request.inputs)} inputs"
        raise ServiceError(Problem.BAD_TENSOR, detail)
    try:
        understood = InferRequest(
            id=request.id or None,
            parameters=_parameters(request.parameters),
            inputs=[_input(tensor, bool(raw)) for tensor in request.inputs],
            outputs=[
                RequestedOutput(name=output.name, parameters=_parameters(output.parameters))
                for output in request.outputs
            ],
        )
    except ValidationError as error:
        raise ServiceError(Problem.BAD_REQUEST, explained(error)) from error
    return read_call(understood, lambda _: memoryview(raw[0]) if raw else None, file, max_images)


def _input(tensor: ModelInferRequest.InferInputTensor, is_raw: bool) -> InputTensor:
    if is_raw and tensor.HasField("contents"):
        raise ServiceError(Problem.BAD_TENSOR, f"{tensor.name[:200]}: has both contents and raw_input_contents")
    values = getattr(tensor.contents, _CONTENTS.get(tensor.datatype, "uint_contents"))
    if len(values) > MAX_VALUES:
        detail = f"contents: more than {MAX_VALUES} values; send the tensor as raw_input_contents."
        raise ServiceError(Problem.BODY_TOO_LARGE, detail)
    return InputTensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=list(tensor.shape),
        parameters=_parameters(tensor.parameters),
        data=None if is_raw else list(values),
    )


def _parameters(given: Mapping[str, InferParameter]) -> dict[str, Any]:
    chosen = {key: value.WhichOneof("parameter_choice") for key, value in given.items()}
    return {key: getattr(given[key], choice) for key, choice in chosen.items() if choice}


def encode(
    call: InferCall, model: str, version: str, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None
) -> ModelInferResponse:
    """The message that answers a request."""
    answer = ModelInferResponse(model_name=model, model_version=version, id=call.id or "")
    for wanted, values in wanted_values(call, outputs, labels):
        answer.outputs.add(name=wanted.name, datatype=datatype_of(values), shape=values.shape)
        answer.raw_output_contents.append(to_bytes(values))
    return answer
