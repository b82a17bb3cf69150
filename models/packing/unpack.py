"""From a packed file back to a network that can be trained on.

A packed file keeps what inference needs: the signs of W, real weights with the batch norms behind them folded in, and
of a batch norm before a sign the threshold alone. A network of the same function is built from it. What the file does
not keep is chosen: how far each W lies from 0 (all alike), and the statistics of the batch norms, which are measured on
a batch of images, so that training goes on from the function that the file computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from models.latent import BinaryConv2d, BinaryLinear, LatentConfig, PlainLatent, RPReLU
from models.networks import NetworkConfig, build
from models.packing import graph as g
from models.packing.file import PackedFile, PackedFileError
from models.packing.pack import OUTPUTS
from models.packing.trace import trace
from models.quantized import PixelConv2d, set_pixels

Setter = Callable[[nn.BatchNorm2d, Tensor, Tensor], None]


def unpack(file: PackedFile, images: Tensor) -> nn.Module:
    """The network of a packed file with plain latents, in evaluation mode.

    `images` [N, 3, H, W] are normalised images, such as the batch that training begins with; on other images the
    network computes what the file does, too, up to rounding. Raises PackedFileError where the file does not say from
    which network it was made, or was not made from it, or is bound to images of another size.
    """
    sides = (file.header.input.height, file.header.input.width)
    if images.shape[2:] != sides and any(getattr(op, "scale_height", None) for op in file.header.graph.ops):
        raise PackedFileError(file.path, f"input: its scales are for {sides[1]} x {sides[0]} px alone")
    network = _blank(file, images.shape[2])
    norms = _Unpacking(file, network).run()
    return _calibrated(network, norms, images)


def _blank(file: PackedFile, side: int) -> nn.Module:
    """The network of the file's recipe, if it takes images of `side` pixels."""
    recipe = file.header.provenance.get("recipe")
    if not isinstance(recipe, Mapping) or "model" not in recipe:
        raise PackedFileError(file.path, "provenance.recipe.model: is missing; the network cannot be built from it")
    try:
        config: NetworkConfig = TypeAdapter(NetworkConfig).validate_python(recipe["model"])
    except ValidationError as error:
        raise PackedFileError(file.path, f"provenance.recipe.model.{g.first_problem(error)}") from error
    try:
        type(config).model_validate({**config.model_dump(), "input_size": side})
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise PackedFileError(file.path, f"input: cannot be {side} x {side} px: {reason}") from error
    network = build(config.model_copy(update={"latent": LatentConfig(kind="plain")}))
    set_pixels(network, file.header.input.mean, file.header.input.std)
    return network.eval()


