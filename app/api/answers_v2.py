"""The answers of the Open Inference Protocol V2, whether they go out as JSON or as messages of gRPC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from app.about import program_version
from app.api.schemas_v2 import (
    AllPolicy,
    BatchStats,
    ConfigInput,
    ConfigOutput,
    DurationOut,
    IndexEntry,
    InferStats,
    LatestPolicy,
    ModelConfig,
    ModelMetadata,
    ModelStatsOut,
    ServerMetadata,
    SpecificPolicy,
    StatsAnswer,
    StringValue,
    TensorMetadata,
)
from app.errors import Problem, ServiceError
from app.repository import State, Version
from app.service import Service
from app.statistics import Duration, Statistics
from app.tensors import TensorSpec, input_spec, output_specs

EXTENSIONS = ["classification", "model_configuration", "model_repository", "statistics"]
"""Those that both protocols have."""
PLATFORM = "signet"
_POLICY: TypeAdapter[LatestPolicy | AllPolicy | SpecificPolicy] = TypeAdapter(LatestPolicy | AllPolicy | SpecificPolicy)
ENCODED_PICTURES = "The input also takes BYTES [N]: encoded JPEG, PNG or WebP pictures, resized as the model wants."
NORMALISED_PIXELS = (
    "The input also takes FP32 [N, height, width, 3] or [N, 3, height, width]: (pixel / 255 - mean) / std with mean "
    "{mean} and std {std}; each is rounded to the nearest pixel."
)


def server_metadata(*more_extensions: str) -> ServerMetadata:
    """Name, version and the extensions that are implemented."""
    return ServerMetadata(name="signet", version=program_version(), extensions=sorted([*EXTENSIONS, *more_extensions]))


def model_metadata(version: Version, service: Service) -> ModelMetadata:
    """A model's input and outputs. Raises ServiceError MODEL_UNAVAILABLE."""
    file = version.ready_session().file
    return ModelMetadata(
        name=version.name,
        versions=[str(v.version) for v in service.repository.versions(version.name) if v.state is State.READY],
        platform=PLATFORM,
        inputs=[_tensor(input_spec(file.header.input))],
        outputs=[_tensor(spec) for spec in output_specs(file)],
    )


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=spec.datatype, shape=[-1, *spec.shape])


def model_config(version: Version, service: Service) -> ModelConfig:
    """What clients of Triton read: the batch limit, and the layout of the input. Raises as `model_metadata`."""
    file = version.ready_session().file
    pixels = input_spec(file.header.input)
    return ModelConfig(
        name=version.name,
        platform=PLATFORM,
        backend=PLATFORM,
        version_policy=_POLICY.validate_python(service.repository.policies.of(version.name).described()),
        max_batch_size=service.max_batch_images,
        input=[ConfigInput(name=pixels.name, data_type=f"TYPE_{pixels.datatype}", dims=list(pixels.shape))],
        output=[
            ConfigOutput(name=spec.name, data_type=f"TYPE_{spec.datatype}", dims=list(spec.shape))
            for spec in output_specs(file)
        ],
        parameters={
            "encoded_pictures": StringValue(string_value=ENCODED_PICTURES),
            "normalised_pixels": StringValue(
                string_value=NORMALISED_PIXELS.format(mean=file.header.input.mean, std=file.header.input.std)
            ),
        },
    )


def refuse_configuration(parameters: Mapping[str, object]) -> None:
    """Raise ServiceError BAD_REQUEST where a request to load a model says how."""
    if parameters:
        detail = (
            "A model is loaded as it is in the repository; a configuration or files with the request are not taken."
        )
        raise ServiceError(Problem.BAD_REQUEST, detail)


def index(versions: Iterable[Version], only_ready: bool = False) -> list[IndexEntry]:
    """Which versions can be asked, and why the others cannot."""
    return [_entry(version) for version in versions if version.state is State.READY or not only_ready]


def _entry(version: Version) -> IndexEntry:
    ready = version.state is State.READY
    return IndexEntry(
        name=version.name,
        version=str(version.version),
        state="READY" if ready else "UNAVAILABLE",
        reason="" if ready else version.error or version.state,
    )


def stats(statistics: Statistics, versions: Iterable[Version]) -> StatsAnswer:
    """What versions have answered."""
    return StatsAnswer(model_stats=[_stats(statistics, version) for version in versions])


def _stats(statistics: Statistics, version: Version) -> ModelStatsOut:
    account = statistics.of(version.name, version.version)
    outcomes: dict[str, Any] = {name: _out(duration) for name, duration in account.outcomes().items()}
    return ModelStatsOut(
        name=version.name,
        version=str(version.version),
        last_inference=account.last_inference_ms,
        inference_count=account.images,
        execution_count=account.runs,
        inference_stats=InferStats(**outcomes),
        batch_stats=[
            BatchStats(
                batch_size=size,
                compute_input=_out(stages["compute_input"]),
                compute_infer=_out(stages["compute_infer"]),
            )
            for size, stages in sorted(account.batches.items())
        ],
    )


def _out(duration: Duration) -> DurationOut:
    return DurationOut(count=duration.count, ns=duration.ns)
