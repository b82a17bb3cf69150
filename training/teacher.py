"""Networks that a run learns from: the one whose weights it starts with, and the one whose outputs it imitates."""

from __future__ import annotations

from collections.abc import Callable
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


def load_teacher(path: Path, parameters: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint, in evaluation mode, its parameters fixed.

    `parameters` are the `hyper_parameters` of the run: its classes or keypoints, and its input, must be the teacher's.
    Raises TrainingError naming the file.
    """
    network, theirs = _load(path)
    for name in MEANINGS:
        if theirs.get(name) != parameters.get(name):
            raise TrainingError(f"training.teacher: {path}: has another {name} than this run")
    return network.requires_grad_(False)


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


def without_gradient(network: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a teacher."""
    with torch.no_grad():
        made: Tensor = network(x)
        return made.float()
