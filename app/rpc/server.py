"""The gRPC server of a process: its limits, its port, its beginning and end.

It begins when the models are loaded and ends when the web server has drained, calls in progress having counted as
requests do. Where several workers are one service, each listens on the same port by itself (SO_REUSEPORT), and the
kernel gives each connection to one of them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from fastapi import FastAPI

from app.lifecycle import Lifecycle
from app.rpc.calls import Calls
from app.rpc.methods import Methods
from app.service import Service
from app.settings import Settings

SERVICE = "inference.GRPCInferenceService"
LAST_ANSWERS_S = 1.0
"""Time that the last answers get to reach their clients."""
MAX_CALLS_OF_A_CONNECTION = 128
MAX_IDLE_S = 300
"""Not HTTP's time: clients keep connections for long, and write a line where one is closed."""

logger = logging.getLogger("signet.rpc")


def reserve(host: str, port: int) -> socket.socket:
    """Take a port for this service, before its processes listen on it: a socket to keep until the end.

    Raises OSError where another program has the port, as listening with SO_REUSEPORT alone would not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
        port = alone.getsockname()[1]
    shared = socket.socket(family)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((host, port))
    return shared


@asynccontextmanager
async def beside(app: FastAPI) -> AsyncIterator[None]:
    """Serve gRPC in the block, with the parts of an application of `app.main.create_app`."""
    settings: Settings = app.state.settings
    service: Service = app.state.service
    lifecycle: Lifecycle = app.state.lifecycle
    methods = Methods(service, app.state.fleet, lifecycle).table()
    table = {f"/{SERVICE}/{name}": method for name, method in methods.items()}
    refusal, tracing = service.scheduler.refusal, app.state.tracing
    calls = Calls(table, app.state.gate, service.metrics, lifecycle, settings, refusal, tracing)
    server = grpc.aio.server(options=_options(settings))
    server.add_generic_rpc_handlers((calls,))
    address = (
        f"[{settings.host}]:{settings.grpc_port}" if ":" in settings.host else f"{settings.host}:{settings.grpc_port}"
    )
    server.add_insecure_port(address)
    await server.start()
    logger.info("gRPC running on %s", address)
    try:
        yield
    finally:
        calls.end()
        await server.stop(LAST_ANSWERS_S)


def _options(settings: Settings) -> list[tuple[str, int]]:
    """The limits that HTTP has, as the library calls them."""
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_concurrent_streams", MAX_CALLS_OF_A_CONNECTION),
        ("grpc.server_handshake_timeout_ms", int(settings.header_timeout_s * 1000)),
        ("grpc.max_connection_idle_ms", MAX_IDLE_S * 1000),
    ]
