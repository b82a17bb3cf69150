"""Latents for the first part of a run: the signs stay, and the run is one, wherever it is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.latent import PlainLatent
from models.networks import build, end_latents, restore
from models.packing.pack import pack_checkpoint
from models.resnet import ResNetConfig
from tests.helpers.training import Raw, assert_same_weights, recipe_of, signal_at, weights, with_model
from training import latent_phase, optimizer
from training import train as training
from training.checkpoints import load_checkpoint
from training.errors import TrainingError
from training.evaluate import evaluate
from training.module import NetworkModule
from training.recipe import check_recipe
from training.reporting import EPOCHS_FILE, read_epochs
from training.schedule import rate
from training.signs import binary_layers, latent_weights

KINDS = ("plain", "matrix", "tucker", "holistic")


def plain(path: Path) -> bool:
    return not [name for name in weights(path) if "latent" in name and not name.endswith("latent.weight")]


def in_parts(recipe: Any, data: Path, folder: Path, *at: Any) -> training.Outcome:
    """A run interrupted once and resumed."""
    with signal_at(*at):
        assert training.train(recipe, data_root=data, output=folder).signal == 15
    return training.train(recipe, data_root=data, output=folder, resume="auto")


@pytest.mark.parametrize("kind", KINDS)
def test_signs_stay_and_sizes_are_those_of_fresh_weights(kind: Any) -> None:
    network = build(ResNetConfig.model_validate({"width": 0.125, "latent": {"kind": kind}}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    before = dict(latent_weights(network))
    end_latents(network)
    assert all(isinstance(layer.latent, PlainLatent) for layer in binary_layers(network).values())
    for name, weight in latent_weights(network):
        assert torch.equal(weight >= 0, before[name] >= 0)
        assert weight.square().mean().sqrt() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=1e-4)
        direction = torch.nn.functional.cosine_similarity(weight.flatten(), before[name].flatten(), dim=0)
        assert direction == pytest.approx(1, abs=1e-5)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adam", "muon"])
def test_the_rest_of_the_network_and_its_optimiser_go_on(kind: str, name: str, raw_recipe: Raw) -> None:
    recipe = recipe_of(with_model(raw_recipe, latent={"kind": kind}), optimizer=name)
    network = build(recipe.model)
    steps = optimizer.make(network, recipe.training)
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()
    steps.step()
    checkpoint = {
        "state_dict": {"network." + key: value.clone() for key, value in network.state_dict().items()},
        "optimizer_states": [steps.state_dict()],
    }
    before = dict(latent_weights(network))
    latent_phase.convert(checkpoint, recipe)
    assert latent_phase.over(checkpoint)
    state = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    after = restore(recipe.model, state)
    shared = [key for key in network.state_dict() if "latent" not in key and "holistic" not in key]
    assert len(shared) > 100
    assert all(torch.equal(state[key], network.state_dict()[key]) for key in shared)
    assert all(torch.equal(weight >= 0, before[key] >= 0) for key, weight in latent_weights(after))
    again = optimizer.make(after, recipe.training)
    again.load_state_dict(checkpoint["optimizer_states"][0])
    known = {p: one for part in optimizer.parts(again) for p, one in part.state.items()}
    expected = {p: one for part in optimizer.parts(steps) for p, one in part.state.items()}
    for key, parameter in after.named_parameters():
        if key not in shared:
            assert parameter not in known
            continue
        theirs = expected[network.get_parameter(key)]
        assert torch.equal(known[parameter]["exp_avg"], theirs["exp_avg"])
        assert known[parameter]["step"] == theirs["step"]


@pytest.mark.parametrize("kind", ["plain", "matrix", "holistic"])
def test_a_run_ends_its_latents_on_the_way(kind: str, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    recipe = recipe_of(with_model(raw_recipe, latent={"kind": kind}), epochs=4, latent_share=0.5)
    outcome = training.train(recipe, data_root=cifar_batches, output=tmp_path / "run")
    assert outcome.signal is None
    assert plain(outcome.last)
    # The first half is that of any run with these latents, to the same bits, under the whole run's schedule.
    with signal_at("train", 2, 0):
        half = training.train(
            recipe_of(with_model(raw_recipe, latent={"kind": kind}), epochs=4),
            data_root=cifar_batches,
            output=tmp_path / "half",
        )
    rows, first = (read_epochs(tmp_path / name / EPOCHS_FILE) for name in ("run", "half"))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for name in ("step", "train_loss", "val_loss", "flipped_share"):
        assert [row[name] for row in rows[:2]] == [row[name] for row in first[:2]]
    assert plain(half.last) == (kind == "plain")
    ends = [rate(step - 1, 16, recipe.training).scale * recipe.training.learning_rate for step in (4, 8, 12, 16)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(ends, rel=1e-4)
    # What reads checkpoints reads this one; the recipe in it still says how it came about.
    content = load_checkpoint(outcome.last)
    assert content["hyper_parameters"]["recipe"]["model"]["latent"]["kind"] == kind
    assert content["hyper_parameters"]["recipe"]["training"]["latent_share"] == 0.5
    packed = tmp_path / "model.safetensors"
    pack_checkpoint(outcome.last, packed)
    figures = [evaluate(path, data_root=cifar_batches) for path in (outcome.last, packed)]
    assert figures[0].top1 == figures[1].top1 == pytest.approx(outcome.metrics["val_top1"], abs=0.01)


@pytest.mark.parametrize(
    ("where", "epoch", "batch", "changes"),
    [
        ("train", 1, 3, {}),  # in the last step that has latents
        ("validate", 1, 3, {}),
        ("train", 2, 0, {}),
        ("train", 3, 3, {}),
        ("validate", 1, 3, {"optimizer": "muon"}),
        ("train", 0, 2, {"ema_decay": 0.9, "accumulate": 2}),  # between the two batches of a step
        ("train", 2, 1, {"ema_decay": 0.9, "accumulate": 2}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    where: str, epoch: int, batch: int, changes: Raw, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    recipe = recipe_of(raw_recipe, epochs=4, latent_share=0.5, **changes)
    whole = training.train(recipe, data_root=cifar_batches, output=tmp_path / "whole")
    resumed = in_parts(recipe, cifar_batches, tmp_path / "parts", where, epoch, batch)
    assert plain(whole.last)
    assert_same_weights(whole.last, resumed.last)
    assert resumed.best_value == whole.best_value
    tables = [read_epochs(tmp_path / name / EPOCHS_FILE) for name in ("whole", "parts")]
    for name in ("epoch", "step", "learning_rate", "val_top1", "val_loss", "flipped_share"):
        assert [row[name] for row in tables[0]] == [row[name] for row in tables[1]]


def test_a_compiled_network_loses_its_latents_too(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    recipe = recipe_of(raw_recipe, epochs=2, latent_share=0.5, compile=True)
    with pytest.MonkeyPatch.context() as patch:
        # What matters is which module is called; what the compiler makes of it is its own business.
        patch.setattr(
            torch.nn.Module, "compile", lambda module: setattr(module, "_compiled_call_impl", module._call_impl)
        )
        outcome = training.train(recipe, data_root=cifar_batches, output=tmp_path)
    assert plain(outcome.last)


@pytest.mark.parametrize(("share", "epochs", "expected"), [(1.0, 8, 8), (0.5, 8, 4), (0.3, 10, 3), (0.01, 3, 1)])
def test_the_share_is_of_whole_epochs(share: float, epochs: int, expected: int, raw_recipe: Raw) -> None:
    assert latent_phase.epochs(recipe_of(raw_recipe, latent_share=share, epochs=epochs).training) == expected


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_other_shares_are_refused(share: float, raw_recipe: Raw) -> None:
    with pytest.raises(TrainingError, match="latent_share"):
        check_recipe({**raw_recipe, "training": {**raw_recipe["training"], "latent_share": share}}, "test")


def test_checkpoints_from_before_there_was_an_end_go_on(
    cifar_batches: Path, raw_recipe: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(raw_recipe, epochs=2)
    with monkeypatch.context() as patch, signal_at("train", 1, 1):
        patch.delattr(NetworkModule, "on_save_checkpoint")
        training.train(recipe, data_root=cifar_batches, output=tmp_path)
    assert latent_phase.KEY not in load_checkpoint(tmp_path / "last.ckpt")
    outcome = training.train(recipe, data_root=cifar_batches, output=tmp_path, resume="auto")
    assert outcome.signal is None
    assert not plain(outcome.last)
