"""The application: settings in, ASGI app out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app import problems
from app.about import program_version
from app.api.deps import require_client
from app.api.documentation import problems as documented
from app.api.routes import classify, docs, models, operations, page, pose, v2
from app.engine import available_cpus, loader
from app.errors import Problem
from app.fleet import Fleet
from app.gate import Gate
from app.keys import Keys, read_keys
from app.lifecycle import Lifecycle
from app.metrics import Metrics
from app.middleware import Guard, Observe
from app.rates import RateLimit
from app.repository import Repository
from app.scheduler import Scheduler
from app.service import Service
from app.settings import Settings
from app.workers import Shared

if TYPE_CHECKING:
    from app.otel import Tracing

Beside = Callable[[FastAPI], AbstractAsyncContextManager[None]]
CORS_REQUEST_HEADERS = ("Authorization", "Content-Encoding", v2.HEADER_LENGTH, "X-API-Key", "X-Request-ID")
CORS_ANSWER_HEADERS = (v2.HEADER_LENGTH, "Retry-After", "X-Request-ID")


def create_app(settings: Settings | None = None, shared: Shared | None = None, beside: Beside | None = None) -> FastAPI:
    """Put a service together; one worker of several, if `shared` is given.

    Its models are loaded when the server starts it, before the first request. What is `beside` it runs from then until
    the end.
    """
    settings = settings or Settings()
    folder, slot = (shared.folder, shared.slot) if shared else (None, 0)
    metrics, lifecycle = Metrics(folder, slot), Lifecycle()
    cpus = max(1, available_cpus() // settings.workers)
    threads = settings.threads or cpus
    repository = Repository(settings.models, loader(threads), settings.default_model, settings.policies)
    scheduler = Scheduler(
        capacity=settings.max_queue_images,
        deadline_s=settings.queue_deadline_ms / 1000,
        decode_threads=settings.decode_threads or cpus,
        parallel_images=settings.parallel_images or threads,
        max_batch=settings.max_batch,
        max_batch_delay_s=settings.max_batch_delay_ms / 1000,
        tell=metrics.queue_images.set,
    )
    service = Service(
        repository,
        scheduler,
        metrics,
        max_pixels=settings.max_pixels,
        max_batch_images=min(settings.max_batch_images, settings.max_queue_images),
    )
    fleet = Fleet(repository, service.statistics, folder, slot)
    tracing = _tracing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await fleet.start()
        async with beside(app) if beside else nullcontext():
            yield
        fleet.close()
        scheduler.close()
        if tracing is not None:
            await tracing.close()

    app = FastAPI(
        title="Signet",
        version=program_version(),
        description="Binary neural networks, packed to one bit a weight, served on CPUs.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.settings, app.state.lifecycle = settings, lifecycle
    app.state.service, app.state.fleet, app.state.tracing = service, fleet, tracing
    keys = Keys(
        read_keys(settings.api_keys, settings.api_keys_file), read_keys(settings.admin_keys, settings.admin_keys_file)
    )
    app.state.gate = Gate(keys, shared.rates if shared else RateLimit.of(settings))
    for exception in problems.HANDLED:
        app.add_exception_handler(exception, problems.handle)
    # The last one added is the outermost.
    app.add_middleware(Guard, settings=settings, lifecycle=lifecycle, refusal=scheduler.refusal)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_ANSWER_HEADERS,
        )
    app.add_middleware(Observe, metrics=metrics, lifecycle=lifecycle, tracing=tracing)
    for router in (page.router, operations.router, v2.health):
        app.include_router(router)
    refusals = documented(Problem.UNAUTHORIZED, Problem.RATE_LIMITED)
    for router in (classify.router, pose.router, models.router, v2.router):
        app.include_router(router, dependencies=[Depends(require_client)], responses=refusals)
    if settings.docs:
        app.include_router(docs.router)
    return app


def _tracing(settings: Settings) -> Tracing | None:
    """What sends spans to OpenTelemetry; None unless that is asked for. Raises ValueError where it cannot."""
    if not settings.otel:
        return None
    from app.otel import Tracing

    return Tracing()
