"""A packed network, ready to run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.packing.file import PackedFile, read
from models.packing.graph import Value, words
from models.xnor import _engine
from models.xnor.cpu import default_threads
from models.xnor.errors import EngineError
from models.xnor.plan import Plan, build, make_plan

log = logging.getLogger(__name__)

ISA_VARIABLE = "SIGNET_ISA"
MAX_THREADS = 1024


def available_isas() -> list[str]:
    """Instruction sets that this machine can run, the fastest first."""
    return _engine.available_isas()


def default_isa() -> str:
    """The fastest instruction set of this machine, unless the variable SIGNET_ISA chooses another."""
    return _checked_isa(os.environ.get(ISA_VARIABLE) or None, ISA_VARIABLE)


def _checked_isa(isa: str | None, field: str) -> str:
    available = available_isas()
    if isa is None:
        return available[0]
    if isa not in available:
        raise EngineError(f"{field}: {isa!r} is not one of this machine's instruction sets: {', '.join(available)}")
    return isa


class Session:
    """A packed network on this machine. Safe to call from many threads at once.

    At most `threads` threads compute at any time, however many callers there are: one image uses all of
    them, many images one each, and callers beyond them wait. A call that finds threads free takes them too, though
    others may come; callers who know of others say so. The GIL is free while the graph runs.

    Attributes
    ----------
    file : the packed file, its header included.
    isa : the instruction set in use.
    threads : threads that compute at once, at most.
    arena_bytes : memory for the activations of one image.
    load_seconds : how long loading took.
    """

    def __init__(self, file: PackedFile, plan: Plan, program: _engine.Program, load_seconds: float) -> None:
        self.file = file
        self.isa = program.isa
        self.threads = program.threads
        self.arena_bytes = plan.arena_bytes
        self.load_seconds = load_seconds
        self._program = program
        self._outputs: dict[str, Value] = {name: file.values[value] for name, value in plan.outputs.items()}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        isa: str | None = None,
        keep: Iterable[str] = (),
        fuse: bool = True,
    ) -> Session:
        """Read, check and prepare a packed file.

        Parameters
        ----------
        threads : at most so many compute at once; by default what the cgroup and the affinity grant.
        isa : one of `available_isas()`; by default `default_isa()`.
        keep : names of values of the graph that `run` shall return too.
        fuse : False runs every op of the graph by itself, storing each value.

        Raises PackedFileError for an unsound file, EngineError for wrong arguments.
        """
        start = time.perf_counter()
        isa = default_isa() if isa is None else _checked_isa(isa, "isa")
        threads = default_threads() if threads is None else threads
        if not 1 <= threads <= MAX_THREADS:
            raise EngineError(f"threads: is {threads}, expected 1 to {MAX_THREADS}")
        file = read(path)
        plan = make_plan(file, fuse=fuse, keep=keep)
        try:
            program = build(file, plan, isa=isa, threads=threads)
        except MemoryError as error:
            raise EngineError(f"{file.path}: its weights do not fit into memory") from error
        except ValueError as error:
            raise EngineError(f"{file.path}: {error}") from error
        session = cls(file, plan, program, time.perf_counter() - start)
        log.info("loaded %s: isa %s, %d threads, %.1f ms", file.path, isa, threads, 1e3 * session.load_seconds)
        return session

    @property
    def resident_bytes(self) -> int:
        """Memory beyond the mapped file: repacked weights, tables, and the arenas made so far."""
        return self._program.parameter_bytes + self._program.allocated_arena_bytes

    def run(self, images: NDArray[np.uint8], callers: int = 1) -> dict[str, NDArray[Any]]:
        """Run a batch.

        Parameters
        ----------
        images : uint8 `[N, height, width, 3]`, RGB, of the input's size.
        callers : calls expected at the same time; this one takes no more than its share of the threads.

        Returns
        -------
        One array an output, batch first: float32 `logits` `[N, classes]` (height and width 1 are dropped) or
        `heatmaps` `[N, h, w, K]`. Kept values come as `[N, h, w, channels]`, bits as uint64 `[N, h, w, words]`.

        Raises EngineError naming the expected and the found dtype and shape.
        """
        size = self.file.header.input
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            found = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise EngineError(f"images: expected an array of uint8, found {found}")
        if images.ndim != 4 or images.shape[1:] != (size.height, size.width, 3):
            raise EngineError(f"images: expected shape [N, {size.height}, {size.width}, 3], found {list(images.shape)}")
        count = len(images)
        results = {name: _empty(count, value) for name, value in self._outputs.items()}
        try:
            threads = max(1, self.threads // max(1, callers))
            self._program.run(np.ascontiguousarray(images), list(results.values()), threads)
        except MemoryError as error:
            raise EngineError(f"images: no memory for the {self.arena_bytes} bytes of activations") from error
        return {
            name: result.reshape(count, result.shape[3]) if name in self._vectors else result
            for name, result in results.items()
        }

    @property
    def _vectors(self) -> set[str]:
        named = self.file.header.graph.outputs
        return {n for n, v in self._outputs.items() if n in named and (v.height, v.width) == (1, 1)}

    def profile(self, image: NDArray[np.uint8], repeats: int = 20) -> list[tuple[str, float]]:
        """Seconds of each step for one image on one thread (the least of `repeats`), in order of execution."""
        seconds = self._program.profile(np.ascontiguousarray(image[None] if image.ndim == 3 else image), repeats)
        return list(zip(self._program.step_names, seconds, strict=True))


def _empty(count: int, value: Value) -> NDArray[Any]:
    if value.kind == "bits":
        return np.empty((count, value.height, value.width, words(value.channels)), np.uint64)
    return np.empty((count, value.height, value.width, value.channels), np.float32)
