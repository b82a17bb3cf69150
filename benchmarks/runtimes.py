"""The runtimes that the benchmarks compare with: each makes the real-valued twin ready to run, or a file of it.

The 8-bit ones are calibrated on eight random pictures with their own tools' defaults for convolutional networks: NNCF's
post-training quantization for OpenVINO, static QDQ with weights a channel for ONNX Runtime.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Run = Callable[[], Any]
CALIBRATION_PICTURES = 8


@dataclass(frozen=True)
class Twin:
    """A real-valued network, what it reads (float32 `[N, 3, H, W]`), a folder for files, and the threads it may use."""

    network: nn.Module
    x: torch.Tensor
    folder: Path
    threads: int

    def calibration(self) -> Iterator[np.ndarray[Any, Any]]:
        """Pictures like those that are measured, in batches as large."""
        generator = torch.Generator().manual_seed(0)
        for _ in range(max(1, CALIBRATION_PICTURES // len(self.x))):
            yield torch.randn(self.x.shape, generator=generator).numpy()


@dataclass(frozen=True)
class Peer:
    """A runtime: its name in tables, the package it needs, and how a twin becomes a call."""

    name: str
    package: str
    make: Callable[[Twin], Run]

    @property
    def installed(self) -> bool:
        """Whether its package is here."""
        return importlib.util.find_spec(self.package) is not None


def pytorch_eager(twin: Twin) -> Run:
    return torch.inference_mode()(lambda: twin.network(twin.x))


def pytorch_compiled(twin: Twin) -> Run:
    torch._dynamo.reset()
    compiled = torch.compile(twin.network)
    run = torch.inference_mode()(lambda: compiled(twin.x))
    run()
    return run


def write_onnx(twin: Twin) -> Path:
    """The twin as `twin.onnx` in its folder."""
    path = twin.folder / "twin.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy exporter says so; the new one needs one more package
        torch.onnx.export(twin.network, (twin.x,), str(path), input_names=["x"], output_names=["y"], dynamo=False)
    return path


def _onnx_session(path: Path, twin: Twin) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = twin.threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pixels = twin.x.numpy()
    return lambda: session.run(None, {"x": pixels})


def onnxruntime_float32(twin: Twin) -> Run:
    return _onnx_session(write_onnx(twin), twin)


def write_onnxruntime_int8(twin: Twin) -> Path:
    """The twin as `int8.onnx` in its folder, calibrated."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.pictures = twin.calibration()

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.pictures, None)
            return None if picture is None else {"x": picture}

    logging.getLogger().setLevel(logging.ERROR)
    prepared, quantized = twin.folder / "prepared.onnx", twin.folder / "int8.onnx"
    quant_pre_process(str(write_onnx(twin)), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return quantized


def onnxruntime_int8(twin: Twin) -> Run:
    return _onnx_session(write_onnxruntime_int8(twin), twin)


def _openvino(twin: Twin, model: Any, precision: str) -> Run:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": twin.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    pixels = twin.x.numpy()
    return lambda: compiled(pixels)


def _openvino_model(twin: Twin) -> Any:
    import openvino

    return openvino.convert_model(twin.network, example_input=twin.x)


def openvino_float32(twin: Twin) -> Run:
    return _openvino(twin, _openvino_model(twin), "f32")


def openvino_bf16(twin: Twin) -> Run:
    return _openvino(twin, _openvino_model(twin), "bf16")


def _openvino_int8_model(twin: Twin) -> Any:
    os.environ.setdefault("TQDM_DISABLE", "1")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    pictures = list(twin.calibration())
    return nncf.quantize(_openvino_model(twin), nncf.Dataset(pictures), subset_size=len(pictures))


def write_openvino_int8(twin: Twin) -> Path:
    """The twin as `int8.xml` and `int8.bin` in its folder, calibrated."""
    import openvino

    path = twin.folder / "int8.xml"
    openvino.save_model(_openvino_int8_model(twin), path)
    return path


def openvino_int8(twin: Twin) -> Run:
    return _openvino(twin, _openvino_int8_model(twin), "f32")


PEERS = (
    Peer("PyTorch float32 eager", "torch", pytorch_eager),
    Peer("PyTorch float32 compiled", "torch", pytorch_compiled),
    Peer("ONNX Runtime float32", "onnxruntime", onnxruntime_float32),
    Peer("ONNX Runtime int8", "onnxruntime", onnxruntime_int8),
    Peer("OpenVINO float32", "openvino", openvino_float32),
    Peer("OpenVINO bfloat16", "openvino", openvino_bf16),
    Peer("OpenVINO int8", "nncf", openvino_int8),
)
