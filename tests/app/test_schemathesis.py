"""Requests made up from the OpenAPI document: nothing answers 5xx by mistake, and only with statuses it documents.

Names, versions and tensors in the document are narrowed to a few that exist and one that does not: random ones would
all end at the first 404.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.documentation import add_schemas
from app.main import create_app
from app.settings import Settings
from tests.helpers import pictures
from tests.helpers.server import Server

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
NARROWED = {
    "name": ["random", "colour", "nobody"],
    "model": ["random", "colour", "nobody"],
    "version": ["1", "2", "77"],
    "datatype": ["UINT8", "BYTES", "FP32"],
}
TIMES = {"type": "integer", "enum": [60_000, 600_000, 1]}
PICTURES = st.sampled_from([pictures.jpeg(), pictures.png(), pictures.webp(), pictures.jpeg()[:300], b"text", b""])
for media_type in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, PICTURES)


def document() -> dict[str, Any]:
    described = add_schemas(create_app(Settings(models=(Path("nowhere"),))).openapi())
    for path in described["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in NARROWED:
                    parameter["schema"] = {"type": "string", "enum": NARROWED[parameter["name"]]}
                if parameter["name"] == "timeout_ms":
                    parameter["schema"] = TIMES
            form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data", {})
            fields = form.get("schema", {}).get("properties", {})
            for name in ("model", "version"):
                fields.get(name, {})["enum"] = NARROWED[name]
            if "timeout_ms" in fields:
                fields["timeout_ms"] = TIMES
    unload = described["paths"]["/v2/repository/models/{name}/unload"]["post"]
    unload["parameters"][0]["schema"]["enum"] = ["colour", "nobody"]  # `random` stays, for the operations after it
    tensor = described["components"]["schemas"]["InputTensor"]["properties"]
    tensor["name"] = {"type": "string", "enum": ["image", "other"]}
    tensor["datatype"]["enum"] = NARROWED["datatype"]
    return described


@pytest.fixture(scope="module")
def administered(zoo: Path) -> Iterator[Server]:
    """A service whose models may be loaded and unloaded by all these requests."""
    running = Server(zoo, default_model="random", version_policy="all", admin_keys="root")
    yield running
    assert running.metric("signet_requests_total", status="500") == 0
    assert running.metric("signet_requests_total", route="/v2/models/{name}/infer", status="400") > 0
    assert running.metric("signet_requests_total", route="/v1/classify", status="200") > 5
    running.close()


@(schema := schemathesis.openapi.from_dict(document())).parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_only_documented_answers(administered: Server, case: schemathesis.Case) -> None:
    base_url = f"http://127.0.0.1:{administered.port}"
    reply = case.call_and_validate(base_url=base_url, headers={"X-API-Key": "root"}, checks=CHECKS)
    assert reply.status_code != 500
