"""What every peer does with a JPEG, as torchvision does: decode, resize the shorter side to 256, crop, normalise."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def prepare(data: bytes) -> np.ndarray:
    """Float32 `[1, 3, 224, 224]`."""
    image = Image.open(BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[None])


def top5(logits: np.ndarray) -> list[dict[str, float]]:
    """The best five of one picture's logits `[1, classes]`, with softmax scores."""
    weights = np.exp(logits[0] - logits[0].max())
    scores = weights / weights.sum()
    return [{"index": int(i), "score": float(scores[i])} for i in np.argsort(-scores)[:5]]
