"""Latents for the first part of a run, plain weights for the rest (`training.latent_share`).

A step through factors flips many signs at once and moves W fastest where it is large already, so W grows, leaves the
estimator's window and becomes nearly low in rank. That is a fast start; for the rest of the run W may go on as a
parameter of its own, from the same signs and with the size of fresh weights.

The run stops at the end of that epoch and goes on from the checkpoint saved there, as any resumed run does; the
checkpoint's content is converted when it is read. So a run that is interrupted at any point, several processes,
compiled networks and averaged weights need nothing of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from models.networks import build, end_latents
from training import optimizer
from training.recipe import Recipe, Training

KEY = "latents"
Latents = Literal["trained", "due", "ended"]
"""What a checkpoint holds: latents that go on, latents that end here, or plain weights in their place."""
STATES = ("state_dict", "current_model_state")
"""Where a checkpoint has weights: what is validated and, where that is an average, what is trained."""
PREFIX = "network."


def epochs(training: Training) -> int:
    """The number of epochs that have latents, at least one."""
    return max(1, round(training.latent_share * training.epochs))


def over(checkpoint: Mapping[str, Any]) -> bool:
    """Whether training goes on from this checkpoint with plain weights."""
    return bool(checkpoint.get(KEY, "trained") != "trained")


def convert(checkpoint: dict[str, Any], recipe: Recipe) -> None:
    """Make of a checkpoint with latents the one with plain weights, in place.

    Weights are converted as `models.networks.end_latents` does; the optimiser keeps what it knows of all other
    parameters.
    """
    for key in STATES:
        if key in checkpoint:
            network = _network(recipe, checkpoint[key])
            if key == STATES[-1] or STATES[-1] not in checkpoint:
                checkpoint["optimizer_states"] = [_end_in_optimizer(network, recipe, checkpoint["optimizer_states"][0])]
            else:
                end_latents(network)
            checkpoint[key] = {PREFIX + name: value for name, value in network.state_dict().items()}
    checkpoint[KEY] = "ended"


def _network(recipe: Recipe, state: Mapping[str, Tensor]) -> nn.Module:
    latent = recipe.model.latent.model_copy(update={"init": "random"})  # about to be overwritten
    network = build(recipe.model.model_copy(update={"latent": latent}))
    network.load_state_dict({name.removeprefix(PREFIX): value for name, value in state.items()})
    return network


def _end_in_optimizer(network: nn.Module, recipe: Recipe, state: dict[str, Any]) -> dict[str, Any]:
    """End the latents of `network`; the state of its optimiser before -> the state after."""
    before = optimizer.make(network, recipe.training)
    before.load_state_dict(state)
    known = {parameter: one for part in optimizer.parts(before) for parameter, one in part.state.items()}
    end_latents(network)
    after = optimizer.make(network, recipe.training)
    for part in optimizer.parts(after):
        for group in part.param_groups:
            part.state.update({parameter: known[parameter] for parameter in group["params"] if parameter in known})
    return after.state_dict()
