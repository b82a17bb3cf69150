"""From an ablation's YAML file to its runs.

The file names a recipe, settings that all runs share, grids of fields whose values are crossed, seeds, and a search
that tunes one field (the learning rate) alike for each value of others (the latent). Two runs whose recipes are equal
are one run, in whatever grids they stand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import TrainingError
from training.recipe import Recipe, load_recipe, read_yaml

Settings = dict[str, Any]
# What a run's result does not depend on.
WITHOUT_EFFECT = (("name",), ("data", "root"), ("data", "workers"), ("training", "threads"))

# Of each task the figures at the end of a run by which a search can decide.
MEASURES = {
    "classification": ("train_loss", "train_top1", "val_loss", "val_top1", "val_top5"),
    "pose": ("train_loss", "val_loss", "val_pck", "val_pck_upright", "val_pckh", "val_pckh_upright", "val_ap"),
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tuning(_Part):
    """The search that every arm of the comparison gets alike.

    by : fields; each combination of their values in the grids is tuned on its own, all else as in the recipe.
    field, values : what is tuned, and what is tried.
    seeds : of the runs of the search.
    set : settings of the search alone, such as fewer epochs.
    measure : the figure at the end of a run that decides, highest (lowest if its name ends in `loss`); none = the
        recipe's metric.
    """

    by: tuple[str, ...]
    field: str = "training.learning_rate"
    values: Annotated[tuple[float, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    set: Settings = {}
    measure: str | None = None


class AblationConfig(_Part):
    """An ablation's file.

    name : names the output folder, `runs/ablations/<name>`.
    recipe : the recipe that all runs start from, relative to this file.
    set : fields of it that all runs change, such as `training.epochs: 100`.
    seeds : each arm is trained once with each.
    tune : see Tuning; none = no search.
    grids : of each table its fields and their values, which are crossed.
    baseline : the values of the arms that others are compared with, such as `model.latent.kind: plain`.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    recipe: Path
    set: Settings = {}
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    tune: Tuning | None = None
    grids: Annotated[dict[str, dict[str, list[Any]]], Field(min_length=1)]
    baseline: Settings = {}

    @model_validator(mode="after")
    def _grids_have_values(self) -> AblationConfig:
        for name, axes in self.grids.items():
            if not axes or not all(axes.values()):
                raise ValueError(f"grids.{name}: expected fields, each with one value or more")
        return self


@dataclass(frozen=True)
class Arm:
    """One way of training, of which there is a run a seed. `settings` are the fields that its grid changes."""

    settings: Mapping[str, Any]
    label: str


@dataclass(frozen=True)
class Run:
    """One training run: its recipe, and the folder (relative to the ablation's) where its result goes."""

    recipe: Recipe = field(hash=False)
    folder: Path


