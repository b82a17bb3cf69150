"""The figures of a checkpoint or a packed file on the validation images of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from models.networks import restore
from models.packing.file import InputSpec, Keypoints, PackedHeader
from training.checkpoints import load_checkpoint
from training.classification import count
from training.data import catalog
from training.data.dataset import Dataset, Pixels
from training.data.loaders import Batch, FileLoader, Loader, MemoryLoader
from training.data.plan import BatchPlan
from training.errors import TrainingError
from training.packed import SUFFIX, Predict, load_packed
from training.pose.config import PoseData
from training.pose.data import load as load_people
from training.pose.evaluate import find, measure_people
from training.pose.metrics import PoseScores
from training.pose.people import PoseDataset
from training.pose.preview import choose, found_sheet
from training.recipe import ClassificationConfig, DataConfig, ImageFolderData, check_recipe

DATA_CONFIG: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in per cent over `images` pictures, and the mean cross entropy."""

    images: int
    top1: float
    top5: float
    loss: float

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2f} %  top-5 {self.top5:.2f} %  n = {self.images}"


@dataclass(frozen=True)
class Trained:
    """A trained network, whatever file it came from.

    Attributes
    ----------
    predict : uint8 [N, H, W, 3] -> logits [N, classes], or heatmaps [N, h, w, K].
    outputs : the names of the classes, or the keypoints.
    input : what it reads.
    data : the data set of its recipe, if it names one.
    """

    predict: Predict
    outputs: tuple[str, ...] | Keypoints
    input: InputSpec
    data: DataConfig | None


def evaluate(
    path: Path,
    *,
    data_root: Path | None = None,
    data: DataConfig | None = None,
    limit: int | None = None,
    batch_size: int = 100,
    flip: bool = False,
) -> Accuracy | PoseScores:
    """Measure a checkpoint (in float32, with torch) or a packed file (with the xnor engine).

    Both see the very same uint8 images, those of the recipe's validation split, so their figures compare.

    Parameters
    ----------
    data_root : where the data set lies.
    data : another data set than the recipe's; its classes, or keypoints, must be the same.
    limit : measure on the first so many images alone.
    flip : average the heatmaps of each picture and of its mirror image; for pose alone.

    Raises TrainingError for what the user can put right.
    """
    trained, data = _load_with_data(path, data)
    if isinstance(data, PoseData):
        people = _people(path, trained, data, data_root)
        return measure_people(trained.predict, people, data, flip=flip, limit=limit, batch_size=batch_size)
    if flip:
        raise TrainingError("--flip: averages heatmaps, which a classifier does not make")
    dataset = catalog.load(data, data_root)
    _must_fit(path, trained, dataset.name, dataset.class_names, dataset.input)
    return measure(trained.predict, evaluation_loader(dataset, data, limit, batch_size))


def draw(
    path: Path,
    *,
    data_root: Path | None = None,
    data: DataConfig | None = None,
    flip: bool = False,
    people: int = 24,
    seed: int = 0,
) -> Image.Image:
    """Validation people, drawn at random, with the skeletons that a pose network finds.

    Parameters are those of `evaluate`. Raises TrainingError for what the user can put right.
    """
    trained, data = _load_with_data(path, data)
    if not isinstance(data, PoseData):
        raise TrainingError(f"{path}: --sheet: draws people, which a classifier does not find")
    dataset = _people(path, trained, data, data_root)
    shown = dataset.validation.take(choose(dataset.validation, people, seed))
    size = dataset.input.height
    points, scores = find(trained.predict, shown, data, size, flip=flip)
    title = f"{dataset.name}: {len(shown)} of {len(dataset.validation)} validation people, chosen at random, as found"
    return found_sheet(shown, points, scores, size, title=title)


def _load_with_data(path: Path, data: DataConfig | None) -> tuple[Trained, DataConfig]:
    """A trained network, and `data` or else the data set of its own recipe."""
    trained = load(path)
    data = data or trained.data
    if data is None:
        raise TrainingError(f"{path}: provenance.recipe.data: is missing, so give the recipe whose data set to use")
    return trained, data


