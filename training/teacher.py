"""Networks that a run learns from: the one whose weights it starts with, and those whose outputs it imitates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import restore, start_from
from models.packing.file import InputSpec, PackedFileError, PackedHeader, read
from models.packing.unpack import unpack
from training.checkpoints import load_checkpoint
from training.difference import first_difference
from training.errors import TrainingError
from training.packed import SUFFIX, Predict, load_packed
from training.recipe import check_recipe

MEANINGS = ("class_names", "keypoints", "input")


class Ensemble(nn.Module):
    """Teachers as one: the mean of their outputs (logits, heatmaps), without gradient."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> the outputs of one teacher, float32."""
        outputs = [teacher(x).float() for teacher in self.teachers]
        return torch.stack(outputs).mean(0)


class Packed(nn.Module):
    """The network of a packed file, which the xnor engine runs on the CPU, as one of normalised images.

    It sees the pixels that they were made of, mixed ones rounded to the nearest: 8 bits are what it takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, predict: Predict, spec: InputSpec) -> None:
        super().__init__()
        self.predict = predict
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] -> logits [N, classes] or heatmaps [N, K, h, w], float32."""
        pixels = ((x.float() * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        output = self.predict(pixels.permute(0, 2, 3, 1).contiguous().cpu()).to(x.device)
        return output.permute(0, 3, 1, 2) if output.ndim == 4 else output


def load_teacher(paths: Sequence[Path], parameters: dict[str, Any]) -> Ensemble:
    """The networks of one or more checkpoints or packed files as one, in evaluation mode, their parameters fixed.

    `parameters` are the `hyper_parameters` of the run: its classes or keypoints, and its input, must be the teachers'.
    Raises TrainingError naming the file.
    """
    networks = []
    for path in paths:
        try:
            network, theirs = (_packed if path.suffix == SUFFIX else _load)(path)
        except TrainingError as error:
            raise TrainingError(f"training.teacher: {error}") from error
        for name in MEANINGS:
            if theirs.get(name) != parameters.get(name):
                field, found, expected = first_difference(name, theirs.get(name), parameters.get(name))
                raise TrainingError(f"training.teacher: {path}: has {field} {found}; this run has {expected}")
        networks.append(network)
    teacher = Ensemble(networks).eval()
    teacher.requires_grad_(False)
    return teacher


def start(network: nn.Module, path: Path, images: Callable[[], Tensor]) -> None:
    """Give `network` the weights of a checkpoint or a packed model, see `models.networks.start_from`.

    `images` gives normalised images [N, 3, H, W], from which a packed model's batch norms take what the file does not
    keep. Raises TrainingError.
    """
    if path.suffix != SUFFIX:
        try:
            source = _load(path)[0]
        except TrainingError as error:
            raise TrainingError(f"training.start_from: {error}") from error
    try:
        if path.suffix == SUFFIX:
            source = unpack(read(path), images())
        start_from(network, source)
    except PackedFileError as error:
        raise TrainingError(f"training.start_from: {error}") from error
    except ValueError as error:
        raise TrainingError(f"training.start_from: {path}: {error}") from error


def imitation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened logits [N, classes] from the teacher's, times the squared temperature.

    (Hinton et al. 2015: so its gradient keeps its size.)
    """
    ours, theirs = (F.log_softmax(x.float() / temperature, dim=1) for x in (logits, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def _load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    content = load_checkpoint(path)
    parameters = content["hyper_parameters"]
    recipe = check_recipe(parameters["recipe"], f"{path}: hyper_parameters.recipe")
    prefix = "network."
    state = {name.removeprefix(prefix): value for name, value in content["state_dict"].items()}
    try:
        network = restore(recipe.model, state)
    except RuntimeError as error:
        raise TrainingError(f"{path}: state_dict: {str(error).splitlines()[0]}") from error
    return network, parameters


def _packed(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    header, predict = load_packed(path, threads=torch.get_num_threads())
    return Packed(predict, header.input), _meaning(header)


def _meaning(header: PackedHeader) -> dict[str, Any]:
    """What a checkpoint's `hyper_parameters` would say of the file's classes or keypoints, and of its input."""
    plain = header.model_dump(mode="json")
    named = {"class_names": plain["labels"], "keypoints": plain["keypoints"]}
    return {"input": plain["input"], **{name: value for name, value in named.items() if value is not None}}
