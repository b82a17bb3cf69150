"""An answer of each route, as OpenAPI shows it. Those of one picture stand beside their schemas."""

from __future__ import annotations

from typing import Any

from app.api.schemas import PERSON_EXAMPLE

_VERSION = {"version": "1", "state": "ready", "error": None}
_NAME = "cifar10-resnet18"
_SUMMARY = {"name": _NAME, "version": "1", "state": "ready", "task": "classification", "versions": [_VERSION]}
_TIMING_MS = {"decode": 2.1, "preprocess": 0.2, "queue": 0.3, "infer": 1.6, "postprocess": 0.1, "total": 5.2}
_NOT_AN_IMAGE = {
    "type": "urn:signet:problem:not-an-image",
    "title": "The data is not a JPEG, PNG or WebP picture",
    "status": 415,
    "detail": "The data begins like none of JPEG, PNG and WebP; other formats are not accepted.",
}
_INDEX = [{"name": _NAME, "version": "1", "state": "READY", "reason": ""}]
_TWICE = {"count": 2, "ns": 3_180_000}
_NEVER = {"count": 0, "ns": 0}
_STATISTICS = {
    "model_stats": [
        {
            "name": _NAME,
            "version": "1",
            "last_inference": 1_764_000_000_000,
            "inference_count": 2,
            "execution_count": 2,
            "inference_stats": {
                "success": _TWICE,
                "fail": _NEVER,
                "queue": {"count": 2, "ns": 310_000},
                "compute_input": {"count": 2, "ns": 1_250_000},
                "compute_infer": {"count": 2, "ns": 1_490_000},
                "compute_output": {"count": 2, "ns": 130_000},
            },
            "batch_stats": [
                {
                    "batch_size": 1,
                    "compute_input": {"count": 2, "ns": 1_250_000},
                    "compute_infer": {"count": 2, "ns": 1_490_000},
                }
            ],
        }
    ]
}

EXAMPLES: dict[str, Any] = {
    "/": {
        "name": "signet",
        "version": "0.1.0",
        "models": [_NAME, "lspet-hourglass"],
        "links": {"classify": "/v1/classify", "models": "/v1/models", "docs": "/docs"},
    },
    "/livez": {"status": "live"},
    "/readyz": {"status": "ready"},
    "/v1/classify/batch": {
        "model": _NAME,
        "version": "1",
        "results": [
            {
                "index": 0,
                "image": {"width": 500, "height": 375},
                "predictions": [
                    {"label": "horse", "index": 7, "score": 0.999},
                    {"label": "deer", "index": 4, "score": 0.001},
                ],
                "error": None,
            },
            {"index": 1, "image": None, "predictions": None, "error": _NOT_AN_IMAGE},
        ],
        "timing_ms": _TIMING_MS,
    },
    "/v1/pose": {
        "model": "lspet-hourglass",
        "version": "1",
        "image": {"width": 500, "height": 375},
        "people": [PERSON_EXAMPLE],
        "skeleton": [[0, 1]],
        "timing_ms": _TIMING_MS,
    },
    "/v1/pose/batch": {
        "model": "lspet-hourglass",
        "version": "1",
        "results": [
            {"index": 0, "image": {"width": 500, "height": 375}, "people": [PERSON_EXAMPLE], "error": None},
            {"index": 1, "image": None, "people": None, "error": _NOT_AN_IMAGE},
        ],
        "skeleton": [[0, 1]],
        "timing_ms": _TIMING_MS,
    },
    "/v1/models": {"models": [_SUMMARY], "default": _NAME},
    "/v1/models/{name}": {
        **_SUMMARY,
        "architecture": "resnet18-w0.5-holistic",
        "input": {
            "height": 32,
            "width": 32,
            "mean": [0.4913, 0.4821, 0.4465],
            "std": [0.2749, 0.2676, 0.266],
            "resize": {"mode": "crop", "short_side_px": 32, "interpolation": "bilinear"},
        },
        "labels": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        "keypoints": None,
        "sizes": {
            "packed_bytes": 563_112,
            "float32_bytes": 11_198_376,
            "ratio": 19.89,
            "file_bytes": 587_688,
            "resident_bytes": 1_165_320,
            "arena_bytes": 278_528,
        },
        "macs": {"binary": 136_839_168, "real": 2_460_160},
        "provenance": {"data": "cifar10", "seed": 0, "epochs": 13, "metrics": {"val_top1": 83.36}},
    },
    "/v2": {
        "name": "signet",
        "version": "0.1.0",
        "extensions": ["binary_tensor_data", "classification", "model_repository", "statistics"],
    },
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
    "/v2/models/stats": _STATISTICS,
    "/v2/repository/index": _INDEX,
    "/v2/repository/models/{name}/load": _INDEX,
    "/v2/repository/models/{name}/unload": [
        {"name": _NAME, "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    ],
    "/v2/models/{name}": {
        "name": _NAME,
        "versions": ["1"],
        "platform": "signet",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    },
    "/v2/models/{name}/ready": {"name": _NAME, "ready": True},
    "/v2/models/{name}/config": {
        "name": _NAME,
        "platform": "signet",
        "backend": "signet",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 32,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [32, 32, 3]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
        "parameters": {},
    },
    "/v2/models/{name}/stats": _STATISTICS,
    "/v2/models/{name}/infer": {
        "model_name": _NAME,
        "model_version": "1",
        "outputs": [
            {
                "name": "logits",
                "datatype": "BYTES",
                "shape": [1, 3],
                "data": ["2.96:3:cat", "2.62:5:dog", "1.62:6:frog"],
            }
        ],
    },
}
"""By path template; a route under a version of a model answers as the one under the model."""
METRICS = """# HELP signet_images_total Images answered.
# TYPE signet_images_total counter
signet_images_total{model="cifar10-resnet18"} 2.0
"""


def add_examples(schema: dict[str, Any]) -> None:
    """Put the examples into an OpenAPI schema, where no schema brings its own."""
    for path, methods in schema["paths"].items():
        example = EXAMPLES.get(path.replace("/versions/{version}", ""))
        for operation in methods.values():
            content = operation["responses"].get("200", {}).get("content", {})
            if example is not None and "application/json" in content:
                content["application/json"]["example"] = example
