"""JPEG in, label out, over HTTP: this service against LitServe with OpenVINO int8 and FastAPI with ONNX Runtime int8.

All answer a JPEG of 500 x 375 px with the best five of 1000 classes. Ours runs the packed binary ResNet-18 for 224 px,
the others its real-valued twin quantised to int8 (runtimes.py). Weights are random; they do not change the time. A
server has all CPUs, which the load client shares. In every round each server is started (time to ready), warmed, asked
by one client and then by several, weighed (PSS of all its processes: shared pages counted once) and stopped. Figures
are medians over rounds. The clients are wrk's, or load.py's own where wrk is not installed. CPU is what all of a
server's processes spend on a request while several clients ask.

Then ours alone, with the models that ship: time to ready and memory. Last, ours is offered five times the rate that it
answered, from a client that does not wait: answers with 200 keep their deadline, the rest get 429.

    python benchmarks/serving.py [--seconds 8] [--rounds 3] [--clients 8] [--client wrk] [--photo FILE]
        [--only NAME ...] [--json FILE]

The peers come with pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import load
import servers
import torch
from machine import describe
from runtimes import Twin, write_onnxruntime_int8, write_openvino_int8
from workload import CONFIG, photograph, write_resnet18

from app.settings import shipped_zoo
from models.resnet import ResNet

OURS = "signet"
DEADLINE_MS = 500
MOST_QUEUED = 16
PACKAGES = ("fastapi", "uvicorn", "litserve", "openvino", "nncf", "onnxruntime", "numpy", "pillow")


@dataclass
class Contender:
    """A server: how to start it, where it answers, the name of its form field, and what it did in each round."""

    start: Callable[[], servers.Running]
    path: str = "/predict"
    part: str = "request"
    start_s: list[float] = field(default_factory=list)
    pss_mb: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    loads: dict[int, list[load.Load]] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Medians over rounds."""
        return {
            "start_s": load.median(self.start_s),
            "pss_mb": load.median(self.pss_mb),
            "rss_mb": load.median(self.rss_mb),
            "cpu_ms": load.median(self.cpu_ms),
            "requests": {clients: sum(each.answers for each in rounds) for clients, rounds in self.loads.items()},
            "clients": {
                clients: {
                    "requests_per_s": load.median([each.rate for each in rounds]),
                    "p50_ms": load.median([each.quantile_ms(0.5) for each in rounds]),
                    "p99_ms": load.median([each.quantile_ms(0.99) for each in rounds]),
                }
                for clients, rounds in self.loads.items()
            },
        }


def contenders(folder: Path, cpus: int, only: list[str] | None) -> dict[str, Contender]:
    """By name. Several clients are answered by several workers, or one after the other with all CPUs for each."""
    zoo = write_resnet18(folder / "zoo")
    found = {OURS: Contender(lambda: servers.signet(zoo), "/v1/classify", "image")}
    if only == [OURS]:
        return found
    twin = Twin(ResNet(CONFIG.real_twin()).eval(), torch.zeros(1, 3, 224, 224), folder, cpus)
    onnx, xml = write_onnxruntime_int8(twin), write_openvino_int8(twin)
    litserve, fastapi = "litserve_openvino.py", "fastapi_onnxruntime.py"
    for workers in sorted({1, cpus}):
        threads = cpus // workers
        found[f"LitServe + OpenVINO int8, {workers} x {threads} threads"] = Contender(
            lambda threads=threads, workers=workers: servers.peer(litserve, xml, threads, workers)
        )
        found[f"FastAPI + ONNX Runtime int8, {threads} threads a run"] = Contender(
            lambda threads=threads: servers.peer(fastapi, onnx, threads)
        )
    return {name: each for name, each in found.items() if only is None or name in (OURS, *only)}


def measure(contender: Contender, name: str, photo: bytes, options: argparse.Namespace) -> None:
    """One round of one server."""
    message = [load.post(contender.path, *load.form(contender.part, photo))]
    with contender.start() as server:
        contender.start_s.append(server.start_s)
        load.closed(server.port, message, 2, 2.0).check_all_answered(name)
        for clients in (1, options.clients):
            spent = server.cpu_s
            if options.client == "wrk":
                found = load.closed_by_wrk(server.port, message[0], clients, options.seconds)
            else:
                found = load.closed(server.port, message, clients, options.seconds)
            found.check_all_answered(name)
            contender.loads.setdefault(clients, []).append(found)
        contender.cpu_ms.append(1e3 * (server.cpu_s - spent) / found.answers)
        contender.pss_mb.append(server.pss_bytes / 1e6)
        contender.rss_mb.append(server.rss_bytes / 1e6)


