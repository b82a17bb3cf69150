"""What one request costs, alone and on Ray, and how many cores a load takes: the figures of docs/capacity.md.

`signet serve` is held to one core and the clients to another, so that requests a second are those of one core. What
is carried over to other numbers of cores is the CPU time of a request (user and system, all threads and processes),
which a busy machine changes least. A request is a JPEG of 500 x 375 pixels in, labels out, over kept connections.

    python benchmarks/capacity.py [--ray] [--seconds 15] [--clients 4] [--load 16667] [--photo FILE] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import load
import psutil
import servers
from machine import describe
from workload import photograph, write_resnet18

from app.settings import shipped_zoo

SERVER_CORE, CLIENT_CORE = "1", "0"
BUSY = 0.6
"""How much of each core the arithmetic plans with: the rest is for peaks, and for a machine that is lost."""


def repository(folder: Path) -> dict[str, str]:
    """Put the small classifier that ships and a ResNet-18 for 224 px into a folder; what each is, by its name."""
    shutil.copytree(shipped_zoo() / "cifar10-resnet18-half", folder / "cifar10-resnet18-half")
    write_resnet18(folder, "resnet18-224")
    return {
        "cifar10-resnet18-half": "ResNet-18 at half width, 32 x 32 px",
        "resnet18-224": "ResNet-18, 224 x 224 px, 1000 classes",
    }


def served(folder: Path, *, ray: bool) -> servers.Running:
    """`signet serve` on one core, or on a Ray cluster of its own with one replica of one CPU."""
    settings: dict[str, object] = {"log_level": "warning", "queue_deadline_ms": 60_000}
    if not ray:
        return servers.signet(folder, cpus=SERVER_CORE, **settings)
    os.environ.update(RAY_worker_niceness="0")
    return servers.signet(folder, options=["--ray"], ray_replica_cpus=1, ray_max_replicas=1, **settings)


def cpu_seconds(server: servers.Running) -> dict[str, float]:
    """CPU time so far of the server, by what its processes do."""
    spent: dict[str, float] = defaultdict(float)
    for process in server.processes():
        try:
            times, name = process.cpu_times(), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        role = "service"
        if name.startswith("ray::ServeReplica"):
            role = "replica"
        elif name.startswith("ray::Proxy"):
            role = "proxy"
        elif "ray" in name and "app.cli" not in name:
            role = "rest of Ray"
        spent[role] += times.user + times.system
    return spent


def measure(server: servers.Running, model: str, photo: bytes, options: argparse.Namespace) -> dict[str, Any]:
    messages = [load.post(f"/v1/classify?model={model}", photo, "image/jpeg")]
    load.closed(server.port, messages, options.clients, 2).check_all_answered(model)
    before = cpu_seconds(server)
    found = load.closed(server.port, messages, options.clients, options.seconds)
    found.check_all_answered(model)
    after = cpu_seconds(server)
    spent = {role: after[role] - before.get(role, 0.0) for role in after}
    return {
        "requests": found.answers,
        "requests_per_s": found.rate,
        "median_ms": found.quantile_ms(0.5),
        "cpu_ms": {role: 1e3 * seconds / found.answers for role, seconds in spent.items()},
        "cores_busy": sum(spent.values()) / found.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster of its own instead of alone")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--load", type=float, default=1e6 / 60, help="requests a second to plan for")
    parser.add_argument("--photo", type=Path, help="the picture to send; default: the page's astronaut, 500 x 375 px")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    photo = photograph(options.photo)
    machine = describe("numpy", "pillow", "uvicorn", *(["ray"] if options.ray else []))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = repository(folder)
        with served(folder, ray=options.ray) as server:
            os.sched_setaffinity(0, {int(CLIENT_CORE)})
            results = {model: measure(server, model, photo, options) for model in models}
    if options.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))
        return
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    print(f"{options.clients} clients, {options.seconds:g} s a model, JPEG of 500 x 375 px ({len(photo)} bytes)")
    for model, found in results.items():
        total = sum(found["cpu_ms"].values())
        parts = ", ".join(f"{role} {ms:.2f} ms" for role, ms in found["cpu_ms"].items() if ms >= 0.005)
        print(f"\n{models[model]}")
        print(
            f"  {found['requests_per_s']:.0f} requests/s (n = {found['requests']}), median {found['median_ms']:.1f} ms"
        )
        print(f"  cores busy: {found['cores_busy']:.2f}")
        print(f"  CPU time of a request: {total:.2f} ms ({parts}), so {1e3 / total:.0f} requests/s a core at most")
        cores = options.load * total / 1e3 / BUSY
        print(f"  {options.load:.0f} requests/s at {BUSY:.0%} of each core: {cores:.0f} cores")


if __name__ == "__main__":
    main()
