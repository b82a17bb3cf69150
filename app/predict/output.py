"""Answers as lines: a table for people, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from app.predict.answers import Answer


class Format(StrEnum):
    """How answers are written."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"


Write = Callable[[Answer], None]

CSV_COLUMNS = {
    "classification": ("path", "rank", "label", "index", "score", "error"),
    "pose": ("path", "person", "keypoint", "x", "y", "score", "error"),
}
"""One row a class, or a keypoint; a picture without an answer has one row with its error."""


def format_of(out: Path) -> Format | None:
    """The format that a file's name asks for."""
    return {".jsonl": Format.JSONL, ".json": Format.JSONL, ".csv": Format.CSV}.get(out.suffix.lower())


def writer(file: TextIO, kind: Format, task: str, path_width: int = 0) -> Write:
    """A function that writes one answer; `path_width` is how many characters a table gives the paths."""
    if kind is Format.JSONL:
        return lambda answer: _flush(file, json.dumps(answer, ensure_ascii=False))
    if kind is Format.TABLE:
        return lambda answer: _flush(file, f"{answer['path']:<{path_width}}  {summary(answer)}")
    rows = csv.DictWriter(file, CSV_COLUMNS[task], lineterminator="\n")
    rows.writeheader()
    return lambda answer: rows.writerows(_rows(answer))


def summary(answer: Answer) -> str:
    """An answer in a few words."""
    if "error" in answer:
        return str(answer["error"])
    if "people" in answer:
        count = len(answer["people"])
        scores = " ".join(f"{person['score']:.3f}" for person in answer["people"])
        return f"{count} {'person' if count == 1 else 'people'}  {scores}".rstrip()
    return "  ".join(f"{entry['label']} {entry['score']:.3f}" for entry in answer["predictions"])


def _flush(file: TextIO, line: str) -> None:
    file.write(line + "\n")
    file.flush()


def _rows(answer: Answer) -> Iterator[Answer]:
    path = answer["path"]
    if "error" in answer:
        yield {"path": path, "error": answer["error"]}
    for rank, entry in enumerate(answer.get("predictions", ()), 1):
        yield {"path": path, "rank": rank, **entry}
    for number, person in enumerate(answer.get("people", ()), 1):
        for point in person["keypoints"]:
            place = {key: point[key] for key in ("x", "y", "score")}
            yield {"path": path, "person": number, "keypoint": point["name"], **place}
