"""Muon: steps without a favoured direction, for parameters that are matrices (Jordan et al. 2024).

A gradient of a weight matrix is nearly low in rank: few singular values are large. Adam's steps follow it; those of
Muon have the gradient's singular vectors with all singular values made about equal, so that every direction in which
the loss falls is taken at once, and W keeps its rank.

torch.optim.Muon does the same for parameters of two dimensions, in bfloat16. Filters have four and the core of a
holistic tensor is one matrix a layer, and a CPU without bfloat16 instructions takes ten times as long; hence this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.latent import Latent

STEPS = 5
# Of the polynomial a x + b x^3 + c x^5, which takes singular values from (0, 1] to about 0.7 to 1.2 in 5 steps.
A, B, C = 3.4445, -4.7750, 2.0315
SMALLEST_NORM = 1e-12


def orthogonalise(matrices: Tensor) -> Tensor:
    """[..., rows, columns] -> the same shape: the singular vectors of each matrix, its singular values near 1.

    Newton-Schulz iteration, in the tensor's own precision; singular values below 1e-3 of the largest stay smaller. All
    iterations are polynomials in the Gram matrix of the shorter side, so they are done on it, and the matrix itself is
    read twice.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(SMALLEST_NORM)
    gram = x @ x.mT
    product: Tensor | None = None
    for _ in range(STEPS):
        step = C * (gram @ gram) + B * gram
        step.diagonal(dim1=-2, dim2=-1).add_(A)
        product = step if product is None else step @ product
        gram = step @ gram @ step
    assert product is not None
    result: Tensor = product @ x
    return result.mT if tall else result


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised.

    Parameters
    ----------
    params : groups of parameters. A group's `shapes` has, for each of them, the shape in which it is a matrix, or a
        stack of matrices: `[..., rows, columns]`.
    lr : root mean square of the entries of a step, about: a step is sqrt(max(rows, columns)) times the orthogonalised
        momentum. Adam's first steps are of that size too (Liu et al. 2025, arXiv 2502.16982, scale by 0.2 of it).
    momentum : share of the old momentum that a step keeps.
    weight_decay : decoupled: each step takes lr * weight_decay of the parameter away.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step by the gradients that are there; for a closure see `Together`."""
        for group in self.param_groups:
            for parameter, shape in zip(group["params"], group["shapes"], strict=True):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"]).reshape(shape)
                size = group["lr"] * max(ahead.shape[-2:]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_((size * orthogonalise(ahead)).reshape(parameter.shape))


class Together(Optimizer):
    """Several optimisers as one, for a Trainer that takes one."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of each; `closure` computes the loss and the gradients once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of each, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each its own."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def matrix_shapes(network: nn.Module) -> dict[int, tuple[int, ...]]:
    """Of each latent parameter that is a matrix, by its id, the shape in which it is one."""
    latents: Iterator[Latent] = (module for module in network.modules() if isinstance(module, Latent))
    return {id(parameter): shape for latent in latents for parameter, shape in latent.matrices()}
