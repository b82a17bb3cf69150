"""The data plane: what a request means, whichever protocol it came by.

A picture's way is decode and preprocess in one thread, the network in another, the answer on the event loop. Each step
is timed under the name that metrics and answers use; the pictures of one request are decoded side by side and then
run as one batch, by one session.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.errors import Problem, ServiceError
from app.images import decode, denormalised, longest_side_px, prepare
from app.metrics import Metrics
from app.poses import Box, Poses, PreparedPeople, finish, prepare_people, session_keypoints, with_mirrored
from app.repository import Repository, Session, Version
from app.scheduler import Scheduler
from app.statistics import Statistics
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
    """A picture as the network takes it, the upright original's size, when work on it began, and the seconds spent."""

    pixels: NDArray[np.uint8]
    width: int
    height: int
    begun: float
    decode_s: float
    preprocess_s: float


P = TypeVar("P", Prepared, PreparedPeople)


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
    return Prepared(pixels, picture.width, picture.height, begun, decoded - begun, time.monotonic() - decoded)


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

    def __init__(
        self,
        repository: Repository,
        scheduler: Scheduler,
        metrics: Metrics,
        *,
        max_pixels: int,
        max_batch_images: int,
    ) -> None:
        self.repository = repository
        self.scheduler = scheduler
        self.metrics = metrics
        self.statistics = Statistics()
        self.max_pixels = max_pixels
        self.max_batch_images = max_batch_images

    async def classify(self, data: bytes, version: Version, top_k: int, trace: Trace) -> Classification:
        """Classify one encoded picture. Raises ServiceError for whatever keeps it from being answered."""
        session = version.ready_session()
        labels = session_labels(session)
        with (
            self.statistics.of(version.name, version.version).request(trace),
            self.scheduler.admit(1, trace.deadline) as deadline,
        ):
            (prepared,) = await self._prepare([data], session, deadline, trace)
            if isinstance(prepared, ServiceError):
                raise prepared
            outputs = await self._run(prepared.pixels[None], version, session, deadline, trace)
            with trace.stage("postprocess"):
                predictions = top_predictions(outputs["logits"][0], labels, top_k)
        return Classification(prepared.width, prepared.height, predictions)

    async def classify_batch(
        self, pictures: Sequence[bytes], version: Version, top_k: int, trace: Trace
    ) -> list[Classification | ServiceError]:
        """Classify several encoded pictures with one session; a bad picture is answered by its error.

        Raises ServiceError for what keeps all of them from being answered.
        """
        session = version.ready_session()
        labels = session_labels(session)
        statistics = self.statistics.of(version.name, version.version)
        with statistics.request(trace), self.scheduler.admit(len(pictures), trace.deadline) as deadline:
            prepared = await self._prepare(pictures, session, deadline, trace)
            good = [picture.pixels for picture in prepared if isinstance(picture, Prepared)]
            logits: Iterator[NDArray[np.float32]] = iter(())
            if good:
                logits = iter((await self._run(np.stack(good), version, session, deadline, trace))["logits"])
            with trace.stage("postprocess"):
                return [
                    Classification(p.width, p.height, top_predictions(next(logits), labels, top_k))
                    if isinstance(p, Prepared)
                    else p
                    for p in prepared
                ]

    async def pose(
        self,
        data: bytes,
        boxes: Sequence[Box],
        version: Version,
        trace: Trace,
        *,
        flip: bool = True,
        drawn: bool = False,
    ) -> Poses:
        """Find the keypoints of one encoded picture's people. Raises ServiceError for whatever prevents it."""
        self._check_people(max(1, len(boxes)))
        session = version.ready_session()
        session_keypoints(session)
        statistics = self.statistics.of(version.name, version.version)
        with statistics.request(trace), self.scheduler.admit(max(1, len(boxes)), trace.deadline) as deadline:
            (found,) = await self._poses([data], [boxes], version, session, deadline, trace, flip=flip, drawn=drawn)
            if isinstance(found, ServiceError):
                raise found
        return found

    async def pose_batch(
        self,
        pictures: Sequence[bytes],
        boxes: Sequence[Sequence[Box]],
        version: Version,
        trace: Trace,
        *,
        flip: bool = True,
    ) -> list[Poses | ServiceError]:
        """Find the keypoints of several encoded pictures' people; a bad picture is answered by its error.

        Raises ServiceError for what keeps all of them from being answered.
        """
        people = sum(max(1, len(each)) for each in boxes)
        self._check_people(people)
        session = version.ready_session()
        session_keypoints(session)
        statistics = self.statistics.of(version.name, version.version)
        with statistics.request(trace), self.scheduler.admit(people, trace.deadline) as deadline:
            return await self._poses(pictures, boxes, version, session, deadline, trace, flip=flip, drawn=False)

    def _check_people(self, people: int) -> None:
        if people > self.max_batch_images:
            raise ServiceError(
                Problem.BATCH_TOO_LARGE, f"There are {people} people; a request may have {self.max_batch_images}."
            )

    async def _poses(
        self,
        pictures: Sequence[bytes],
        boxes: Sequence[Sequence[Box]],
        version: Version,
        session: Session,
        deadline: float,
        trace: Trace,
        *,
        flip: bool,
        drawn: bool,
    ) -> list[Poses | ServiceError]:
        spec, keypoints = session.file.header.input, session_keypoints(session)
        prepared = await self._side_by_side(
            [
                partial(prepare_people, data, each, spec, self.max_pixels, drawn=drawn)
                for data, each in zip(pictures, boxes, strict=True)
            ],
            deadline,
            trace,
        )
        good = [people for people in prepared if isinstance(people, PreparedPeople)]
        if not good:
            return [entry for entry in prepared if isinstance(entry, ServiceError)]
        crops = [with_mirrored(people.pixels) if flip else people.pixels for people in good]
        people_count = sum(len(people.pixels) for people in good)
        outputs = await self._run(np.concatenate(crops), version, session, deadline, trace, images=people_count)
        cuts = np.cumsum([len(each) for each in crops])[:-1]
        heatmaps = iter(np.split(outputs["heatmaps"], cuts))

        def read() -> list[Poses | ServiceError]:
            return [
                finish(entry, next(heatmaps), keypoints, spec.height) if isinstance(entry, PreparedPeople) else entry
                for entry in prepared
            ]

        with trace.stage("postprocess"):
            found, _ = await self.scheduler.decoding.run(read, math.inf)
        return found

    async def infer(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32] | Sequence[bytes],
        version: Version,
        session: Session,
        trace: Trace,
    ) -> Mapping[str, NDArray[Any]]:
        """All outputs for a batch of pixels or normalised pixels `[N, height, width, 3]`, or of encoded pictures.

        Raises ServiceError for whatever keeps any of them from being answered.
        """
        statistics = self.statistics.of(version.name, version.version)
        with statistics.request(trace), self.scheduler.admit(len(images), trace.deadline) as deadline:
            if not isinstance(images, np.ndarray):
                pixels = _stack(await self._prepare(images, session, deadline, trace))
            elif images.dtype == np.uint8:
                pixels = images.astype(np.uint8, copy=False)
            else:
                pixels = await self._denormalised(images.astype(np.float32, copy=False), session, deadline, trace)
            outputs = await self._run(pixels, version, session, deadline, trace)
            with trace.stage("postprocess"):
                if not all(np.isfinite(values).all() for values in outputs.values()):
                    raise ServiceError(Problem.MODEL_UNAVAILABLE, "The model's answer is not finite.", retry_after_s=30)
        return outputs

    async def _prepare(
        self, pictures: Sequence[bytes], session: Session, deadline: float, trace: Trace
    ) -> list[Prepared | ServiceError]:
        """Decode pictures and fit each to the network's input."""
        spec = session.file.header.input
        work = [partial(prepare_bytes, data, spec, self.max_pixels) for data in pictures]
        return await self._side_by_side(work, deadline, trace)

    async def _denormalised(
        self, values: NDArray[np.float32], session: Session, deadline: float, trace: Trace
    ) -> NDArray[np.uint8]:
        """The pixels of normalised ones. Raises ServiceError BAD_TENSOR."""

        def timed() -> tuple[NDArray[np.uint8], float, float]:
            begun = time.monotonic()
            return denormalised(values, session.file.header.input), begun, time.monotonic() - begun

        submitted = time.monotonic()
        with _waiting(trace, submitted):
            (pixels, begun, spent_s), waited_s = await self.scheduler.decoding.run(timed, deadline)
        trace.add("queue", waited_s, submitted)
        trace.add("preprocess", spent_s, begun)
        return pixels

    async def _side_by_side(
        self, work: Sequence[Callable[[], P]], deadline: float, trace: Trace
    ) -> list[P | ServiceError]:
        """Prepare pictures side by side: what became of each, a bad one being its error."""

        async def one(prepare: Callable[[], P]) -> tuple[P | ServiceError, float]:
            try:
                return await self.scheduler.decoding.run(prepare, deadline)
            except ServiceError as error:
                if error.problem is Problem.DEADLINE:
                    raise
                return error, 0.0

        submitted = time.monotonic()
        with _waiting(trace, submitted):
            found = await asyncio.gather(*(one(prepare) for prepare in work))
        trace.add("queue", max(waited for _, waited in found), submitted)
        for prepared, _ in found:
            if not isinstance(prepared, ServiceError):
                trace.add("decode", prepared.decode_s, prepared.begun)
                trace.add("preprocess", prepared.preprocess_s, prepared.begun + prepared.decode_s)
        return [prepared for prepared, _ in found]

    async def _run(
        self,
        pixels: NDArray[np.uint8],
        version: Version,
        session: Session,
        deadline: float,
        trace: Trace,
        *,
        images: int | None = None,
    ) -> Mapping[str, NDArray[Any]]:
        """Run the network over a request's pictures, and those of others that wait for it where batches are on.

        They count as `images` pictures where they are not the length of `pixels`.
        """
        images = len(pixels) if images is None else images
        submitted = time.monotonic()
        with _waiting(trace, submitted):
            ran = await self.scheduler.inference.run(session, pixels, deadline)
        trace.add("queue", ran.waited_s, submitted)
        trace.add("infer", ran.infer_s, submitted + ran.waited_s)
        run_images = images if ran.run_images == len(pixels) else ran.run_images
        self.statistics.of(version.name, version.version).ran(images, run_images, trace)
        self.metrics.images.labels(version.name).inc(images)
        if run_images:
            self.metrics.batch_images.observe(run_images)
        return ran.outputs


@contextmanager
def _waiting(trace: Trace, since: float) -> Iterator[None]:
    """Note the wait of a request that its deadline ended."""
    try:
        yield
    except ServiceError as error:
        if error.problem is Problem.DEADLINE:
            trace.note("queue", since, time.monotonic() - since)
        raise


def _stack(prepared: Sequence[Prepared | ServiceError]) -> NDArray[np.uint8]:
    """The batch `[N, height, width, 3]`; raises the first error, telling which picture it was."""
    pixels = []
    for index, picture in enumerate(prepared):
        if isinstance(picture, ServiceError):
            raise ServiceError(picture.problem, f"Picture {index}: {picture.detail}") from picture
        pixels.append(picture.pixels)
    return np.stack(pixels)
