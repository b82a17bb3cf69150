"""Singular values of the latent weights before and after training, and of single steps on the way."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from models.latent import fresh_spread
from training.signs import latent_weights, network_of

SPECTRUM_FILE = "singular_values.json"
STEP_RANK, SPREAD = "step_rank", "weight_spread"


def singular_values(network: nn.Module) -> dict[str, list[float]]:
    """Of each binary layer the singular values of W as a matrix [out, all else], falling; NaN where W is not finite."""
    return {
        name: [float(f"{value:.5g}") for value in _singular_values(weight.flatten(1).float().cpu())]
        for name, weight in latent_weights(network)
    }


def _singular_values(matrix: Tensor) -> Tensor:
    if not matrix.isfinite().all():
        return matrix.new_full((min(matrix.shape),), torch.nan)
    values: Tensor = torch.linalg.svdvals(matrix)
    return values


def effective_rank(values: Sequence[float]) -> float:
    """How many directions a matrix of these singular values has in effect: exp of the entropy of their squares' shares.

    n for n equal ones, 1 where one outweighs all others (Roy and Vetterli 2007, of squares); 0 of zeros alone; NaN of
    NaN.
    """
    total = sum(value**2 for value in values)
    if math.isnan(total):
        return math.nan
    shares = [value**2 / total for value in values if value**2 > 0] if total > 0 else []
    return math.exp(-sum(share * math.log(share) for share in shares)) if shares else 0.0


def rank_share(folder: Path) -> float | None:
    """Of a finished run, the effective rank of W after training in per cent of the full one, averaged over layers."""
    path = folder / SPECTRUM_FILE
    layers = json.loads(path.read_text()).get("after", {}) if path.is_file() else {}
    return mean(100 * effective_rank(one) / len(one) for one in layers.values()) if layers else None


class SingularValues(Callback):
    """Writes `singular_values.json` with `before` and `after`, each a list of numbers a layer."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SPECTRUM_FILE

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep those of the untrained network; a resumed run has them already."""
        if trainer.global_step == 0:
            self._write({"before": singular_values(network_of(pl_module))})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add those of the trained one."""
        known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self._write({**known, "after": singular_values(network_of(pl_module))})

    def _write(self, content: dict[str, dict[str, list[float]]]) -> None:
        self.path.write_text(json.dumps(content), encoding="utf-8")


class StepStatistics(Callback):
    """Logs of the step halfway through each epoch, averaged over the binary layers:

    `step_rank`, the effective rank of the change of W in per cent of full: how many directions the step moves alike,
    and `weight_spread`, the root mean square of W before it, in terms of fresh weights': the larger, the more steps a
    change of sign takes.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []
        self._found: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """What was found last, for an epoch that is interrupted after its half."""
        return dict(self._found)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was found."""
        self._found = dict(state_dict)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remember W, if this is the step."""
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        if trainer.global_step % steps == steps // 2:
            self._before = [weight.flatten(1).clone() for _, weight in latent_weights(network_of(pl_module))]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare."""
        if not self._before:
            return
        before, self._before = self._before, []
        after = latent_weights(network_of(pl_module))
        pairs = [(old, new.flatten(1)) for old, (_, new) in zip(before, after, strict=True)]
        self._found = {
            STEP_RANK: mean(100 * _rank(new - old) / min(old.shape) for old, new in pairs),
            SPREAD: mean(float(old.square().mean().sqrt()) / fresh_spread(old.shape) for old, _ in pairs),
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        for name, value in self._found.items():
            pl_module.log(name, value, sync_dist=False, rank_zero_only=True)


def _rank(matrix: Tensor) -> float:
    """The effective rank, by way of the Gram matrix: far cheaper than singular values where one side is long.

    NaN where the matrix is not finite.
    """
    if not matrix.isfinite().all():
        return math.nan
    matrix = matrix.float() / matrix.norm().clamp_min(torch.finfo(torch.float32).tiny)
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return effective_rank(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().tolist())
