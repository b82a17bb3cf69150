"""Recipes: everything that decides a training run, as YAML checked by pydantic.

A recipe has four parts: `model` (the network), `data` (the data set and its augmentation), `training`
(the optimisation) and a name and a seed. A value left out has the default given here. `load_recipe` reads
one, applies overrides such as `training.epochs=2`, and turns every mistake into one line that names the
file, the field, the value and what was expected.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from models.hourglass import HourglassConfig
from models.networks import NetworkConfig
from training.errors import TrainingError
from training.pose.config import CocoData, LspetData, MpiiData, PoseData

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
EXPECTED = ", expected "
SidePx = Annotated[int, Field(ge=8, le=4096)]


def _listed(value: object) -> object:
    """One value or none as a list."""
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


class _Part(BaseModel):
    """A part of a recipe: unknown fields are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SmallImageAugment(_Part):
    """What is done at random to training images that lie in memory.

    crop_padding_px : an image is moved by up to this many pixels each way.
    crop_fill : what appears at the border: `reflect` the image itself, or `zero` black.
    flip : mirror half of the images.
    cutout_px : side of a square filled with the mean colour (DeVries and Taylor 2017); 0 = none.
    """

    crop_padding_px: Annotated[int, Field(ge=0, le=64)] = 4
    crop_fill: Literal["reflect", "zero"] = "reflect"
    flip: bool = True
    cutout_px: Annotated[int, Field(ge=0, le=512)] = 0


class LargeImageAugment(_Part):
    """What is done at random to training images that are read from files (Szegedy et al. 2015).

    crop_area : smallest and largest share of the picture's area that a crop covers.
    crop_aspect : narrowest and widest width / height of a crop.
    flip : mirror half of the images.
    """

    crop_area: tuple[Positive, Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)
    crop_aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> LargeImageAugment:
        for name, (low, high) in (("crop_area", self.crop_area), ("crop_aspect", self.crop_aspect)):
            if low > high:
                raise ValueError(f"{name}: the smaller value comes first")
        return self


class Cifar10Data(_Part):
    """CIFAR-10, as the original python batches or as one `.npz` of JPEGs.

    root : folder that holds either; `--data` and the environment variable SIGNET_DATA do the same.
    image_size : 16 shrinks the pictures by averaging 2 x 2 pixels: a quarter of the work, for a quick look.
    augment : see SmallImageAugment.
    train_images, validation_images : use the first so many images alone, for a quick look; none = all.
    """

    name: Literal["cifar10"] = "cifar10"
    root: Path | None = None
    image_size: Literal[16, 32] = 32
    augment: SmallImageAugment = SmallImageAugment()
    train_images: Annotated[int, Field(ge=1)] | None = None
    validation_images: Annotated[int, Field(ge=1)] | None = None


