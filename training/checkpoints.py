"""Saving a run: after each epoch, where it was best, and when a signal asks it to end."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from training.errors import TrainingError
from training.reporting import VALIDATION_PREFIX

LAST = "last.ckpt"
BEST = "best.ckpt"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECOND_SIGNAL_S = 1.0


class Interrupted(BaseException):
    """A signal ended the run after its checkpoint was saved. `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Checkpoints(Callback):
    """Saves `last.ckpt` after each epoch, `best.ckpt` where `metric` was highest, and `last.ckpt` at a signal.

    SIGINT (Ctrl-C) and SIGTERM end the run after the current step or validation; one more, a second or later
    after the first, ends it at once. A file is replaced whole or not at all, so a crash while saving leaves the
    one before.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder, self.metric = folder, metric
        self.best: float | None = None
        self.received: int | None = None
        self._received_at = 0.0
        self._process = os.getpid()
        self._validated = False
        self._previous: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"metric": self.metric, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far."""
        self.best = state_dict["best"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics; of the validation's only those that were measured on these weights."""
        checkpoint["metrics"] = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith(VALIDATION_PREFIX)
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals (possible in the main thread alone).

        Not before: at the start of the run Lightning sets a SIGTERM handler of its own around any that it finds,
        and would end the run, as if all were well, wherever it looks first.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self.receive)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The weights are about to change."""
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights have been measured."""
        self._validated = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End here if a signal came, but not within a step of several batches, whose gradients no checkpoint has, nor
        where the epoch is about to end anyway: then after its validation.
        """
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last, and the best if it is; end here if a signal came."""
        value = trainer.callback_metrics.get(self.metric) if self._validated else None
        improved = value is not None and (self.best is None or float(value) > self.best)
        if value is not None and improved:
            self.best = float(value)
        self._save(trainer)
        if improved and trainer.is_global_zero:
            self._copy_best(self.folder / LAST)
        self._end_if_asked(trainer, saved=True)

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Remember a signal; a later one takes its usual effect. Workers, forked from the process, ignore theirs."""
        if os.getpid() != self._process:
            return
        now = time.monotonic()
        if self.received is not None:
            # Under torchrun one Ctrl-C arrives twice at once: from the terminal and from torchrun.
            if now - self._received_at >= SECOND_SIGNAL_S:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received, self._received_at = number, now
        # Not print: the signal may have come while something else is half printed.
        os.write(2, b"\nsignet: saving after this step or validation; once more ends at once\n")

    def _end_if_asked(self, trainer: Trainer, *, saved: bool = False) -> None:
        asked = self.received is not None
        if trainer.world_size > 1:  # all processes end at the same batch, whichever got the signal first
            asked = bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
        if not asked:
            return
        if not saved:
            self._save(trainer)
        raise Interrupted(self.received or signal.SIGTERM)

    def take_best(self, folder: Path) -> None:
        """Have the best checkpoint of `folder`, where the run began, if this one has none."""
        if (folder / BEST).is_file() and not (self.folder / BEST).exists():
            self._copy_best(folder / BEST)

    def _copy_best(self, source: Path) -> None:
        partial = self.folder / (BEST + ".partial")
        shutil.copyfile(source, partial)
        partial.replace(self.folder / BEST)

    def _save(self, trainer: Trainer) -> None:
        partial = self.folder / (LAST + ".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self.folder / LAST)
        trainer.strategy.barrier()  # whichever process reads it next reads this one


def make_folder(folder: Path) -> None:
    """Make the folder of a run, or of many. Raises TrainingError naming it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"--output: {folder}: cannot be made a folder: {error.strerror or error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package. Raises TrainingError if it is none; runs none of its code."""
    if not path.is_file():
        raise TrainingError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise TrainingError(f"{path}: is no checkpoint of signet train, or a damaged one") from error
    parameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or "recipe" not in parameters or "state_dict" not in content:
        raise TrainingError(f"{path}: is no checkpoint of signet train: hyper_parameters.recipe is missing")
    return dict(content)
