"""Who may wait, for how long, and where the work is done.

The event loop only moves bytes. Decoding and inference run in two bounded pools of threads (Pillow, zlib and the engine
release the GIL), and at most `capacity` images are admitted at once: what comes on top is refused immediately, because
a queue that grows without bound answers everybody too late. An admitted image that has waited past its deadline is
dropped before it costs anything, and so is one whose request was cancelled because its client left.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from app.errors import Problem, ServiceError

T = TypeVar("T")


class Lane:
    """A bounded pool of threads with a deadline for whatever waits before it."""

    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"signet-{name}")

    async def run(self, work: Callable[[], T], deadline: float) -> tuple[T, float]:
        """Do `work` in a thread: its result, and the seconds it waited for that thread.

        `deadline` is a `time.monotonic` instant; raises ServiceError DEADLINE if the thread came free later. When the
        caller is cancelled, work that has not begun never begins.
        """
        submitted = time.monotonic()

        def begin() -> tuple[T, float]:
            now = time.monotonic()
            if now > deadline:
                waited_ms = round((now - submitted) * 1000)
                raise ServiceError(
                    Problem.DEADLINE, f"The picture waited {waited_ms} ms in the queue and was not processed."
                )
            return work(), now - submitted

        return await asyncio.get_running_loop().run_in_executor(self._pool, begin)

    def close(self) -> None:
        """Drop what waits and end the threads when their work is done."""
        self._pool.shutdown(wait=False, cancel_futures=True)


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
        tell: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.capacity = capacity
        self.deadline_s = deadline_s
        self.decoding = Lane("decode", decode_threads)
        self.inference = Lane("infer", parallel_images)
        self.admitted = 0
        self._tell = tell
        self._image_s = 0.0

    @contextmanager
    def admit(self, images: int = 1) -> Iterator[float]:
        """Hold places for `images`; gives the deadline. Raises ServiceError QUEUE_FULL where there are none."""
        if self.admitted + images > self.capacity:
            raise ServiceError(
                Problem.QUEUE_FULL,
                f"{self.admitted} images are in progress, at most {self.capacity} are admitted.",
                retry_after_s=self._retry_after_s(),
            )
        begun = time.monotonic()
        self.admitted += images
        self._tell(self.admitted)
        try:
            yield begun + self.deadline_s
        finally:
            self.admitted -= images
            self._tell(self.admitted)
            per_image = (time.monotonic() - begun) / images / max(1, self.admitted + images)
            self._image_s += (per_image - self._image_s) * 0.1

    def _retry_after_s(self) -> int:
        """When the queue will have room, from a moving average of the time between answers."""
        return min(60, max(1, math.ceil(self.admitted * self._image_s)))

    def close(self) -> None:
        """End both lanes."""
        self.decoding.close()
        self.inference.close()
