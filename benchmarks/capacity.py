"""What one request costs, alone and on Ray, and how many cores a load takes: the figures of docs/capacity.md.

`signet serve` is held to one core and the clients to another, so that requests a second are those of one core. What
is carried over to other numbers of cores is the CPU time of a request (user and system, all threads and processes),
which a busy machine changes least. A request is a JPEG of 500 x 375 pixels in, labels out, over kept connections.

    python benchmarks/capacity.py [--ray] [--seconds 15] [--clients 4] [--load 16667] [--json]

On a machine that is busy, put `chrt --fifo 20` before it (root).
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import describe
from PIL import Image

from app.settings import shipped_zoo

SERVER_CORE, CLIENT_CORE = "1", "0"
BUSY = 0.6
"""How much of each core the arithmetic plans with: the rest is for peaks, and for a machine that is lost."""


def picture() -> bytes:
    """A smooth photograph-like JPEG of 500 x 375 pixels, about 40 kB."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), np.int16)
    grain = random.integers(-12, 13, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def repository(folder: Path) -> dict[str, str]:
    """Put the model that ships and a ResNet-18 for ImageNet's size into a folder; what each is, by its name.

    The latter's weights are random, which changes no time.
    """
    from models.packing.file import InputSpec
    from models.packing.pack import pack_network
    from models.resnet import ResNet, ResNetConfig

    shutil.copytree(shipped_zoo() / "cifar10-resnet18", folder / "cifar10-resnet18")
    config = ResNetConfig(stem="imagenet", classes=1000, input_size=224)
    spec = InputSpec(height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    path = folder / "resnet18-224" / "1" / "model.safetensors"
    path.parent.mkdir(parents=True)
    labels = [str(index) for index in range(1000)]
    pack_network(ResNet(config).eval(), path, architecture=config.name, input_spec=spec, labels=labels)
    return {
        "cifar10-resnet18": "the model that ships, 32 x 32 px",
        "resnet18-224": "ResNet-18, 224 x 224 px, 1000 classes",
    }


@contextmanager
def served(folder: Path, *, ray: bool) -> Iterator[tuple[int, psutil.Process]]:
    """`signet serve` on one core, or on a Ray cluster of its own with one replica of one CPU: port and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--models", str(folder)]
    environment = os.environ | {"SIGNET_LOG_LEVEL": "warning", "SIGNET_QUEUE_DEADLINE_MS": "60000"}
    if ray:
        command.append("--ray")
        environment |= {"SIGNET_RAY_REPLICA_CPUS": "1", "SIGNET_RAY_MAX_REPLICAS": "1", "RAY_worker_niceness": "0"}
    else:
        command = ["taskset", "--cpu-list", SERVER_CORE, *command]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server did not become ready")


def cpu_seconds(server: psutil.Process) -> dict[str, float]:
    """CPU time so far of the server, by what its processes do."""
    spent: dict[str, float] = defaultdict(float)
    for process in [server, *server.children(recursive=True)]:
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


def load(port: int, model: str, body: bytes, seconds: float, clients: int) -> list[float]:
    """Seconds that each request took, of clients that ask one after the other."""
    took: list[float] = []
    end = time.monotonic() + seconds

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < end:
            begun = time.perf_counter()
            connection.request("POST", f"/v1/classify?model={model}", body, {"Content-Type": "image/jpeg"})
            reply = connection.getresponse()
            reply.read()
            if reply.status != http.client.OK:
                raise RuntimeError(f"status {reply.status}")
            took.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def measure(port: int, server: psutil.Process, model: str, options: argparse.Namespace) -> dict[str, Any]:
    body = picture()
    load(port, model, body, 2, options.clients)
    before, begun = cpu_seconds(server), time.monotonic()
    took = load(port, model, body, options.seconds, options.clients)
    wall = time.monotonic() - begun
    after = cpu_seconds(server)
    return {
        "requests": len(took),
        "requests_per_s": len(took) / wall,
        "median_ms": 1e3 * statistics.median(took),
        "cpu_ms": {role: 1e3 * (after[role] - before.get(role, 0.0)) / len(took) for role in after},
        "cores_busy": sum(after[role] - before.get(role, 0.0) for role in after) / wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster of its own instead of alone")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--load", type=float, default=1e6 / 60, help="requests a second to plan for")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine = describe("numpy", "pillow", "uvicorn", *(["ray"] if options.ray else []))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = repository(folder)
        with served(folder, ray=options.ray) as (port, server):
            os.sched_setaffinity(0, {int(CLIENT_CORE)})
            results = {model: measure(port, server, model, options) for model in models}
    if options.json:
        print(json.dumps({"machine": machine, **vars(options), "results": results}, indent=2))
        return
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    print(f"{options.clients} clients, {options.seconds:g} s a model, JPEG of 500 x 375 px ({len(picture())} bytes)")
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