class ImageFolderData(_Part):
    """Any folder with one sub-folder of pictures a class.

    root : the folder; it holds the class folders, or `train/` and `val/` with class folders in each.
    image_size : side in pixels of the network's input.
    storage : `memory` decodes every picture once, resized; `files` decodes for each batch. `auto` takes memory
        for sides up to 64 px.
    validation_share, split_seed : without a `val/` folder this share of each class is held out.
    augment : for `storage: memory`; file_augment : for `storage: files`.
    workers : processes that decode files; 0 = decode in the training process.
    """

    name: Literal["imagefolder"]
    root: Path | None = None
    image_size: SidePx = 224
    storage: Literal["auto", "memory", "files"] = "auto"
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0)] = 0
    augment: SmallImageAugment = SmallImageAugment()
    file_augment: LargeImageAugment = LargeImageAugment()
    workers: Annotated[int, Field(ge=0, le=256)] = 4

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are decoded once, before training."""
        return self.storage == "memory" or (self.storage == "auto" and self.image_size <= 64)


ClassificationConfig = Cifar10Data | ImageFolderData
DataConfig = Annotated[Cifar10Data | ImageFolderData | LspetData | MpiiData | CocoData, Field(discriminator="name")]


class Training(_Part):
    """The optimisation.

    epochs : passes over the training images.
    batch_size : images of one optimiser step, over all processes and accumulation steps.
    accumulate : a step's images are computed in this many parts, to save memory.
    optimizer, momentum, betas : momentum is sgd's (Nesterov's), betas are Adam's; rmsprop has neither. `muon` is Muon,
        with its own momentum, for latent matrices (factors, cores, plain weights) and Adam for all else. Under
        `onecycle` the momentum and the first beta are the schedule's, not these.
    learning_rate : the highest rate of the schedule.
    latent_learning_rate_scale : multiplies the rate of latent parameters (factors, cores, plain weights).
    latent_share : share of the run, rounded to whole epochs, in which W is reconstructed from its latent; from then on
        W itself is trained, from the same signs. 1 = all of it.
    renew_latents_every : after so many steps W is decomposed anew, with the spread of fresh weights, and the optimiser
        begins anew with its factors; none = never.
    weight_decay : of real weights; parameters that are vectors (batch norm, scales, slopes) get none.
    latent_weight_decay : of latent parameters: decay shrinks W and with it the distance to a change of sign.
    schedule : `onecycle` rises from 1/25 of the rate and falls to nothing along cosines, sgd's momentum or Adam's first
        beta moving against it, between 0.95 and 0.85; `cosine` the same with constant momentum and betas; `step` falls
        tenfold after each of `step_epochs`; `constant` stays.
    warmup_share : share of the run in which the rate rises; linear from 1/25 where the schedule is not `onecycle`.
    start_from : a checkpoint of a network of the same shape whose weights are the start: the real-valued twin
        (`model.real`), the first of two stages (`model.binarize: activations`), or another latent; or a packed model,
        which keeps no more than the signs: each W is then as far from 0 as the others of its layer. Of either a
        narrower one will do, if `model.width` is a whole number of times its width: training starts as its function.
        The head may be for other classes or keypoints.
    teacher : a checkpoint whose outputs (logits, heatmaps) are learned too, such as the real-valued twin's or a
        convnet's (recipes/cifar10_teacher.yaml); or a packed model, which the xnor engine runs; or a list of them: then
        the mean of their outputs is learned (Hinton et al. 2015).
    distillation_weight : the teacher's share of the loss.
    distillation_temperature : divides logits before the teacher's are compared (Hinton et al. 2015); for
        classification.
    mixup_alpha : pairs of pictures are mixed by shares drawn from Beta(alpha, alpha) (Zhang et al. 2018); 0 = never;
        for classification.
    ema_decay : validate and save an exponential moving average of the weights; 0 = the weights themselves.
    label_smoothing : share of the target that is spread over all classes; for classification.
    gradient_clip : largest norm of all gradients together; 0 = no limit.
    precision : `bf16-mixed` or `32-true`.
    channels_last : NHWC memory, which is faster for convolutions.
    compile : torch.compile the network.
    validate_every : epochs between validations; the last epoch is always validated.
    validation_batch_size : images of one validation batch.
    threads : CPU threads of torch; none = as torch chooses.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1)] = 128
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: Literal["adam", "adamw", "muon", "rmsprop", "sgd"] = "adam"
    momentum: Share = 0.9
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    learning_rate: Positive = 2e-3
    latent_learning_rate_scale: Positive = 1.0
    latent_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    renew_latents_every: Annotated[int, Field(ge=1)] | None = None
    weight_decay: NotNegative = 0.0
    latent_weight_decay: NotNegative = 0.0
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "onecycle"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    step_epochs: tuple[Positive, ...] = ()
    start_from: Path | None = None
    teacher: Annotated[tuple[Path, ...], BeforeValidator(_listed)] = ()
    distillation_weight: Share = 0.5
    distillation_temperature: Positive = 1.0
    mixup_alpha: NotNegative = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gradient_clip: NotNegative = 0.0
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"
    channels_last: bool = True
    compile: bool = False
    validate_every: Annotated[int, Field(ge=1)] = 1
    validation_batch_size: Annotated[int, Field(ge=1)] = 500
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}")
        if self.schedule == "step" and not self.step_epochs:
            raise ValueError("step_epochs: needed by schedule 'step', such as [30, 60]")
        if self.renew_latents_every and self.ema_decay:
            raise ValueError("renew_latents_every: factors of before and after cannot be averaged; needs ema_decay 0")
        return self


CLASSIFICATION_ALONE = ("mixup_alpha", "label_smoothing", "distillation_temperature")
"""Fields of the training that have no meaning for poses."""

BEST_BY = {
    "cifar10": "val_top1",
    "imagefolder": "val_top1",
    "lspet": "val_pck",
    "mpii": "val_pckh",
    "coco": "val_ap",
}
"""Of each data set, the metric that decides."""


