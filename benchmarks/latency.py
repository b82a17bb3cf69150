"""What the latency benchmarks share: packed networks and their real-valued twin, run in turns in one process.

Ours is the binary network packed to one bit a weight, from uint8 pixels to its outputs, with stem, 1x1 convolutions and
head of float32 and of 8 bits. The others (runtimes.py) run the real-valued twin (the same shape with real weights and
activations) from normalised float32 pixels, where they are installed. Every round runs each contender five times in a
row, as a service that has one model would, and notes the median; the figure is the median over rounds, beside it the
least of all calls (what a busy machine hides). Weights are random; they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from runtimes import PEERS, Run, Twin
from torch import nn

from models.packing.file import InputSpec
from models.packing.pack import pack_network
from models.quantized import set_pixels
from models.xnor import Session

SHOWN_STEPS = 12
CALLS_A_ROUND = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pair:
    """Binary networks and their real-valued twin, for pictures of `size` x `size` pixels.

    `binary` are those that are packed, by the name they get in the table; the first is the one that ratios are to.
    `meaning` are the keyword arguments of `pack_network` that say what the outputs are.
    """

    title: str
    name: str
    size: int
    binary: dict[str, nn.Module]
    twin: nn.Module
    meaning: dict[str, Any] = field(default_factory=dict)


def ours(
    pair: Pair, name: str, folder: Path, images: np.ndarray[Any, Any], threads: int
) -> tuple[Session, dict[str, Any]]:
    """One of the packed networks' session, and what it takes."""
    path = folder / f"{name}-{pair.size}.safetensors"
    spec = InputSpec(height=pair.size, width=pair.size, mean=MEAN, std=STD)
    network = pair.binary[name].eval()
    set_pixels(network, MEAN, STD)
    pack_network(network, path, architecture=pair.name, input_spec=spec, **pair.meaning)
    Session.load(path)  # the file is in the page cache from here on
    session = Session.load(path, threads=threads)
    assert all(np.isfinite(values).all() for values in session.run(images).values())
    return session, {
        "isa": session.isa,
        "file_bytes": session.file.file_bytes,
        "float32_bytes": session.file.header.sizes.float32_bytes,
        "load_ms": 1e3 * session.load_seconds,
        "arena_bytes": session.arena_bytes,
        "resident_bytes": session.resident_bytes,
    }


def contenders(
    pair: Pair, folder: Path, options: argparse.Namespace, threads: int, batch: int
) -> tuple[dict[str, Run], dict[str, Any]]:
    """Everything that is timed, by name, and the facts about ours; with `options.steps` also our time by step."""
    images = np.random.default_rng(0).integers(0, 256, (batch, pair.size, pair.size, 3), dtype=np.uint8)
    runs: dict[str, Run] = {}
    facts: dict[str, Any] = {}
    for name in pair.binary:
        session, facts[name] = ours(pair, name, folder, images, threads)
        runs[name] = lambda session=session: session.run(images)
        if options.steps:
            facts[name]["steps_ms"] = [(step, 1e3 * seconds) for step, seconds in session.profile(images[0])]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    twin = Twin(pair.twin.eval(), x.contiguous(), folder, threads)
    for peer in PEERS:
        if peer.name in options.peers and peer.installed:
            runs[peer.name] = peer.make(twin)
    return runs, facts


def measure(runs: dict[str, Run], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median over rounds and least of all calls of each, in milliseconds, interleaved, after a round of warming up."""
    medians: dict[str, list[float]] = {name: [] for name in runs}
    least = dict.fromkeys(runs, float("inf"))
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            took = []
            for _ in range(CALLS_A_ROUND):
                start = time.perf_counter()
                run()
                took.append(1e3 * (time.perf_counter() - start))
            if round_number > 0:
                medians[name].append(statistics.median(took))
                least[name] = min(least[name], *took)
    return {name: statistics.median(values) for name, values in medians.items()}, least


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options of every latency benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, nargs="+", default=[1])
    made.add_argument("--batch", type=int, nargs="+", default=[1])
    made.add_argument("--rounds", type=int, default=rounds)
    names = [peer.name for peer in PEERS]
    made.add_argument("--peers", nargs="*", default=names, choices=names, metavar="PEER", help="; ".join(names))
    made.add_argument("--steps", action="store_true", help="also where our time goes, step by step (one thread)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too; - is standard output")
    return made


def compare(options: argparse.Namespace, pairs: Callable[[], Sequence[Pair]]) -> None:
    """Measure each pair with each number of threads and images, and print what came out, as text or JSON."""
    os.environ["OMP_NUM_THREADS"] = str(max(options.threads))
    torch.manual_seed(0)
    machine = describe("torch", "numpy", *sorted({peer.package for peer in PEERS}))
    results = []
    text = options.json is None or str(options.json) != "-"
    if text:
        print(", ".join(f"{k} {v}" for k, v in machine.items()))
        print(f"medians of n = {options.rounds} interleaved rounds")
    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs():
            for threads in options.threads:
                torch.set_num_threads(threads)
                for batch in options.batch:
                    runs, facts = contenders(pair, Path(folder), options, threads, batch)
                    medians, least = measure(runs, options.rounds)
                    result = {
                        "title": pair.title, "size_px": pair.size, "threads": threads, "batch": batch,
                        "median_ms": medians, "least_ms": least, "signet": facts,
                    }  # fmt: skip
                    results.append(result)
                    if text:
                        _show(result)
    if options.json is not None:
        chosen = {name: value for name, value in vars(options).items() if name != "json"}
        dump = json.dumps({"machine": machine, **chosen, "results": results}, indent=2)
        if text:
            options.json.write_text(dump + "\n")
        else:
            print(dump)


def _show(result: dict[str, Any]) -> None:
    medians = result["median_ms"]
    first = next(iter(result["signet"]))
    print(f"\n{result['title']}, {result['threads']} thread(s), batch {result['batch']}")
    for name, took in medians.items():
        least = result["least_ms"][name]
        print(f"  {name:<28}{took:>9.3f} ms (least {least:>8.3f}) {took / medians[first]:>7.1f} x {first}")
    for name, facts in result["signet"].items():
        print(
            f"  {name} ({facts['isa']}): file {facts['file_bytes'] / 1e6:.2f} MB (float32 "
            f"{facts['float32_bytes'] / 1e6:.1f} MB), loads in {facts['load_ms']:.1f} ms, memory beyond the file "
            f"{facts['resident_bytes'] / 1e6:.1f} MB"
        )
        if "steps_ms" in facts:
            _show_steps(facts["steps_ms"])


def _show_steps(steps: list[tuple[str, float]]) -> None:
    """Where our time goes: by the kind of each step's first operation, and the longest steps."""
    total = sum(ms for _, ms in steps)
    kinds: dict[str, float] = {}
    for name, ms in steps:
        kind = name.partition(":")[0]
        kinds[kind] = kinds.get(kind, 0.0) + ms
    print(f"  steps of one run, the least of 20 each: {total:.3f} ms")
    for title, rows in (("by kind", kinds.items()), ("the longest", steps)):
        print(f"  {title}:")
        for name, ms in sorted(rows, key=lambda row: -row[1])[:SHOWN_STEPS]:
            print(f"    {ms:>9.3f} ms {ms / total:>6.1%}  {name}")
