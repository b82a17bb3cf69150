"""A trained network, or a checkpoint of one, becomes a packed file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import nn

from models.networks import NetworkConfig, restore
from models.packing.file import InputSpec, Keypoints, PackedFile, PackedHeader, Sizes, write
from models.packing.graph import Conv2d, Graph, first_problem
from models.packing.integers import integer_stem
from models.packing.summary import totals
from models.packing.trace import PackingError, Traced, trace
from models.quantized import PixelConv2d

__all__ = ["PackingError", "pack_checkpoint", "pack_network"]

Stem = Literal["float32", "int8"]
OUTPUTS = {"classification": ("logits",), "pose": ("heatmaps",)}


def pack_network(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: str,
    input_spec: InputSpec,
    task: Literal["classification", "pose"] = "classification",
    labels: Sequence[str] | None = None,
    keypoints: Keypoints | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
    half: bool = False,
    stem: Stem = "float32",
) -> PackedFile:
    """Trace `network` and write it as one packed file.

    Parameters
    ----------
    network : normalised images [N, 3, H, W] -> logits [N, labels] or heatmaps [N, keypoints, h, w].
    path : the file to write.
    architecture : its name in tables.
    input_spec : input size, mean, std and resize rule.
    labels, keypoints : what the outputs mean; the one that `task` needs.
    provenance : free-form JSON kept in the file.
    half : keep the weights of real convolutions and linear layers in float16, half the size, rounded to 11 bits.
    stem : `int8` rounds a real stem's weights to 8 bits; the file's provenance says so.

    Raises PackingError naming the module, or the field of the header, that the format cannot represent.
    """
    _must_read_these_pixels(network, input_spec)
    traced = trace(network, OUTPUTS[task])
    provenance = dict(provenance or {})
    if stem == "int8":
        provenance["stem"] = f"{integer_stem(traced, input_spec)}: rounded to 8 bits after training"
    if half:
        _halve_real_weights(traced)
    try:
        header = PackedHeader(
            architecture=architecture,
            task=task,
            input=input_spec,
            graph=Graph(ops=traced.ops, outputs=traced.outputs),
            labels=None if labels is None else list(labels),
            keypoints=keypoints,
            provenance=provenance,
            sizes=Sizes(packed_bytes=0, float32_bytes=0),
        )
    except ValidationError as error:
        raise PackingError(f"{os.fspath(path)}: {first_problem(error)}") from error
    # The sizes are read off the finished file's own table, then the file is written again with them.
    sums = totals(write(path, header, traced.tensors))
    sizes = Sizes(packed_bytes=sums.packed_bytes, float32_bytes=sums.float32_bytes)
    return write(path, header.model_copy(update={"sizes": sizes}), traced.tensors)


def _must_read_these_pixels(network: nn.Module, spec: InputSpec) -> None:
    for name, module in network.named_modules():
        if isinstance(module, PixelConv2d):
            for field, expected in (("mean", spec.mean), ("std", spec.std)):
                found = getattr(module, f"pixel_{field}")
                if not torch.allclose(found, torch.tensor(expected, dtype=found.dtype, device=found.device)):
                    raise PackingError(f"{name}: was trained with {field} {found.tolist()}, the input says {expected}")


def _halve_real_weights(traced: Traced) -> None:
    for op in traced.ops:
        if isinstance(op, Conv2d):
            largest = float(np.abs(traced.tensors[op.weight]).max())
            if largest > float(np.finfo(np.float16).max):
                raise PackingError(f"{op.source}: its largest weight, {largest:.4g}, does not fit float16")
            traced.tensors[op.weight] = traced.tensors[op.weight].astype(np.float16)


def pack_checkpoint(
    checkpoint: str | os.PathLike[str], path: str | os.PathLike[str], *, half: bool = False, stem: Stem = "float32"
) -> PackedFile:
    """Pack the network of a checkpoint that `signet train` wrote; `half` and `stem` as in `pack_network`.

    The checkpoint is read without running code from it. Raises PackingError naming the file and what is wrong.
    """
    checkpoint = Path(checkpoint)
    content = _load(checkpoint)
    try:
        parameters = content["hyper_parameters"]
        recipe = parameters["recipe"]
        config: NetworkConfig = TypeAdapter(NetworkConfig).validate_python(recipe["model"])
        input_spec = InputSpec.model_validate(parameters["input"])
        task = recipe.get("task", "classification")
        labels = keypoints = None
        if task == "pose":
            keypoints = Keypoints.model_validate(parameters["keypoints"])
        else:
            labels = [str(name) for name in parameters["class_names"]]
        state = {
            name.removeprefix("network."): tensor
            for name, tensor in content["state_dict"].items()
            if name.startswith("network.")
        }
        if config.architecture == "convnet":
            raise PackingError(f"{checkpoint}: holds a convnet, a real-valued teacher; only binary networks are packed")
        network = restore(config, state)
    except (KeyError, TypeError, ValidationError, RuntimeError) as error:
        raise PackingError(f"{checkpoint}: is not a checkpoint of this program ({error})") from error
    provenance: dict[str, JsonValue] = {
        **parameters.get("provenance", {}),
        "recipe": recipe,
        "seed": recipe.get("seed"),
        "epochs": int(content.get("epoch", -1)) + 1,
        "steps": int(content.get("global_step", 0)),
        "metrics": {name: round(value, 4) for name, value in content.get("metrics", {}).items()},
    }
    return pack_network(
        network,
        path,
        architecture=config.name,
        input_spec=input_spec,
        task=task,
        labels=labels,
        keypoints=keypoints,
        provenance=provenance,
        half=half,
        stem=stem,
    )


def _load(checkpoint: Path) -> dict[str, Any]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PackingError(f"{checkpoint}: does not exist") from error
    except Exception as error:  # torch raises whatever its unpickler met
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PackingError(f"{checkpoint}: cannot be read as a checkpoint ({first_line})") from error
    if not isinstance(content, dict):
        raise PackingError(f"{checkpoint}: holds a {type(content).__name__}, expected a checkpoint")
    return content
