"""Latents that are decomposed anew every so many steps (`training.renew_latents_every`).

A decomposition gives orthonormal factors, through which a step moves all directions of W alike. Adam's steps in factors
do not keep them so: a few directions grow, W leaves the estimator's window and becomes nearly low in rank, and what
the latent gained in its first steps is lost in later ones. So from time to time W is decomposed again, with the spread
of fresh weights; its signs stay, and the optimiser begins anew with the new factors.
"""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from models.networks import renew_latents
from training import optimizer
from training.signs import network_of


class LatentRenewal(Callback):
    """Renews the latents before each step whose number is a multiple of `every`, but the first.

    Before a step rather than after one: no checkpoint lies between, and a run that is resumed at such a step does it
    then.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Renew, unless the batch is a later one of a step of several."""
        step = trainer.global_step
        if not step or step % self.every or batch_idx % trainer.accumulate_grad_batches:
            return
        changed = renew_latents(network_of(pl_module))
        if trainer.world_size > 1:  # factors are unique but for signs, and machines may choose other ones
            for parameter in changed:
                torch.distributed.broadcast(parameter.data, 0)
        for one in trainer.optimizers:
            optimizer.forget(one, changed)
