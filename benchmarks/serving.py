"""JPEG in, label out, over HTTP: this service against LitServe with OpenVINO int8 and FastAPI with ONNX Runtime int8.

All answer a 500 x 375 px JPEG with the best five of 1000 classes. Ours runs the packed binary ResNet-18 for 224 px,
the others its real-valued twin quantised to int8 (NNCF and ONNX Runtime's static quantisation, calibrated on noise).
Weights are random; they do not change the time. All servers run on the same CPUs, which the load client shares, and
stay up while the rounds go around: in every round each server is asked by one client and by several. Figures are
medians over rounds. Memory is that of all of a server's processes after the load (PSS: shared pages counted once; RSS
beside it).

Then ours alone is offered five times the rate that it answered, from a client that does not wait: answers with 200 keep
their deadline, the rest get 429.

    python benchmarks/serving.py [--seconds 5] [--rounds 3] [--clients 8] [--photo FILE] [--keep DIR] [--json]

The peers come with pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import load
import numpy as np
import servers
import torch
from machine import describe
from PIL import Image

from models.packing.file import InputSpec
from models.packing.pack import pack_network
from models.resnet import ResNet, ResNetConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG = ResNetConfig(stem="imagenet", classes=1000, input_size=224)
DEADLINE_MS = 500
CALIBRATION = 16


def photograph() -> bytes:
    """A JPEG of 500 x 375 px with as much detail as a photograph: about 60 kB."""
    noise = np.random.default_rng(0).normal(0, 1, (375, 500, 3)).cumsum(0).cumsum(1)
    noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
    grain = np.random.default_rng(1).normal(0, 12, noise.shape)
    buffer = io.BytesIO()
    Image.fromarray((noise + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_ours(folder: Path) -> Path:
    spec = InputSpec(height=224, width=224, mean=MEAN, std=STD)
    path = folder / "zoo" / "resnet18" / "1" / "model.safetensors"
    if path.is_file():
        return folder / "zoo"
    labels = [f"class {index}" for index in range(CONFIG.classes)]
    pack_network(ResNet(CONFIG).eval(), path, architecture=CONFIG.name, input_spec=spec, labels=labels)
    return folder / "zoo"


def write_twin(folder: Path) -> Path:
    path = folder / "twin.onnx"
    if path.is_file():
        return path
    twin = ResNet(CONFIG.real_twin()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy exporter says so; the new one needs one more package
        torch.onnx.export(twin, (torch.zeros(1, 3, 224, 224),), str(path), input_names=["x"], dynamo=False)
    return path


def calibration() -> list[np.ndarray[Any, Any]]:
    return list(np.random.default_rng(0).normal(0, 1, (CALIBRATION, 1, 3, 224, 224)).astype(np.float32))


def write_onnxruntime_int8(twin: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples = iter(calibration())

        def get_next(self) -> Any:
            sample = next(self._samples, None)
            return None if sample is None else {"x": sample}

    prepared, path = twin.with_name("prepared.onnx"), twin.with_name("int8.onnx")
    if path.is_file():
        return path
    quant_pre_process(str(twin), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return path


def write_openvino_int8(twin: Path) -> Path:
    path = twin.with_name("int8.xml")
    if path.is_file():
        return path
    import nncf
    import openvino

    quantised = nncf.quantize(openvino.convert_model(str(twin)), nncf.Dataset(calibration()), subset_size=CALIBRATION)
    openvino.save_model(quantised, str(path))
    return path


Start = Callable[[], servers.Running]


def contenders(folder: Path, cpus: int) -> dict[str, tuple[Start, str, str]]:
    """By name: how to start it, the path that it answers, and the name of its form field."""
    zoo, twin = write_ours(folder), write_twin(folder)
    onnx, xml = write_onnxruntime_int8(twin), write_openvino_int8(twin)
    litserve = "litserve_openvino.py"
    found: dict[str, tuple[Start, str, str]] = {
        "signet": (lambda: servers.signet(zoo), "/v1/classify", "image"),
        "LitServe + OpenVINO int8": (lambda: servers.peer(litserve, "/health", xml, cpus, 1), "/predict", "request"),
        "FastAPI + ONNX Runtime int8": (
            lambda: servers.peer("fastapi_onnxruntime.py", "/health", onnx, cpus),
            "/predict",
            "request",
        ),
    }
    if cpus > 1:
        found[f"LitServe + OpenVINO int8, {cpus} workers"] = (
            lambda: servers.peer(litserve, "/health", xml, 1, cpus),
            "/predict",
            "request",
        )
    return found


def measure(chosen: dict[str, tuple[Start, str, str]], photo: bytes, options: argparse.Namespace) -> dict[str, Any]:
    running = {name: start() for name, (start, _, _) in chosen.items()}
    messages = {name: [load.post(path, *load.form(part, photo))] for name, (_, path, part) in chosen.items()}
    loads: dict[str, dict[int, list[load.Load]]] = {name: {} for name in chosen}
    try:
        for name, server in running.items():
            load.closed(server.port, messages[name], 2, 1.0)
        for _ in range(options.rounds):
            for clients in (1, options.clients):
                for name, server in running.items():
                    found = load.closed(server.port, messages[name], clients, options.seconds)
                    assert set(found.statuses) == {200}, (name, found.statuses)
                    loads[name].setdefault(clients, []).append(found)
        return {
            name: {
                "start_s": round(running[name].start_s, 2),
                "pss_mb": round(running[name].pss_bytes / 1e6, 1),
                "rss_mb": round(running[name].rss_bytes / 1e6, 1),
                "clients": {
                    clients: {
                        "requests_per_s": round(load.median([each.rate for each in rounds]), 1),
                        "p50_ms": round(load.median([each.quantile_ms(0.5) for each in rounds]), 1),
                        "p99_ms": round(load.median([each.quantile_ms(0.99) for each in rounds]), 1),
                    }
                    for clients, rounds in loads[name].items()
                },
            }
            for name in chosen
        }
    finally:
        for server in running.values():
            server.stop()


def overload(zoo: Path, photo: bytes, seconds: float, rate: float) -> dict[str, Any]:
    """Ours at `rate` requests a second."""
    server = servers.signet(zoo, queue_deadline_ms=DEADLINE_MS, max_queue_images=16)
    try:
        messages = [load.post("/v1/classify", *load.form("image", photo))]
        load.closed(server.port, messages, 2, 1.0)
        found = load.open_loop(server.port, messages, rate, seconds)
        after = load.closed(server.port, messages, 1, 0.5)
        assert set(after.statuses) == {200}
        return {
            "offered_per_s": round(rate),
            "sent_per_s": round(sum(found.statuses.values()) / found.seconds),
            "statuses": dict(found.statuses),
            "broken": found.broken,
            "p99_ms_of_200": round(found.quantile_ms(0.99), 1),
            "p99_ms_of_429": round(found.quantile_ms(0.99, 429), 1),
            "deadline_ms": DEADLINE_MS,
            "pss_mb": round(server.pss_bytes / 1e6, 1),
        }
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--photo", type=Path, help="a JPEG to send; default: a made-up one of 500 x 375 px")
    parser.add_argument("--keep", type=Path, help="folder where the networks stay for the next run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    photo = options.photo.read_bytes() if options.photo else photograph()
    machine = describe("fastapi", "uvicorn", "litserve", "openvino", "nncf", "onnxruntime", "numpy", "pillow")
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = contenders(folder, len(os.sched_getaffinity(0)))
        results = measure(chosen, photo, options)
        capacity = results["signet"]["clients"][options.clients]["requests_per_s"]
        crushed = overload(folder / "zoo", photo, options.seconds, 5 * capacity)
    if options.json:
        print(json.dumps({"machine": machine, "results": results, "overload": crushed}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{len(photo)} bytes of JPEG, medians of n = {options.rounds} interleaved rounds of {options.seconds:g} s")
    ours = results["signet"]
    for name, found in results.items():
        print(f"\n{name}: ready in {found['start_s']} s, PSS {found['pss_mb']} MB (RSS {found['rss_mb']})")
        for clients, each in found["clients"].items():
            ratio = ours["clients"][clients]["requests_per_s"] / each["requests_per_s"]
            print(
                f"  {clients} client(s): {each['requests_per_s']:>7} requests/s, p50 {each['p50_ms']:>6} ms, "
                f"p99 {each['p99_ms']:>6} ms, ours {ratio:.1f} x"
            )
    print(f"\nsignet at five times its capacity: {crushed}")


if __name__ == "__main__":
    main()