def shipped(photo: bytes, rounds: int) -> dict[str, Any]:
    """Ours with the models that ship, all of which are asked: time to ready, then memory."""
    start_s, rss_mb, pss_mb = [], [], []
    for _ in range(rounds):
        with servers.signet(shipped_zoo()) as server:
            start_s.append(server.start_s)
            for path in ("/v1/classify", "/v1/pose"):
                message = [load.post(path, *load.form("image", photo))]
                load.closed(server.port, message, 4, 2.0).check_all_answered(path)
            rss_mb.append(server.rss_bytes / 1e6)
            pss_mb.append(server.pss_bytes / 1e6)
    return {"start_s": load.median(start_s), "rss_mb": load.median(rss_mb), "pss_mb": load.median(pss_mb)}


def overload(zoo: Path, photo: bytes, seconds: float, rate: float) -> dict[str, Any]:
    """Ours at `rate` requests a second."""
    with servers.signet(zoo, queue_deadline_ms=DEADLINE_MS, max_queue_images=MOST_QUEUED) as server:
        messages = [load.post("/v1/classify", *load.form("image", photo))]
        load.closed(server.port, messages, 2, 1.0).check_all_answered(OURS)
        found = load.open_loop(server.port, messages, rate, seconds)
        load.closed(server.port, messages, 1, 1.0).check_all_answered("ours, after the overload")
        return {
            "offered_per_s": rate,
            "sent_per_s": found.answers / found.seconds,
            "answered_per_s": found.rate,
            "statuses": dict(found.statuses),
            "broken": found.broken,
            "late": found.late,
            "unsent": found.unsent,
            "p50_ms_of_200": found.quantile_ms(0.5),
            "p99_ms_of_200": found.quantile_ms(0.99),
            "p99_ms_of_429": found.quantile_ms(0.99, 429),
            "deadline_ms": DEADLINE_MS,
            "pss_mb": server.pss_bytes / 1e6,
        }


def show(results: dict[str, Any]) -> None:
    """Each server, and how many times as much of its requests a second, p99 and memory it is to ours."""
    ours = results[OURS]
    for name, found in results.items():
        print(f"\n{name}: ready in {found['start_s']:.2f} s, {found['cpu_ms']:.2f} ms of CPU a request")
        share = ours["pss_mb"] / found["pss_mb"]
        print(f"  PSS {found['pss_mb']:.1f} MB (RSS {found['rss_mb']:.1f}), ours {share:.2f} of it")
        for clients, each in found["clients"].items():
            ratio = ours["clients"][clients]["requests_per_s"] / each["requests_per_s"]
            print(
                f"  {clients} client(s): {each['requests_per_s']:>6.1f} requests/s, p50 {each['p50_ms']:>6.2f} ms, "
                f"p99 {each['p99_ms']:>6.2f} ms (n = {found['requests'][clients]}), ours {ratio:.2f} x the requests"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    installed = "wrk" if shutil.which("wrk") else "asyncio"
    parser.add_argument("--client", choices=("wrk", "asyncio"), default=installed, help="default: wrk where it is")
    parser.add_argument("--photo", type=Path, help="the picture to send; default: the page's astronaut, 500 x 375 px")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"ours and these servers, or {OURS} alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    torch.manual_seed(0)
    photo = photograph(options.photo)
    machine = describe(*PACKAGES)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rounds = f"medians of n = {options.rounds} rounds of {options.seconds:g} s"
    print(f"JPEG of {len(photo)} bytes, client {options.client}, {rounds}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        chosen = contenders(Path(name), len(os.sched_getaffinity(0)), options.only)
        for number in range(options.rounds):
            for each, contender in chosen.items():
                print(f"round {number + 1}: {each}", flush=True)
                measure(contender, each, photo, options)
        results = {each: contender.figures() for each, contender in chosen.items()}
        show(results)
        ships = shipped(photo, options.rounds)
        print(f"\n{OURS} with the models that ship: {_rounded(ships)}", flush=True)
        capacity = results[OURS]["clients"][options.clients]["requests_per_s"]
        crushed = overload(Path(name) / "zoo", photo, options.seconds, 5 * capacity)
        print(f"\n{OURS} at five times its capacity: {_rounded(crushed)}")
    if options.json is not None:
        everything = {"machine": machine, "results": results, "shipped": ships, "overload": crushed}
        options.json.write_text(json.dumps(everything, indent=2) + "\n")


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}


if __name__ == "__main__":
    main()
