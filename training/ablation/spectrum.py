"""Singular values of the latent weights, before and after training."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from training.signs import latent_weights

SPECTRUM_FILE = "singular_values.json"


def singular_values(network: nn.Module) -> dict[str, list[float]]:
    """Of each binary layer the singular values of W as a matrix [out, all else], falling."""
    return {
        name: [float(f"{value:.5g}") for value in torch.linalg.svdvals(weight.flatten(1).float().cpu())]
        for name, weight in latent_weights(network)
    }


def effective_rank(values: Sequence[float]) -> float:
    """How many directions a matrix of these singular values has in effect: exp of the entropy of their squares' shares.

    n for n equal ones, 1 where one outweighs all others (Roy and Vetterli 2007, of squares); 0 of zeros alone.
    """
    total = sum(value**2 for value in values)
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
            self._write({"before": singular_values(pl_module.network)})  # type: ignore[arg-type]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add those of the trained one."""
        known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self._write({**known, "after": singular_values(pl_module.network)})  # type: ignore[arg-type]

    def _write(self, content: dict[str, dict[str, list[float]]]) -> None:
        self.path.write_text(json.dumps(content), encoding="utf-8")
