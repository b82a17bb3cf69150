"""OpenAPI: the documented problems of each route, and the request body that routes read themselves."""

from __future__ import annotations

from typing import Any

from app.api.schemas import ProblemAnswer
from app.errors import Problem
from app.problems import MEDIA_TYPE

_REFERENCE = {"$ref": "#/components/schemas/ProblemAnswer"}

_PICTURE = {"type": "string", "format": "binary"}

UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The picture (JPEG, PNG or WebP): as the multipart part `image`, or as the whole body.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {**_PICTURE, "description": "The picture."},
                        "model": {"type": "string"},
                        "version": {"type": "string"},
                        "top_k": {"type": "integer", "minimum": 1},
                    },
                }
            },
            **{
                kind: {"schema": _PICTURE}
                for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
            },
        },
    }
}


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
        if problem in (Problem.QUEUE_FULL, Problem.DRAINING, Problem.NOT_READY, Problem.MODEL_UNAVAILABLE):
            entry["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return responses


def add_problem_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Put the schema of problem answers where the references above point."""
    definition = ProblemAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.update(definition.pop("$defs", {}))
    components["ProblemAnswer"] = definition
    return schema
