"""PCK, PCKh and OKS-AP of a trained network on the validation people of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.pose import decode, merge_flipped
from training.data.plan import BatchPlan
from training.pose.config import PoseData
from training.pose.loaders import PoseLoader
from training.pose.metrics import PoseScores
from training.pose.module import measure
from training.pose.people import PoseDataset

Predict = Callable[[Tensor], Tensor]


def measure_people(
    predict: Predict,
    dataset: PoseDataset,
    config: PoseData,
    *,
    flip: bool = False,
    limit: int | None = None,
    batch_size: int = 50,
) -> PoseScores:
    """Measure a network on the validation people, or the first `limit` of them.

    Parameters
    ----------
    predict : uint8 [N, H, W, 3] -> heatmaps float32 [N, h, w, K].
    flip : average the heatmaps of each picture and of its mirror image.
    """
    dataset = replace(dataset, validation=dataset.validation.first(limit))
    people, size = dataset.validation, dataset.input.height
    plan = BatchPlan(len(people), batch_size, shuffle=False)
    points, heights = [], []
    for batch in PoseLoader(people, plan, size=size, storage=config.storage, workers=config.workers):
        heatmaps = predict(batch.images).numpy()
        if flip:
            mirrored = predict(torch.flip(batch.images, dims=[2])).numpy()
            heatmaps = merge_flipped(heatmaps, mirrored, dataset.keypoints)
        found, height = decode(heatmaps)
        points.append(found)
        heights.append(height)
    return measure(np.concatenate(points), np.concatenate(heights), dataset, size)
