"""The typed answers of the HTTP API."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from app.poses import read_boxes, read_boxes_by_picture
from app.repository import State
from app.service import MAX_TOP_K
from models.packing.file import InputSpec, Keypoints


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(protected_namespaces=(), use_attribute_docstrings=True)


class ImageSize(Answer):
    """The picture's size in pixels, upright: after its EXIF orientation was applied."""

    width: int
    height: int


class PredictionOut(Answer):
    """One class of the answer."""

    label: str
    index: int
    """Position of the class among the network's outputs."""
    score: float
    """Softmax score over all classes, 0 to 1."""


class TimingMs(Answer):
    """Milliseconds by stage; `total` runs from the request's headers to the answer, reading the body included."""

    decode: float = 0.0
    preprocess: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    postprocess: float = 0.0
    total: float


class ClassifyAnswer(Answer):
    """Classes of one picture, best first."""

    model: str
    version: str
    image: ImageSize
    predictions: list[PredictionOut]
    timing_ms: TimingMs

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "cifar10-resnet18",
                    "version": "1",
                    "image": {"width": 500, "height": 375},
                    "predictions": [
                        {"label": "dog", "index": 5, "score": 0.94},
                        {"label": "cat", "index": 3, "score": 0.04},
                    ],
                    "timing_ms": {
                        "decode": 1.1,
                        "preprocess": 0.1,
                        "queue": 0.2,
                        "infer": 0.9,
                        "postprocess": 0.1,
                        "total": 2.9,
                    },
                }
            ]
        }
    )


class ModelChoice(Answer):
    """Which model is asked."""

    model: str | None = None
    """Name of the model; without it the default model answers, or else the first one that does this task."""
    version: str | None = None
    """Version of the model; without it the latest answers."""


class Timeout(Answer):
    """How long an answer is of use."""

    timeout_ms: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    """Milliseconds from the request's arrival for which the answer is of use. A request that still waits then gets 504
    and is not computed; so does one that has waited for as long as the service allows."""

    @property
    def timeout_s(self) -> float:
        """The same in seconds, infinite where nothing was asked for."""
        return math.inf if self.timeout_ms is None else self.timeout_ms / 1000


class InferenceParameters(ModelChoice, Timeout):
    """What every request with pictures may ask for."""


class ClassifyParameters(InferenceParameters):
    """What a classify request may ask for: in the query, or as parts beside the picture."""

    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 5
    """Number of classes in the answer; a model with fewer gives all it has."""


class ItemProblem(Answer):
    """Why one picture of a batch has no answer."""

    type: str
    """The same URN as in a problem+json answer."""
    title: str
    status: int
    """The HTTP status that this picture alone would have got."""
    detail: str


class BatchItem(Answer):
    """One picture of a batch: its classes, or its error."""

    index: int
    """Position of the picture in the request, from 0."""
    image: ImageSize | None = None
    predictions: list[PredictionOut] | None = None
    error: ItemProblem | None = None


class BatchTimingMs(TimingMs):
    """Milliseconds by stage. Decoding and preprocessing are summed over the pictures, which are done side by side."""


class ClassifyBatchAnswer(Answer):
    """Classes of several pictures, in the order of the request."""

    model: str
    version: str
    results: list[BatchItem]
    timing_ms: BatchTimingMs


class _PoseOptions(InferenceParameters):
    flip: bool = True
    """Average the heatmaps of each person and of its mirror image: better points, twice the time."""
    format: Literal["native", "coco"] = "native"
    """`coco`: results as COCO's tools read them."""


class PoseParameters(_PoseOptions):
    """What a pose request may ask for: in the query, or as parts beside the picture."""

    boxes: list[str] = []
    """Where people are: `x,y,width,height` in pixels of the upright picture, once a person; or JSON of several,
    `[[x,y,width,height],...]`. A box may stick out of the picture. Without any the whole picture is one person."""
    visualize: bool | None = None
    """Answer with the picture as PNG, people drawn into it, instead of JSON. So does the header `Accept: image/png`."""
    image_id: Annotated[int, Field(ge=0, le=1 << 53)] = 0
    """The number that `format=coco` gives the picture."""

    @field_validator("boxes")
    @classmethod
    def _are_boxes(cls, values: list[str]) -> list[str]:
        read_boxes(values)
        return values


class PoseBatchParameters(_PoseOptions):
    """What a pose request for several pictures may ask for: in the query, or as parts beside the pictures."""

    boxes: str | None = None
    """JSON of one list of boxes `[x,y,width,height]` for each picture; null or an empty list: the whole picture is one
    person."""

    @field_validator("boxes")
    @classmethod
    def _are_boxes(cls, value: str | None) -> str | None:
        if value is not None:
            read_boxes_by_picture(value)
        return value


