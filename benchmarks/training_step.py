"""Where the time of a training step goes, and what a latent, or Muon, costs beside plain weights and Adam.

Each step is timed in its parts: the batch (gathered and augmented from memory), forward, backward, optimiser; on a GPU
each part is waited for. `reconstruct` is W of all layers alone, forward and backward, and is contained in the parts
before it. Latents take turns, so that what else the machine does falls on all alike; medians over steps. The overhead
is the median over steps of (step of the latent / plain step of the same round) - 1. The last row, `muon`, has plain
weights again.

    python benchmarks/training_step.py [--width 1.0] [--size 32] [--batch 128] [--steps 10] [--precision bf16-mixed]
        [--compile] [--threads 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from machine import describe
from torch.nn import functional as F

from models.latent import LatentConfig, reconstruct_once
from models.networks import build
from models.resnet import ResNetConfig
from training import optimizer
from training.data.dataset import Pixels
from training.data.loaders import Batch, MemoryLoader
from training.data.plan import BatchPlan
from training.recipe import SmallImageAugment, Training
from training.signs import binary_layers

ROWS = {kind: (kind, "adam") for kind in ("plain", "matrix", "tucker", "holistic")} | {"muon": ("plain", "muon")}
"""Of each row, the latent and the optimiser."""
PARTS = ("data", "forward", "backward", "optimizer", "reconstruct")
WARM_UP = 2
IMAGES = 2048


class Stopwatch:
    """Seconds since it was last read; waits for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.read()

    def read(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        passed = now - getattr(self, "last", now)
        self.last = now
        return passed


class Trainee:
    """A network with what it needs to take a step."""

    def __init__(self, kind: str, optimiser: Any, options: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        latent = LatentConfig(kind=kind)  # type: ignore[arg-type]
        config = ResNetConfig(width=options.width, input_size=options.size, latent=latent)
        self.network = build(config).to(device, memory_format=torch.channels_last)
        if options.compile:
            self.network.compile()
        self.optimizer = optimizer.make(self.network, Training(epochs=1, optimizer=optimiser))
        self.device, self.bf16 = device, options.precision == "bf16-mixed"
        self.batches = endless(options, device)

    def step(self) -> dict[str, float]:
        """Seconds of each part of one step."""
        watch, seconds = Stopwatch(self.device), {}
        images, labels = next(self.batches)
        x = images.permute(0, 3, 1, 2).float() / 255
        seconds["data"] = watch.read()
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            loss = F.cross_entropy(self.network(x).float(), labels)
        seconds["forward"] = watch.read()
        self.optimizer.zero_grad()
        loss.backward()
        seconds["backward"] = watch.read()
        self.optimizer.step()
        seconds["optimizer"] = watch.read()
        return seconds

    def reconstruct(self) -> float:
        """Seconds of W of all layers, forward and backward."""
        watch = Stopwatch(self.device)
        with reconstruct_once(self.network.modules()):
            weights = [layer.latent.to_tensor() for layer in binary_layers(self.network).values()]
        torch.autograd.backward(weights, [torch.ones_like(weight) for weight in weights])
        passed = watch.read()
        self.optimizer.zero_grad()
        return passed


def this_machine() -> dict[str, str]:
    try:
        return describe("torch")
    except ImportError:  # machines that train need no compiled engine
        return {"torch": str(torch.__version__)}


def endless(options: argparse.Namespace, device: torch.device) -> Iterator[Batch]:
    pixels = torch.randint(0, 256, (IMAGES, options.size, options.size, 3), dtype=torch.uint8)
    plan = BatchPlan(IMAGES, options.batch, shuffle=True)
    loader = MemoryLoader(
        Pixels(pixels, torch.randint(0, 10, (IMAGES,))), plan, augment=SmallImageAugment(), device=device
    )
    while True:
        yield from loader
        loader.set_epoch(loader.epoch + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = this_machine()
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    trainees = {name: Trainee(kind, optimiser, options, device) for name, (kind, optimiser) in ROWS.items()}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    for number in range(WARM_UP + options.steps):
        for name, trainee in trainees.items():
            parts = {**trainee.step(), "reconstruct": trainee.reconstruct()}
            if number >= WARM_UP:
                taken[name].append(parts)
    rows = {name: summary(steps, taken["plain"]) for name, steps in taken.items()}
    if options.json:
        print(json.dumps({"machine": machine, "options": vars(options), "ms": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"ResNet-18, width {options.width:g}, {options.size} px, batch {options.batch}, {options.precision}"
        f"{', compiled' if options.compile else ''}, {torch.get_num_threads()} threads; ms, medians of "
        f"n = {options.steps} steps"
    )
    columns = (*PARTS[:-1], "step", PARTS[-1])
    print(f"{'':10}" + "".join(f"{name:>12}" for name in columns) + f"{'overhead':>10}")
    for title, row in rows.items():
        print(f"{title:10}" + "".join(f"{row[name]:12.2f}" for name in columns) + f"{row['overhead_percent']:9.1f}%")


def summary(steps: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, float]:
    """Milliseconds of each part and of the whole step, and the overhead in per cent."""

    def whole(parts: dict[str, float]) -> float:
        return sum(parts[name] for name in PARTS if name != "reconstruct")

    found = {name: 1e3 * median(parts[name] for parts in steps) for name in PARTS}
    ratios = [whole(ours) / whole(theirs) for ours, theirs in zip(steps, plain, strict=True)]
    return {**found, "step": 1e3 * median(map(whole, steps)), "overhead_percent": 100 * (median(ratios) - 1)}


if __name__ == "__main__":
    main()
