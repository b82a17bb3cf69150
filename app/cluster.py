"""The service on a Ray cluster: the same application in each replica, on as many machines as there are.

`signet serve --ray` runs it from here; `serve deploy deploy/ray/serve.yaml` hands it to a cluster, which then keeps it.
Ray's proxies take the requests, one on each machine that has a replica, and pass each to the less busy of two replicas.
Every replica reserves its CPUs, and its kernels use that many threads.

Too many requests get 429 from either of two places: a replica's own queue, counted in images, and the proxies, when all
replicas hold as many requests as they may. Models are taken anew by every replica, one after the other, when the
deployment's `user_config` changes; the old ones answer until then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions, ProxyLocation
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs, memory
from app.cluster_settings import ClusterSettings
from app.errors import ServiceError
from app.main import create_app
from app.repository import Repository, scan
from app.settings import Settings

NAME = "signet"
"""Name of the application on the cluster, and of its only deployment."""

LOOK_BACK_S = 15.0
"""Time over which autoscaling averages; it has to be more than the 10 s between two reports of a replica."""

logger = logging.getLogger("signet.cluster")


class OneRequestId:
    """Leaves the answer's `X-Request-ID` to Ray's proxy, which adds the very same one to whatever is there."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self.app(scope, receive, send_without_id)


class Replica:
    """The application in one process of the cluster.

    Raises what `Settings` raises for settings that are wrong on the replica's machine.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        settings = Settings(**given)
        logs.configure(settings.log_level)
        memory.return_large_blocks()
        self._application = create_app(settings)
        self._application.add_middleware(OneRequestId)
        self._configured = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, whose models Ray lets it load before the first request."""
        return self._application

    @property
    def _repository(self) -> Repository:
        repository: Repository = self._application.state.service.repository
        return repository

    async def check_health(self) -> None:
        """Raise where this replica can answer nothing: no model, or one that computes no more. Ray then replaces it.

        A replica that hangs gives no answer in Ray's `health_check_timeout_s`, with the same end.
        """
        if not self._repository.ready:
            raise RuntimeError("no model is ready")
        session = self._repository.find().ready_session()
        size = session.file.header.input
        black = np.zeros((1, size.height, size.width, 3), np.uint8)
        outputs = await asyncio.to_thread(session.run, black)
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise RuntimeError("the model's answer is not finite")

    async def reconfigure(self, _: object) -> None:
        """Take all models anew, beside those that answer. The first call comes right after they were loaded."""
        if self._configured:
            await asyncio.to_thread(refresh, self._repository)
        self._configured = True


def refresh(repository: Repository) -> None:
    """Make a repository what its folders are now. What cannot be loaded is logged, and the old one keeps serving."""
    found = scan(repository.roots)
    for name in found:
        try:
            repository.load(name)
        except ServiceError as error:
            logger.error("model not taken", extra={"model": name, "reason": error.detail})
    for name in repository.names:
        if name not in found:
            repository.unload(name)


def replica_settings(given: Mapping[str, Any], cpus: int) -> dict[str, Any]:
    """The settings of a replica with so many CPUs: those given, and threads for those CPUs.

    Raises ValueError for a setting that makes no sense on a cluster, and what `Settings` raises.
    """
    settings = Settings(**given)
    if settings.admin_keys or settings.admin_keys_file:
        raise ValueError(
            "SIGNET_ADMIN_KEYS: on a cluster a request to load a model would reach one replica of many; "
            "change user_config instead"
        )
    if settings.threads not in (None, cpus):
        raise ValueError(
            f"SIGNET_THREADS is {settings.threads}, but a replica has {cpus} CPUs (SIGNET_RAY_REPLICA_CPUS)"
        )
    places = {"models": tuple(path.absolute() for path in settings.models)} if "models" in given else {}
    threads = {"threads": cpus, "decode_threads": settings.decode_threads or cpus}
    return {**given, **places, **threads, "admin_keys": (), "admin_keys_file": None}


def application(given: Mapping[str, Any]) -> serve.Application:
    """The application for Ray Serve, from the fields of `ClusterSettings` and, under `settings`, those of `Settings`.

    What is not given comes from the environment: where this runs, and of each replica's machine. Raises ValueError for
    what is wrong.
    """
    options = ClusterSettings(**{name: value for name, value in given.items() if name != "settings"})
    chosen = replica_settings(given.get("settings", {}), options.replica_cpus)
    settings = Settings(**chosen)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": options.replica_cpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=options.ongoing_per_cpu * options.replica_cpus,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=options.upscale_delay_s,
            downscale_delay_s=options.downscale_delay_s,
        ),
        max_ongoing_requests=settings.max_queue_images,
        max_queued_requests=options.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=float(settings.drain_timeout_s),
        max_surge_percent=options.max_surge_percent,
        logging_config={"enable_access_log": False},  # the application writes its own line for each request
        user_config={"models": 0},
    )
    return deployment.bind(chosen)


def run(settings: Settings, options: ClusterSettings) -> int:
    """Serve on the cluster that this machine belongs to or RAY_ADDRESS names, else on one of its own, until a signal.

    Accepted requests are then answered before the replicas stop. Returns the process's exit status.
    """
    logs.configure(settings.log_level)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    built = application({**options.model_dump(), "settings": settings.model_dump(exclude_unset=True)})
    ended = threading.Event()
    ray.init(log_to_driver=False)
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which has handlers of its own
        signal.signal(number, lambda *_: ended.set())
    try:
        serve.start(
            proxy_location=ProxyLocation.EveryNode,
            http_options=HTTPOptions(
                host=settings.host,
                port=settings.port,
                request_timeout_s=options.request_timeout_s,
                keep_alive_timeout_s=settings.keep_alive_s,
            ),
        )
        serve.run(built, name=NAME, route_prefix="/")
        logger.info("serving", extra={"host": settings.host, "port": settings.port, **options.model_dump()})
        ended.wait()
        logger.info("draining")
        serve.delete(NAME)
    finally:
        ray.shutdown()
    return 0