def _people(path: Path, trained: Trained, data: PoseData, data_root: Path | None) -> PoseDataset:
    dataset = load_people(data, data_root)
    _must_fit(path, trained, dataset.name, dataset.keypoints, dataset.input)
    return dataset


def _must_fit(path: Path, trained: Trained, name: str, outputs: tuple[str, ...] | Keypoints, spec: InputSpec) -> None:
    """Raise TrainingError unless the network's outputs and input are the data set's."""
    if trained.outputs != outputs:
        raise TrainingError(f"{path}: has the {_some(trained.outputs)}; the data set {name} has the {_some(outputs)}")
    side_px, expected_px = spec.height, trained.input.height
    if side_px != expected_px:
        raise TrainingError(f"{path}: takes images of {expected_px} px; {name} gives {side_px} px")


def measure(predict: Predict, loader: Loader[Batch]) -> Accuracy:
    """Count right answers over one epoch of `loader`."""
    totals = torch.zeros(4, dtype=torch.float64)
    for images, labels in loader:
        totals += count(predict(images), labels)
    images_seen, top1, top5, loss = totals.tolist()
    return Accuracy(int(images_seen), 100 * top1 / images_seen, 100 * top5 / images_seen, loss / images_seen)


def load(path: Path) -> Trained:
    """A checkpoint (`.ckpt`) or packed file (`.safetensors`), ready to predict."""
    return _load_packed(path) if path.suffix == SUFFIX else _load_checkpoint(path)


def _load_checkpoint(path: Path) -> Trained:
    content = load_checkpoint(path)
    parameters = content["hyper_parameters"]
    recipe = check_recipe(parameters["recipe"], f"{path}: hyper_parameters.recipe")
    prefix = "network."
    state = {name.removeprefix(prefix): value for name, value in content["state_dict"].items()}
    spec = InputSpec.model_validate(parameters["input"])
    try:
        network = restore(recipe.model, state)
    except RuntimeError as error:
        raise TrainingError(f"{path}: state_dict: {str(error).splitlines()[0]}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)
    mean, std = torch.tensor(spec.mean, device=device), torch.tensor(spec.std, device=device)

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        x = ((images.to(device).float() / 255 - mean) / std).permute(0, 3, 1, 2)
        output: Tensor = network(x)
        return (output.permute(0, 2, 3, 1) if recipe.task == "pose" else output).cpu()

    outputs = (
        Keypoints.model_validate(parameters["keypoints"]) if recipe.task == "pose" else tuple(parameters["class_names"])
    )
    return Trained(predict, outputs, spec, recipe.data)


def _load_packed(path: Path) -> Trained:
    header, predict = load_packed(path)
    outputs = header.keypoints or tuple(header.labels or ())
    return Trained(predict, outputs, header.input, _packed_data(path, header))


def _packed_data(path: Path, header: PackedHeader) -> DataConfig | None:
    recipe = header.provenance.get("recipe")
    if not isinstance(recipe, dict) or "data" not in recipe:
        return None
    try:
        return DATA_CONFIG.validate_python(recipe["data"])
    except ValidationError as error:
        raise TrainingError(f"{path}: provenance.recipe.data: {error.errors()[0]['msg']}") from error


def evaluation_loader(
    dataset: Dataset, config: ClassificationConfig, limit: int | None = None, batch_size: int = 100
) -> Loader[Batch]:
    """The first `limit` validation pictures, or all, as a network is to see them."""
    split = dataset.validation
    length = min(len(split), limit or len(split))
    plan = BatchPlan(length, batch_size, shuffle=False)
    if isinstance(split, Pixels):
        return MemoryLoader(split, plan)
    short_side = dataset.input.resize.short_side_px or dataset.input.height
    workers = config.workers if isinstance(config, ImageFolderData) else 0
    return FileLoader(split, plan, side=dataset.input.height, short_side=short_side, workers=workers)


def _some(outputs: tuple[str, ...] | Keypoints) -> str:
    kind, names = ("keypoints", outputs.names) if isinstance(outputs, Keypoints) else ("classes", list(outputs))
    return f"{len(names)} {kind} {', '.join(names[:3])}" + (", ..." if len(names) > 3 else "")
