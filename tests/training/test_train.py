"""A run is reproducible, resumable at any point, and leaves files that say what they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from models.networks import restore
from tests.helpers.training import Raw, assert_same_weights, recipe_of, signal_at
from training import train as training
from training.errors import TrainingError
from training.recipe import check_recipe
from training.reporting import EPOCHS_FILE, read_epochs


def test_one_seed_gives_one_result(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    outcomes = [
        training.train(recipe_of(raw_recipe), data_root=cifar_batches, output=tmp_path / name) for name in ("a", "b")
    ]
    assert outcomes[0].metrics["train_loss"] == outcomes[1].metrics["train_loss"]
    assert_same_weights(outcomes[0].last, outcomes[1].last)
    other = check_recipe({**raw_recipe, "seed": 4}, "test")
    third = training.train(other, data_root=cifar_batches, output=tmp_path / "c")
    assert third.metrics["train_loss"] != outcomes[0].metrics["train_loss"]


@pytest.mark.parametrize(
    ("where", "epoch", "batch"),
    [("train", 0, 0), ("train", 1, 2), ("train", 1, 3), ("validate", 0, 1), ("validate", 1, 3), ("train", 2, 1)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    where: str, epoch: int, batch: int, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    recipe = recipe_of(raw_recipe, epochs=3)
    whole = training.train(recipe, data_root=cifar_batches, output=tmp_path / "whole")
    with signal_at(where, epoch, batch):
        parts = training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts")
    assert parts.signal == 15
    resumed = training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts", resume="auto")
    assert resumed.signal is None
    assert_same_weights(whole.last, resumed.last)
    assert resumed.best_value == whole.best_value
    tables = [read_epochs(tmp_path / name / EPOCHS_FILE) for name in ("whole", "parts")]
    assert [row["epoch"] for row in tables[1]] == ["1", "2", "3"]
    for name in ("step", "learning_rate", "val_top1", "val_top5", "val_loss"):
        assert [row[name] for row in tables[0]] == [row[name] for row in tables[1]]


def test_a_checkpoint_is_plain_data_and_builds_its_network(
    cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    recipe = recipe_of(raw_recipe, epochs=1)
    outcome = training.train(recipe, data_root=cifar_batches, output=tmp_path)
    content = torch.load(outcome.best or tmp_path, weights_only=True)
    parameters = content["hyper_parameters"]
    assert check_recipe(parameters["recipe"], "checkpoint") == training.fit_to_data(
        recipe, training.catalog.load(recipe.data, cifar_batches)
    )
    assert len(parameters["class_names"]) == 10
    assert parameters["input"]["height"] == 32
    assert parameters["provenance"]["train_images"] == 80
    assert content["metrics"]["val_top1"] == outcome.metrics["val_top1"]
    prefix = "network."
    state = {name.removeprefix(prefix): value for name, value in content["state_dict"].items()}
    network = restore(check_recipe(parameters["recipe"], "checkpoint").model, state)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_a_finished_run_resumed_has_its_figures(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    """As after a signal during the last validation, which ends the run when all is done and saved."""
    recipe = recipe_of(raw_recipe, epochs=2)
    with signal_at("validate", 1, 3):
        ended = training.train(recipe, data_root=cifar_batches, output=tmp_path)
    assert ended.signal == 15
    again = training.train(recipe, data_root=cifar_batches, output=tmp_path, resume="auto")
    assert again.signal is None
    assert again.metrics == ended.metrics
    assert {"val_top1", "train_loss", "flipped_share"} <= again.metrics.keys()
    assert again.best_value == ended.best_value


def test_a_checkpoint_has_figures_of_its_own_weights_alone(
    cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    with signal_at("train", 1, 2):
        training.train(recipe_of(raw_recipe), data_root=cifar_batches, output=tmp_path)
    metrics = {name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["metrics"] for name in ("last", "best")}
    assert "val_top1" in metrics["best"]
    assert "train_loss" in metrics["last"]
    assert not [name for name in metrics["last"] if name.startswith("val_")]


def test_the_best_checkpoint_goes_along_to_another_folder(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    first = training.train(recipe_of(raw_recipe), data_root=cifar_batches, output=tmp_path / "a")
    longer = recipe_of(raw_recipe, epochs=3, learning_rate=1e-12)
    second = training.train(longer, data_root=cifar_batches, output=tmp_path / "b", resume=str(first.last))
    assert second.best == tmp_path / "b" / "best.ckpt"
    assert second.best_value == torch.load(second.best, weights_only=True)["metrics"]["val_top1"]
    (tmp_path / "a" / "best.ckpt").unlink()
    third = training.train(
        recipe_of(raw_recipe), data_root=cifar_batches, output=tmp_path / "c", resume=str(first.last)
    )
    assert (third.last, third.best) == (first.last, None)


def test_a_run_is_not_resumed_on_other_classes(
    cifar_batches: Path, raw_recipe: Raw, picture_folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of({**raw_recipe, "data": {"name": "imagefolder", "image_size": 32}}, batch_size=5, epochs=1)
    run = training.train(recipe, data_root=picture_folder, output=tmp_path / "run")
    shutil.copytree(picture_folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "red").rename(tmp_path / "pictures" / "scarlet")
    message = r"last\.ckpt: was trained with class_names\.2 'red'; the data set pictures has 'scarlet'"
    with pytest.raises(TrainingError, match=message):
        training.train(recipe, data_root=tmp_path / "pictures", output=tmp_path / "b", resume=str(run.last))


def test_options_that_change_how_but_not_what_is_computed(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    """Two half batches accumulated are one batch but for batch norm's statistics: the loss is near, not equal."""
    whole = training.train(recipe_of(raw_recipe), data_root=cifar_batches, output=tmp_path / "whole")
    parts = training.train(recipe_of(raw_recipe, accumulate=2), data_root=cifar_batches, output=tmp_path / "parts")
    assert torch.load(parts.last, weights_only=True)["global_step"] == 8
    assert parts.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=0.5)
    assert parts.metrics["learning_rate"] == whole.metrics["learning_rate"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_other_optimisers_schedules_and_bf16_train(
    optimizer: str, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    recipe = recipe_of(
        raw_recipe,
        optimizer=optimizer,
        schedule="cosine",
        precision="bf16-mixed",
        gradient_clip=1.0,
        label_smoothing=0.1,
        learning_rate=0.02,
        epochs=3,
        validate_every=2,
    )
    outcome = training.train(recipe, data_root=cifar_batches, output=tmp_path)
    rows = read_epochs(tmp_path / EPOCHS_FILE)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert ["val_top1" in row for row in rows] == [False, True, True]
    assert outcome.best is not None


def test_a_folder_that_holds_a_run_is_not_overwritten(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    recipe = recipe_of(raw_recipe, epochs=1)
    training.train(recipe, data_root=cifar_batches, output=tmp_path)
    with pytest.raises(TrainingError, match="holds a run already; continue it with --resume auto"):
        training.train(recipe, data_root=cifar_batches, output=tmp_path)


def test_a_checkpoint_of_another_network_is_refused(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    recipe = recipe_of(raw_recipe, epochs=1)
    training.train(recipe, data_root=cifar_batches, output=tmp_path)
    other = check_recipe({**raw_recipe, "model": {**raw_recipe["model"], "depth": 34}}, "test")
    with pytest.raises(TrainingError, match=r"last\.ckpt: was trained with model\.depth 18; the recipe says 34"):
        training.train(other, data_root=cifar_batches, output=tmp_path, resume="auto")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_named(
    content: bytes | None, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    path = tmp_path / "some.ckpt"
    if content is None:
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"some\.ckpt: is no checkpoint of signet train"):
        training.train(recipe_of(raw_recipe), data_root=cifar_batches, output=tmp_path / "run", resume=str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"classes": 7}}, r"model\.classes: is 7, but the data set cifar10 has 10"),
        ({"model": {"input_size": 64}}, r"model\.input_size: is 64, but the data set cifar10 has 32"),
        (
            {"model": {"latent": {"kind": "tucker", "rank": 3}}},
            r"model\.latent\.rank: rank of a Tucker latent .* is 3, ",
        ),
        ({"training": {"batch_size": 100}}, r"training\.batch_size: 100 is more than the 80 training images"),
    ],
)
def test_a_recipe_that_does_not_fit_its_data(
    changes: dict[str, Raw], message: str, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    raw = {**raw_recipe, **{part: {**raw_recipe[part], **fields} for part, fields in changes.items()}}
    with pytest.raises(TrainingError, match=message):
        training.train(check_recipe(raw, "test"), data_root=cifar_batches, output=tmp_path)


@pytest.mark.skipif("SIGNET_DATA" not in os.environ, reason="SIGNET_DATA names no folder with CIFAR-10")
def test_real_images_are_learnt(raw_recipe: Raw, tmp_path: Path) -> None:
    """A few seconds on 2,560 real images are enough to be clearly above chance (10 %)."""
    raw = {**raw_recipe, "data": {"name": "cifar10", "train_images": 2560, "validation_images": 1000}}
    outcome = training.train(recipe_of(raw, batch_size=64, epochs=3), output=tmp_path)
    assert outcome.best_value is not None
    assert outcome.best_value > 18
