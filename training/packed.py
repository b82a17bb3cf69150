"""The network of a packed file as a function of pixels, run by the xnor engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.packing.file import PackedFileError, PackedHeader, read
from training.errors import TrainingError

SUFFIX = ".safetensors"

Predict = Callable[[Tensor], Tensor]


def load_packed(path: Path, threads: int | None = None) -> tuple[PackedHeader, Predict]:
    """Its header, and uint8 [N, H, W, 3] -> logits [N, classes] or heatmaps [N, h, w, K], both on the CPU.

    `threads` compute at once, at most; by default as many as the machine grants. Raises TrainingError for an unsound
    file, for one that the engine cannot run here, and where the engine has not been compiled.
    """
    try:
        header = read(path).header
    except PackedFileError as error:
        raise TrainingError(str(error)) from error
    try:
        from models.xnor import EngineError, Session
    except ImportError as error:
        raise TrainingError(f"{path}: needs the compiled xnor engine, which is missing") from error
    try:
        session = Session.load(path, threads=threads)
    except (EngineError, PackedFileError) as error:
        raise TrainingError(str(error)) from error
    output = "heatmaps" if header.task == "pose" else "logits"

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(images.numpy())[output])

    return header, predict
