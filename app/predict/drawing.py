"""People drawn into their picture, whoever found them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from app.errors import ServiceError
from app.images import decode
from app.poses import canvas_needed_px, canvas_of, on_canvas
from app.predict.answers import Answer, PredictError, Predictor, failed, read
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
            yield answer if "error" in answer else self._drawn(answer)

    def _drawn(self, answer: Answer) -> Answer:
        path = Path(answer["path"])
        data = read(path)
        if not isinstance(data, bytes):
            return data
        try:
            picture = decode(data, max_pixels=self._max_pixels, needed_px=canvas_needed_px)
        except ServiceError as error:
            return failed(path, str(error))
        canvas = canvas_of(picture)
        people = [person["keypoints"] for person in answer["people"]]
        points = np.array([[(point["x"], point["y"]) for point in person] for person in people])
        scores = np.array([[point["score"] for point in person] for person in people])
        names = [point["name"] for point in people[0]]
        keypoints = Keypoints(names=names, skeleton=answer["skeleton"], flip_pairs=[])
        on_it = on_canvas(points, canvas, picture.width, picture.height)
        draw_people(canvas, on_it, scores, keypoints).save(self._out)
        return answer
