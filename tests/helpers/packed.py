"""Small packed models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.packing.file import InputSpec, Keypoints, PackedFile, PackedHeader, Resize, Sizes, write
from models.packing.graph import BinaryConv2d, Conv2d, GlobalAvgPool, Graph, Threshold, words

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def header(
    graph: Graph,
    tensors: dict[str, np.ndarray[Any, Any]],
    side_px: int = 32,
    labels: list[str] | None = None,
    *,
    pose: bool = False,
) -> PackedHeader:
    return PackedHeader(
        architecture="random",
        task="pose" if pose else "classification",
        input=InputSpec(
            height=side_px, width=side_px, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), resize=Resize(mode="crop")
        ),
        graph=graph,
        labels=None if pose else labels or LABELS,
        keypoints=Keypoints(names=LABELS, skeleton=[(0, 1)], flip_pairs=[(0, 1)]) if pose else None,
        provenance={"recipe": "random weights", "metrics": {"top1": 0.1}},
        sizes=Sizes(packed_bytes=sum(t.nbytes for t in tensors.values()), float32_bytes=40_000),
    )


def write_random(path: Path, seed: int = 0, channels: int = 70) -> PackedFile:
    """conv2d -> threshold -> binary_conv2d -> global_avg_pool -> conv2d over ten labels, for 32 x 32 pixels."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (channels, 3, 3, words(channels) * 64), dtype=np.uint8)
    bits[..., channels:] = 0
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "stem": rng.normal(0, 0.3, (channels, 3, 3, 3)).astype(np.float32),
        "threshold": rng.normal(0, 0.3, channels).astype(np.float32),
        "body": np.packbits(bits, axis=-1, bitorder="little").view(np.uint64),
        "scale": rng.uniform(0.01, 0.1, channels).astype(np.float32),
        "head": rng.normal(0, 0.3, (10, 1, 1, channels)).astype(np.float32),
        "bias": rng.normal(0, 0.1, 10).astype(np.float32),
    }
    graph = Graph(
        ops=[
            Conv2d(output="a", input="image", weight="stem", out_channels=channels, kernel=(3, 3), padding=(1, 1)),
            Threshold(output="b", input="a", threshold="threshold"),
            BinaryConv2d(
                output="c",
                input="b",
                weight="body",
                out_channels=channels,
                kernel=(3, 3),
                padding=(1, 1),
                stride=(2, 2),
                scale="scale",
            ),
            GlobalAvgPool(output="d", input="c"),
            Conv2d(output="e", input="d", weight="head", out_channels=10, kernel=(1, 1), bias="bias"),
        ],
        outputs={"logits": "e"},
    )
    return write(path, header(graph, tensors), tensors)


def write_colour(path: Path) -> PackedFile:
    """A model whose logits are ten times the picture's mean red, green and blue: it tells colours."""
    tensors: dict[str, np.ndarray[Any, Any]] = {"head": 10 * np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3)}
    graph = Graph(
        ops=[
            GlobalAvgPool(output="mean", input="image"),
            Conv2d(output="logits", input="mean", weight="head", out_channels=3, kernel=(1, 1)),
        ],
        outputs={"logits": "logits"},
    )
    described = header(graph, tensors, labels=["red", "green", "blue"])
    plain = described.input.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    return write(path, described.model_copy(update={"input": plain}), tensors)


def write_pose(path: Path, joints: int = 5) -> PackedFile:
    """A pose model of one convolution, whose heatmaps are half the input's size."""
    weight = np.random.default_rng(0).normal(0, 0.3, (joints, 3, 3, 3)).astype(np.float32)
    tensors: dict[str, np.ndarray[Any, Any]] = {"stem": weight}
    conv = Conv2d(
        output="maps",
        input="image",
        weight="stem",
        out_channels=joints,
        kernel=(3, 3),
        padding=(1, 1),
        stride=(2, 2),
    )
    described = PackedHeader(
        architecture="random",
        task="pose",
        input=InputSpec(height=32, width=32, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)),
        graph=Graph(ops=[conv], outputs={"heatmaps": "maps"}),
        keypoints=Keypoints(names=[f"joint{index}" for index in range(joints)], skeleton=[], flip_pairs=[(1, 2)]),
        sizes=Sizes(packed_bytes=weight.nbytes, float32_bytes=weight.nbytes),
    )
    return write(path, described, tensors)


CORNERS = {
    "head": (1, 1, 1),
    "neck": (-1, -1, -1),
    "left_hand": (1, -1, -1),
    "right_hand": (-1, 1, -1),
    "left_foot": (-1, -1, 1),
    "right_foot": (1, 1, -1),
}
"""Keypoints of `write_dots`, each the place of one colour: which of red, green and blue are full."""
DOT_COLOURS = {name: tuple(255 if sign > 0 else 0 for sign in signs) for name, signs in CORNERS.items()}


def write_dots(path: Path, side_px: int = 64) -> PackedFile:
    """A pose model that finds discs by their colour: a keypoint's heatmap is how much a cell of 4 x 4 pixels has it."""
    colours = np.array(list(CORNERS.values()), np.float32)
    weight = np.tile(colours[:, None, None, :] / 48, (1, 4, 4, 1)).astype(np.float32)
    conv = Conv2d(output="maps", input="image", weight="cells", out_channels=len(colours), kernel=(4, 4), stride=(4, 4))
    described = PackedHeader(
        architecture="dots",
        task="pose",
        input=InputSpec(
            height=side_px, width=side_px, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=Resize(mode="letterbox")
        ),
        graph=Graph(ops=[conv], outputs={"heatmaps": "maps"}),
        keypoints=Keypoints(names=list(CORNERS), skeleton=[(0, 1), (1, 2), (1, 3), (1, 4), (1, 5)], flip_pairs=[]),
        sizes=Sizes(packed_bytes=weight.nbytes, float32_bytes=weight.nbytes),
    )
    return write(path, described, {"cells": weight})


def write_slow(path: Path, layers: int = 8, side_px: int = 192, *, pose: bool = False) -> PackedFile:
    """Real convolutions over a large picture: one answer takes a noticeable part of a second.

    A classifier, or with `pose` a model that finds the ten keypoints that its labels would be.
    """
    channels = 48
    weight = np.zeros((channels, 3, 3, channels), np.float32)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "stem": np.zeros((channels, 3, 3, 3), np.float32),
        "head": np.zeros((10, 1, 1, channels), np.float32),
    }
    ops: list[Any] = [
        Conv2d(output="x0", input="image", weight="stem", out_channels=channels, kernel=(3, 3), padding=(1, 1))
    ]
    for index in range(layers):
        tensors[f"body{index}"] = weight
        ops.append(
            Conv2d(
                output=f"x{index + 1}",
                input=f"x{index}",
                weight=f"body{index}",
                out_channels=channels,
                kernel=(3, 3),
                padding=(1, 1),
            )
        )
    if pose:
        ops.append(Conv2d(output="maps", input=f"x{layers}", weight="head", out_channels=10, kernel=(1, 1)))
        described = header(Graph(ops=ops, outputs={"heatmaps": "maps"}), tensors, side_px, pose=True)
        return write(path, described, tensors)
    ops.append(GlobalAvgPool(output="mean", input=f"x{layers}"))
    ops.append(Conv2d(output="logits", input="mean", weight="head", out_channels=10, kernel=(1, 1)))
    return write(path, header(Graph(ops=ops, outputs={"logits": "logits"}), tensors, side_px), tensors)
