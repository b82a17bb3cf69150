"""From pictures to lines, with a progress bar where somebody is watching."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from app.predict.answers import Answer, Predictor
from app.predict.output import Format, writer


def run(predictor: Predictor, pictures: Sequence[Path], kind: Format, out: Path | None) -> int:
    """Answer pictures and write their lines to a file, or to the standard output. Returns how many failed.

    Raises OSError where the file cannot be written.
    """
    width = max((len(str(path)) for path in pictures), default=0) if kind is Format.TABLE else 0
    bare = kind is not Format.TABLE or out is not None
    failures = 0
    with _lines_of(out) as file:
        write = writer(file, kind, predictor.task, width)
        for answer in _watched(predictor.answers(pictures), len(pictures), file):
            write(answer)
            if "error" in answer:
                failures += 1
                if bare:  # in a table on the screen the line has said it
                    print(f"signet: {answer['path']}: {answer['error']}", file=sys.stderr)
    if failures:
        print(f"signet: {failures} of {len(pictures)} pictures failed", file=sys.stderr)
    return failures


def _lines_of(out: Path | None) -> AbstractContextManager[TextIO]:
    """The file to write to, or the standard output; names that are not UTF-8 keep their bytes in both."""
    if out is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        return nullcontext(sys.stdout)
    return out.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def _watched(answers: Iterable[Answer], total: int, file: TextIO) -> Iterator[Answer]:
    """The answers, counted by a bar on the standard error if that is a terminal and the lines go elsewhere."""
    if total < 2 or not sys.stderr.isatty() or file.isatty():
        yield from answers
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=total, rate="")
        for answer in answers:
            yield answer
            bar.advance(task)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} pictures/s" if speed else "")
