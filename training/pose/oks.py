"""Average precision of keypoints by object keypoint similarity (OKS), as COCO measures it, through pycocotools."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.pose import coco_result
from training.errors import TrainingError
from training.pose.people import People

NAMES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")


def results(points: NDArray[np.floating], scores: NDArray[np.floating], people: People) -> list[dict[str, Any]]:
    """Predictions in COCO's result format: points [N, K, 2] in pixels of the pictures, scores [N, K].

    A person's score is the mean of its keypoints' scores.
    """
    return [
        coco_result(image_id, person, heights)
        for image_id, person, heights in zip(people.image_ids.tolist(), points, scores, strict=True)
    ]


def average_precision(annotations: Path, entries: list[dict[str, Any]], people: People) -> dict[str, float]:
    """AP and AR in per cent, keyed by `NAMES`, over the pictures that `people` are in.

    Figures of sizes that nobody has are left out. Raises TrainingError if pycocotools is missing.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise TrainingError("OKS-AP needs pycocotools, which is missing: pip install 'signet[train]'") from error
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(entries), "keypoints")
        evaluation.params.imgIds = sorted(set(people.image_ids.tolist()))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    pairs = zip(NAMES, evaluation.stats.tolist(), strict=True)
    return {name: 100 * value for name, value in pairs if value >= 0}
