"""Training and validation of a classifier, as Lightning's Trainer drives it."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.loaders import Batch
from training.module import NetworkModule
from training.teacher import imitation

MIXUP_STREAM = 1


class Classifier(NetworkModule):
    """A network that tells classes of pictures apart.

    Of its checkpoints, `hyper_parameters` also has `class_names`.

    Logged metrics: `learning_rate`, `train_loss` (also each step's), `train_top1`, `val_loss`, `val_top1`,
    `val_top5`; the accuracies in per cent.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        class_names: Sequence[str],
        input: dict[str, Any],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(recipe, input, provenance, class_names=list(class_names))
        self.totals = torch.zeros(4, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels uint8 [N, H, W, 3] -> logits float32 [N, classes]."""
        logits: Tensor = self.network(self.normalised(images))
        return logits.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy with label smoothing, of mixed pictures that with both labels; and the teacher's share."""
        training = self.recipe.training
        images, labels = batch
        x, others, share = self.normalised(images), labels, 1.0
        if training.mixup_alpha:
            key = (self.recipe.seed, self.current_epoch, batch_idx, self.global_rank)
            share, order = draw_mix(len(labels), training.mixup_alpha, key)
            x, others = share * x + (1 - share) * x[order.to(x.device)], labels[order.to(labels.device)]
        logits = self.network(x).float()
        loss = sum(
            weight * F.cross_entropy(logits, target, label_smoothing=training.label_smoothing)
            for weight, target in ((share, labels), (1 - share, others))
            if weight > 0
        )
        if self.teacher is not None:
            apart = imitation(logits, self.teacher(x), training.distillation_temperature)
            loss = (1 - training.distillation_weight) * loss + training.distillation_weight * apart
        assert isinstance(loss, Tensor)
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


def draw_mix(count: int, alpha: float, key: Sequence[int]) -> tuple[float, Tensor]:
    """Of a batch's pictures the first one's share of each mix, and the second one's index, int64 [count].

    A function of `key` alone, so that a resumed run mixes as an uninterrupted one.
    """
    random = np.random.default_rng(np.random.SeedSequence([MIXUP_STREAM, *key]))
    return float(random.beta(alpha, alpha)), torch.from_numpy(random.permutation(count))


def count(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [4]: images, right answers, answers with the right one among the first five, summed cross entropy."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    values = (right[:, 0].sum(), right.any(1).sum(), loss)
    return torch.stack([torch.tensor(float(len(labels)), device=logits.device), *values]).double()
