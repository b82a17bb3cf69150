"""Recipes: what they say, how they are overridden, and how mistakes are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.errors import TrainingError
from training.recipe import check_recipe, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_tree_are_valid_and_named_after_their_files(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_a_recipe_survives_the_way_through_plain_data(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert check_recipe(yaml.safe_load(yaml.safe_dump(recipe.plain())), "again") == recipe


def test_overrides_have_yaml_types(recipe_file: Path) -> None:
    overrides = [
        "training.epochs=7",
        "training.learning_rate=1e-3",
        "training.channels_last=no",
        "training.step_epochs=[3, 5]",
        "model.latent.rank=0.5",
        "data.augment.cutout_px=8",
        "data.root=~",
        "name=other",
    ]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.training.epochs == 7
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.channels_last is False
    assert recipe.training.step_epochs == (3, 5)
    assert recipe.model.latent.rank == 0.5
    assert recipe.data.augment.cutout_px == 8
    assert recipe.data.root is None
    assert recipe.name == "other"
    assert recipe.seed == 3


MISTAKES = {
    "training: {epoch: 3, epochs: 1}": "training.epoch: is no field of a recipe; did you mean epochs?",
    "training: {epochs: 1, zzz: 1}": "training.zzz: is no field of a recipe; expected one of accumulate, ",
    "training: {epochs: many}": "training.epochs: is 'many', expected a valid integer",
    "training: {epochs: 0}": "training.epochs: is 0, expected greater than or equal to 1",
    "training: {}": "training.epochs: is missing",
    "training: 3": "training: is 3, expected ",
    "training: {epochs: 1, start_from: 3}": "training.start_from: is 3, expected a path",
    "training: {epochs: 1, teacher: [a.ckpt, 3]}": "training.teacher.1: is 3, expected a path",
    "training: {epochs: 1, optimizer: adan}": (
        "training.optimizer: is 'adan', expected 'adam', 'adamw', 'muon', 'rmsprop' or 'sgd'; did you mean adam?"
    ),
    "training: {epochs: 1, batch_size: 10, accumulate: 3}": "training.accumulate: 3 does not divide batch_size 10",
    "training: {epochs: 1, betas: [0.9, 1.0]}": "training.betas.1: is 1.0, expected less than 1",
    "training: {epochs: 1, schedule: step}": "training.step_epochs: needed by schedule 'step'",
    "model: {architecture: resnet, dephts: 18}": "model.dephts: is no field of a recipe; did you mean depth?",
    "model: {architecture: resnet, depth: 19}": "model.depth: is 19, expected 18 or 34",
    "model: {architecture: resnet, latent: {kind: tuker}}": "model.latent.kind: is 'tuker'",
    "model: {architecture: resnet, latent: {rank: -1}}": "model.latent.rank: is -1, expected 'full'",
    "data: {name: cifar}": (
        "data.name: is 'cifar', expected one of cifar10, imagefolder, lspet, mpii, coco; did you mean cifar10?"
    ),
    "data: {root: somewhere}": "data.name: is missing",
    "data: {name: cifar10, augment: {flop: true}}": "data.augment.flop: is no field of a recipe; did you mean flip?",
    "data: {name: imagefolder, file_augment: {crop_area: [1, 0.5]}}": "data.file_augment.crop_area: the smaller value",
    "name: ../escape": "name: is '../escape', expected ",
    "nome: x": "nome: is no field of a recipe; did you mean name?",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_with_file_field_value_and_expectation(
    mistake: str, message: str, raw_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**raw_recipe, **yaml.safe_load(mistake)}))
    with pytest.raises(TrainingError) as caught:
        load_recipe(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: {message}")


def test_every_mistake_is_told(recipe_file: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        load_recipe(recipe_file, ["training.epochs=x", "model.dept=18"])
    lines = sorted(str(caught.value).splitlines())
    assert len(lines) == 2
    assert lines[0] == "--set model.dept=18: model.dept: is no field of a recipe; did you mean depth?"
    assert lines[1].startswith("--set training.epochs=x: training.epochs: is 'x'")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected FIELD=VALUE"),
        ("=3", "expected FIELD=VALUE"),
        ("training..epochs=3", "expected FIELD=VALUE"),
        ("seed.x=3", "seed is 3, which has no fields"),
        ("seed=[1", "is not YAML"),
    ],
)
def test_an_override_that_says_nothing(override: str, message: str, recipe_file: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"r\.yaml: line 1 is not YAML"),
        ("a: 1\nb: 2\na: 3\n", r"r\.yaml: line 3 is not YAML: a is given twice"),
        ("a: 1\n? [b, c]\n: 2\n", r"r\.yaml: line 2 is not YAML: found unhashable key"),
        ("a: " + 3000 * "[", r"r\.yaml: is nested too deep"),
        ("just text", r"r\.yaml: expected fields such as name"),
        ("", r"r\.yaml: expected fields"),
        ("!!python/object/apply:os.system ['true']", r"r\.yaml: line 1 is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        load_recipe(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=f"none.yaml: cannot be read: {os.strerror(2)}"):
        load_recipe(tmp_path / "none.yaml")