class _Unpacking:
    """Fills a network of the file's shape, op by op; what batch norms become waits for their statistics."""

    def __init__(self, file: PackedFile, network: nn.Module) -> None:
        self.file, self.network = file, network
        self.norms: dict[str, Setter] = {}

    def run(self) -> dict[str, Setter]:
        """Of each batch norm by name: what sets it, once the mean and variance of its input are known."""
        header = self.file.header
        traced = trace(self.network, OUTPUTS[header.task])
        ops = header.graph.ops
        if [_place(op) for op in ops] != [_place(op) for op in traced.ops]:
            raise PackedFileError(self.file.path, "graph.ops: are not those of the network in provenance.recipe.model")
        with torch.no_grad():
            for op in ops:
                norm = traced.norms.get(op.source)
                if isinstance(op, g.BinaryConv2d):
                    self._binary(op, norm)
                elif isinstance(op, g.Conv2d | g.PixelConv2d | g.Int8Conv2d):
                    self._real(op, norm)
                elif isinstance(op, g.Threshold):
                    self._threshold(op, norm)
                elif isinstance(op, g.Affine):
                    self.norms[op.source] = _affine(self._read(op.scale), self._read(op.bias))
                elif isinstance(op, g.Prelu):
                    self._prelu(op)
        return self.norms

    def _read(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.file.tensors[name], np.float32))

    def _copy(self, parameter: Tensor, value: Tensor, op: g.AnyOp) -> None:
        if parameter.shape != value.shape:
            found, expected = list(value.shape), list(parameter.shape)
            raise PackedFileError(self.file.path, f"{op.source}: has the shape {found}, the network {expected}")
        parameter.copy_(value)

    def _binary(self, op: g.BinaryConv2d, norm: str | None) -> None:
        layer = self.network.get_submodule(op.source)
        assert isinstance(layer, BinaryConv2d | BinaryLinear)
        if norm is not None or op.bias is not None:
            raise PackedFileError(self.file.path, f"{op.source}: a batch norm was folded into its scale")
        signs = unpack_signs(self.file.tensors[op.weight], layer.latent.shape[1])
        weight = torch.from_numpy(signs).permute(0, 3, 1, 2).reshape(layer.latent.shape)
        if layer.scale.kind == "analytic" and op.scale is not None:
            weight = weight * self._read(op.scale).reshape(-1, *[1] * (weight.ndim - 1))
        layer.latent = PlainLatent(weight)
        for name, stored in (("alpha", op.scale), ("beta", op.scale_height), ("gamma", op.scale_width)):
            parameter = getattr(layer.scale, name, None)
            if parameter is not None and stored is not None:
                self._copy(parameter, self._read(stored), op)

    def _real(self, op: g.Conv2d | g.PixelConv2d | g.Int8Conv2d, norm: str | None) -> None:
        layer = self.network.get_submodule(op.source)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = self._read(op.weight)
        direction = torch.ones(op.out_channels)
        if not isinstance(op, g.Conv2d):
            scale = self._read(op.scale)
            if norm is not None:  # whose factor may have been negative; scales of 8-bit weights are not
                direction = torch.where(scale < 0, -1.0, 1.0)
            weight = weight * (scale * direction).reshape(-1, 1, 1, 1)
        if isinstance(op, g.PixelConv2d):
            weight = weight * (255 * torch.tensor(self.file.header.input.std))
        weight = weight.permute(0, 3, 1, 2)
        self._copy(layer.weight, weight[:, :, 0, 0] if isinstance(layer, nn.Linear) else weight, op)
        bias = torch.zeros(op.out_channels) if op.bias is None else self._read(op.bias)
        if isinstance(op, g.PixelConv2d) and not isinstance(layer, PixelConv2d):
            bias = bias + self._shift(op, weight)
        if norm is not None:
            if layer.bias is not None:
                layer.bias.zero_()
            self.norms[norm] = _affine(direction, bias)
        elif layer.bias is not None:
            self._copy(layer.bias, bias, op)

    def _shift(self, op: g.PixelConv2d, weight: Tensor) -> Tensor:
        """What a convolution of normalised pixels adds to one of pixels minus `op.zero`, [out]."""
        header = self.file.header.input
        mean, std = (torch.tensor(values) * 255 for values in (header.mean, header.std))
        return (weight.sum((2, 3)) * ((mean - torch.tensor(op.zero)) / std)).sum(1)

    def _threshold(self, op: g.Threshold, norm: str | None) -> None:
        if norm is None:
            return
        threshold = self._read(op.threshold)
        flip = torch.zeros_like(threshold) if op.flip is None else self._read(op.flip)

        def set_norm(module: nn.BatchNorm2d, mean: Tensor, spread: Tensor) -> None:
            away = (mean - threshold) / spread
            never_changes = away.isinf()
            direction = 1 - 2 * flip
            module.weight.copy_(torch.where(never_changes, 0, direction))
            module.bias.copy_(direction * torch.where(never_changes, away.sign(), away))

        self.norms[norm] = set_norm

    def _prelu(self, op: g.Prelu) -> None:
        layer = self.network.get_submodule(op.source)
        names = {"weight": op.slope} if isinstance(layer, nn.PReLU | RPReLU) else {}
        if isinstance(layer, RPReLU):
            names |= {"shift_in": op.shift_in, "shift_out": op.shift_out}
        for name, stored in names.items():
            if stored is not None:
                self._copy(layer.get_parameter(name), self._read(stored), op)


def _place(op: g.AnyOp) -> tuple[Any, ...]:
    kind = "conv2d" if isinstance(op, g.PixelConv2d) else op.op  # a stem may have been rounded when it was packed
    return kind, op.source, op.output, op.reads()


def _affine(scale: Tensor, bias: Tensor) -> Setter:
    """Sets a batch norm so that it computes x * scale + bias."""

    def set_norm(module: nn.BatchNorm2d, mean: Tensor, spread: Tensor) -> None:
        module.weight.copy_(scale * spread)
        module.bias.copy_(bias + scale * mean)

    return set_norm


def _calibrated(network: nn.Module, norms: Mapping[str, Setter], images: Tensor) -> nn.Module:
    """Set each batch norm when the images reach it: all before it are set by then."""

    def hook(set_norm: Setter) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def measure(module: nn.Module, inputs: tuple[Tensor]) -> None:
            assert isinstance(module, nn.BatchNorm2d)
            assert module.running_mean is not None
            assert module.running_var is not None
            variance, mean = torch.var_mean(inputs[0].float(), (0, 2, 3), correction=0)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            set_norm(module, mean, (variance + module.eps).sqrt())

        return measure

    with ExitStack() as hooks, torch.no_grad():
        for name, set_norm in norms.items():
            handle = network.get_submodule(name).register_forward_pre_hook(hook(set_norm))
            hooks.callback(handle.remove)
        network(images)
    return network


def unpack_signs(words: NDArray[np.uint64], channels: int) -> NDArray[np.float32]:
    """[..., words] of 64 bits -> [..., channels] in {-1, +1}; the inverse of `models.packing.trace.pack_signs`."""
    bits = np.unpackbits(np.ascontiguousarray(words, "<u8").view(np.uint8), axis=-1, bitorder="little")
    return bits[..., :channels].astype(np.float32) * 2 - 1
