"""One image a thread against opportunistic batching: throughput and latency of the service, interleaved in one run.

Each variant is a service with the same model and other settings; all stay up, and every round asks each of them with
each number of clients, who send a JPEG of 500 x 375 px and wait. Figures are medians over rounds.

    python benchmarks/scheduling.py [--models DIR] [--seconds 4] [--rounds 5] [--clients 1 8 32]
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import load
import servers
from machine import describe
from workload import photograph, write_resnet18

VARIANTS: dict[str, dict[str, Any]] = {
    "one image a thread": {},
    "batches of what is there": {"max_batch": 16},
    "the same, one at a time": {"max_batch": 16, "parallel_images": 1},
    "batches, 2 ms of delay": {"max_batch": 16, "max_batch_delay_ms": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a repository; default: a ResNet-18 for 224 px of random weights")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    message = load.post("/v1/classify", photograph(), "image/jpeg")
    print(", ".join(f"{key} {value}" for key, value in describe("numpy", "pillow", "uvicorn").items()))
    print(f"medians of n = {options.rounds} interleaved rounds of {options.seconds:g} s")
    loads: dict[tuple[int, str], list[load.Load]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        zoo = options.models or write_resnet18(Path(folder))
        running = {name: stack.enter_context(servers.signet(zoo, **settings)) for name, settings in VARIANTS.items()}
        for server in running.values():
            load.closed(server.port, [message], 2, 1.0)
        for _ in range(options.rounds):
            for clients in options.clients:
                for name, server in running.items():
                    found = load.closed(server.port, [message], clients, options.seconds)
                    found.check_all_answered(name)
                    loads.setdefault((clients, name), []).append(found)
    for (clients, name), rounds in sorted(loads.items(), key=lambda item: item[0][0]):
        rate = load.median([each.rate for each in rounds])
        p50, p99 = (load.median([each.quantile_ms(share) for each in rounds]) for share in (0.5, 0.99))
        print(f"  {clients:>3} clients  {name:<26}{rate:>8.1f} requests/s   p50 {p50:>7.1f} ms   p99 {p99:>7.1f} ms")


if __name__ == "__main__":
    main()
