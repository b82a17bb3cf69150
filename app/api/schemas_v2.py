"""The answers of the Open Inference Protocol V2, in the words that its clients expect."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.api.schemas import Answer


class ServerMetadata(Answer):
    """Who answers, and the extensions it has."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Answer):
    """A tensor; -1 is the batch."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Answer):
    """A model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerLive(Answer):
    """Answer of /v2/health/live."""

    live: Literal[True] = True


class ServerReady(Answer):
    """Answer of /v2/health/ready."""

    ready: Literal[True] = True


class ModelReady(Answer):
    """Answer of a model's readiness."""

    name: str
    ready: Literal[True] = True


class LatestVersions(Answer):
    """How many of the highest versions serve."""

    num_versions: int


class LatestPolicy(Answer):
    """The highest versions serve."""

    latest: LatestVersions


class AllVersions(Answer):
    """Nothing more is to be said."""


class AllPolicy(Answer):
    """Every version in the repository serves."""

    all: AllVersions


class SpecificVersions(Answer):
    """The versions that serve."""

    versions: list[int]


class SpecificPolicy(Answer):
    """These versions serve and no others."""

    specific: SpecificVersions


class ConfigInput(Answer):
    """The input in a model's configuration; `dims` are without the batch."""

    name: str
    data_type: str
    format: Literal["FORMAT_NHWC"] = "FORMAT_NHWC"
    dims: list[int]


class ConfigOutput(Answer):
    """An output in a model's configuration."""

    name: str
    data_type: str
    dims: list[int]


class StringValue(Answer):
    """A parameter of a model's configuration."""

    string_value: str


class ModelConfig(Answer):
    """A model's configuration, as far as this service has one."""

    name: str
    platform: str
    backend: str
    version_policy: LatestPolicy | AllPolicy | SpecificPolicy
    max_batch_size: int
    input: list[ConfigInput]
    output: list[ConfigOutput]
    parameters: dict[str, StringValue]


class OutputTensor(Answer):
    """A tensor of an answer; its values stand in `data`, or behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferAnswer(Answer):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class DurationOut(Answer):
    """How often, and how long in all."""

    count: int
    ns: int


class InferStats(Answer):
    """Requests by outcome, and the stages of those that succeeded."""

    success: DurationOut
    fail: DurationOut
    queue: DurationOut
    compute_input: DurationOut
    compute_infer: DurationOut
    compute_output: DurationOut


class BatchStats(Answer):
    """Runs of the network over so many pictures."""

    batch_size: int
    compute_input: DurationOut
    compute_infer: DurationOut


class ModelStatsOut(Answer):
    """What a version has answered."""

    name: str
    version: str
    last_inference: int
    """Milliseconds since 1970."""
    inference_count: int
    """Pictures."""
    execution_count: int
    """Runs of the network, each over a batch."""
    inference_stats: InferStats
    batch_stats: list[BatchStats]


class StatsAnswer(Answer):
    """Statistics of one or more versions."""

    model_stats: list[ModelStatsOut]


class IndexEntry(Answer):
    """A version of a model in the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str
    """Why it is not ready."""


class LoadRequest(Answer):
    """What Triton's clients send to load a model; models here are configured by their files alone."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class IndexRequest(Answer):
    """What the index shall show."""

    ready: bool = False
    """Only what can be asked now."""
