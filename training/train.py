"""One training run from a recipe: data, network, Trainer, checkpoints."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import ValidationError
from torch import Tensor

from models.convnet import ConvNet
from training import latent_phase, teacher
from training.checkpoints import BEST, LAST, Checkpoints, Interrupted, load_checkpoint, make_folder
from training.classification import Classifier
from training.data import catalog
from training.data.dataset import Dataset
from training.data.module import ClassificationData, RecipeData
from training.difference import first_difference
from training.errors import TrainingError
from training.latent_renewal import LatentRenewal
from training.module import NetworkModule
from training.pose.config import PoseData
from training.pose.data import PeopleData
from training.pose.data import load as load_people
from training.pose.module import PoseEstimator
from training.pose.people import PoseDataset
from training.recipe import Recipe, check_recipe
from training.reporting import Reporter
from training.signs import SignStatistics

AUTO = "auto"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    last : the checkpoint of the end.
    metric : the name of the validation metric that decides.
    best : the checkpoint where it was highest, `best_value` per cent; None if there is none.
    metrics : the last value of each logged metric.
    signal : number of the signal that ended the run early; None if it ran to its end.
    """

    last: Path
    metric: str
    best: Path | None
    best_value: float | None
    metrics: dict[str, float]
    signal: int | None = None


class ValidateAtEnd(pl.Callback):
    """Has the last epoch validated, whatever `validate_every` says."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Set it in each batch, so that it also holds where a resumed run begins inside the last epoch."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


def train(
    recipe: Recipe,
    *,
    data_root: Path | None = None,
    dataset: Dataset | PoseDataset | None = None,
    output: Path | None = None,
    resume: str | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Outcome:
    """Train the network of `recipe`.

    Parameters
    ----------
    data_root : where the data set lies, before all else that says so.
    dataset : the recipe's data set, if it has been read already.
    output : folder for checkpoints and logs; `runs/<name>` if None.
    resume : a checkpoint to go on from, or `auto`: the output folder's last one, if there is one.
    callbacks : more of Lightning's, before the run's own.

    Raises TrainingError for what the user can put right.
    """
    folder = output or Path("runs") / recipe.name
    checkpoint = _resume_from(resume, folder)
    dataset = dataset or load_data(recipe, data_root)
    recipe = fit_to_data(recipe, dataset)
    if checkpoint is not None:
        _check_same_run(checkpoint, recipe, dataset)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    _quieten()
    pl.seed_everything(recipe.seed, workers=True, verbose=False)
    while True:
        fitted = _fit(recipe, dataset, folder, checkpoint, callbacks)
        if not fitted.latents_due or fitted.signal is not None:
            break
        checkpoint = folder / LAST
    atexit.register(_leave_processes)
    best = folder / BEST if fitted.best is not None and (folder / BEST).is_file() else None
    last = folder / LAST
    metrics = {name: float(value) for name, value in fitted.trainer.callback_metrics.items()}
    if checkpoint is not None and not metrics:  # of a run's end: there was nothing left to train
        metrics = load_checkpoint(checkpoint)["metrics"]
        last = last if last.exists() else checkpoint
    return Outcome(last, recipe.metric, best, fitted.best, metrics, fitted.signal)


class _Fitted(NamedTuple):
    trainer: pl.Trainer
    best: float | None
    signal: int | None
    latents_due: bool


def _fit(
    recipe: Recipe,
    dataset: Dataset | PoseDataset,
    folder: Path,
    checkpoint: Path | None,
    callbacks: Sequence[pl.Callback],
) -> _Fitted:
    """Train from the start, or from a checkpoint, until the run ends, its latents end, or a signal comes."""
    module, data = _of_task(recipe, dataset)
    if checkpoint is None and recipe.training.start_from is not None:
        teacher.start(module.network, recipe.training.start_from, lambda: first_images(module, data))
        module.place()
    elif checkpoint is None and isinstance(module.network, ConvNet):
        module.network.whiten(first_images(module, data))
    if checkpoint is not None and latent_phase.over(load_checkpoint(checkpoint)):
        module.end_latents()
    checkpoints = Checkpoints(folder, recipe.metric)
    reporter = Reporter(folder, recipe.training.batch_size // recipe.training.accumulate)
    # In this order: what is logged, then the reporter, which writes the epoch's line before a signal ends the run at
    # the epoch's checkpoint.
    own: list[pl.Callback] = [ValidateAtEnd(), SignStatistics(), reporter, checkpoints]
    if recipe.training.ema_decay:
        own.insert(0, EMAWeightAveraging(decay=recipe.training.ema_decay))
    if recipe.training.renew_latents_every:
        own.insert(0, LatentRenewal(recipe.training.renew_latents_every))
    trainer = make_trainer(recipe, folder, [*callbacks, *own])
    if checkpoint is not None and trainer.is_global_zero:
        checkpoints.take_best(checkpoint.parent)
    number = None
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except Interrupted as interruption:
        number = interruption.signal
    return _Fitted(trainer, checkpoints.best, number, module.latents_now == "due")


def first_images(module: NetworkModule, data: RecipeData) -> Tensor:
    """The images that training begins with, at most as many as a batch of validation has, normalised."""
    batches: list[Tensor] = []
    wanted = min(data.recipe.training.validation_batch_size, data.length(training=True))
    for images, *_ in data.train_dataloader():
        batches.append(images)
        if sum(map(len, batches)) >= wanted:
            break
    return module.normalised(torch.cat(batches)[:wanted])


def load_data(recipe: Recipe, root: Path | None = None) -> Dataset | PoseDataset:
    """The data set of a recipe, of whichever task; see `training.data.catalog.load`."""
    if isinstance(recipe.data, PoseData):
        return load_people(recipe.data, root)
    return catalog.load(recipe.data, root)


def _of_task(recipe: Recipe, dataset: Dataset | PoseDataset) -> tuple[NetworkModule, RecipeData]:
    """What the Trainer is given: a network with its loss and measures, and the data."""
    plain, spec, origin = recipe.plain(), dataset.input.model_dump(mode="json"), provenance(dataset)
    if isinstance(dataset, PoseDataset):
        estimator = PoseEstimator(plain, dataset.keypoints.model_dump(mode="json"), spec, origin)
        return estimator, PeopleData(dataset, recipe)
    return Classifier(plain, dataset.class_names, spec, origin), ClassificationData(dataset, recipe)


def make_trainer(recipe: Recipe, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer as the recipe wants it; under torchrun, one of its processes."""
    training = recipe.training
    make_folder(folder)
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // local_world
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="auto",
        devices=local_world,
        num_nodes=nodes,
        strategy="ddp" if local_world * nodes > 1 else "auto",
        precision=training.precision,
        max_epochs=training.epochs,
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.gradient_clip or None,
        check_val_every_n_epoch=training.validate_every,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        benchmark=True,
    )


