"""Muon's steps: against torch's, against the SVD, and which parameters take them."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.latent import HolisticLatent, LatentConfig
from models.networks import build
from models.resnet import ResNetConfig
from training import optimizer
from training.muon import Muon, Together, matrix_shapes, orthogonalise
from training.recipe import Training
from training.schedule import Rate

RATE = 0.02
KINDS = ("plain", "matrix", "tucker", "holistic")


def network(kind: Any) -> nn.Module:
    return build(ResNetConfig(width=0.125, latent=LatentConfig(kind=kind)))


def with_gradients(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape)
    return net


def low_rank(*shape: int) -> Tensor:
    """Singular values from 1 down to 1e-2."""
    u, s, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    return (u * torch.logspace(0, -2, s.shape[-1])) @ vt


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (20, 20), (3, 16, 144), (2, 144, 16)])
def test_singular_values_become_alike_and_their_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = low_rank(*shape)
    found = orthogonalise(matrices)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ found @ vt.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < values.min() < values.max() < 1.25
    torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=2e-3)


def test_a_stack_is_one_matrix_after_the_other() -> None:
    stack = torch.randn(3, 8, 72)
    each = torch.stack([orthogonalise(one) for one in stack])
    torch.testing.assert_close(orthogonalise(stack), each)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-6, 1e6])
def test_the_size_of_a_gradient_does_not_matter(scale: float) -> None:
    matrix = low_rank(8, 72)
    found = orthogonalise(scale * matrix)
    if scale < 1e-12:
        assert found.norm() < 1e-3
    else:
        torch.testing.assert_close(found, orthogonalise(matrix), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 144), (144, 16)])
def test_steps_are_torchs_but_for_its_bfloat16(shape: tuple[int, int]) -> None:
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.empty(shape))
    theirs.data.copy_(ours.data)
    # Theirs takes 0.2 of the rate, and the plain rate for its decay.
    mine = Muon([{"params": [ours], "shapes": [shape]}], lr=0.2 * RATE, weight_decay=0.5)
    reference = torch.optim.Muon([theirs], lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = theirs.detach().clone()
    for _ in range(4):
        ours.grad = low_rank(*shape)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    assert (ours - theirs).norm() < 0.03 * (theirs - before).norm()


@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (16, 64, 1, 1)])
def test_the_rate_is_the_size_of_a_step(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    muon = Muon([{"params": [parameter], "shapes": [(shape[0], parameter[0].numel())]}], lr=RATE)
    parameter.grad = torch.randn(shape)
    muon.step()
    assert parameter.detach().square().mean().sqrt() == pytest.approx(RATE, rel=0.2)


def test_layers_of_a_shared_core_take_steps_of_their_own() -> None:
    latent = HolisticLatent(torch.randn(3, 8, 4, 3, 3))
    shapes = dict(latent.matrices())
    assert shapes[latent.core] == (3, 8, 36)
    assert [shapes[factor] for factor in latent.factors] == [(3, 3), (8, 8), (4, 4), (3, 3), (3, 3)]
    whole = Muon([{"params": [latent.core], "shapes": [(3, 8, 36)]}], lr=RATE)
    layers = [nn.Parameter(one.clone()) for one in latent.core.detach().reshape(3, 8, 36)]
    single = Muon([{"params": layers, "shapes": [(8, 36)] * 3}], lr=RATE)
    for _ in range(2):
        latent.core.grad = torch.randn(latent.core.shape)
        for layer, gradient in zip(layers, latent.core.grad.reshape(3, 8, 36), strict=True):
            layer.grad = gradient
        whole.step()
        single.step()
    torch.testing.assert_close(latent.core.detach().reshape(3, 8, 36), torch.stack([one.detach() for one in layers]))


@pytest.mark.parametrize("kind", KINDS)
def test_latent_matrices_take_muons_steps_all_else_adams(kind: str) -> None:
    net = network(kind)
    training = Training(epochs=1, optimizer="muon", weight_decay=0.1, latent_learning_rate_scale=3)
    made = optimizer.make(net, training)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    muons = [group for group in made.param_groups if "shapes" in group]
    listed = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    assert sorted(names[one] for one in listed) == sorted(names.values())
    assert len(muons) == 1
    assert muons[0]["rate_scale"] == 3
    assert [parameter.numel() for parameter in muons[0]["params"]] == [
        torch.Size(shape).numel() for shape in muons[0]["shapes"]
    ]
    found = {names[id(parameter)] for parameter in muons[0]["params"]}
    latent = {name for name in names.values() if "latent" in name or name.startswith("holistic.")}
    vectors = {name for name in latent if name.endswith("latent.s")}
    assert found == latent - vectors
    assert bool(vectors) == (kind == "matrix")
    assert {id(parameter) for parameter in muons[0]["params"]} == matrix_shapes(net).keys()


def test_the_rate_reaches_each_group_and_the_momentum_adams_alone() -> None:
    made = optimizer.make(network("matrix"), Training(epochs=1, optimizer="muon", latent_learning_rate_scale=0.5))
    optimizer.set_rate(made, 0.2, Rate(0.1, 0.87))
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.02, 0.02, 0.01, 0.01])
    assert [group["betas"][0] for group in made.param_groups if "betas" in group] == [0.87] * 3
    assert made.param_groups[-1]["momentum"] == 0.95


def test_a_frozen_latent_is_left_out() -> None:
    net = network("plain")
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net.get_parameter("head.weight").requires_grad_(True)
    made = optimizer.make(net, Training(epochs=1, optimizer="muon"))
    assert [len(group["params"]) for group in made.param_groups] == [1]


def test_two_optimisers_go_on_from_their_state() -> None:
    """After a step, a copy that loads the state takes the same second step; the rate set later reaches it too."""
    training = Training(epochs=1, optimizer="muon")
    torch.manual_seed(0)
    one = with_gradients(network("tucker"))
    first = optimizer.make(one, training)
    assert first.step(lambda: 1.5) == 1.5
    other = network("tucker")
    other.load_state_dict(one.state_dict())
    second = optimizer.make(other, training)
    second.load_state_dict(deepcopy(first.state_dict()))  # what is loaded is not copied
    for source, copy in zip(one.parameters(), other.parameters(), strict=True):
        copy.grad = source.grad
    for made in (first, second):
        optimizer.set_rate(made, 0.01, Rate(0.5, None))
        made.step()
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_together_zeroes_all_gradients() -> None:
    net = with_gradients(network("plain"))
    made = optimizer.make(net, Training(epochs=1, optimizer="muon"))
    assert isinstance(made, Together)
    made.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_weights_keep_a_rank_that_plain_momentum_loses() -> None:
    """Gradients of rank one: momentum of several makes Muon's step of several equal directions."""
    torch.manual_seed(0)
    directions = [torch.outer(torch.randn(16), torch.randn(64)) * size for size in (10, 3, 1)]

    def spectrum(make: Any) -> Tensor:
        weight = nn.Parameter(torch.zeros(16, 64))
        made = make(weight)
        for step in range(60):
            weight.grad = directions[step % 3].clone()
            made.step()
        return torch.linalg.svdvals(weight.detach())[:3]

    muon = spectrum(lambda weight: Muon([{"params": [weight], "shapes": [(16, 64)]}], lr=0.01))
    sgd = spectrum(lambda weight: torch.optim.SGD([weight], lr=0.01, momentum=0.95))
    assert all(b > 0.5 * a for a, b in pairwise(muon))
    assert sgd[2] < 0.2 * sgd[0]
