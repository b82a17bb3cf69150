"""Each binary 3x3 convolution of ResNet-18 (224 px) and of the hourglass (256 px), on one thread, against the machine's
own ceiling and against the same convolution in other runtimes.

The ceiling is xor + popcount + add on registers alone, of the same instruction set, measured in the same round.
The kernel reads packed bits, applies scale and bias a channel, and writes float32, as in a network; the weights
are repacked beforehand. `sums` is the same kernel without scale, bias and writing: its sums end in registers. MACs are
the nominal ones (out pixels x taps x channels in x channels out); taps on the zero padding are skipped, so a small map
can pass the ceiling, and so can kernels that add the bits of several words before they count them (AVX-512 without
VPOPCNTDQ). With --peers, OpenVINO (whose CPU kernels are oneDNN's) runs the convolution with real weights in
float32 and int8, from float32 activations to float32; its time is that of a whole call, so at small maps it is mostly
the call.

    python benchmarks/kernels.py [--isa avx2 ...] [--peers] [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from models.packing.graph import window, words
from models.xnor import _engine, available_isas

SHAPE_PEERS = ("OpenVINO float32", "OpenVINO int8")
SHAPES = json.loads(Path(__file__).with_name("shapes.json").read_text())


def program(shape: dict[str, Any], isa: str, *, written: bool = True) -> tuple[_engine.Program, int]:
    """A program of that one convolution, and its MACs. Unless `written`, its sums are dropped."""
    size, channels, out = shape["size"], shape["channels"], shape["out"]
    side = window(size, shape["kernel"], shape["stride"], shape["padding"])
    room = -(-size * size * words(channels) * 8 // 64) * 64
    made = _engine.Program(isa, room + side * side * out * 4, 1, 1, 1)
    source = _engine.Buffer("bits", 0, size, size, channels, words(channels))
    target = _engine.Buffer("float", room, side, side, out, out)
    pair = {name: (shape[name], shape[name]) for name in ("kernel", "stride", "padding")}
    taps = shape["kernel"] ** 2
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 1 << 63, (out, *pair["kernel"], words(channels)), dtype=np.uint64)
    vector = rng.standard_normal(out).astype(np.float32)
    stages = [_engine.Stage.scale(vector), _engine.Stage.shift(vector), _engine.Stage.store(target)]
    sliding = _engine.Sliding(**pair, dilation=(1, 1))
    made.binary_conv2d(source, side, side, out, sliding, 1, weight, stages if written else [])
    return made, side * side * taps * channels * out


def measure(isas: list[str], rounds: int) -> list[dict[str, Any]]:
    """The median over rounds of each shape's rate and of its share of the ceiling."""
    pixel = np.zeros((1, 1, 1, 3), np.uint8)
    kinds = [(isa, i, written) for isa in isas for i in range(len(SHAPES)) for written in (True, False)]
    programs = {(isa, i, written): program(SHAPES[i], isa, written=written) for isa, i, written in kinds}
    rates: dict[tuple[str, int, bool], list[float]] = {key: [] for key in programs}
    shares: dict[tuple[str, int, bool], list[float]] = {key: [] for key in programs}
    ceilings: dict[str, list[float]] = {isa: [] for isa in isas}
    for _ in range(rounds):
        for isa in isas:
            ceilings[isa].append(_engine.ceiling(isa, 0.02))
        for key, (made, macs) in programs.items():
            rates[key].append(macs / made.profile(pixel, 10)[0])
            shares[key].append(rates[key][-1] / ceilings[key[0]][-1])
    return [
        {
            "isa": isa,
            **SHAPES[i],
            "gmacs": statistics.median(rates[isa, i, True]) / 1e9,
            "ceiling_gmacs": statistics.median(ceilings[isa]) / 1e9,
            "ms": programs[isa, i, True][1] / statistics.median(rates[isa, i, True]) * 1e3,
            "share": statistics.median(shares[isa, i, True]),
            "share_sums": statistics.median(shares[isa, i, False]),
        }
        for isa in isas
        for i in range(len(SHAPES))
    ]


def measure_peers(rounds: int) -> list[dict[str, float]]:
    """Of each shape, the median milliseconds of every peer's call."""
    import torch
    from runtimes import PEERS, Twin

    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            names = ("kernel", "stride", "padding")
            conv = torch.nn.Conv2d(shape["channels"], shape["out"], *(shape[name] for name in names), bias=True).eval()
            x = torch.randn(1, shape["channels"], shape["size"], shape["size"])
            twin = Twin(conv, x, Path(folder), threads=1)
            runs = {p.name: p.make(twin) for p in PEERS if p.name in SHAPE_PEERS and p.installed}
            took: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(rounds + 2):
                for name, run in runs.items():
                    start = time.perf_counter()
                    run()
                    took[name].append(1e3 * (time.perf_counter() - start))
            found.append({name: statistics.median(values[2:]) for name, values in took.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="+", choices=available_isas(), default=available_isas())
    parser.add_argument("--peers", action="store_true", help="OpenVINO float32 and int8 on the same shapes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine = describe("numpy", *(("openvino", "nncf") if options.peers else ()))
    rows = measure(options.isa, options.rounds)
    if options.peers:
        for row, peers in zip(rows, measure_peers(options.rounds) * len(options.isa), strict=True):
            row["peers_ms"] = peers
    if options.json:
        print(json.dumps({"machine": machine, "rounds": options.rounds, "kernels": rows}, indent=2))
        return
    print(", ".join(f"{k} {v}" for k, v in machine.items()), f"; one thread, n = {options.rounds} rounds, medians")
    heads = "".join(f"{name:>26}" for name in rows[0].get("peers_ms", ()))
    print(f"{'isa':<18}{'convolution':<44}{'GMAC/s':>8}{'ceiling':>9}{'share':>8}{'sums':>8}{'ms':>9}{heads}")
    for row in rows:
        shape = f"{row['size']}x{row['size']}x{row['channels']} -> {row['out']} /{row['stride']}"
        name = f"{shape:<22}{row['network']} {row['layer']}"
        peers = "".join(f"{ms:>12.3f} ms {ms / row['ms']:>8.1f} x" for ms in row.get("peers_ms", {}).values())
        print(
            f"{row['isa']:<18}{name:<44}{row['gmacs']:>8.0f}{row['ceiling_gmacs']:>9.0f}{row['share']:>8.0%}"
            f"{row['share_sums']:>8.0%}{row['ms']:>9.3f}{peers}"
        )


if __name__ == "__main__":
    main()
