"""OpenAPI: the documented problems of each route, and the request body that routes read themselves."""

from __future__ import annotations

from typing import Any

from app.api.examples import add_examples
from app.api.schemas import ProblemAnswer
from app.errors import Problem
from app.problems import MEDIA_TYPE
from app.tensors import InferRequest

_REFERENCE = {"$ref": "#/components/schemas/ProblemAnswer"}

_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

_PICTURE = {"type": "string", "format": "binary"}
_COMMON = {
    "model": {"type": "string"},
    "version": {"type": "string"},
    "timeout_ms": {"type": "integer", "minimum": 1},
}
_CLASSES = {**_COMMON, "top_k": {"type": "integer", "minimum": 1}}
_POSES = {**_COMMON, "flip": {"type": "boolean"}, "format": {"enum": ["native", "coco"]}}
_ONE_BOX = "120,40,160,300"
_TWO_BOXES = "[[120,40,160,300],[300,60,110,290]]"


def _one_picture(parameters: dict[str, Any]) -> dict[str, Any]:
    form = {"image": {**_PICTURE, "description": "The picture."}, **parameters}
    raw = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
    return {
        "requestBody": {
            "required": True,
            "description": "The picture (JPEG, PNG or WebP): as the multipart part `image`, or as the whole body.",
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": form}},
                **{kind: {"schema": _PICTURE} for kind in raw},
            },
        }
    }


def _pictures(parameters: dict[str, Any]) -> dict[str, Any]:
    form = {"image": {"type": "array", "items": _PICTURE, "minItems": 1}, **parameters}
    return {
        "requestBody": {
            "required": True,
            "description": "The pictures (JPEG, PNG or WebP), each a multipart part named `image`.",
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": form}}
            },
        }
    }


CLASSIFY = _one_picture(_CLASSES)
CLASSIFY_BATCH = _pictures(_CLASSES)
POSE = _one_picture(
    {
        **_POSES,
        "boxes": {"type": "array", "items": {"type": "string"}, "example": [_ONE_BOX]},
        "visualize": {"type": "boolean"},
        "image_id": {"type": "integer", "minimum": 0},
    }
)
POSE_BATCH = _pictures({**_POSES, "boxes": {"type": "string", "example": f"[{_TWO_BOXES},null]"}})
DRAWN: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Keypoints; with `visualize=true` or `Accept: image/png` the picture with its people drawn.",
        "content": {"image/png": {"schema": _PICTURE}},
    }
}

_INFER_SCHEMA = {"$ref": "#/components/schemas/InferRequest"}

INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A request of the Open Inference Protocol V2; with `Inference-Header-Content-Length`, that many "
        "bytes of JSON and the tensor's bytes behind them. The input `image` is UINT8 [N, height, width, 3]; FP32 of "
        "that shape or [N, 3, height, width] with normalised pixels; or BYTES [N]: encoded pictures (base64 in JSON).",
        "content": {
            "application/json": {
                "schema": _INFER_SCHEMA,
                "example": {
                    "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["/9j/4AAQSkZJRg..."]}],
                    "outputs": [{"name": "logits", "parameters": {"classification": 3}}],
                },
            },
            "application/octet-stream": {"schema": _PICTURE},
        },
    }
}


_UPLOAD_PROBLEMS = (
    Problem.BAD_REQUEST,
    Problem.EMPTY_BODY,
    Problem.BAD_MULTIPART,
    Problem.UNKNOWN_MODEL,
    Problem.TIMEOUT,
    Problem.BODY_TOO_LARGE,
    Problem.UNSUPPORTED_ENCODING,
    Problem.INVALID_PARAMETER,
    Problem.WRONG_TASK,
    Problem.QUEUE_FULL,
    Problem.MODEL_UNAVAILABLE,
    Problem.DEADLINE,
)
PICTURE_PROBLEMS = (
    *_UPLOAD_PROBLEMS,
    Problem.TOO_MANY_PIXELS,
    Problem.NOT_AN_IMAGE,
    Problem.MISSING_IMAGE,
    Problem.IMAGE_IS_URL,
    Problem.BROKEN_IMAGE,
)
"""What a request with one picture may be refused for."""
BATCH_PROBLEMS = (*_UPLOAD_PROBLEMS, Problem.BATCH_TOO_LARGE, Problem.EMPTY_BATCH)
"""What a request with several pictures may be refused for; what is wrong with one picture stands in its place."""


def problems(*kinds: Problem) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these problems, one example each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in (*kinds, Problem.DRAINING):
        entry = responses.setdefault(
            problem.status,
            {"description": problem.title, "content": {MEDIA_TYPE: {"schema": _REFERENCE, "examples": {}}}},
        )
        if problem.title not in entry["description"]:
            entry["description"] += f". {problem.title}"
        entry["content"][MEDIA_TYPE]["examples"][problem.slug] = {
            "value": {
                "type": f"urn:signet:problem:{problem.slug}",
                "title": problem.title,
                "status": problem.status,
                "detail": f"{problem.title}.",
                "request_id": "5f0c7a4c3f3b4f0e9d2a6b1c8e7d6f5a",
                "error": f"{problem.title}.",
            }
        }
        if problem in (
            Problem.QUEUE_FULL,
            Problem.RATE_LIMITED,
            Problem.DRAINING,
            Problem.NOT_READY,
            Problem.MODEL_UNAVAILABLE,
        ):
            entry["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return responses


def add_schemas(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the schemas of problems and inference requests where the references above point, examples and the keys."""
    add_examples(schema)
    _correct_validation(schema)
    schema["security"] = [{}, *({name: []} for name in _KEYS)]  # {}: a service without keys asks for none
    schema.setdefault("components", {})["securitySchemes"] = _KEYS
    components = schema["components"].setdefault("schemas", {})
    for model in (ProblemAnswer, InferRequest):
        definition = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(definition.pop("$defs", {}))
        components[model.__name__] = definition
    return schema


def _correct_validation(schema: dict[str, Any]) -> None:
    """Say of a parameter that is not valid what the service says, where FastAPI describes an answer of its own."""
    for methods in schema["paths"].values():
        for operation in methods.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"]["422"] = problems(Problem.INVALID_PARAMETER)[422]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
