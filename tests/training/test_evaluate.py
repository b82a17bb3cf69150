"""Figures against a count by hand, for a checkpoint and for its packed file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models.networks import restore
from models.packing.pack import pack_checkpoint
from training import evaluate, train
from training.classification import count
from training.data import cifar10
from training.errors import TrainingError
from training.packed import load_packed
from training.recipe import ImageFolderData, check_recipe

ENGINE = importlib.util.find_spec("models.xnor") is not None and hasattr(__import__("models.xnor").xnor, "Session")


@pytest.fixture(scope="module")
def checkpoint(cifar_batches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = {
        "name": "evaluated",
        "model": {"architecture": "resnet", "width": 0.125},
        "data": {"name": "cifar10"},
        "training": {"epochs": 2, "batch_size": 20, "precision": "32-true", "threads": 1},
    }
    output = tmp_path_factory.mktemp("evaluated")
    return train.train(check_recipe(raw, "test"), data_root=cifar_batches, output=output).last


def logits_by_hand(checkpoint: Path, data_root: Path) -> tuple[np.ndarray, np.ndarray]:
    """float64 logits of all validation images, one image at a time, normalised in numpy."""
    content = torch.load(checkpoint, weights_only=True)
    parameters = content["hyper_parameters"]
    state = {name[len("network.") :]: value for name, value in content["state_dict"].items()}
    network = restore(check_recipe(parameters["recipe"], "test").model, state)
    validation = cifar10.read(data_root).validation
    mean, std = (np.array(parameters["input"][name]) for name in ("mean", "std"))
    rows = []
    for image in validation.images.numpy():
        x = ((image / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        with torch.no_grad():
            rows.append(network(torch.from_numpy(x))[0].double().numpy())
    return np.stack(rows), validation.labels.numpy()


def test_a_checkpoints_figures_are_those_of_a_count_by_hand(checkpoint: Path, cifar_batches: Path) -> None:
    logits, labels = logits_by_hand(checkpoint, cifar_batches)
    order = np.argsort(-logits, axis=1)
    top1 = sum(int(row[0]) == label for row, label in zip(order, labels, strict=True))
    top5 = sum(label in row[:5] for row, label in zip(order, labels, strict=True))
    loss = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels])
    result = evaluate.evaluate(checkpoint, data_root=cifar_batches, batch_size=7)
    assert result.images == len(labels) == 30
    assert result.top1 == pytest.approx(100 * top1 / 30)
    assert result.top5 == pytest.approx(100 * top5 / 30)
    assert result.loss == pytest.approx(loss, rel=1e-4)
    assert 0 < top1 < 30, "the case decides nothing"


def test_the_figures_during_training_are_the_same(checkpoint: Path, cifar_batches: Path) -> None:
    metrics = torch.load(checkpoint, weights_only=True)["metrics"]
    result = evaluate.evaluate(checkpoint, data_root=cifar_batches)
    assert (result.top1, result.top5) == pytest.approx((metrics["val_top1"], metrics["val_top5"]))


def test_a_limit_takes_the_first_images(checkpoint: Path, cifar_batches: Path) -> None:
    logits, labels = logits_by_hand(checkpoint, cifar_batches)
    result = evaluate.evaluate(checkpoint, data_root=cifar_batches, limit=11, batch_size=4)
    assert (result.images, result.top1) == (11, pytest.approx(100 * np.mean(logits.argmax(1)[:11] == labels[:11])))


def test_counting_with_fewer_than_five_classes() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    images, top1, top5, loss = count(logits, torch.tensor([0, 0])).tolist()
    assert (images, top1, top5) == (2, 1, 2)
    log_sum = np.log(np.exp([0, 1, 2]).sum())
    assert loss == pytest.approx((log_sum - 2) + log_sum, rel=1e-6)


def test_a_data_set_of_other_classes_is_refused(checkpoint: Path, picture_folder: Path) -> None:
    data = ImageFolderData(name="imagefolder", image_size=32)
    with pytest.raises(
        TrainingError, match=r"10 classes airplane, automobile, bird, \.\.\..* 3 classes blue, green, red"
    ):
        evaluate.evaluate(checkpoint, data_root=picture_folder, data=data)


def test_files_that_are_no_model(tmp_path: Path, cifar_batches: Path) -> None:
    for name in ("none.ckpt", "none.safetensors"):
        with pytest.raises(TrainingError, match=name):
            evaluate.evaluate(tmp_path / name, data_root=cifar_batches)
        (tmp_path / name).write_bytes(b"x" * 100)
        with pytest.raises(TrainingError, match=name):
            evaluate.evaluate(tmp_path / name, data_root=cifar_batches)


@pytest.mark.skipif(not ENGINE, reason="the xnor engine is not built")
def test_a_packed_file_gives_the_checkpoints_figures(checkpoint: Path, cifar_batches: Path, tmp_path: Path) -> None:
    packed = tmp_path / "model.safetensors"
    pack_checkpoint(checkpoint, packed)
    expected = evaluate.evaluate(checkpoint, data_root=cifar_batches)
    got = evaluate.evaluate(packed, data_root=cifar_batches)
    assert (got.images, got.top1, got.top5) == (expected.images, expected.top1, expected.top5)
    assert got.loss == pytest.approx(expected.loss, rel=1e-3)


def test_an_image_folder_trains_and_is_measured(
    picture_folder: Path, raw_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Classes and input size come from the data; three colours are learnt within a few epochs."""
    raw = yaml.safe_load(yaml.safe_dump(raw_recipe))
    raw["data"] = {"name": "imagefolder", "image_size": 16, "augment": {"crop_padding_px": 1}}
    raw["training"] |= {"epochs": 15, "batch_size": 8, "learning_rate": 0.005}
    outcome = train.train(check_recipe(raw, "test"), data_root=picture_folder, output=tmp_path)
    result = evaluate.evaluate(outcome.best or tmp_path, data_root=picture_folder)
    assert result.images == 6
    assert result.top1 == outcome.best_value
    assert result.top1 >= 80


def test_large_pictures_train_from_files(picture_folder: Path, raw_recipe: dict[str, Any], tmp_path: Path) -> None:
    raw = yaml.safe_load(yaml.safe_dump(raw_recipe))
    raw["model"]["stem"] = "imagenet"
    raw["data"] = {"name": "imagefolder", "image_size": 64, "storage": "files", "workers": 0}
    raw["training"] |= {"epochs": 1, "batch_size": 8}
    outcome = train.train(check_recipe(raw, "test"), data_root=picture_folder, output=tmp_path)
    result = evaluate.evaluate(outcome.last, data_root=picture_folder)
    assert (result.images, result.top1) == (6, pytest.approx(outcome.metrics["val_top1"]))


@pytest.mark.skipif(not ENGINE, reason="the xnor engine is not built")
def test_an_engine_that_cannot_run_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("models/zoo/cifar10-resnet18-half/1/model.safetensors")
    monkeypatch.setenv("SIGNET_ISA", "bogus")
    with pytest.raises(TrainingError, match=r"^SIGNET_ISA: 'bogus' is not one of this machine's instruction sets"):
        load_packed(path)
    monkeypatch.setitem(sys.modules, "models.xnor", None)
    with pytest.raises(TrainingError, match=r"model\.safetensors: needs the compiled xnor engine, which is missing$"):
        load_packed(path)