def _leave_processes() -> None:
    """End the process group, if there is one, while the interpreter lives.

    A thread of gloo that drops its last tensor only after that aborts the process, and the run would count as failed.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # Lightning's Trainer and its module, which refer to each other, hold the group
        torch.distributed.destroy_process_group()


def fit_to_data(recipe: Recipe, dataset: Dataset | PoseDataset) -> Recipe:
    """The recipe with `model.input_size` and `model.classes` (or `model.keypoints`) of the data set.

    Raises TrainingError where the recipe gives them and they do not fit.
    """
    found = {"input_size": dataset.input.height}
    if isinstance(dataset, PoseDataset):
        found["keypoints"] = len(dataset.keypoints.names)
    else:
        found["classes"] = len(dataset.class_names)
    changes: dict[str, Any] = {}
    for field, value in found.items():
        given = getattr(recipe.model, field)
        if field not in recipe.model.model_fields_set:
            changes[field] = value
        elif given != value:
            raise TrainingError(f"model.{field}: is {given}, but the data set {dataset.name} has {value}")
    try:
        model = type(recipe.model).model_validate({**recipe.model.model_dump(), **changes})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise TrainingError(f"model: does not fit the data set {dataset.name}: {message}") from error
    return recipe.model_copy(update={"model": model})


def _resume_from(resume: str | None, folder: Path) -> Path | None:
    last = folder / LAST
    if resume is None:
        if last.exists():
            raise TrainingError(f"{folder}: holds a run already; continue it with --resume auto, or choose --output")
        return None
    if resume == AUTO:
        return last if last.exists() else None
    return Path(resume)


def _check_same_run(checkpoint: Path, recipe: Recipe, dataset: Dataset | PoseDataset) -> None:
    """Raise TrainingError unless the checkpoint's weights and optimiser fit the recipe, and its outputs the data."""
    # A field that the checkpoint's recipe does not know yet has its default.
    source = f"{checkpoint}: hyper_parameters.recipe"
    parameters = load_checkpoint(checkpoint)["hyper_parameters"]
    before = check_recipe(parameters["recipe"], source).plain()
    now = recipe.plain()
    fixed = ("accumulate", "batch_size", "optimizer")
    pairs = [("model", before["model"], now["model"])]
    pairs += [(f"training.{name}", before["training"][name], now["training"][name]) for name in fixed]
    for field, old, new in pairs:
        if old != new:
            field, old, new = first_difference(field, old, new)
            raise TrainingError(f"{checkpoint}: was trained with {field} {old}; the recipe says {new}")
    named: dict[str, Any] = (
        {"keypoints": dataset.keypoints.model_dump(mode="json")}
        if isinstance(dataset, PoseDataset)
        else {"class_names": list(dataset.class_names)}
    )
    for field, new in named.items():
        if parameters.get(field) != new:
            field, old, new = first_difference(field, parameters.get(field), new)
            raise TrainingError(f"{checkpoint}: was trained with {field} {old}; the data set {dataset.name} has {new}")


def provenance(dataset: Dataset | PoseDataset) -> dict[str, Any]:
    """What a result depends on beside its recipe: the data set's size, torch's version, the source's commit."""
    return {
        "data": dataset.name,
        "train_images": len(dataset.train),
        "validation_images": len(dataset.validation),
        "torch": str(torch.__version__),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source tree, with `-dirty` if files have changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _quieten() -> None:
    """Silence Lightning's notes about choices that are made here on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*isinstance.treespec.*",
        ".*sync_dist=True.*",  # shares of the weights, which all processes have alike
    ):
        warnings.filterwarnings("ignore", message=message)
