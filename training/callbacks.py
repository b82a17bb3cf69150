"""What happens around a training run: checkpoints, a graceful end at a signal, and progress for the reader."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn

LAST = "last.ckpt"
BEST = "best.ckpt"


class Interrupted(BaseException):
    """A signal ended the run after its checkpoint was saved. `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Checkpoints(Callback):
    """Saves `last.ckpt` after each epoch, `best.ckpt` where `metric` was highest, and `last.ckpt` at a signal.

    SIGINT (Ctrl-C) and SIGTERM end the run after the current batch; a second one ends it at once. A file is
    replaced whole or not at all, so a crash while saving leaves the one before.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder, metric
        self.best: float | None = None
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"metric": self.metric, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far."""
        self.best = state_dict["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics with the weights that they were measured on."""
        checkpoint["metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals (possible in the main thread alone)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here if a signal came, unless the epoch is about to end anyway."""
        if not trainer.is_last_batch:
            self._end_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End here if a signal came; the resumed run validates again."""
        if not trainer.sanity_checking:
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last, and the best if it is."""
        value = trainer.callback_metrics.get(self.metric)
        improved = value is not None and (self.best is None or float(value) > self.best)
        if improved and value is not None:
            self.best = float(value)
        self._save(trainer)
        if improved and trainer.is_global_zero:
            _replace(self.folder / LAST, self.folder / BEST)
        self._end_if_asked(trainer)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        print("\nsaving a checkpoint after this batch; once more to stop at once", file=sys.stderr, flush=True)

    def _end_if_asked(self, trainer: Trainer) -> None:
        asked = self.received is not None
        if trainer.world_size > 1:  # every process must save at the same batch
            asked = bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
        if asked:
            self._save(trainer)
            raise Interrupted(self.received or signal.SIGTERM)

    def _save(self, trainer: Trainer) -> None:
        partial = self.folder / (LAST + ".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self.folder / LAST)


def _replace(source: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


class Reporter(Callback):
    """One line an epoch; on a terminal a bar over the whole run with the time that remains.

    The throughput is of the training batches alone; it is logged as `images_per_second`.
    """

    def __init__(self, batch_images: int, console: Console | None = None) -> None:
        self.batch_images = batch_images
        self.console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._first_epoch = 0
        self._run_start = self._epoch_start = self._train_seconds = 0.0
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, if this is a terminal."""
        self._run_start, self._first_epoch = time.monotonic(), trainer.current_epoch
        if not self.console.is_terminal or not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            speed_estimate_period=600,
        )
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        done = int(trainer.num_training_batches) * trainer.current_epoch
        self._task = self._progress.add_task("training", total=total, completed=done, loss="")
        self._progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._begin_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of an epoch that was resumed in its middle."""
        if not self._epoch_start:
            self._begin_epoch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; at the last batch stop the epoch's clock."""
        self._batches += 1
        if trainer.is_last_batch:
            self._train_seconds = time.monotonic() - self._epoch_start
            pl_module.log("images_per_second", self._images_per_second())
        if self._progress is not None:
            done = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
            loss = trainer.callback_metrics.get("train_loss_step") if batch_idx % 20 == 0 else None
            fields = {} if loss is None else {"loss": f"loss {float(loss):.3f}"}
            description = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._progress.update(self._task, completed=done, description=description, **fields)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's line."""
        if not trainer.is_global_zero:
            return
        now, epochs = time.monotonic(), trainer.max_epochs or 1
        epoch = trainer.current_epoch + 1
        left = (now - self._run_start) / max(epoch - self._first_epoch, 1) * (epochs - epoch)
        texts = [f"epoch {epoch:{len(str(epochs))}}/{epochs}"]
        for name, label, unit in (
            ("train_loss_epoch", "loss", ""),
            ("train_top1", "train top-1", " %"),
            ("val_top1", "top-1", " %"),
            ("val_top5", "top-5", " %"),
        ):
            value = trainer.callback_metrics.get(name)
            if value is not None:
                texts.append(f"{label} {float(value):.{2 if unit else 4}f}{unit}")
        texts.append(f"{self._images_per_second():.0f} images/s")
        texts.append(f"{clock(now - self._run_start)} gone, {clock(left)} left")
        self.console.print("  ".join(texts), soft_wrap=True)
        self._epoch_start = 0.0

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal in order."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin_epoch(self) -> None:
        self._epoch_start, self._train_seconds, self._batches = time.monotonic(), 0.0, 0

    def _images_per_second(self) -> float:
        return self._batches * self.batch_images / max(self._train_seconds, 1e-9)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
