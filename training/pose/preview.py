"""Pictures of people cut out, with their joints and limbs: as a network is trained on them, or as it found them."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.drawing import draw_people
from models.packing.file import Keypoints
from training.data.plan import BatchPlan
from training.pose.config import PoseAugment, PoseData
from training.pose.loaders import PoseBatch, PoseLoader
from training.pose.people import People, PoseDataset

TILE_PX = 224
FOUND_TILE_PX = 160
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


def choose(people: People, count: int, seed: int) -> NDArray[np.int64]:
    """Which `count` people of a split are shown, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(len(people))[:count])


def found_sheet(
    people: People,
    points: NDArray[np.floating],
    scores: NDArray[np.floating],
    size: int,
    *,
    title: str,
    columns: int = 8,
    tile_px: int = FOUND_TILE_PX,
) -> Image.Image:
    """People with what a network found of them: points [N, K, 2] in pixels of crops of `size`, and scores [N, K]."""
    tiles = []
    for index, (found, score) in enumerate(zip(points, scores, strict=True)):
        image = Image.fromarray(people.cut_out(index, tile_px))
        placed = (found + 0.5) * (tile_px / size) - 0.5
        tiles.append(draw_people(image, placed[None], score[None], people.keypoints))
    return _strip(title, tiles, columns)


def _tiles(people: People, config: PoseData, augment: PoseAugment | None, count: int, seed: int) -> list[Image.Image]:
    chosen = choose(people, count, seed)
    count = len(chosen)
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
    pitch = tiles[0].width + GAP_PX
    rows = ceil(len(tiles) / columns)
    strip = Image.new("RGB", (columns * pitch + GAP_PX, TITLE_PX + rows * pitch + GAP_PX), PAPER)
    ImageDraw.Draw(strip).text((GAP_PX, TITLE_PX - 16), title, INK)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        strip.paste(tile, (GAP_PX + column * pitch, TITLE_PX + row * pitch))
    return strip
