"""Training and validation of a classifier, as Lightning's Trainer drives it."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from models.networks import build
from models.packing.file import InputSpec
from training import optimizer, schedule
from training.data.loaders import Batch
from training.recipe import Recipe, check_recipe


class Classifier(LightningModule):
    """A network, its loss and its optimisation.

    Its checkpoints hold plain data and tensors alone, so `torch.load(path, weights_only=True)` reads them:
    `state_dict` (the network's names prefixed by `network.`) and `hyper_parameters` with `recipe`,
    `class_names`, `input` (an InputSpec) and `provenance`, from which the network is built again.

    Logged metrics: `learning_rate`, `train_loss` (also each step's), `train_top1`, `val_loss`, `val_top1`,
    `val_top5`; the accuracies in per cent.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        recipe: dict[str, Any],
        class_names: Sequence[str],
        input: dict[str, Any],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {"recipe": recipe, "class_names": list(class_names), "input": input, "provenance": provenance or {}}
        )
        self.recipe: Recipe = check_recipe(recipe, "checkpoint")
        self.spec = InputSpec.model_validate(input)
        self.network = build(self.recipe.model)
        if self.recipe.training.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.recipe.training.compile:
            self.network.compile()
        # Of a batch of pixels: x * pixel_scale + pixel_shift = (x / 255 - mean) / std.
        mean, std = torch.tensor(self.spec.mean), torch.tensor(self.spec.std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", (-mean / std).reshape(3, 1, 1), persistent=False)
        self.totals = torch.zeros(4, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels uint8 [N, H, W, 3] -> logits float32 [N, classes]."""
        # Pixels come as NHWC, so that channels-last memory costs nothing.
        x = images.permute(0, 3, 1, 2).float() * self.pixel_scale + self.pixel_shift
        if not self.recipe.training.channels_last:
            x = x.contiguous()
        logits: Tensor = self.network(x)
        return logits.float()

    def configure_optimizers(self) -> Optimizer:
        """The recipe's optimiser; its rate is set before each step by `on_train_batch_start`."""
        return optimizer.make(self.network, self.recipe.training)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate of the step that this batch belongs to."""
        training = self.recipe.training
        steps = int(self.trainer.estimated_stepping_batches)
        now = schedule.rate(self.global_step, steps, training)
        for one in self.trainer.optimizers:
            optimizer.set_rate(one, training.learning_rate, now)
        self.log("learning_rate", training.learning_rate * now.scale)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy with label smoothing."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.training.label_smoothing)
        top1 = 100 * (logits.detach().argmax(1) == labels).float().mean()
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True)
        self.log("train_loss_step", loss.detach())
        self.log("train_top1", top1, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self.totals = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what is right."""
        images, labels = batch
        self.totals += count(self(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Add up over all processes and log."""
        images, top1, top5, loss = self.trainer.strategy.reduce(self.totals, reduce_op="sum").tolist()
        self.log("val_top1", 100 * top1 / images, sync_dist=True)
        self.log("val_top5", 100 * top5 / images, sync_dist=True)
        self.log("val_loss", loss / images, sync_dist=True)


def count(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [4]: images, right answers, answers with the right one among the first five, summed cross entropy."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    values = (right[:, 0].sum(), right.any(1).sum(), loss)
    return torch.stack([torch.tensor(float(len(labels)), device=logits.device), *values]).double()
