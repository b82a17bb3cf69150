"""People drawn into their picture, whoever found them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from app.images import decode
from app.predict.answers import Answer, PredictError, Predictor
from models.drawing import draw_people
from models.packing.file import Keypoints

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""Names of files that are pictures."""


class Drawing:
    """A predictor of people that writes the picture with the people that it found; for one picture."""

    def __init__(self, predictor: Predictor, out: Path, max_pixels: int) -> None:
        """Raises PredictError if the predictor finds no people."""
        if predictor.task != "pose":
            raise PredictError(f"{out}: a model for {predictor.task} draws nothing; --pose takes one that does.")
        self.task = predictor.task
        self._predictor = predictor
        self._out = out
        self._max_pixels = max_pixels

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        """The predictor's answers, each drawn. Raises OSError where the file cannot be written."""
        for answer in self._predictor.answers(paths):
            if "error" not in answer:
                self._draw(answer)
            yield answer

    def _draw(self, answer: Answer) -> None:
        picture = decode(Path(answer["path"]).read_bytes(), max_pixels=self._max_pixels).image
        people = [person["keypoints"] for person in answer["people"]]
        points = np.array([[(point["x"], point["y"]) for point in person] for person in people])
        scores = np.array([[point["score"] for point in person] for person in people])
        names = [point["name"] for point in people[0]]
        keypoints = Keypoints(names=names, skeleton=answer["skeleton"], flip_pairs=[])
        draw_people(picture, points, scores, keypoints).save(self._out)
