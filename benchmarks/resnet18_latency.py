"""ResNet-18, one image at a time: this engine against float32 networks of the same shape.

Ours is the binary network (real stem, 1x1 shortcuts and head) packed to one bit a weight, from uint8 pixels to
logits. The others run its real-valued twin (the same shape with real weights) from normalised float32 pixels:
PyTorch eager always, ONNX Runtime and OpenVINO where installed. All in one process, interleaved: every round runs
each contender once; the figure is the median over rounds, beside it the least (what a busy machine hides). Weights
are random; they do not change the time.

    python benchmarks/resnet18_latency.py [--size 224 32] [--threads 1] [--rounds 40] [--json]
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

from models.packing.file import InputSpec
from models.packing.pack import pack_network
from models.resnet import ResNet, ResNetConfig
from models.xnor import Session

Run = Callable[[], Any]
CLASSES = {224: 1000, 32: 10}
STEMS = {224: "imagenet", 32: "cifar"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def ours(config: ResNetConfig, folder: Path, image: np.ndarray[Any, Any], threads: int) -> tuple[Run, dict[str, Any]]:
    """The packed network's session, and what it takes."""
    size = config.input_size
    path = folder / f"{size}.safetensors"
    spec = InputSpec(height=size, width=size, mean=MEAN, std=STD)
    labels = [str(i) for i in range(config.classes)]
    pack_network(ResNet(config).eval(), path, architecture=config.name, input_spec=spec, labels=labels)
    Session.load(path)  # the file is in the page cache from here on
    session = Session.load(path, threads=threads)
    logits = session.run(image)["logits"]
    assert np.isfinite(logits).all()
    facts = {
        "isa": session.isa,
        "file_bytes": session.file.file_bytes,
        "float32_bytes": session.file.header.sizes.float32_bytes,
        "load_ms": 1e3 * session.load_seconds,
        "arena_bytes": session.arena_bytes,
        "resident_bytes": session.resident_bytes,
    }
    return lambda: session.run(image), facts


def onnxruntime_float32(twin: ResNet, x: torch.Tensor, folder: Path, threads: int) -> Run:
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


def openvino_float32(twin: ResNet, x: torch.Tensor, _folder: Path, threads: int) -> Run:
    import openvino

    model = openvino.convert_model(twin, example_input=x)
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    pixels = x.numpy()
    return lambda: compiled(pixels)


PEERS: dict[str, tuple[str, Callable[[ResNet, torch.Tensor, Path, int], Run]]] = {
    "ONNX Runtime float32": ("onnxruntime", onnxruntime_float32),
    "OpenVINO float32": ("openvino", openvino_float32),
}


def contenders(config: ResNetConfig, folder: Path, threads: int) -> tuple[dict[str, Run], dict[str, Any]]:
    size = config.input_size
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    runs: dict[str, Run] = {}
    runs["signet"], facts = ours(config, folder, image, threads)
    twin = ResNet(config.real_twin()).eval()
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float().div(255)
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.inference_mode():
        runs["PyTorch float32 eager"] = torch.inference_mode()(lambda: twin(x))
        for name, (package, make) in PEERS.items():
            if importlib.util.find_spec(package):
                runs[name] = make(twin, x, folder, threads)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", type=int, choices=sorted(CLASSES), default=sorted(CLASSES, reverse=True))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    machine = describe("torch", "numpy", *(package for package, _ in PEERS.values()))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size:
            config = ResNetConfig(stem=STEMS[size], classes=CLASSES[size], input_size=size)
            runs, facts = contenders(config, Path(folder), options.threads)
            medians, least = measure(runs, options.rounds)
            results.append(
                {"size_px": size, "classes": CLASSES[size], "median_ms": medians, "least_ms": least, "signet": facts}
            )
    if options.json:
        print(json.dumps({"machine": machine, **vars(options), "results": results}, indent=2))
        return
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    print(f"batch 1, {options.threads} thread(s), medians of n = {options.rounds} interleaved rounds")
    for result in results:
        facts, medians = result["signet"], result["median_ms"]
        print(
            f"\nResNet-18, {result['size_px']} x {result['size_px']} px, {result['classes']} classes ({facts['isa']})"
        )
        for name, took in medians.items():
            least = result["least_ms"][name]
            print(f"  {name:<24}{took:>9.3f} ms (least {least:>8.3f}) {took / medians['signet']:>7.1f} x ours")
        print(
            f"  file {facts['file_bytes'] / 1e6:.2f} MB (float32 {facts['float32_bytes'] / 1e6:.1f} MB), loads in "
            f"{facts['load_ms']:.1f} ms, memory beyond the file {facts['resident_bytes'] / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
