"""GET /: the page for people with a browser, the index for programs; and the page's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

import app
from app.about import program_version
from app.api.deps import ServiceDep, SettingsDep
from app.api.documentation import problems
from app.api.schemas import Index
from app.errors import Problem

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept by the browser, which asks each time whether it has changed
}
"""Headers of the page and its files: nothing from elsewhere, nothing inline, no HTML made from strings."""

FILES = StaticFiles(directory=Path(app.__file__ or "app/__init__.py").parent / "page")

router = APIRouter(tags=["operations"])


async def static(files: StaticFiles, name: str, request: Request, headers: Mapping[str, str] = HEADERS) -> Response:
    """One file of a folder, whole, or 304 where the client has it. Raises HTTPException 404."""
    scope = request.scope
    scope["headers"] = [(header, value) for header, value in scope["headers"] if header != b"range"]
    response = await files.get_response(name, scope)
    response.headers.update(headers)
    return response


@router.get(
    "/",
    summary="The page, or what is where",
    response_model=Index,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The page, or the index."},
        **problems(),
    },
)
async def index(request: Request, service: ServiceDep, settings: SettingsDep) -> Any:
    """For a browser (`Accept: text/html`) a page to try the models; otherwise the routes and models of this service."""
    if settings.page and "text/html" in request.headers.get("accept", ""):
        response = await static(FILES, "index.html", request)
        response.headers["Vary"] = "Accept"
        return response
    links = {
        "classify": "/v1/classify",
        "classify_batch": "/v1/classify/batch",
        "pose": "/v1/pose",
        "pose_batch": "/v1/pose/batch",
        "models": "/v1/models",
        "open_inference_protocol": "/v2",
        "live": "/livez",
        "ready": "/readyz",
        "metrics": "/metrics",
        **({"docs": "/docs", "openapi": "/openapi.json"} if settings.docs else {}),
    }
    names = service.repository.names
    return Index(name="signet", version=program_version(), models=names, links=links)


@router.get("/page/{name}", include_in_schema=False, responses=problems(Problem.NOT_FOUND))
async def page_file(name: str, request: Request, settings: SettingsDep) -> Response:
    """A file that the page is made of."""
    return await static(FILES, name if settings.page else "", request)
