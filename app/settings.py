"""Every setting of the service, read from `SIGNET_*` environment variables."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, FilePath, SecretStr, WithJsonSchema, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import models
from app.keys import read_keys
from app.versions import LATEST, VersionPolicies, VersionPolicy, read_policies, read_policy

_TEXT = {"type": "string"}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s,]+")


def shipped_zoo() -> Path:
    """The folder of the models that ship with the program."""
    return Path(models.__file__ or "models/__init__.py").parent / "zoo"


class Settings(BaseSettings):
    """Settings of one service; a variable is the field's name in capitals with `SIGNET_` before it."""

    model_config = SettingsConfigDict(
        env_prefix="SIGNET_", env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port to listen on; 0 picks a free one."""

    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """TCP port for the Open Inference Protocol V2 over gRPC, with the same keys and limits; 0 picks a free one. It
    takes the extra signet[grpc]; without a port nothing of gRPC is loaded."""

    models: Annotated[tuple[Path, ...], NoDecode] = Field(default_factory=lambda: (shipped_zoo(),), min_length=1)
    """Model repositories, `<root>/<name>/<version>/model.safetensors`, separated like PATH; the first that has a
    name wins. The default is the models that ship."""

    default_model: str | None = None
    """Model that answers where a request names none; otherwise the first ready one in the order of names."""

    version_policy: Annotated[VersionPolicy, NoDecode, BeforeValidator(read_policy), WithJsonSchema(_TEXT)] = LATEST
    """Which versions of a model serve: `latest` (the highest), `latest:N` (the highest N), `all`, or `specific:1,3`
    (just these); Triton's JSON will do too. Where a request names no version, the highest of them answers."""

    version_policies: Annotated[
        dict[str, VersionPolicy], NoDecode, BeforeValidator(read_policies), WithJsonSchema(_TEXT)
    ] = {}
    """The same for single models, as JSON: `{"NAME": "specific:2"}`."""

    max_body_bytes: Annotated[int, Field(ge=1)] = 16 << 20
    """Largest request body, also after decompression."""

    max_pixels: Annotated[int, Field(ge=1)] = 25_000_000
    """Largest picture, width times height, checked before it is decoded; a baseline JPEG that is decoded at a reduced
    size may have four times as many."""

    max_header_bytes: Annotated[int, Field(ge=1024)] = 32 << 10
    """Largest request line with headers."""

    header_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Time for the request line and headers to arrive."""

    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Time for the whole body to arrive."""

    send_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Time in which a client has to take 64 KiB of its answer, or the rest of it; then its connection is cut."""

    keep_alive_s: Annotated[int, Field(ge=1)] = 15
    """Idle time after which a kept connection is closed."""

    max_buffered_bytes: Annotated[int, Field(ge=1)] = 256 << 20
    """Bytes of request bodies held at once, all requests together; more are answered with 429."""

    max_queue_images: Annotated[int, Field(ge=1)] = 64
    """Images admitted and not yet answered, waiting and computing together; more are answered with 429."""

    max_batch_images: Annotated[int, Field(ge=1)] = 32
    """Most pictures in one request; never more than the queue admits."""

    queue_deadline_ms: Annotated[int, Field(ge=1)] = 5000
    """Longest wait of an admitted image; past it the answer is 504 and nothing is computed."""

    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that answer. One already uses all CPUs; more help where decoding and the protocol take the time and not
    the network. Limits on images and bytes hold for each of them."""

    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads that compute at once in a model: one image alone uses all, many images one each. The default is the CPUs
    that this process may use, shared out among the workers."""

    parallel_images: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Images that are handed to the engine at once; the default is `threads`."""

    max_batch: Annotated[int, Field(ge=1, le=1024)] = 1
    """Images of different requests that one run of the engine may take together, if they wait for the same model when a
    thread comes free."""

    max_batch_delay_ms: Annotated[float, Field(ge=0)] = 0.0
    """Time that an image waits for others to share its run; 0 takes only those that are there."""

    decode_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Pictures decoded at once; the default is the CPUs that this process may use."""

    drain_timeout_s: Annotated[int, Field(ge=1)] = 25
    """Time that accepted requests get after SIGTERM; keep it below the container's grace time."""

    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    """Time after SIGTERM in which new requests still get their 503, until a load balancer has noticed."""

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys of clients, separated by commas; with any, here or in the file, /v1 and /v2 ask for one. Health, metrics and
    documentation do not."""

    api_keys_file: FilePath | None = None
    """File with more such keys, one a line; # begins a comment."""

    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that may also load and unload models, separated by commas; without any, nobody may."""

    admin_keys_file: FilePath | None = None
    """File with more such keys, one a line; # begins a comment."""

    rate_limit_per_s: Annotated[float, Field(gt=0)] | None = None
    """Requests a second that one client may make to /v1 and /v2 on average; more are answered with 429. A client is a
    key, or an address where no keys are set; behind a proxy, all clients without keys have the proxy's address."""

    rate_limit_burst: Annotated[int, Field(ge=1)] = 20
    """Requests that a client which was quiet may make at once before `rate_limit_per_s` counts."""

    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose pages may call the service from a browser, such as https://example.org, separated by commas; `*`
    for all of them. Without any, no other origin's page may."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log events that are written."""

    otel: bool = False
    """Whether requests are traced with OpenTelemetry, which takes `pip install 'signet[otel]'`. OpenTelemetry's own
    variables say where spans go and which are kept, `OTEL_EXPORTER_OTLP_ENDPOINT` first of all."""

    page: bool = True
    """Whether / shows browsers a page to try the models; otherwise everybody gets the index as JSON."""

    docs: bool = True
    """Whether /docs and /openapi.json are served."""

    @property
    def policies(self) -> VersionPolicies:
        """The version policy of every model."""
        return VersionPolicies(self.version_policy, self.version_policies)

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return tuple(part for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _check_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        read_keys(keys, None)
        return keys

    @field_validator("api_keys_file", "admin_keys_file")
    @classmethod
    def _check_keys_file(cls, file: Path | None) -> Path | None:
        read_keys((), file)
        return file

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip()) if isinstance(parts, list | tuple) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; expected scheme://host or scheme://host:port, or *")
        return origins

    @field_validator("models", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value
