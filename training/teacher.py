"""Networks that a run learns from: the one whose weights it starts with, and those whose outputs it imitates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks import restore, start_from
from models.packing.file import PackedFileError, read
from models.packing.unpack import unpack
from training.checkpoints import load_checkpoint
from training.errors import TrainingError
from training.recipe import check_recipe

PACKED = ".safetensors"
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


def load_teacher(paths: Sequence[Path], parameters: dict[str, Any]) -> Ensemble:
    """The networks of one or more checkpoints as one, in evaluation mode, their parameters fixed.

    `parameters` are the `hyper_parameters` of the run: its classes or keypoints, and its input, must be the teachers'.
    Raises TrainingError naming the file.
    """
    networks = []
    for path in paths:
        network, theirs = _load(path)
        for name in MEANINGS:
            if theirs.get(name) != parameters.get(name):
                raise TrainingError(f"training.teacher: {path}: has another {name} than this run")
        networks.append(network)
    teacher = Ensemble(networks).eval()
    teacher.requires_grad_(False)
    return teacher


def start(network: nn.Module, path: Path, images: Callable[[], Tensor]) -> None:
    """Give `network` the weights of a checkpoint or a packed model, see `models.networks.start_from`.

    `images` gives normalised images [N, 3, H, W], from which a packed model's batch norms take what the file does not
    keep. Raises TrainingError.
    """
    try:
        source = unpack(read(path), images()) if path.suffix == PACKED else _load(path)[0]
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
