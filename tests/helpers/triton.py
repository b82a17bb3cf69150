"""What the tests of both protocols of tritonclient ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

EXTENSION_CALLS: dict[str, Callable[[Any], Any]] = {
    "system_shared_memory": lambda client: client.get_system_shared_memory_status(),
    "cuda_shared_memory": lambda client: client.get_cuda_shared_memory_status(),
    "trace": lambda client: client.get_trace_settings(),
    "logging": lambda client: client.get_log_settings(),
    "statistics": lambda client: client.get_inference_statistics("random"),
    "model_repository": lambda client: client.get_model_repository_index(),
    "model_configuration": lambda client: client.get_model_config("random"),
}
"""By the name of a V2 extension, a call of a client that needs it; those of HTTP and gRPC have the same methods."""
