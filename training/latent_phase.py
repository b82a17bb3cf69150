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

from models.networks import end_latents, restore
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
    networks = {
        key: restore(recipe.model, {name.removeprefix(PREFIX): value for name, value in checkpoint[key].items()})
        for key in STATES
        if key in checkpoint
    }
    trained = list(networks.values())[-1]
    before = optimizer.make(trained, recipe.training)
    before.load_state_dict(checkpoint["optimizer_states"][0])
    for key, network in networks.items():
        end_latents(network)
        checkpoint[key] = {PREFIX + name: value for name, value in network.state_dict().items()}
    after = optimizer.make(trained, recipe.training)
    optimizer.take_over(after, before)
    checkpoint["optimizer_states"] = [after.state_dict()]
    checkpoint[KEY] = "ended"
