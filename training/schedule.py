"""The learning rate as a function of the step: nothing to store, so nothing to lose when a run resumes."""

from __future__ import annotations

from math import cos, pi
from typing import NamedTuple

from training.recipe import Training

FIRST_SHARE = 1 / 25
LAST_SHARE = FIRST_SHARE / 1e4
HIGH_MOMENTUM, LOW_MOMENTUM = 0.95, 0.85


class Rate(NamedTuple):
    """What multiplies the learning rate, and the momentum (Adam's first beta) where the schedule moves it."""

    scale: float
    momentum: float | None


def rate(step: int, steps: int, training: Training) -> Rate:
    """The rate of optimiser step `step` (from 0) of `steps`.

    `onecycle` is Smith and Topin's (2018) as torch.optim.lr_scheduler.OneCycleLR computes it, cosine on both sides.
    """
    warmup = steps * training.warmup_share
    if training.schedule == "onecycle":
        peak, last = max(warmup - 1, 0.0), steps - 1
        if step < peak:
            return Rate(_cosine(FIRST_SHARE, 1.0, step / peak), _cosine(HIGH_MOMENTUM, LOW_MOMENTUM, step / peak))
        share = (step - peak) / max(last - peak, 1)
        return Rate(_cosine(1.0, LAST_SHARE, share), _cosine(LOW_MOMENTUM, HIGH_MOMENTUM, share))
    if step < warmup:
        return Rate(FIRST_SHARE + (1 - FIRST_SHARE) * step / warmup, None)
    if training.schedule == "cosine":
        return Rate(_cosine(1.0, 0.0, (step - warmup) / max(steps - warmup, 1)), None)
    if training.schedule == "step":
        epoch = step * training.epochs / steps
        return Rate(0.1 ** sum(epoch >= boundary for boundary in training.step_epochs), None)
    return Rate(1.0, None)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + cos(pi * min(share, 1.0))) / 2
