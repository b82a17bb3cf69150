"""Pictures answered in this process, exactly as the service would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from app.api.answers import people_out
from app.engine import available_cpus, loader
from app.errors import ServiceError
from app.poses import Box, find_people, session_keypoints
from app.predict.answers import Answer, PredictError, failed, read, side_by_side
from app.repository import Repository, Session
from app.service import prepare_bytes, session_labels, top_predictions
from app.settings import Settings
from models.packing.file import PackedFileError


class Local:
    """An engine session and what it is asked for."""

    def __init__(
        self, session: Session, *, top_k: int, max_pixels: int, boxes: Sequence[Box] = (), jobs: int | None = None
    ) -> None:
        self.session = session
        self.task = session.file.header.task
        self._top_k = top_k
        self._boxes = boxes
        self._max_pixels = max_pixels
        self._jobs = jobs or available_cpus()

    @classmethod
    def open(
        cls,
        settings: Settings,
        model: str | None,
        *,
        top_k: int,
        boxes: Sequence[Box] = (),
        jobs: int | None = None,
        task: str | None = None,
    ) -> Local:
        """A model of the repository by its name, or a packed file by its path; else the default one of the task.

        Raises PredictError.
        """
        try:
            if model is not None and (model.endswith(".safetensors") or "/" in model):
                session = loader(settings.threads)(Path(model))
            else:
                repository = Repository(
                    settings.models, loader(settings.threads), settings.default_model, settings.policies
                )
                repository.load_all()
                if model is None and task is not None:
                    model = repository.default_for(task)
                session = repository.find(model).ready_session()
        except (PackedFileError, ServiceError) as error:
            raise PredictError(str(error)) from error
        return cls(session, top_k=top_k, max_pixels=settings.max_pixels, boxes=boxes, jobs=jobs)

    def answers(self, paths: Iterable[Path]) -> Iterator[Answer]:
        """Decode and compute as many pictures at once as there are jobs."""
        return side_by_side(self._answer, paths, self._jobs)

    def _answer(self, path: Path) -> Answer:
        data = read(path)
        if not isinstance(data, bytes):
            return data
        try:
            return {"path": str(path), **(self._pose(data) if self.task == "pose" else self._classify(data))}
        except ServiceError as error:
            return failed(path, str(error))

    def _classify(self, data: bytes) -> Answer:
        prepared = prepare_bytes(data, self.session.file.header.input, self._max_pixels)
        logits = self.session.run(prepared.pixels[None])["logits"][0]
        found = top_predictions(logits, session_labels(self.session), self._top_k)
        return {
            "image": {"width": prepared.width, "height": prepared.height},
            "predictions": [{"label": p.label, "index": p.index, "score": round(p.score, 6)} for p in found],
        }

    def _pose(self, data: bytes) -> Answer:
        keypoints = session_keypoints(self.session)
        found = find_people(self.session, data, self._boxes, max_pixels=self._max_pixels)
        return {
            "image": {"width": found.width, "height": found.height},
            "people": [person.model_dump() for person in people_out(found, keypoints)],
            "skeleton": keypoints.skeleton,
        }
