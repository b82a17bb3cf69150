"""The data plane: what a request means, whichever protocol it came by.

A picture's way is decode and preprocess in one thread, the network in another, the answer on the event loop. Each step
is timed under the name that metrics and answers use.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import Problem, ServiceError
from app.images import decode, longest_side_px, prepare
from app.metrics import Metrics
from app.repository import Repository, Session, Version
from app.scheduler import Scheduler
from app.trace import Trace
from models.packing.file import InputSpec

MAX_TOP_K = 1000
"""The most predictions a request may ask for; a model with fewer classes gives what it has."""


@dataclass(frozen=True)
class Prediction:
    """One class: its label, its index among the logits, and its softmax score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Prepared:
    """A picture as the network takes it, the upright original's size, and the seconds spent."""

    pixels: NDArray[np.uint8]
    width: int
    height: int
    decode_s: float
    preprocess_s: float


@dataclass(frozen=True)
class Classification:
    """The answer for one picture."""

    width: int
    height: int
    predictions: list[Prediction]


def prepare_bytes(data: bytes, spec: InputSpec, max_pixels: int) -> Prepared:
    """Decode a picture and fit it to a network's input. Raises ServiceError as `app.images.decode` does."""
    begun = time.monotonic()
    picture = decode(data, max_pixels=max_pixels, needed_px=longest_side_px(spec))
    decoded = time.monotonic()
    pixels = prepare(picture.image, spec)
    return Prepared(pixels, picture.width, picture.height, decoded - begun, time.monotonic() - decoded)


def top_predictions(logits: NDArray[np.float32], labels: list[str], top_k: int) -> list[Prediction]:
    """The `top_k` classes of one image's logits `[classes]`, best first; scores are the softmax over all classes."""
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        raise ServiceError(Problem.MODEL_UNAVAILABLE, "The model's answer is not finite.", retry_after_s=30)
    weights = np.exp(values - values.max())
    scores = weights / weights.sum()
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Prediction(labels[index], int(index), float(scores[index])) for index in best]


def session_labels(session: Session) -> list[str]:
    """The labels of a classification model. Raises ServiceError WRONG_TASK for another task."""
    header = session.file.header
    if header.task != "classification" or header.labels is None:
        raise ServiceError(Problem.WRONG_TASK, f"The model does {header.task}, not classification.")
    return header.labels


class Service:
    """Models, queue and metrics put together."""

    def __init__(self, repository: Repository, scheduler: Scheduler, metrics: Metrics, *, max_pixels: int) -> None:
        self.repository = repository
        self.scheduler = scheduler
        self.metrics = metrics
        self.max_pixels = max_pixels

    async def classify(self, data: bytes, version: Version, top_k: int, trace: Trace) -> Classification:
        """Classify one encoded picture. Raises ServiceError for whatever keeps it from being answered."""
        session = version.ready_session()
        labels = session_labels(session)
        spec = session.file.header.input
        with self.scheduler.admit() as deadline:
            prepared, waited = await self.scheduler.decoding.run(
                lambda: prepare_bytes(data, spec, self.max_pixels), deadline
            )
            trace.add("decode", prepared.decode_s)
            trace.add("preprocess", prepared.preprocess_s)
            trace.add("queue", waited)
            begun = time.monotonic()
            outputs, waited = await self.scheduler.inference.run(lambda: session.run(prepared.pixels[None]), deadline)
            trace.add("queue", waited)
            trace.add("infer", time.monotonic() - begun - waited)
        with trace.stage("postprocess"):
            predictions = top_predictions(outputs["logits"][0], labels, top_k)
        self.metrics.images.labels(version.name).inc()
        return Classification(prepared.width, prepared.height, predictions)
