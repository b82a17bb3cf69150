"""PCK, PCKh and OKS-AP of a trained network on the validation people of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.pose import decode, merge_flipped
from training.data.plan import BatchPlan
from training.pose.config import PoseData
from training.pose.loaders import PoseLoader
from training.pose.metrics import PoseScores
from training.pose.module import measure
from training.pose.people import People, PoseDataset

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
    size = dataset.input.height
    points, heights = find(predict, dataset.validation, config, size, flip=flip, batch_size=batch_size)
    return measure(points, heights, dataset, size)


def find(
    predict: Predict, people: People, config: PoseData, size: int, *, flip: bool = False, batch_size: int = 50
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a network finds of `people`: points [N, K, 2] in pixels of their crops of `size`, and scores [N, K]."""
    plan = BatchPlan(len(people), batch_size, shuffle=False)
    points, heights = [], []
    for batch in PoseLoader(people, plan, size=size, storage=config.storage, workers=config.workers):
        heatmaps = predict(batch.images).numpy()
        if flip:
            mirrored = predict(torch.flip(batch.images, dims=[2])).numpy()
            heatmaps = merge_flipped(heatmaps, mirrored, people.keypoints)
        found, height = decode(heatmaps)
        points.append(found)
        heights.append(height)
    return np.concatenate(points), np.concatenate(heights)
