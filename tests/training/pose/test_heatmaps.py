"""Targets have their peaks where the joints are, and the loss sees visible joints alone."""

from __future__ import annotations

from math import exp, pi

import numpy as np
import pytest
import torch

from models.pose import decode
from training.pose.heatmaps import loss, targets


def test_a_target_is_a_gaussian_of_height_one() -> None:
    joints = torch.tensor([[[4 * 10 + 1.5, 4 * 20 + 1.5]]])  # the centre of cell (10, 20)
    heatmap = targets(joints, 32, sigma=1.5)[0, 0]
    assert heatmap[20, 10] == 1
    assert heatmap[20, 12].item() == pytest.approx(exp(-4 / (2 * 1.5**2)))
    assert heatmap[23, 10].item() == pytest.approx(exp(-9 / (2 * 1.5**2)))
    assert heatmap[21, 9].item() == pytest.approx(exp(-2 / (2 * 1.5**2)))
    assert heatmap.sum().item() == pytest.approx(2 * pi * 1.5**2, rel=1e-3)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_decoding_a_target_gives_the_joint_back(sigma: float) -> None:
    joints = torch.rand(20, 5, 2) * 110 + 8
    heatmaps = targets(joints, 32, sigma).permute(0, 2, 3, 1).numpy()
    points, scores = decode(heatmaps)
    assert np.abs(points - joints.numpy()).max() <= 1 + 1e-4
    # At worst the joint lies half a cell from the peak's cell both ways.
    assert (scores >= exp(-0.25 / sigma**2) - 1e-6).all()


def test_to_predict_nothing_costs_pi_sigma_squared() -> None:
    for size in (32, 64):
        target = targets(torch.rand(3, 4, 2) * 60 + 30, size, 1.5)
        cost = loss(torch.zeros_like(target), target, torch.ones(3, 4, dtype=torch.bool))
        assert cost.item() == pytest.approx(pi * 1.5**2, rel=0.01)


def test_invisible_joints_count_for_nothing() -> None:
    target = targets(torch.rand(2, 3, 2) * 100, 32, 1.0)
    predicted = torch.randn(2, 3, 32, 32, requires_grad=True)
    visible = torch.tensor([[True, False, True], [False, False, True]])
    cost = loss(predicted, target, visible)
    cost.backward()
    by_hand = [((predicted[b, k] - target[b, k]) ** 2).sum() for b, k in ((0, 0), (0, 2), (1, 2))]
    torch.testing.assert_close(cost, sum(by_hand) / 3)
    assert predicted.grad is not None
    assert (predicted.grad.abs().sum(dim=(2, 3)) > 0).tolist() == visible.tolist()


def test_nobody_visible_is_no_division_by_zero() -> None:
    target = targets(torch.zeros(1, 2, 2), 8, 1.0)
    assert loss(target + 1, target, torch.zeros(1, 2, dtype=torch.bool)) == 0
