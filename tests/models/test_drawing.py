"""Skeletons in pictures."""

import numpy as np
from PIL import Image

from models.drawing import COLOURS, draw_people, side_of
from models.pose import LSP

GREY = (128, 128, 128)


def standing(offset=(0, 0)):
    """A person who faces the viewer: joints [14, 2] in a picture of 200 x 200."""
    points = {
        "right_ankle": (70, 180), "right_knee": (75, 140), "right_hip": (80, 100),
        "left_hip": (120, 100), "left_knee": (125, 140), "left_ankle": (130, 180),
        "right_wrist": (40, 110), "right_elbow": (50, 80), "right_shoulder": (75, 50),
        "left_shoulder": (125, 50), "left_elbow": (150, 80), "left_wrist": (160, 110),
        "neck": (100, 45), "head_top": (100, 15),
    }  # fmt: skip
    return np.array([points[name] for name in LSP.names], float) + offset


def near(found, expected, tolerance=40):
    return np.abs(np.asarray(found, float) - expected).max() <= tolerance


def test_joints_have_the_colour_of_their_side():
    points = standing()
    image = draw_people(Image.new("RGB", (200, 200), GREY), points[None], np.ones((1, 14)), LSP)
    for name, (x, y) in zip(LSP.names, points, strict=True):
        assert near(image.getpixel((int(x), int(y))), COLOURS[side_of(name)]), name
    middle_of_shin = tuple(((points[0] + points[1]) / 2).astype(int))
    assert near(image.getpixel(middle_of_shin), COLOURS["right"])
    assert image.getpixel((5, 5)) == GREY


def test_the_given_picture_is_left_alone():
    image = Image.new("RGB", (200, 200), GREY)
    draw_people(image, standing()[None], np.ones((1, 14)), LSP)
    assert image.getcolors() == [(200 * 200, GREY)]


def test_low_scores_are_faint_and_the_lowest_invisible():
    points, scores = standing(), np.ones((1, 14))
    ankle, wrist = LSP.names.index("left_ankle"), LSP.names.index("left_wrist")
    scores[0, ankle], scores[0, wrist] = 0.2, 0.01
    image = draw_people(Image.new("RGB", (200, 200), GREY), points[None], scores, LSP)
    x, y = points[ankle].astype(int)
    faint = np.array(image.getpixel((int(x), int(y))), float)
    assert not near(faint, COLOURS["left"])
    assert not near(faint, GREY, 5)
    x, y = points[wrist].astype(int)
    assert image.getpixel((int(x), int(y))) == GREY


def test_nothing_breaks_outside_of_the_picture():
    image = Image.new("RGB", (50, 40), GREY)
    people = np.stack([standing((-150, -150)), standing((1e5, 1e5)), standing((-1e5, 0)), np.full((14, 2), np.nan)])
    drawn = draw_people(image, people, np.ones((4, 14)), LSP)
    assert drawn.size == (50, 40)
    assert draw_people(image, np.zeros((0, 14, 2)), np.zeros((0, 14)), LSP).getcolors() == [(2000, GREY)]
    assert draw_people(image, standing()[None], np.zeros((1, 14)), LSP).getcolors() == [(2000, GREY)]


def test_width_grows_with_the_person():
    def drawn_pixels(scale):
        image = draw_people(Image.new("RGB", (800, 800), GREY), standing()[None] * scale, np.ones((1, 14)), LSP)
        return (np.asarray(image) != GREY).any(axis=2).sum()

    assert drawn_pixels(4) > 8 * drawn_pixels(1)


def test_a_large_person_has_no_seams_and_smooth_edges():
    """A vertical limb looks the same in every row, whatever bands it is drawn in, and its edge has colours between."""
    points = np.full((14, 2), np.nan)
    neck, head = LSP.names.index("neck"), LSP.names.index("head_top")
    points[neck], points[head] = (300.3, 780), (300.3, 20)
    image = np.asarray(draw_people(Image.new("RGB", (600, 800), GREY), points[None], np.ones((1, 14)), LSP))
    rows = image[60:740]
    assert (rows == rows[0]).all()
    assert len(np.unique(rows[0], axis=0)) > 4
