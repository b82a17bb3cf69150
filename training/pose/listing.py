"""Reading annotation files in JSON, with errors that name the file and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises TrainingError naming it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: is not JSON: {error}") from error


def numbers(path: Path, where: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A field as a finite array of exactly `shape`. Raises TrainingError naming file and field."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise TrainingError(f"{path}: {where}: expected numbers of shape {list(shape)}")
    return array


def picture_path(annotations: Path, where: str, folder: Path, name: Any) -> Path:
    """The path of a picture that an annotation names. Raises TrainingError if it lies outside of `folder`."""
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise TrainingError(f"{annotations}: {where}: is {name!r}, expected the name of a file in {folder}")
    return folder / name
