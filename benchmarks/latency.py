"""What the latency benchmarks share: a packed network and its real-valued twins, run in turns in one process.

Ours is the binary network packed to one bit a weight, from uint8 pixels to its outputs. The others run the real-valued
twin (the same shape with real weights and activations) from normalised float32 pixels: PyTorch eager always, ONNX
Runtime and OpenVINO where installed. Every round runs each contender once; the figure is the median over rounds, beside
it the least (what a busy machine hides). Weights are random; they do not change the time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from torch import nn

from models.packing.file import InputSpec
from models.packing.pack import pack_network
from models.xnor import Session

Run = Callable[[], Any]
SHOWN_STEPS = 12
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pair:
    """A binary network and its real-valued twin, both for pictures of `size` x `size` pixels.

    `meaning` are the keyword arguments of `pack_network` that say what the outputs are.
    """

    title: str
    name: str
    size: int
    binary: nn.Module
    twin: nn.Module
    meaning: dict[str, Any] = field(default_factory=dict)


def ours(pair: Pair, folder: Path, image: np.ndarray[Any, Any], threads: int) -> tuple[Session, dict[str, Any]]:
    """The packed network's session, and what it takes."""
    path = folder / f"{pair.name}-{pair.size}.safetensors"
    spec = InputSpec(height=pair.size, width=pair.size, mean=MEAN, std=STD)
    pack_network(pair.binary.eval(), path, architecture=pair.name, input_spec=spec, **pair.meaning)
    Session.load(path)  # the file is in the page cache from here on
    session = Session.load(path, threads=threads)
    assert all(np.isfinite(values).all() for values in session.run(image).values())
    return session, {
        "isa": session.isa,
        "file_bytes": session.file.file_bytes,
        "float32_bytes": session.file.header.sizes.float32_bytes,
        "load_ms": 1e3 * session.load_seconds,
        "arena_bytes": session.arena_bytes,
        "resident_bytes": session.resident_bytes,
    }


def onnxruntime_float32(twin: nn.Module, x: torch.Tensor, folder: Path, threads: int) -> Run:
    import onnxruntime

    path = str(folder / "twin.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy exporter says so; the new one needs one more package
        torch.onnx.export(twin, (x,), path, input_names=["x"], output_names=["y"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pixels = x.numpy()
    return lambda: session.run(None, {"x": pixels})


def openvino_float32(twin: nn.Module, x: torch.Tensor, _folder: Path, threads: int) -> Run:
    import openvino

    model = openvino.convert_model(twin, example_input=x)
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    pixels = x.numpy()
    return lambda: compiled(pixels)


PEERS: dict[str, tuple[str, Callable[[nn.Module, torch.Tensor, Path, int], Run]]] = {
    "ONNX Runtime float32": ("onnxruntime", onnxruntime_float32),
    "OpenVINO float32": ("openvino", openvino_float32),
}


def contenders(pair: Pair, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Run], dict[str, Any]]:
    """Everything that is timed, by name, and the facts about ours; with `options.steps` also our time by step."""
    image = np.random.default_rng(0).integers(0, 256, (1, pair.size, pair.size, 3), dtype=np.uint8)
    session, facts = ours(pair, folder, image, options.threads)
    if options.steps:
        facts["steps_ms"] = [(name, 1e3 * seconds) for name, seconds in session.profile(image[0])]
    runs: dict[str, Run] = {"signet": lambda: session.run(image)}
    twin = pair.twin.eval()
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float().div(255)
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.inference_mode():
        runs["PyTorch float32 eager"] = torch.inference_mode()(lambda: twin(x))
        for name, (package, make) in PEERS.items():
            if importlib.util.find_spec(package):
                runs[name] = make(twin, x, folder, options.threads)
    return runs, facts


def measure(runs: dict[str, Run], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median and least milliseconds of each, interleaved, after three rounds of warming up."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_number >= 3:
                took[name].append(1e3 * (time.perf_counter() - start))
    return ({name: statistics.median(t) for name, t in took.items()}, {name: min(t) for name, t in took.items()})


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options of every latency benchmark."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--steps", action="store_true", help="also where our time goes, step by step (one thread)")
    made.add_argument("--json", action="store_true")
    return made


def compare(options: argparse.Namespace, pairs: Callable[[], Sequence[Pair]]) -> None:
    """Measure each pair and print what came out, as text or JSON."""
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    machine = describe("torch", "numpy", *(package for package, _ in PEERS.values()))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs():
            runs, facts = contenders(pair, Path(folder), options)
            medians, least = measure(runs, options.rounds)
            results.append(
                {"title": pair.title, "size_px": pair.size, "median_ms": medians, "least_ms": least, "signet": facts}
            )
    if options.json:
        print(json.dumps({"machine": machine, **vars(options), "results": results}, indent=2))
        return
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    print(f"batch 1, {options.threads} thread(s), medians of n = {options.rounds} interleaved rounds")
    for result in results:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    facts, medians = result["signet"], result["median_ms"]
    print(f"\n{result['title']} ({facts['isa']})")
    for name, took in medians.items():
        least = result["least_ms"][name]
        print(f"  {name:<24}{took:>9.3f} ms (least {least:>8.3f}) {took / medians['signet']:>7.1f} x ours")
    print(
        f"  file {facts['file_bytes'] / 1e6:.2f} MB (float32 {facts['float32_bytes'] / 1e6:.1f} MB), loads in "
        f"{facts['load_ms']:.1f} ms, memory beyond the file {facts['resident_bytes'] / 1e6:.1f} MB"
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
