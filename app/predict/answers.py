"""What a picture is answered with, whoever answers it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Answer = dict[str, Any]
"""`path`, and either `error`, a sentence, or what the service answers to one picture: `image` and, by the task,
`predictions`, or `people` and `skeleton`."""


class PredictError(Exception):
    """Why no picture at all can be answered."""


class Predictor(Protocol):
    """Answers pictures with one model."""

    @property
    def task(self) -> str:
        """`classification` or `pose`."""

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        """One answer a picture, in the order of the paths; a picture that cannot be answered has an `error`."""


def failed(path: Path, error: str) -> Answer:
    """The answer to a picture that has none."""
    return {"path": str(path), "error": error}


def read(path: Path) -> bytes | Answer:
    """A file's bytes, or the answer that tells why they cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        return failed(path, error.strerror or str(error))


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results of `work` in the order of the items, `workers` at a time and never many more begun than taken."""
    with ThreadPoolExecutor(workers) as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > 2 * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
