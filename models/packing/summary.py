"""The per-layer table of a packed file: what is one bit, what is float and why, and what it costs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from models.packing import graph as g
from models.packing.file import PackedFile, read


@dataclass(frozen=True)
class LayerRow:
    """One op with weights. Bytes count its own tensors; `float32_bytes` as if every weight were float32."""

    source: str
    kind: str
    precision: str
    reason: str
    output: str
    macs: int
    packed_bytes: int
    float32_bytes: int


@dataclass(frozen=True)
class Totals:
    """Sums over a network for one image."""

    binary_macs: int
    real_macs: int
    packed_bytes: int
    float32_bytes: int


def layer_rows(packed: PackedFile) -> list[LayerRow]:
    """The table's rows: every op that stores tensors, in execution order."""
    rows = []
    for op in packed.header.graph.ops:
        stored = _tensors(op)
        if not stored:
            continue
        out = packed.values[op.output]
        precision, reason = _precision(op, packed)
        rows.append(
            LayerRow(
                source=op.source or op.output,
                kind=op.op,
                precision=precision,
                reason=reason,
                output=f"{out.height}x{out.width}x{out.channels}",
                macs=op.macs(packed.values),
                packed_bytes=sum(packed.tensors[name].nbytes for name in stored),
                float32_bytes=sum(4 * _weights(op, name, packed) for name in stored),
            )
        )
    return rows


def totals(packed: PackedFile) -> Totals:
    """Sums of the table."""
    rows = layer_rows(packed)
    return Totals(
        binary_macs=sum(row.macs for row in rows if row.precision == "1-bit"),
        real_macs=sum(row.macs for row in rows if row.precision != "1-bit"),
        packed_bytes=sum(row.packed_bytes for row in rows),
        float32_bytes=sum(row.float32_bytes for row in rows),
    )


def summarize(path: str | os.PathLike[str]) -> str:
    """The whole answer of `signet inspect`: table, totals, provenance. Raises PackedFileError."""
    packed = read(path)
    header, sums = packed.header, totals(packed)
    cells = [("layer", "op", "weights", "output", "MACs", "packed", "float32", "why")]
    cells += [
        (
            row.source,
            row.kind,
            row.precision,
            row.output,
            f"{row.macs:,}",
            f"{row.packed_bytes:,}",
            f"{row.float32_bytes:,}",
            row.reason,
        )
        for row in layer_rows(packed)
    ]
    macs = sums.binary_macs + sums.real_macs
    share = 100 * sums.binary_macs / macs if macs else 0.0
    lines = [
        f"{packed.path}",
        f"{header.architecture}: {header.task}, input {header.input.height}x{header.input.width} px, "
        f"{len(header.labels or (header.keypoints.names if header.keypoints else []))} outputs",
        "",
        *_table(cells),
        "",
        f"multiply-accumulates  {sums.binary_macs:,} binary + {sums.real_macs:,} real ({share:.1f} % binary)",
        f"weights               {sums.packed_bytes:,} bytes packed, {sums.float32_bytes:,} bytes in float32 "
        f"({sums.float32_bytes / max(sums.packed_bytes, 1):.1f}x)",
        f"file                  {packed.file_bytes:,} bytes",
        "",
        "provenance",
        *("  " + line for line in json.dumps(header.provenance, indent=2, ensure_ascii=False).splitlines()),
    ]
    return "\n".join(lines)


def _tensors(op: g.Op) -> list[str]:
    names = (
        "weight", "scale", "scale_height", "scale_width", "bias", "threshold", "flip", "slope", "shift_in", "shift_out"
    )  # fmt: skip
    found = [getattr(op, name, None) for name in names]
    return [name for name in found if name is not None]


def _weights(op: g.Op, name: str, packed: PackedFile) -> int:
    """Numbers that a stored tensor stands for: a word of bits stands for its channels, without padding."""
    shape = packed.tensors[name].shape
    if isinstance(op, g.BinaryConv2d) and name == op.weight:
        return prod(shape[:-1]) * (packed.values[op.input].channels // op.groups)
    return prod(shape)


def _precision(op: g.Op, packed: PackedFile) -> tuple[str, str]:
    if isinstance(op, g.BinaryConv2d):
        return "1-bit", "sign of its latent"
    if isinstance(op, g.Conv2d | g.PixelConv2d | g.Int8Conv2d):
        precision = "float" if isinstance(op, g.Conv2d) else "8-bit"
        out = packed.values[op.output]
        if op.input == g.Graph.image:
            return precision, "stem: reads pixels"
        if op.output in packed.header.graph.outputs.values() or (out.height, out.width) == (1, 1):
            return precision, "head"
        return precision, "real shortcut" if op.kernel == (1, 1) else "real in the trained network"
    if isinstance(op, g.Threshold):
        return "float", "batch norm and sign, folded"
    return "float", {"prelu": "activation", "affine": "batch norm"}.get(op.op, "")  # type: ignore[attr-defined]


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    numeric = {4, 5, 6}
    lines = []
    for index, row in enumerate(cells):
        parts = [text.rjust(widths[i]) if i in numeric else text.ljust(widths[i]) for i, text in enumerate(row)]
        lines.append("  ".join(parts).rstrip())
        if index == 0:
            lines.append("  ".join("-" * width for width in widths))
    return lines