class KeypointOut(Answer):
    """One keypoint, in pixels of the upright picture; (0, 0) is the centre of its first pixel."""

    name: str
    x: float
    y: float
    score: float
    """Height of the heatmap's peak, 0 to 1."""


class PersonOut(Answer):
    """One person."""

    box: tuple[float, float, float, float]
    """`x, y, width, height` as asked for, or the whole picture."""
    score: float
    """Mean of the keypoints' scores."""
    keypoints: list[KeypointOut]


PERSON_EXAMPLE: dict[str, JsonValue] = {
    "box": [120, 40, 160, 300],
    "score": 0.71,
    "keypoints": [
        {"name": "neck", "x": 203.5, "y": 96.2, "score": 0.83},
        {"name": "head_top", "x": 207.1, "y": 52.9, "score": 0.59},
    ],
}


class PoseAnswer(Answer):
    """The people of one picture."""

    model: str
    version: str
    image: ImageSize
    people: list[PersonOut]
    skeleton: list[tuple[int, int]]
    """Limbs: pairs of positions among a person's keypoints."""
    timing_ms: TimingMs

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "lspet-hourglass",
                    "version": "1",
                    "image": {"width": 500, "height": 375},
                    "people": [PERSON_EXAMPLE],
                    "skeleton": [[0, 1]],
                    "timing_ms": {
                        "decode": 2.3,
                        "preprocess": 0.4,
                        "queue": 0.2,
                        "infer": 6.1,
                        "postprocess": 0.4,
                        "total": 10.0,
                    },
                }
            ]
        }
    )


class CocoResult(Answer):
    """One person, as COCO's tools read results."""

    image_id: int
    category_id: int
    """1, a person."""
    keypoints: list[float]
    """x, y, 1 of each keypoint in the model's order."""
    score: float

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image_id": 0, "category_id": 1, "keypoints": [203.5, 96.25, 1, 207.125, 52.875, 1], "score": 0.71}
            ]
        }
    )


class PoseBatchItem(Answer):
    """One picture of a batch: its people (with `format=coco`, its results), or its error."""

    index: int
    """Position of the picture in the request, from 0; also its `image_id`."""
    image: ImageSize | None = None
    people: list[PersonOut] | None = None
    results: list[CocoResult] | None = None
    error: ItemProblem | None = None


class PoseBatchAnswer(Answer):
    """The people of several pictures, in the order of the request."""

    model: str
    version: str
    results: list[PoseBatchItem]
    skeleton: list[tuple[int, int]]
    timing_ms: BatchTimingMs


class SizesOut(Answer):
    """Bytes of the weights."""

    packed_bytes: int
    """As stored and mapped: binary weights at one bit each."""
    float32_bytes: int
    """As the same network in float32."""
    ratio: float
    """float32 over packed."""
    file_bytes: int
    """The whole packed file."""
    resident_bytes: int
    """Weights as the engine holds them in memory."""
    arena_bytes: int
    """Working memory of one run."""


class MacsOut(Answer):
    """Multiply-accumulates for one image."""

    binary: int
    real: int


class VersionOut(Answer):
    """One version of a model."""

    version: str
    state: State
    error: str | None = None


class ModelSummary(Answer):
    """A model in the list."""

    name: str
    version: str
    """The version that answers by default."""
    state: State
    task: Literal["classification", "pose"] | None
    versions: list[VersionOut]


class ModelList(Answer):
    """All models of the service."""

    models: list[ModelSummary]
    default: str | None
    """The model that answers where a request names none."""


class ModelCard(ModelSummary):
    """Everything about one model; the fields below `versions` are null while it has not loaded."""

    architecture: str | None = None
    input: InputSpec | None = None
    labels: list[str] | None = None
    keypoints: Keypoints | None = None
    """Names, limbs and left/right pairs of a pose model's keypoints."""
    sizes: SizesOut | None = None
    macs: MacsOut | None = None
    provenance: dict[str, JsonValue] | None = None
    """Recipe, data set, seed and measured accuracy, as the packer recorded them."""


class Health(Answer):
    """Answer of the health routes."""

    status: Literal["live", "ready"]


class Index(Answer):
    """What is where."""

    name: str
    version: str
    models: list[str]
    links: dict[str, str]


class FieldError(Answer):
    """A parameter that is not valid."""

    field: str
    message: str


class ProblemAnswer(Answer):
    """An error, as RFC 9457 problem+json."""

    type: str
    """A URN that names the kind of problem."""
    title: str
    status: int
    detail: str
    """What happened this time."""
    request_id: str
    """Finds the request in the service's log; also the X-Request-ID header."""
    error: str
    """The same as `detail`."""
    errors: list[FieldError] | None = None
    """The parameters that are not valid, for a 422 of that kind."""
