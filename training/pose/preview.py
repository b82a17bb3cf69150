"""A picture of what a network is trained on and measured on: people cut out, with their joints and limbs."""

from __future__ import annotations

from math import ceil

import numpy as np
from PIL import Image, ImageDraw

from models.drawing import draw_people
from models.packing.file import Keypoints
from training.data.plan import BatchPlan
from training.pose.config import PoseAugment, PoseData
from training.pose.loaders import PoseBatch, PoseLoader
from training.pose.people import People, PoseDataset

TILE_PX = 224
GAP_PX = 6
TITLE_PX = 24
PAPER, INK = (250, 250, 250), (30, 30, 30)


def contact_sheet(
    dataset: PoseDataset, config: PoseData, *, people: int = 12, columns: int = 6, seed: int = 0
) -> Image.Image:
    """Training people as the network sees them, augmented, and below them validation people, unchanged."""
    parts = (
        (f"{dataset.name}: training, augmented", dataset.train, config.augment),
        (f"{dataset.name}: validation", dataset.validation, None),
    )
    strips = [_strip(title, _tiles(split, config, augment, people, seed), columns) for title, split, augment in parts]
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _tiles(people: People, config: PoseData, augment: PoseAugment | None, count: int, seed: int) -> list[Image.Image]:
    count = min(count, len(people))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(people))[:count])
    loader = PoseLoader(
        people.take(chosen),
        BatchPlan(count, count, shuffle=False, seed=seed),
        size=config.image_size,
        augment=augment,
        storage="memory",
    )
    (batch,) = loader
    return draw_batch(batch, people.keypoints)


def draw_batch(batch: PoseBatch, keypoints: Keypoints, tile_px: int = TILE_PX) -> list[Image.Image]:
    """Each person of a batch as a picture of `tile_px` pixels with the visible joints drawn into it."""
    tiles = []
    for pixels, joints, visible in zip(batch.images, batch.joints, batch.visible, strict=True):
        image = Image.fromarray(pixels.cpu().numpy()).resize((tile_px, tile_px), Image.Resampling.BICUBIC)
        points = (joints.cpu().numpy() + 0.5) * (tile_px / pixels.shape[0]) - 0.5
        tiles.append(draw_people(image, points[None], visible.cpu().numpy()[None].astype(float), keypoints))
    return tiles


def _strip(title: str, tiles: list[Image.Image], columns: int) -> Image.Image:
    pitch = TILE_PX + GAP_PX
    rows = ceil(len(tiles) / columns)
    strip = Image.new("RGB", (columns * pitch + GAP_PX, TITLE_PX + rows * pitch + GAP_PX), PAPER)
    ImageDraw.Draw(strip).text((GAP_PX, TITLE_PX - 16), title, INK)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        strip.paste(tile, (GAP_PX + column * pitch, TITLE_PX + row * pitch))
    return strip
