"""Schedules against torch's, and which parameter gets which rate and decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from models.latent import HolisticLatent, LatentConfig
from models.networks import build
from models.resnet import ResNetConfig
from training import optimizer
from training.recipe import Training
from training.schedule import Rate, rate

STEPS, PEAK = 200, 0.01


@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_onecycle_is_torchs(warmup: float) -> None:
    training = Training(epochs=10, schedule="onecycle", warmup_share=warmup, learning_rate=PEAK)
    reference = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = torch.optim.lr_scheduler.OneCycleLR(reference, PEAK, STEPS, pct_start=warmup)
    for step in range(STEPS):
        now = rate(step, STEPS, training)
        assert PEAK * now.scale == pytest.approx(reference.param_groups[0]["lr"], rel=1e-9)
        assert now.momentum == pytest.approx(reference.param_groups[0]["betas"][0], rel=1e-9)
        reference.step()
        if step + 1 < STEPS:
            schedule.step()


def test_cosine_is_torchs_after_a_linear_rise() -> None:
    training = Training(epochs=10, schedule="cosine", warmup_share=0.2)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, STEPS - 40)
    assert [rate(step, STEPS, training).scale for step in (0, 20)] == pytest.approx([1 / 25, 0.52])
    for step in range(40, STEPS):
        assert rate(step, STEPS, training) == Rate(pytest.approx(reference.param_groups[0]["lr"]), None)
        reference.step()
        schedule.step()


def test_steps_fall_tenfold_after_their_epochs() -> None:
    training = Training(epochs=10, schedule="step", warmup_share=0, step_epochs=(4, 8))
    scales = [rate(epoch * 20 + 10, STEPS, training).scale for epoch in range(10)]
    assert scales == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.9])
def test_the_shortest_runs_have_a_rate(schedule: Any, steps: int, warmup: float) -> None:
    training = Training(epochs=1, schedule=schedule, warmup_share=warmup)
    assert all(0 <= rate(step, steps, training).scale <= 1 for step in range(steps))


def network(kind: str) -> nn.Module:
    return build(ResNetConfig(width=0.125, latent=LatentConfig(kind=kind)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["plain", "matrix", "tucker", "holistic"])
def test_every_parameter_is_in_the_one_group_that_it_belongs_to(kind: str) -> None:
    net = network(kind)
    training = Training(epochs=1, weight_decay=0.1, latent_weight_decay=0.01, latent_learning_rate_scale=3)
    groups = optimizer.parameter_groups(net, training)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
    assert sorted(name for group in found for name in group) == sorted(names.values())
    weights, vectors, latents = found
    assert [(group["weight_decay"], group["rate_scale"]) for group in groups] == [(0.1, 1), (0, 1), (0.01, 3)]
    assert all("latent" in name or name.startswith("holistic.") for name in latents)
    assert not any("latent" in name or name.startswith("holistic.") for name in weights + vectors)
    assert {"stem.0.weight", "head.weight"} <= set(weights)
    assert {"stem.1.weight", "head.bias", "tail.1.weight", "blocks.0.first.2.scale.alpha"} <= set(vectors)


def test_a_shared_tensor_is_optimised_once() -> None:
    net = network("holistic")
    shared = [module for module in net.modules() if isinstance(module, HolisticLatent)]
    groups = optimizer.parameter_groups(net, Training(epochs=1))
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert shared
    assert all(ids.count(id(module.core)) == 1 for module in shared)


def test_frozen_parameters_are_left_out() -> None:
    net = network("plain")
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net.get_parameter("head.weight").requires_grad_(True)
    groups = optimizer.parameter_groups(net, Training(epochs=1))
    assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize(
    ("schedule", "momentum", "made"), [("constant", 0, 0), ("constant", 0.5, 0.5), ("onecycle", 0, 0.95)]
)
def test_momentum_is_nesterovs_or_none(schedule: Any, momentum: float, made: float) -> None:
    training = Training(epochs=1, optimizer="sgd", schedule=schedule, momentum=momentum)
    groups = optimizer.make(network("plain"), training).param_groups
    assert {(group["momentum"], group["nesterov"]) for group in groups} == {(made, made > 0)}


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_the_rate_reaches_each_group(kind: Any) -> None:
    training = Training(epochs=1, optimizer=kind, latent_learning_rate_scale=0.5)
    made = optimizer.make(network("matrix"), training)
    optimizer.set_rate(made, 0.2, Rate(0.1, 0.87))
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.02, 0.02, 0.01])
    momenta = [group["momentum"] if kind == "sgd" else group["betas"][0] for group in made.param_groups]
    assert momenta == [0.87] * 3