class Recipe(_Part):
    """A training run in full.

    name : names the output folder, `runs/<name>`.
    task : what the network does: `classification` of pictures, or `pose`, the joints of people.
    seed : decides the initial weights, the order of the images and their augmentation.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    task: Literal["classification", "pose"] = "classification"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: NetworkConfig
    data: DataConfig
    training: Training

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        pose = self.task == "pose"
        if isinstance(self.model, HourglassConfig) != pose or isinstance(self.data, PoseData) != pose:
            needed = "an hourglass and data of people" if pose else "a resnet or convnet and data of labelled pictures"
            raise ValueError(
                f"task: is {self.task!r}, which needs {needed}; the recipe has a {self.model.architecture} "
                f"and {self.data.name}"
            )
        for name in CLASSIFICATION_ALONE if pose else ():
            found, default = getattr(self.training, name), Training.model_fields[name].default
            if found != default:
                raise ValueError(
                    f"training.{name}: is {found}, expected {default:g} for task 'pose', which has no classes"
                )
        return self

    @property
    def metric(self) -> str:
        """The logged metric by which a run's best checkpoint is chosen."""
        return BEST_BY[self.data.name]

    def plain(self) -> dict[str, Any]:
        """The recipe as plain dicts, lists, numbers and text, as it is kept in a checkpoint."""
        return self.model_dump(mode="json")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides (`training.epochs=2`, the value in YAML).

    Raises TrainingError, one line a mistake.
    """
    raw = read_yaml(path)
    for override in overrides:
        _override(raw, override)
    return check_recipe(raw, str(path), overrides)


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a YAML file. Raises TrainingError if it cannot be read or holds no fields."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise TrainingError(f"{path}: cannot be read: {reason}") from error
    raw = _parse(str(path), text)
    if not isinstance(raw, dict):
        raise TrainingError(f"{path}: expected fields such as name, model, data and training, found {_show(raw)}")
    return raw


def check_recipe(raw: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain data; `source` names it in errors. Raises TrainingError, one line a mistake."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        # Of a union each variant complains: those lines become one.
        lines: dict[str, list[str]] = {}
        for mistake in error.errors(include_url=False):
            line = _explain(dict(mistake), source, overrides)
            head, _, expectation = line.partition(EXPECTED)
            lines.setdefault(head, []).append(expectation)
        told = (head + EXPECTED + " or ".join(e) if any(e) else head for head, e in lines.items())
        raise TrainingError("\n".join(told)) from None


class _UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader to which a field given twice is a mistake, as the first would be lost."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):  # construct_mapping has its say
            continue
        if key_node.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key_node.value} is given twice", key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse(source: str, text: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise TrainingError(f"{source}:{where} is not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise TrainingError(f"{source}: is nested too deep") from None


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    fields = path.strip().split(".")
    if not equals or not all(fields):
        raise TrainingError(f"--set {override}: expected FIELD=VALUE, such as training.epochs=2")
    value = _parse(f"--set {override}", text)
    target = raw
    for depth, field in enumerate(fields[:-1]):
        if target.get(field) is None:
            target[field] = {}
        if not isinstance(target[field], dict):
            name = ".".join(fields[: depth + 1])
            raise TrainingError(f"--set {override}: {name} is {_show(target[field])}, which has no fields")
        target = target[field]
    target[fields[-1]] = value


def _explain(mistake: dict[str, Any], source: str, overrides: Sequence[str]) -> str:
    """One line: where, which field, what was found, what was expected, what may have been meant."""
    names, parts = _walk(mistake["loc"])
    field = ".".join(names) or "recipe"
    for override in overrides:
        path = override.partition("=")[0].strip()
        if field == path or field.startswith(path + "."):
            source = f"--set {override}"
    kind, message = mistake["type"], str(mistake["msg"])
    if kind == "extra_forbidden":
        known = sorted({name for part in parts for name in part.model_fields})
        close = difflib.get_close_matches(names[-1], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        return f"{source}: {field}: is no field of a recipe; {hint}"
    if kind == "missing":
        return f"{source}: {field}: is missing"
    if kind == "union_tag_not_found":
        return f"{source}: {field}.{_unquoted(mistake['ctx']['discriminator'])}: is missing"
    if kind == "union_tag_invalid":
        field = f"{field}.{_unquoted(mistake['ctx']['discriminator'])}"
        found, tags = mistake["ctx"]["tag"], _unquoted(mistake["ctx"]["expected_tags"])
        return f"{source}: {field}: is {_show(found)}, expected one of {tags}{_close(found, tags.split(', '))}"
    if kind == "value_error":
        prefix = f"{field}." if names else ""
        return f"{source}: {prefix}{message.removeprefix('Value error, ')}"
    if kind == "path_type":
        message = "a path"
    expected = message.removeprefix("Input should be ").removeprefix("Value should be ")
    hint = ""
    if kind == "literal_error":
        choices = _unquoted(mistake["ctx"]["expected"]).replace(" or ", ", ")
        hint = _close(mistake["input"], choices.split(", "))
    return f"{source}: {field}: is {_show(mistake['input'])}, expected {expected}{hint}"


def _close(found: Any, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(found), choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _unquoted(text: str) -> str:
    return text.replace("'", "")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _walk(location: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """Names of a mistake's field as a reader writes them, and the parts that the field belongs to.

    pydantic's location also names the chosen variants of unions, which stand in no file.
    """
    names: list[str] = []
    parts: list[type[BaseModel]] = [Recipe]
    owners: list[type[BaseModel]] = []
    inside: Any = Recipe
    for step in location:
        fields = {name: info for part in parts for name, info in part.model_fields.items()}
        if isinstance(step, int):
            names.append(str(step))
        elif step in fields:
            owners, inside = parts, fields[step].annotation
            names.append(step)
            parts = list(_parts(inside))
        elif parts and step in _tags(parts):
            parts = [part for part in parts if step in _tags([part])]
        elif parts:
            owners, parts = parts, []
            names.append(step)
        # else: a variant of a union of plain types
    return names, owners


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from _parts(inner)


def _tags(parts: Sequence[type[BaseModel]]) -> set[str]:
    """Values of single-choice fields, by which unions tell their variants apart."""
    found: set[str] = set()
    for part in parts:
        for info in part.model_fields.values():
            if typing.get_origin(info.annotation) is Literal and len(choices := typing.get_args(info.annotation)) == 1:
                found.add(str(choices[0]))
    return found
