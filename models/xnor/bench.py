"""How fast a packed model runs on this machine: latency, throughput, each step's rate, memory."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass

import numpy as np

from models.packing.graph import BinaryConv2d, Conv2d, Int8Conv2d, PixelConv2d
from models.xnor import _engine
from models.xnor.session import Session

PERCENTILES = (50, 90, 99)
CEILING_SECONDS = 0.2


@dataclass(frozen=True)
class StepRate:
    """One step of the engine: its ops, its time, and of convolutions the multiply-accumulates.

    `share` : of binary convolutions, the rate as a share of what xor, popcount and add do on registers alone; padded
        taps are skipped, so it may be above 1.
    """

    name: str
    seconds: float
    macs: int
    share: float | None

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates a second."""
        return self.macs / self.seconds / 1e9


@dataclass(frozen=True)
class Bench:
    """What `bench` measured.

    Attributes
    ----------
    calls : timed calls of `batch` images each on `threads` threads.
    latency_ms : percentiles of one call.
    images_per_second : over all calls.
    ceiling_gmacs : xor, popcount and add on registers alone, one thread.
    steps : of one image on one thread, the least of several runs each.
    arena_bytes : activations of one image.
    resident_bytes : memory beyond the mapped file, after the calls.
    """

    isa: str
    threads: int
    batch: int
    calls: int
    latency_ms: dict[str, float]
    images_per_second: float
    ceiling_gmacs: float
    steps: list[StepRate]
    load_ms: float
    file_bytes: int
    arena_bytes: int
    resident_bytes: int


def bench(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    batch: int = 1,
    seconds: float = 3.0,
    isa: str | None = None,
) -> Bench:
    """Run a packed model on noise for about `seconds`.

    Raises PackedFileError for an unsound file, EngineError for wrong arguments.
    """
    session = Session.load(path, threads=threads, isa=isa)
    size = session.file.header.input
    images = np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)
    session.run(images)
    took: list[float] = []
    begun = time.perf_counter()
    while not took or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        session.run(images)
        took.append(time.perf_counter() - start)
    values = session.file.values
    ops = {op.source or op.output: op for op in session.file.header.graph.ops}
    ceiling = _engine.ceiling(session.isa, CEILING_SECONDS)
    steps = []
    for name, least in session.profile(images[0]):
        op = ops.get(name.partition(" ")[0].partition(":")[2])
        convolution = op if isinstance(op, BinaryConv2d | Conv2d | PixelConv2d | Int8Conv2d) else None
        macs = 0 if convolution is None else convolution.macs(values)
        share = macs / least / ceiling if isinstance(op, BinaryConv2d) else None
        steps.append(StepRate(name, least, macs, share))
    return Bench(
        isa=session.isa,
        threads=session.threads,
        batch=batch,
        calls=len(took),
        latency_ms={f"p{p}": 1e3 * float(np.percentile(took, p)) for p in PERCENTILES},
        images_per_second=batch / statistics.fmean(took),
        ceiling_gmacs=ceiling / 1e9,
        steps=steps,
        load_ms=1e3 * session.load_seconds,
        file_bytes=session.file.file_bytes,
        arena_bytes=session.arena_bytes,
        resident_bytes=session.resident_bytes,
    )


def table(result: Bench) -> str:
    """A `Bench` as text."""
    latency = "  ".join(f"{name} {ms:.3f} ms" for name, ms in result.latency_ms.items())
    lines = [
        f"{result.isa}, {result.threads} thread(s), batch {result.batch}, n = {result.calls} calls",
        f"latency      {latency}",
        f"throughput   {result.images_per_second:.1f} images/s",
        f"memory       file {result.file_bytes:,} bytes (mapped), beyond it {result.resident_bytes:,}, of which the "
        f"activations of an image {result.arena_bytes:,}",
        f"load         {result.load_ms:.1f} ms",
        f"ceiling      {result.ceiling_gmacs:.0f} GMAC/s: xor, popcount and add on registers alone, one thread",
        "",
        f"{'us':>9}  {'GMAC/s':>7}  {'ceiling':>7}  step (one image, one thread)",
    ]
    for step in result.steps:
        rate = f"{step.gmacs:.0f}" if step.macs else ""
        share = "" if step.share is None else f"{step.share:.0%}"
        lines.append(f"{1e6 * step.seconds:>9.1f}  {rate:>7}  {share:>7}  {step.name}")
    lines.append(f"{1e6 * sum(step.seconds for step in result.steps):>9.1f}  {'':>7}  {'':>7}  all")
    return "\n".join(lines)
