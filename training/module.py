"""What the training of every task shares: the network, the pixels it reads, its optimiser and learning rate."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from models.latent import anneal
from models.networks import build, end_latents
from models.packing.file import InputSpec
from models.quantized import set_pixels
from training import latent_phase, optimizer, schedule
from training.errors import TrainingError
from training.recipe import Recipe, check_recipe
from training.teacher import Ensemble, load_teacher


class NetworkModule(LightningModule):
    """A network and its optimisation; a task adds its loss and its measures.

    Its checkpoints hold plain data and tensors alone, so `torch.load(path, weights_only=True)` reads them:
    `state_dict` (the network's names prefixed by `network.`) and `hyper_parameters` with `recipe`, `input` (an
    InputSpec), `provenance` and what the task's outputs mean, from which the network is built again.

    Logged metric: `learning_rate`.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        recipe: dict[str, Any],
        input: dict[str, Any],
        provenance: dict[str, Any] | None = None,
        **outputs: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"recipe": recipe, "input": input, "provenance": provenance or {}, **outputs})
        self.recipe: Recipe = check_recipe(recipe, "checkpoint")
        self.spec = InputSpec.model_validate(input)
        try:
            self.network = build(self.recipe.model)
        except ValueError as error:
            raise TrainingError(f"model.latent.rank: {error}") from error
        set_pixels(self.network, self.spec.mean, self.spec.std)
        self.place()
        if self.recipe.training.compile:
            self.network.compile()
        self.latents_ended = False
        # Of a batch of pixels: x * pixel_scale + pixel_shift = (x / 255 - mean) / std.
        mean, std = torch.tensor(self.spec.mean), torch.tensor(self.spec.std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", (-mean / std).reshape(3, 1, 1), persistent=False)

    @property
    def teacher(self) -> Ensemble | None:
        """What is imitated, see `training.teacher.load_teacher`: no part of this network, nor of its checkpoints."""
        found: Ensemble | None = self.__dict__.get("_teacher")
        return found

    def on_fit_start(self) -> None:
        """Read the recipe's teachers."""
        paths = self.recipe.training.teacher
        if paths:
            network = load_teacher(paths, dict(self.hparams)).to(self.device)
            if self.recipe.training.channels_last:
                network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.__dict__["_teacher"] = network

    def end_latents(self) -> None:
        """Go on with plain weights. Before the Trainer has seen the module."""
        end_latents(self.network)
        self.place()
        self.latents_ended = True

    def on_train_epoch_end(self) -> None:
        """Stop where the latents end; the run goes on from the epoch's checkpoint."""
        if self.latents_now == "due":
            self.trainer.should_stop = True

    @property
    def latents_now(self) -> latent_phase.Latents:
        """What a checkpoint that is saved now holds."""
        if self.latents_ended:
            return "ended"
        training = self.recipe.training
        last = latent_phase.epochs(training)
        if last == training.epochs:
            return "trained"
        steps = int(self.trainer.estimated_stepping_batches)
        return "due" if self.global_step * training.epochs >= last * steps else "trained"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whether the weights are latent."""
        checkpoint[latent_phase.KEY] = self.latents_now

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert a checkpoint at the end of the latents, if this network has none any more."""
        if self.latents_ended and checkpoint[latent_phase.KEY] != "ended":
            latent_phase.convert(checkpoint, self.recipe)

    def place(self) -> None:
        """Lay the network out in memory as the recipe says."""
        if self.recipe.training.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def normalised(self, images: Tensor) -> Tensor:
        """Pixels uint8 [N, H, W, 3] -> the network's input float32 [N, 3, H, W]."""
        # Pixels come as NHWC, so that channels-last memory costs nothing.
        x = images.permute(0, 3, 1, 2).float() * self.pixel_scale + self.pixel_shift
        return x if self.recipe.training.channels_last else x.contiguous()

    def configure_optimizers(self) -> Optimizer:
        """The recipe's optimiser; its rate is set before each step by `on_train_batch_start`."""
        return optimizer.make(self.network, self.recipe.training)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate, and the temperature of annealed signs, of the step that this batch belongs to."""
        training = self.recipe.training
        steps = int(self.trainer.estimated_stepping_batches)
        now = schedule.rate(self.global_step, steps, training)
        for one in self.trainer.optimizers:
            optimizer.set_rate(one, training.learning_rate, now)
        anneal(self.network, self.global_step / steps)
        self.log("learning_rate", training.learning_rate * now.scale)
