"""What happens to the signs of a binary network while it trains."""

# ruff: noqa: ARG002 - hooks have the parameters that Lightning passes

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from models.latent import BinaryConv2d, BinaryLinear, reconstruct_once

FLIPPED, DEAD = "flipped_share", "dead_share"
Packed = dict[str, Tensor]


def latent_weights(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Name and W of every binary layer, [out, ...], detached; holistic tensors are reconstructed once."""
    with torch.no_grad(), reconstruct_once(network.modules()):
        return [(name, layer.latent.to_tensor().detach()) for name, layer in binary_layers(network).items()]


def binary_layers(network: nn.Module) -> dict[str, BinaryConv2d | BinaryLinear]:
    """The binary layers by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, BinaryConv2d | BinaryLinear)}


class SignStatistics(Callback):
    """Logs, after each epoch and over all weights of all binary layers, in per cent:

    `flipped_share`, the weights whose sign is another than at the end of the epoch before (in the first epoch: than
    at the start), and `dead_share`, those with |W| >= 1 (or where the layer's window ends), which the clipped
    straight-through gradient no longer reaches. Networks without binary layers log nothing.
    """

    def __init__(self) -> None:
        self._before: Packed = {}

    def state_dict(self) -> dict[str, Any]:
        """The signs at the end of the epoch before, a bit each, so that a resumed run goes on counting."""
        return {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the stored signs."""
        self._before = state_dict["before"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the signs that the network starts with."""
        if not self._before:
            self._before = {name: _bits(weight) for name, weight in latent_weights(network_of(pl_module))}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count and log."""
        total = flipped = dead = 0
        after: Packed = {}
        layers = binary_layers(network_of(pl_module))
        for name, weight in latent_weights(network_of(pl_module)):
            after[name] = _bits(weight)
            window = layers[name].window(weight)
            total += weight.numel()
            flipped += int(_POPCOUNT[(after[name] ^ self._before[name]).long()].sum())
            dead += int((weight.abs() >= (1 if window is None else window)).sum())
        self._before = after
        if total:
            pl_module.log(FLIPPED, 100 * flipped / total, sync_dist=False, rank_zero_only=True)
            pl_module.log(DEAD, 100 * dead / total, sync_dist=False, rank_zero_only=True)


_POPCOUNT = torch.tensor([byte.bit_count() for byte in range(256)])


def network_of(module: LightningModule) -> nn.Module:
    """The network of a Lightning module of ours."""
    network = module.network
    assert isinstance(network, nn.Module)
    return network


def _bits(weight: Tensor) -> Tensor:
    """The signs as bits: uint8 [ceil(n / 8)] on the CPU."""
    signs = (weight.flatten() >= 0).to(torch.uint8)
    padded = nn.functional.pad(signs, (0, -len(signs) % 8)).reshape(-1, 8)
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=weight.device)
    return (padded * places).sum(1, dtype=torch.uint8).cpu()