class Ablation:
    """An ablation's file, read; raises TrainingError for what the user can put right."""

    def __init__(self, path: Path) -> None:
        raw = read_yaml(path)
        try:
            self.config = AblationConfig.model_validate(raw)
        except ValidationError as error:
            lines = [f"{path}: {'.'.join(map(str, m['loc'])) or 'file'}: {m['msg']}" for m in error.errors()]
            raise TrainingError("\n".join(lines)) from None
        self.path = path
        self.recipe_path = path.parent / self.config.recipe
        fields = [name for axes in self.config.grids.values() for name in axes]
        self.fields = tuple(dict.fromkeys(fields))
        self.grids = {
            name: [self._arm(dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
            for name, axes in self.config.grids.items()
        }
        recipe = self.recipe({})
        self.metric = recipe.metric
        tune, measures = self.config.tune, MEASURES[recipe.task]
        if tune is not None and tune.measure is not None and tune.measure not in measures:
            raise TrainingError(f"{path}: tune.measure: is {tune.measure!r}, expected one of {', '.join(measures)}")
        try:
            self.recipe(self.config.baseline)
        except TrainingError as error:
            raise TrainingError(f"{path}: baseline: {error}") from error

    def recipe(self, settings: Mapping[str, Any], seed: int = 0) -> Recipe:
        """The recipe with the shared settings, then `settings`."""
        changes = {**self.config.set, **settings, "seed": seed, "name": self.config.name}
        return load_recipe(self.recipe_path, [f"{name}={json.dumps(value)}" for name, value in changes.items()])

    @property
    def arms(self) -> list[Arm]:
        """Every arm once, in the order of the grids."""
        return list({arm.label: arm for arms in self.grids.values() for arm in arms}.values())

    def run(self, settings: Mapping[str, Any], seed: int) -> Run:
        """The run of these settings and seed."""
        recipe = self.recipe(settings, seed)
        # Nothing of the grids is in the name: they may grow, and what is done stays found.
        return Run(recipe, Path(f"{recipe.model.weights}-s{seed}-{_digest(recipe)}"))

    def search(self) -> dict[tuple[Any, ...], dict[float, list[Run]]]:
        """Of each combination of the values of `tune.by`, of each value that is tried, the runs; {} without tuning."""
        tune = self.config.tune
        if tune is None:
            return {}
        found: dict[tuple[Any, ...], dict[float, list[Run]]] = {}
        for arm in self.arms:
            key = self.key(arm)
            if key in found:
                continue
            chosen = dict(zip(tune.by, key, strict=True))
            found[key] = {
                value: [self.run({**tune.set, **chosen, tune.field: value}, seed) for seed in tune.seeds]
                for value in tune.values
            }
        return found

    def key(self, arm: Arm) -> tuple[Any, ...]:
        """The values of `tune.by` in an arm."""
        plain = self.recipe(arm.settings).plain()
        return tuple(field_value(plain, name) for name in (self.config.tune.by if self.config.tune else ()))

    def search_runs(self) -> list[Run]:
        """The runs of the search, one of each combination in turn, so that an unfinished search is a balanced one."""
        by_value = [list(zip(*tried.values(), strict=True)) for tried in self.search().values()]
        return [run for seeds in zip(*by_value, strict=True) for row in zip(*seeds, strict=True) for run in row]

    def final_runs(self, tuned: Mapping[tuple[Any, ...], float]) -> Iterator[tuple[Arm, int, Run]]:
        """The runs that are compared, seed by seed, of the arms whose tuned value is known."""
        for seed in self.config.seeds:
            for arm in self.arms:
                settings = dict(arm.settings)
                if self.config.tune is not None:
                    value = tuned.get(self.key(arm))
                    if value is None:
                        continue
                    settings[self.config.tune.field] = value
                yield arm, seed, self.run(settings, seed)

    def baseline(self, arm: Arm) -> Arm | None:
        """The arm of `baseline` that is most like this one; None for such an arm itself, or without a baseline."""
        plain = {one.label: self.recipe(one.settings).plain() for one in self.arms}
        wanted = self.recipe(self.config.baseline).plain()

        def is_baseline(one: Arm) -> bool:
            return all(
                field_value(plain[one.label], name) == field_value(wanted, name) for name in self.config.baseline
            )

        candidates = [one for one in self.arms if is_baseline(one)]
        if not self.config.baseline or not candidates or is_baseline(arm):
            return None

        def likeness(one: Arm) -> int:
            return sum(
                field_value(plain[one.label], name) == field_value(plain[arm.label], name) for name in self.fields
            )

        return max(candidates, key=likeness)

    def _arm(self, settings: Settings) -> Arm:
        return Arm(settings, "-".join(_shown(self.recipe(settings), self.fields)))


def _shown(recipe: Recipe, names: Sequence[str]) -> list[str]:
    plain = recipe.plain()
    return [as_text(field_value(plain, name)) or "None" for name in names]


def as_text(value: Any) -> str:
    """A field's value in a few characters: of ranks `64x64x3x3`, of None and of an empty list nothing."""
    if isinstance(value, tuple):
        return "x".join(as_text(one) for one in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def field_value(plain: Mapping[str, Any], name: str) -> Any:
    """The value of a field such as `model.latent.kind`; None where a recipe has no such field."""
    value: Any = plain
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return tuple(value) if isinstance(value, list) else value


def _digest(recipe: Recipe) -> str:
    """Eight hexadecimal digits that are the same for recipes that give the same result.

    Defaults are left out, so that a field that recipes gain later does not make old results foreign.
    """
    plain = recipe.model_dump(mode="json", exclude_defaults=True)
    for *parents, name in WITHOUT_EFFECT:
        part = plain
        for parent in parents:
            part = part.get(parent, {})
        part.pop(name, None)
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
