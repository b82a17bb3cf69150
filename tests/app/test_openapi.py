"""The API's description: every route with its errors and an example that it could have answered."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from app.api.documentation import add_schemas
from app.api.examples import EXAMPLES
from app.main import create_app
from app.problems import MEDIA_TYPE
from app.settings import Settings
from tests.helpers.server import Server

APP = create_app(Settings())
SCHEMA: dict[str, Any] = add_schemas(APP.openapi())
OPERATIONS = [(method, path) for path, methods in SCHEMA["paths"].items() for method in methods]
WITHOUT_PROBLEMS = {"/livez", "/metrics", "/v2/health/live"}
"""What answers 200 for as long as it answers at all."""


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_each_route_documents_its_answer_and_its_problems(method: str, path: str) -> None:
    operation = SCHEMA["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    for kind, content in operation["responses"]["200"]["content"].items():
        if kind in ("application/json", "text/plain"):
            name = content["schema"].get("$ref", "").rpartition("/")[2]
            assert "example" in content or SCHEMA["components"]["schemas"][name]["examples"]
    problems = {status: answer for status, answer in operation["responses"].items() if status != "200"}
    assert bool(problems) is (path not in WITHOUT_PROBLEMS)
    for status, answer in problems.items():
        for example in answer["content"][MEDIA_TYPE]["examples"].values():
            assert example["value"]["status"] == int(status)
    if path.startswith(("/v1", "/v2")) and "/health/" not in path:
        assert "401" in problems


def strict_components() -> dict[str, Any]:
    """The schemas, with no room for fields that they do not know."""
    components: dict[str, Any] = copy.deepcopy(SCHEMA["components"])
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return components


COMPONENTS = strict_components()


def check(example: Any, schema: dict[str, Any]) -> None:
    """Raises ValidationError where an example is not what a schema says."""
    Draft202012Validator({**schema, "components": COMPONENTS}).validate(example)


def test_every_example_is_of_a_route() -> None:
    assert set(EXAMPLES) <= set(SCHEMA["paths"])


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_examples_are_what_the_route_answers(method: str, path: str) -> None:
    for answer in SCHEMA["paths"][path][method]["responses"].values():
        for content in answer["content"].values():
            examples = [entry["value"] for entry in content.get("examples", {}).values()]
            for example in [*examples, *([content["example"]] if "example" in content else [])]:
                check(example, content["schema"])


@pytest.mark.parametrize(
    "name", [name for name, schema in SCHEMA["components"]["schemas"].items() if "examples" in schema]
)
def test_examples_of_a_schema_fit_it(name: str) -> None:
    for example in COMPONENTS["schemas"][name]["examples"]:
        check(example, {"$ref": f"#/components/schemas/{name}"})


@pytest.mark.parametrize("path", [path for method, path in OPERATIONS if method == "get" and "{" not in path])
def test_the_real_answer_fits_too(server: Server, path: str) -> None:
    reply = server.client.get(path)
    if reply.headers["content-type"] == "application/json":
        check(reply.json(), SCHEMA["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"])
