"""The optimiser of a recipe, with its groups of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from models.latent import Latent
from training.muon import Muon, Together, matrix_shapes
from training.recipe import Training
from training.schedule import HIGH_MOMENTUM, Rate


def parameter_groups(network: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Three groups: real weights, vectors (batch norm, scales, slopes), latent parameters.

    Each has its `weight_decay`, and `rate_scale` which multiplies the scheduled learning rate.
    A parameter that has only one dimension greater than 1 is a vector.
    """
    latent = {
        id(parameter) for module in network.modules() if isinstance(module, Latent) for parameter in module.parameters()
    }
    weights, vectors, latents = [], [], []
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in latent:
            latents.append(parameter)
        elif sum(size > 1 for size in parameter.shape) <= 1:
            vectors.append(parameter)
        else:
            weights.append(parameter)
    groups = [
        {"params": weights, "weight_decay": training.weight_decay, "rate_scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_scale": 1.0},
        {
            "params": latents,
            "weight_decay": training.latent_weight_decay,
            "rate_scale": training.latent_learning_rate_scale,
        },
    ]
    return [group for group in groups if group["params"]]


def make(network: nn.Module, training: Training) -> Optimizer:
    """The recipe's optimiser over all parameters of `network`."""
    groups = parameter_groups(network, training)
    if training.optimizer == "sgd":
        momentum = HIGH_MOMENTUM if training.schedule == "onecycle" else training.momentum
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=momentum, nesterov=momentum > 0)
    if training.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=training.learning_rate)
    if training.optimizer == "muon":
        return _muon(network, groups, training)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=training.learning_rate, betas=training.betas)


def parts(optimizer: Optimizer) -> Sequence[Optimizer]:
    """The optimisers that hold the state of this one: its parts, or itself."""
    return optimizer.parts if isinstance(optimizer, Together) else (optimizer,)


def take_over(after: Optimizer, before: Optimizer) -> None:
    """Give `after` what `before` knows of the parameters that both have."""
    known = {parameter: state for part in parts(before) for parameter, state in part.state.items()}
    for part in parts(after):
        for group in part.param_groups:
            part.state.update({parameter: known[parameter] for parameter in group["params"] if parameter in known})


def forget(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Have `optimizer` know nothing of these parameters, as before its first step."""
    for part in parts(optimizer):
        for parameter in parameters:
            part.state.pop(parameter, None)


def _muon(network: nn.Module, groups: list[dict[str, Any]], training: Training) -> Optimizer:
    """Muon for the latent parameters that are matrices, Adam for all others."""
    shapes = matrix_shapes(network)
    matrices, others = [], []
    for group in groups:
        inside = [parameter for parameter in group["params"] if id(parameter) in shapes]
        outside = [parameter for parameter in group["params"] if id(parameter) not in shapes]
        if inside:
            matrices.append({**group, "params": inside, "shapes": [shapes[id(parameter)] for parameter in inside]})
        if outside:
            others.append({**group, "params": outside})
    both: list[Optimizer] = [torch.optim.Adam(others, lr=training.learning_rate, betas=training.betas)]
    if matrices:
        both.append(Muon(matrices, lr=training.learning_rate))
    return Together(*both)


def set_rate(optimizer: Optimizer, learning_rate: float, rate: Rate) -> None:
    """Give each group the scheduled rate times its own scale, and the scheduled momentum if there is one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * rate.scale * group["rate_scale"]
        if rate.momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (rate.momentum, group["betas"][1])
        elif "nesterov" in group:
            group["momentum"] = rate.momentum
