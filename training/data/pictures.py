"""From a picture file to the pixels of a network's input, with Pillow."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from training.errors import TrainingError
from training.recipe import LargeImageAugment

CROP_TRIALS = 10


def open_rgb(path: Path) -> Image.Image:
    """Decode a picture, upright and RGB. Raises TrainingError naming the file if it cannot be decoded."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TrainingError(f"{path}: cannot be decoded as a picture: {error}") from error


def centre_crop(image: Image.Image, side: int, short_side: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `short_side` pixels, cut `side` x `side` from the middle: uint8 [side, side, 3]."""
    scale = short_side / min(image.size)
    width, height = (max(side, round(n * scale)) for n in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    # Only what is cut out is resized: of a very long picture all of it would take gigabytes.
    x, y = image.width / width, image.height / height
    right, bottom = min((left + side) * x, image.width), min((top + side) * y, image.height)
    box = (left * x, top * y, right, bottom)
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def random_resized_crop(
    image: Image.Image, side: int, augment: LargeImageAugment, random: torch.Generator
) -> NDArray[np.uint8]:
    """A crop of random area, aspect and place, resized and perhaps mirrored: uint8 [side, side, 3].

    Where no crop of the drawn shape fits after ten trials, the largest centred one of an allowed aspect is taken.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    width, height = image.size
    low, high = augment.crop_aspect
    for _ in range(CROP_TRIALS):
        area = uniform(*augment.crop_area) * width * height
        aspect = exp(uniform(log(low), log(high)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(uniform(0, width - w + 1)), int(uniform(0, height - h + 1))
            break
    else:
        w, h = min(width, round(height * high)), min(height, round(width / low))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    if augment.flip and uniform(0, 1) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)
