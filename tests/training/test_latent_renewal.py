"""Latents decomposed anew on the way: the signs stay, factors and their optimiser begin again, and a run is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.latent import LatentConfig, MatrixLatent, PlainLatent, TuckerLatent
from models.networks import build, renew_latents
from models.resnet import ResNetConfig
from tests.helpers.training import Raw, assert_same_weights, recipe_of, signal_at, with_model
from training import latent_renewal, optimizer
from training import train as training
from training.errors import TrainingError
from training.recipe import check_recipe
from training.reporting import EPOCHS_FILE, read_epochs
from training.signs import latent_weights

KINDS = ("plain", "matrix", "tucker", "holistic")
RANKS: dict[str, list[Any]] = {"plain": ["full"], "matrix": ["full", 0.5, 2.0]}


def orthonormal(factor: torch.Tensor) -> bool:
    return torch.allclose(factor.T @ factor, torch.eye(factor.shape[1]), atol=1e-4)


@pytest.mark.parametrize(("kind", "rank"), [(kind, rank) for kind in KINDS for rank in RANKS.get(kind, ["full", 0.5])])
def test_signs_stay_and_factors_begin_again(kind: Any, rank: Any) -> None:
    network = build(ResNetConfig.model_validate({"width": 0.125, "latent": {"kind": kind, "rank": rank}}))
    latents = [module for module in network.modules() if isinstance(module, PlainLatent | MatrixLatent | TuckerLatent)]
    shapes = [parameter.shape for latent in latents for parameter in latent.parameters()]
    with torch.no_grad():
        for latent in latents:
            for parameter in latent.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    before = dict(latent_weights(network))
    changed = renew_latents(network)
    ours = [parameter for latent in latents for parameter in latent.parameters()]
    assert [id(parameter) for parameter in changed] == [id(parameter) for parameter in ours]
    assert [parameter.shape for parameter in changed] == shapes
    for name, weight in latent_weights(network):
        expected = before[name] * ((2 / weight[0].numel()) ** 0.5 / before[name].square().mean().sqrt())
        assert torch.allclose(weight, expected, atol=1e-5 * float(expected.abs().max()) + 1e-6)
        decided = before[name].abs() > 1e-4 * before[name].abs().max()
        assert torch.equal((weight >= 0)[decided], (before[name] >= 0)[decided])
    for latent in latents:
        if isinstance(latent, TuckerLatent):
            assert all(orthonormal(factor) for factor in latent.factors)
        elif isinstance(latent, MatrixLatent) and rank != 2.0:
            assert orthonormal(latent.u)
            assert orthonormal(latent.v)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["adam", "muon", "sgd"])
def test_the_optimiser_forgets_the_latents_alone(name: str, raw_recipe: Raw) -> None:
    recipe = recipe_of(raw_recipe, optimizer=name)
    network = build(recipe.model)
    steps = optimizer.make(network, recipe.training)
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()
    steps.step()
    latent = set(renew_latents(network))
    optimizer.forget(steps, list(latent))
    known = {parameter for part in optimizer.parts(steps) for parameter, state in part.state.items() if state}
    assert latent
    assert known == set(network.parameters()) - latent
    steps.step()
    assert {parameter for part in optimizer.parts(steps) for parameter in part.state} == set(network.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_renews_every_so_many_steps(
    accumulate: int, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = optimizer.forget

    def forget(one: Any, parameters: Any) -> None:
        states = [one.state[parameter] for parameter in parameters]
        assert all(states)
        seen.append(int(next(iter(states))["step"]) + (seen[-1] if seen else 0))
        original(one, parameters)

    monkeypatch.setattr(latent_renewal.optimizer, "forget", forget)
    recipe = recipe_of(raw_recipe, epochs=2, renew_latents_every=3, accumulate=accumulate)
    training.train(recipe, data_root=cifar_batches, output=tmp_path)
    assert [row["step"] for row in read_epochs(tmp_path / EPOCHS_FILE)] == ["4", "8"]
    assert seen == [3, 6]


@pytest.mark.parametrize(
    ("where", "epoch", "batch", "changes"),
    [
        ("train", 0, 2, {}),  # in the step before
        ("train", 0, 3, {}),  # in the first step after
        ("validate", 0, 3, {}),
        ("train", 1, 1, {"optimizer": "muon"}),
        ("train", 1, 2, {"accumulate": 2}),
        ("train", 1, 0, {"latent_share": 0.5}),
        ("train", 0, 3, {"latent": {"kind": "matrix", "rank": 2.0}}),  # columns that no decomposition gives
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    where: str, epoch: int, batch: int, changes: Raw, cifar_batches: Path, raw_recipe: Raw, tmp_path: Path
) -> None:
    changes = dict(changes)
    raw_recipe = with_model(raw_recipe, latent=changes.pop("latent", raw_recipe["model"]["latent"]))
    recipe = recipe_of(raw_recipe, epochs=2, renew_latents_every=3, **changes)
    whole = training.train(recipe, data_root=cifar_batches, output=tmp_path / "whole")
    with signal_at(where, epoch, batch):
        assert training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts").signal == 15
    resumed = training.train(recipe, data_root=cifar_batches, output=tmp_path / "parts", resume="auto")
    assert_same_weights(whole.last, resumed.last)
    never = training.train(recipe_of(raw_recipe, epochs=2, **changes), data_root=cifar_batches, output=tmp_path / "n")
    with pytest.raises(AssertionError):
        assert_same_weights(whole.last, never.last)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"renew_latents_every": 0}, "renew_latents_every"),
        ({"renew_latents_every": 1.5}, "renew_latents_every"),
        ({"renew_latents_every": 10, "ema_decay": 0.9}, "needs ema_decay 0"),
    ],
)
def test_senseless_renewals_are_refused(changes: Raw, message: str, raw_recipe: Raw) -> None:
    with pytest.raises(TrainingError, match=message):
        check_recipe({**raw_recipe, "training": {**raw_recipe["training"], **changes}}, "test")


def test_every_kind_trains_with_renewals(cifar_batches: Path, raw_recipe: Raw, tmp_path: Path) -> None:
    for kind in KINDS:
        recipe = recipe_of(with_model(raw_recipe, latent={"kind": kind}), epochs=1, renew_latents_every=1)
        outcome = training.train(recipe, data_root=cifar_batches, output=tmp_path / kind)
        assert 0 <= outcome.metrics["val_top1"] <= 100


@pytest.mark.parametrize("kind", KINDS)
def test_what_diverged_is_left_alone(kind: Any) -> None:
    net = build(ResNetConfig(width=0.125, latent=LatentConfig(kind=kind)))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, PlainLatent | MatrixLatent | TuckerLatent):
                for parameter in module.parameters():
                    parameter.fill_(torch.nan)
    assert renew_latents(net) == []
