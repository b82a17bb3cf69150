"""What a reader sees of a run: a line and a table row an epoch, and on a terminal a bar with the time that remains."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EPOCHS_FILE = "epochs.csv"
STEP_SUFFIX = "_step"
VALIDATION_PREFIX = "val_"
# Of each metric that a line shows: its label, decimals and unit.
SHOWN = {
    "train_loss": ("loss", 4, ""),
    "train_top1": ("train top-1", 2, " %"),
    "val_top1": ("top-1", 2, " %"),
    "val_top5": ("top-5", 2, " %"),
    "val_pck": ("PCK@0.2", 2, " %"),
    "val_pckh": ("PCKh@0.5", 2, " %"),
    "val_ap": ("OKS-AP", 2, " %"),
    "images_per_second": ("", 0, " images/s"),
}
LOSS_EVERY = 20


class Reporter(Callback):
    """Writes `epochs.csv` (a row an epoch, kept when a run resumes) and a line an epoch, and shows the bar.

    Also logs `images_per_second`, the throughput of an epoch's training batches over all processes.

    Parameters
    ----------
    folder : where `epochs.csv` goes.
    batch_images : images of a batch over all processes.
    """

    def __init__(self, folder: Path, batch_images: int, console: Console | None = None) -> None:
        self.path, self.batch_images = folder / EPOCHS_FILE, batch_images
        self.console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._rows: list[dict[str, str]] = []
        self._run_start = self._epoch_start = 0.0
        self._seconds_before = 0.0
        self._batches = self._epoch_batches = 0
        self._validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the table of a resumed run; show the bar, if this is a terminal."""
        self._run_start = time.monotonic()
        if not trainer.is_global_zero:
            return
        self._rows = [row for row in read_epochs(self.path) if int(row["epoch"]) <= trainer.current_epoch]
        self._seconds_before = float(self._rows[-1].get("seconds") or 0) if self._rows else 0.0
        if self.console.is_terminal:
            self._progress = _bar(self.console)
            self._task = self._progress.add_task("training", total=self._total(trainer), loss="")
            self._progress.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the epoch's clock at the first batch, or the one where a resumed run goes on."""
        if self._epoch_batches == 0:
            self._epoch_start, self._validated = time.monotonic(), False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; at the last batch read the epoch's clock."""
        self._batches += 1
        self._epoch_batches += 1
        if trainer.is_last_batch:
            seconds = max(time.monotonic() - self._epoch_start, 1e-9)
            pl_module.log("images_per_second", self._epoch_batches * self.batch_images / seconds)
        if self._progress is not None:
            description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            done = self._total(trainer) - self._left(trainer, batch_idx + 1)
            self._progress.update(self._task, completed=done, description=description)
            loss = trainer.callback_metrics.get("train_loss_step") if batch_idx % LOSS_EVERY == 0 else None
            if loss is not None:
                self._progress.update(self._task, loss=f"loss {float(loss):.3f}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that this epoch's validation metrics are its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row and line."""
        self._epoch_batches = 0
        if not trainer.is_global_zero:
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith(STEP_SUFFIX) and (self._validated or not name.startswith(VALIDATION_PREFIX))
        }
        gone = time.monotonic() - self._run_start
        row = {"epoch": str(trainer.current_epoch + 1), "step": str(trainer.global_step)}
        row |= {name: f"{value:.6g}" for name, value in metrics.items()}
        row["seconds"] = f"{self._seconds_before + gone:.1f}"
        self._rows.append(row)
        write_epochs(self.path, self._rows)
        epochs = trainer.max_epochs or 1
        texts = [f"epoch {trainer.current_epoch + 1:{len(str(epochs))}}/{epochs}"]
        for name, (label, decimals, unit) in SHOWN.items():
            if name in metrics:
                texts.append(f"{label} {metrics[name]:.{decimals}f}{unit}".strip())
        left = gone / max(self._batches, 1) * self._left(trainer, int(trainer.num_training_batches))
        texts.append(f"{clock(gone)} gone, {clock(left)} left")
        self.console.print("  ".join(texts), soft_wrap=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal in order."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @staticmethod
    def _total(trainer: Trainer) -> int:
        return int(trainer.num_training_batches) * (trainer.max_epochs or 1)

    def _left(self, trainer: Trainer, epoch_batches: int) -> int:
        return self._total(trainer) - int(trainer.num_training_batches) * trainer.current_epoch - epoch_batches


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
        speed_estimate_period=600,
    )


def read_epochs(path: Path) -> list[dict[str, str]]:
    """The rows of a run's table; none if there is no table."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(handle)]


def write_epochs(path: Path, rows: list[dict[str, str]]) -> None:
    """Write the table; its columns are all that any row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
