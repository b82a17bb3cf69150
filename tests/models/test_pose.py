"""Geometry, skeletons and the reading of heatmaps."""

import numpy as np
import pytest
from PIL import Image

from models.pose import COCO, LSP, MPII, STRIDE, Square, crop, decode, flip_order, merge_flipped

FILL = (9, 8, 7)


def dot_picture(width, height, points, radius=0):
    """A grey picture with a white dot (a square of 2 radius + 1 pixels) at each point of whole pixels."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    for x, y in points:
        pixels[y - radius : y + radius + 1, x - radius : x + radius + 1] = 255
    return Image.fromarray(pixels)


def centroid(pixels):
    """(x, y) of the weight above the grey, in pixel indices."""
    weight = np.clip(pixels[..., 0].astype(float) - 60, 0, None)
    y, x = np.indices(weight.shape)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("skeleton", [LSP, MPII, COCO], ids=["lsp", "mpii", "coco"])
def test_skeletons_are_consistent(skeleton):
    order = flip_order(skeleton)
    assert (order[order] == np.arange(len(order))).all()
    for name, other in zip(skeleton.names, order, strict=True):
        mirrored = name.replace("left_", "\0").replace("right_", "left_").replace("\0", "right_")
        assert skeleton.names[other] == mirrored
    limbs = {frozenset(limb) for limb in skeleton.skeleton}
    assert limbs == {frozenset(order[list(limb)].tolist()) for limb in limbs}
    assert set().union(*limbs) == set(range(len(order)))


def test_lsp_and_mpii_have_the_published_order():
    assert LSP.names[:3] + LSP.names[12:] == ["right_ankle", "right_knee", "right_hip", "neck", "head_top"]
    assert flip_order(LSP).tolist() == [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13]
    assert flip_order(MPII).tolist() == [5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10]
    assert flip_order(COCO).tolist() == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


def test_coordinates_go_there_and_back():
    square = Square.of_box((10, 20, 30, 60), padding=1.5)
    assert (square.left, square.top, square.side) == (25 - 45, 50 - 45, 90)
    points = np.random.default_rng(0).normal(50, 40, (7, 5, 2))
    inside = square.to_crop(points, 128)
    np.testing.assert_allclose(square.to_picture(inside, 128), points, atol=1e-9)
    homogeneous = np.concatenate([inside, np.ones((7, 5, 1))], axis=-1)
    np.testing.assert_allclose(homogeneous @ square.matrix(128).T, points, atol=1e-9)


@pytest.mark.parametrize(
    ("square", "size"),
    [
        (Square(0, 0, 100), 100),
        (Square(0, 0, 100), 50),
        (Square(10.3, 15.8, 60.5), 96),
        (Square(-30.4, -12.7, 150.2), 64),
        (Square(20, 5, 80), 200),
    ],
)
def test_a_dot_stands_where_the_coordinates_say(square, size):
    point = (52, 47)
    pixels = crop(dot_picture(100, 90, [point], radius=4), square, size, (60, 60, 60))
    assert pixels.shape == (size, size, 3)
    expected = square.to_crop(np.array(point, float), size)
    np.testing.assert_allclose(centroid(pixels), expected, atol=0.1)


def test_outside_of_the_picture_is_the_fill_and_nothing_moves_there():
    picture = Image.new("RGB", (40, 20), (200, 100, 50))
    pixels = crop(picture, Square(-10, -20, 60), 60, FILL)
    assert (pixels[20:40, 10:50] == (200, 100, 50)).all()
    outside = np.ones((60, 60), bool)
    outside[20:40, 10:50] = False
    assert (pixels[outside] == FILL).all()
    assert (crop(picture, Square(100, 100, 10), 16, FILL) == FILL).all()


def test_a_square_far_larger_than_the_picture_costs_nothing():
    pixels = crop(Image.new("RGB", (40, 20), (255, 255, 255)), Square(-5e8, -5e8, 1e9), 64, FILL)
    assert (pixels == FILL).all()


@pytest.mark.parametrize("side", [0.0, -3.0, float("nan")])
def test_a_square_without_a_side_is_refused(side):
    with pytest.raises(ValueError, match="side"):
        crop(Image.new("RGB", (4, 4)), Square(0, 0, side), 8, FILL)


def test_the_peak_moves_a_quarter_towards_its_higher_neighbour():
    heatmap = np.zeros((1, 8, 8, 1), np.float32)
    heatmap[0, 3, 5] = 0.9
    heatmap[0, 3, 6] = 0.5
    heatmap[0, 2, 5] = 0.4
    heatmap[0, 4, 5] = 0.3
    points, scores = decode(heatmap)
    np.testing.assert_allclose(points[0, 0], [(5.25 + 0.5) * 4 - 0.5, (2.75 + 0.5) * 4 - 0.5])
    assert scores[0, 0] == pytest.approx(0.9)


def test_a_peak_between_equals_or_at_the_border_stays():
    heatmap = np.zeros((1, 8, 8, 2), np.float32)
    heatmap[0, 4, 4, 0] = 1.7
    heatmap[0, 0, 7, 1] = -0.1
    heatmap[0, ..., 1] -= 0.2
    heatmap[0, 0, 7, 1] = 0.0
    heatmap[0, 0, 6, 1] = heatmap[0, 1, 7, 1] = -0.1
    points, scores = decode(heatmap)
    np.testing.assert_allclose(points[0], [[4 * 4 + 1.5] * 2, [7 * 4 + 1.5, 1.5]])
    assert scores.tolist() == [[1.0, 0.0]]


def test_every_point_comes_back_within_a_quarter_of_a_cell():
    random = np.random.default_rng(1)
    points = random.uniform(2 * STRIDE, 30 * STRIDE, (50, 4, 2))
    y, x = np.indices((32, 32))
    cells = (points + 0.5) / STRIDE - 0.5
    distance = (x[..., None] - cells[:, None, None, :, 0]) ** 2 + (y[..., None] - cells[:, None, None, :, 1]) ** 2
    found, scores = decode(np.exp(-distance / 2).astype(np.float32))
    assert np.abs(found - points).max() <= STRIDE / 4 + 1e-5
    assert (scores > 0.7).all()


def test_flip_averaging_puts_left_and_right_back():
    random = np.random.default_rng(2)
    heatmaps = random.random((2, 4, 6, len(LSP.names))).astype(np.float32)
    mirrored = np.empty_like(heatmaps)
    for k, name in enumerate(LSP.names):
        other = name.replace("left_", "\0").replace("right_", "left_").replace("\0", "right_")
        mirrored[..., LSP.names.index(other)] = heatmaps[:, :, ::-1, k]
    np.testing.assert_array_equal(merge_flipped(heatmaps, mirrored, LSP), heatmaps)
    np.testing.assert_allclose(merge_flipped(heatmaps, 0 * mirrored, LSP), heatmaps / 2)


def test_importing_it_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, models.pose, models.drawing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
