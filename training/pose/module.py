"""Training and validation of a pose network, as Lightning's Trainer drives it."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.packing.file import Keypoints
from models.pose import decode
from training.module import NetworkModule
from training.pose import heatmaps, oks
from training.pose.config import PoseData
from training.pose.loaders import PoseBatch
from training.pose.metrics import PoseScores, score
from training.pose.people import PoseDataset


class PoseEstimator(NetworkModule):
    """A network that makes heatmaps.

    Of its checkpoints, `hyper_parameters` also has `keypoints` (names, skeleton, flip pairs).

    Logged metrics: `train_loss` (also each step's), `val_loss`, and in per cent `val_pck`, `val_pckh` (also
    `_upright`) and `val_ap` where the data set has them.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        keypoints: dict[str, Any],
        input: dict[str, Any],
        provenance: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(recipe, input, provenance, keypoints=keypoints)
        self.keypoints = Keypoints.model_validate(keypoints)
        data = self.recipe.data
        assert isinstance(data, PoseData)
        self.data = data
        self.predicted = torch.zeros(0)
        self.totals = torch.zeros(2)

    @property
    def dataset(self) -> PoseDataset:
        """The data set that the Trainer was given."""
        found: PoseDataset = self.trainer.datamodule.dataset  # type: ignore[attr-defined]
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Pixels uint8 [N, H, W, 3] -> heatmaps float32 [N, K, H / 4, W / 4] of every stack; in evaluation the last."""
        made: Tensor | Sequence[Tensor] = self.network(self.normalised(images))
        return tuple(each.float() for each in ([made] if isinstance(made, Tensor) else made))

    def loss(self, predicted: Sequence[Tensor], batch: PoseBatch) -> Tensor:
        """The sum over all stacks; see `heatmaps.loss`."""
        target = heatmaps.targets(batch.joints, predicted[0].shape[-1], self.data.heatmap_sigma)
        return torch.stack([heatmaps.loss(each, target, batch.visible) for each in predicted]).sum()

    def training_step(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        """Squared error of all stacks' heatmaps; and that from the teacher's, all joints of which count."""
        predicted = self(batch.images)
        loss = self.loss(predicted, batch)
        if self.teacher is not None:
            imitated = self.teacher(self.normalised(batch.images))
            everything = torch.ones_like(batch.visible)
            apart = torch.stack([heatmaps.loss(each, imitated, everything) for each in predicted]).sum()
            share = self.recipe.training.distillation_weight
            loss = (1 - share) * loss + share * apart
        size = len(batch.images)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        self.log("train_loss_step", loss.detach(), batch_size=size)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin to collect: a row a person, which the process that sees the person fills."""
        people, joints = self.dataset.validation.visible.shape
        self.predicted = torch.zeros(people, joints, 3, dtype=torch.float64, device=self.device)
        self.totals = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: PoseBatch, batch_idx: int) -> None:
        """Collect points and scores, in the crops' pixels."""
        made = self(batch.images)
        points, scores = decode(made[-1].permute(0, 2, 3, 1).cpu().numpy())
        rows = torch.from_numpy(np.concatenate([points, scores[..., None]], axis=2))
        self.predicted[batch.people] = rows.to(self.device)
        visible = batch.visible.sum()
        self.totals += torch.stack([self.loss(made, batch).double() * visible, visible.double()])

    def on_validation_epoch_end(self) -> None:
        """Add up over all processes, measure and log."""
        predicted = self.trainer.strategy.reduce(self.predicted, reduce_op="sum")
        totals = self.trainer.strategy.reduce(self.totals, reduce_op="sum")
        self.log("val_loss", totals[0] / totals[1], sync_dist=True)
        rows = predicted.cpu().numpy()
        scores = measure(rows[..., :2], rows[..., 2], self.dataset, self.spec.height)
        for name, value in scores.values().items():
            self.log(f"val_{name}", value, sync_dist=True)


def measure(points: NDArray[np.floating], heights: NDArray[np.floating], dataset: PoseDataset, size: int) -> PoseScores:
    """Measure points [N, K, 2], in pixels of the crops of `size`, and scores [N, K] of all validation people."""
    people = dataset.validation
    found = people.picture_points(points, np.arange(len(people)), size)
    ap = None
    if dataset.annotations is not None:
        ap = oks.average_precision(dataset.annotations, oks.results(found, heights, people), people)
    return score(found, people, dataset.unmeasured, ap)
