"""Who may wait, for how long, and where the work is done.

The event loop only moves bytes. Decoding and inference run in two bounded pools of threads (Pillow, zlib and the engine
release the GIL), and at most `capacity` images are admitted at once: what comes on top is refused immediately, because
a queue that grows without bound answers everybody too late. An admitted image that still waits at its deadline is
dropped then, before it costs anything, and so is one whose request was cancelled because its client left.

A thread that comes free takes the request that has waited longest and, with `max_batch` above 1, the others that wait
for the same session, up to so many images: they run as one batch. It never waits for more unless a delay is set.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.errors import Problem, ServiceError
from app.repository import Session

T = TypeVar("T")
Outputs = Mapping[str, NDArray[Any]]


def _too_late(submitted: float, now: float) -> ServiceError:
    waited_ms = round((now - submitted) * 1000)
    return ServiceError(Problem.DEADLINE, f"The picture waited {waited_ms} ms in the queue and was not processed.")


@contextmanager
def _alarm(deadline: float, ring: Callable[[], None]) -> Iterator[None]:
    """Have the event loop call `ring` if a `time.monotonic` instant comes within the block."""
    if deadline == math.inf:
        yield
        return
    timer = asyncio.get_running_loop().call_later(max(0.0, deadline - time.monotonic()), ring)
    try:
        yield
    finally:
        timer.cancel()


class Lane:
    """A bounded pool of threads with a deadline for whatever waits before it."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"signet-{name}")

    async def run(self, work: Callable[[], T], deadline: float) -> tuple[T, float]:
        """Do `work` in a thread: its result, and the seconds it waited for that thread.

        `deadline` is a `time.monotonic` instant; raises ServiceError DEADLINE when it passes before a thread came free.
        When the caller is cancelled, work that has not begun never begins.
        """
        submitted = time.monotonic()
        waiting = [work]  # the one reference, so that nothing else keeps what is not wanted any more
        del work
        late = False

        def begin() -> tuple[T, float]:
            now = time.monotonic()
            if now > deadline:
                raise _too_late(submitted, now)
            return waiting.pop()(), now - submitted

        def expire() -> None:
            nonlocal late
            late = job.cancel()

        job = self._pool.submit(begin)
        try:
            with _alarm(deadline, expire):
                return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if late and not (task and task.cancelling()):
                raise _too_late(submitted, time.monotonic()) from None
            raise
        finally:
            waiting.clear()  # the pool keeps a cancelled job until a thread comes free; not its picture, though

    def close(self) -> None:
        """Drop what waits and end the threads when their work is done."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Ran:
    """What came of images that were handed to the engine.

    Attributes
    ----------
    outputs : of these images alone.
    waited_s, infer_s : seconds before and in the run.
    run_images : images of the whole run, told to one of those who shared it; 0 to the others.
    """

    outputs: Outputs
    waited_s: float
    infer_s: float
    run_images: int


@dataclass(eq=False)
class _Waiting:
    """Images of one request `[N, height, width, 3]` before a session."""

    session: Session
    images: NDArray[np.uint8]
    deadline: float
    answer: asyncio.Future[Ran]
    submitted: float = field(default_factory=time.monotonic)
    ripe: bool = False


class Batcher:
    """Runs images through sessions, in a lane, together with what waits for the same session.

    One request alone gets all threads of its session. Where more are `admitted`, each gets its share: threads that help
    one image wait for each other at each layer, which on busy CPUs costs more than it brings.
    Touched only on the event loop's thread.
    """

    def __init__(self, lane: Lane, max_batch: int, max_delay_s: float, admitted: Callable[[], int]) -> None:
        self._lane = lane
        self._admitted = admitted
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._free = lane.threads
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, session: Session, images: NDArray[np.uint8], deadline: float) -> Ran:
        """Run a request's images. Raises ServiceError DEADLINE, and what the session raises."""
        loop = asyncio.get_running_loop()
        entry = _Waiting(session, images, deadline, loop.create_future())
        self._waiting.append(entry)
        if self._max_delay_s:
            loop.call_later(self._max_delay_s, self._ripen, entry)
            self._dispatch()
        else:
            self._ripen(entry)
        try:
            with _alarm(deadline, lambda: self._expire(entry)):
                return await entry.answer
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _expire(self, entry: _Waiting) -> None:
        """Answer an entry that still waits at its deadline."""
        if entry in self._waiting and not entry.answer.done():
            entry.answer.set_exception(_too_late(entry.submitted, time.monotonic()))

    def _ripen(self, entry: _Waiting) -> None:
        """Have an entry wait for no others any longer."""
        entry.ripe = True
        self._dispatch()

    def _dispatch(self) -> None:
        """Give batches to free threads."""
        while self._free and (batch := self._take()):
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._compute(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[_Waiting]:
        """The next batch, taken from the queue; empty if there is none yet. Who left or is too late is dropped."""
        now = time.monotonic()
        for entry in self._waiting:
            if now > entry.deadline:
                self._expire(entry)
        self._waiting = deque(entry for entry in self._waiting if not entry.answer.done())
        if not self._waiting:
            return []
        first = self._waiting[0]
        batch, images = [], 0
        for entry in self._waiting:
            fits = images + len(entry.images) <= self._max_batch or entry is first
            if entry.session is first.session and fits:
                batch.append(entry)
                images += len(entry.images)
        if images < self._max_batch and not first.ripe:
            return []
        self._waiting = deque(entry for entry in self._waiting if entry not in batch)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        images = [entry.images for entry in batch]
        whole = images[0] if len(images) == 1 else np.concatenate(images)
        callers = min(1 + self._admitted() - len(batch), self._lane.threads)

        def timed() -> tuple[Outputs, float, float]:
            begun = time.monotonic()
            return batch[0].session.run(whole, callers), begun, time.monotonic() - begun

        try:
            (outputs, begun, infer_s), _ = await self._lane.run(timed, math.inf)
        except Exception as error:
            for entry in batch:
                if not entry.answer.done():
                    entry.answer.set_exception(error)
            return
        finally:
            self._free += 1
            self._dispatch()
        first, run_images = 0, len(whole)
        for entry in batch:
            rows = slice(first, first + len(entry.images))
            first = rows.stop
            if not entry.answer.done():
                own = {name: values[rows] for name, values in outputs.items()}
                entry.answer.set_result(Ran(own, begun - entry.submitted, infer_s, run_images))
                run_images = 0


class Scheduler:
    """Bounded admission, counted in images, before a decoding and an inference lane.

    `tell` hears the number of admitted images whenever it changes.
    """

    def __init__(
        self,
        *,
        capacity: int,
        deadline_s: float,
        decode_threads: int,
        parallel_images: int,
        max_batch: int = 1,
        max_batch_delay_s: float = 0.0,
        tell: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.capacity = capacity
        self.deadline_s = deadline_s
        self.decoding = Lane("decode", decode_threads)
        self._inference = Lane("infer", parallel_images)
        self.admitted = 0
        self._requests = 0
        self.inference = Batcher(self._inference, max_batch, max_batch_delay_s, lambda: self._requests)
        self._tell = tell
        self._image_s = 0.0

    @contextmanager
    def admit(self, images: int = 1, deadline: float = math.inf) -> Iterator[float]:
        """Hold places for `images`; gives the deadline, a `time.monotonic` instant that a request may bring forward.

        Raises ServiceError QUEUE_FULL where there are none.
        """
        refusal = self.refusal(images)
        if refusal is not None:
            raise refusal
        begun = time.monotonic()
        self.admitted += images
        self._requests += 1
        self._tell(self.admitted)
        try:
            yield min(begun + self.deadline_s, deadline)
        finally:
            self.admitted -= images
            self._requests -= 1
            self._tell(self.admitted)
            per_image = (time.monotonic() - begun) / images / max(1, self.admitted + images)
            self._image_s += (per_image - self._image_s) * 0.1

    def refusal(self, images: int = 1) -> ServiceError | None:
        """What `images` more would be refused with; None while there are places for them."""
        if self.admitted + images <= self.capacity:
            return None
        detail = f"{self.admitted} images are in progress, at most {self.capacity} are admitted."
        return ServiceError(Problem.QUEUE_FULL, detail, retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> int:
        """When the queue will have room, from a moving average of the time between answers."""
        return min(60, max(1, math.ceil(self.admitted * self._image_s)))

    def close(self) -> None:
        """End both lanes."""
        self.decoding.close()
        self._inference.close()
