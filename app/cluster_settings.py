"""Every setting of the service on a Ray cluster, read from `SIGNET_RAY_*` environment variables."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClusterSettings(BaseSettings):
    """How many replicas there are and what each may use; variables are named `SIGNET_RAY_*`."""

    model_config = SettingsConfigDict(
        env_prefix="SIGNET_RAY_", env_ignore_empty=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    replica_cpus: Annotated[int, Field(ge=1, le=1024)] = 2
    """CPUs that one replica reserves; as many threads compute in it, whatever the machine has."""

    min_replicas: Annotated[int, Field(ge=1)] = 1
    """Replicas that are always there; with two or more, one may be lost without a gap."""

    max_replicas: Annotated[int, Field(ge=1, validate_default=True)] = 8
    """Most replicas. Those for which the cluster has no CPUs wait until it has."""

    ongoing_per_cpu: Annotated[float, Field(gt=0)] = 2.0
    """Requests in progress for each reserved CPU that autoscaling aims at."""

    upscale_delay_s: Annotated[float, Field(ge=0)] = 10.0
    """Time for which more replicas have to be needed before they are started."""

    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0
    """Time for which fewer replicas have to be needed before some are stopped."""

    max_queued_requests: Annotated[int, Field(ge=1)] = 16
    """Requests that each proxy holds back while all replicas are full; more are answered with 429."""

    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Time from a request's headers to its answer, after which its proxy answers 408."""

    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Replicas that a rolling restart starts beyond the wanted number before it stops old ones; it waits for free CPUs.
    With 0 it stops a fifth of the old ones first, which a single replica does not survive without a gap."""

    @field_validator("max_replicas")
    @classmethod
    def _at_least_min(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("min_replicas", value)
        if value < least:
            raise ValueError(f"{value} is less than min_replicas, {least}")
        return value
