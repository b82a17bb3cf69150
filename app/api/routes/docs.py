"""GET /docs and /openapi.json: the API's description, read with Swagger UI, whose files come with the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastapi_swagger
from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

import app
from app.api.documentation import add_schemas
from app.api.routes.page import HEADERS, static

DOCS_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
"""As the page's, without Trusted Types, which Swagger UI does not know."""

OURS = StaticFiles(directory=Path(app.__file__ or "app/__init__.py").parent / "docs")
SWAGGER_UI = StaticFiles(directory=Path(fastapi_swagger.__file__).parent / "resources")
SWAGGER_UI_FILES = frozenset({"favicon-32x32.png", "swagger-ui-bundle.js", "swagger-ui.css"})

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request) -> dict[str, Any]:
    """The description of every route."""
    described = request.app
    if described.openapi_schema is None:
        described.openapi_schema = add_schemas(described.openapi())
    schema: dict[str, Any] = described.openapi_schema
    return schema


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The description for people."""
    return await static(OURS, "index.html", request, DOCS_HEADERS)


@router.get("/docs/{name}")
async def docs_file(name: str, request: Request) -> Response:
    """A file of that page."""
    return await static(SWAGGER_UI if name in SWAGGER_UI_FILES else OURS, name, request, DOCS_HEADERS)
