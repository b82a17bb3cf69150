"""From a trained torch network to a packed graph: trace, reconstruct signs, fold.

The network is traced with torch.fx in evaluation mode. Every traced module becomes zero or one op:

- a batch norm that a sign follows becomes that sign's thresholds, found by bisection over the float32
  numbers with torch's own batch norm as the judge, so the bits are torch's bits, whatever gamma is;
- a batch norm after a real or binary convolution is folded into its weights or scales, after a binary one only if
  something other than signs reads it;
- a batch norm elsewhere stays, as an affine op; dropout and identities vanish.

What the packed format cannot represent is refused with the module's name; nothing is approximated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, fx, nn

from models.latent import BinaryConv2d, BinaryLinear, RPReLU, Sign, reconstruct_once
from models.latent.scale import OutputScale
from models.packing import graph as g
from models.quantized import Int8Conv2d, Int8Linear, PixelConv2d, quantize_weight


class PackingError(ValueError):
    """A network that the packed format cannot represent; the message names the module."""


@dataclass
class Traced:
    """The ops of a network, the arrays that they name, and the graph's outputs.

    `norms` has the names of the batch norms that became part of a neighbour, by that neighbour's.
    """

    ops: list[g.AnyOp] = field(default_factory=list)
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)


def trace(network: nn.Module, outputs: tuple[str, ...] = ("logits",)) -> Traced:
    """Lower a network (float32, any training state) to a packed graph.

    `outputs` names what the network returns, in order. Raises PackingError naming the module that does not fit.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            lowering = _Lowering(network, outputs)
            with reconstruct_once(network.modules()):
                return lowering.run()
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Tracer(fx.Tracer):
    """Traces down to torch's own layers and ours."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, BinaryConv2d | BinaryLinear | RPReLU | Sign | PixelConv2d | Int8Conv2d | Int8Linear)
        return ours or super().is_leaf_module(m, module_qualified_name)


class _Lowering:
    def __init__(self, network: nn.Module, outputs: tuple[str, ...]) -> None:
        self.network = network
        self.output_names = outputs
        try:
            self.graph = _Tracer().trace(network)
        except (fx.proxy.TraceError, TypeError) as error:
            raise PackingError(f"{type(network).__name__}: cannot be traced ({error})") from error
        self.modules = dict(network.named_modules())
        self.result = Traced()
        self.names: dict[fx.Node, str] = {}
        # Flattened, and all that follows: [N, features] in torch.
        self.vectors: set[fx.Node] = set()
        # Batch norms whose work a neighbour does: node -> the node that stands for it.
        self.normed_signs: dict[fx.Node, fx.Node] = {}
        self.folded: dict[fx.Node, fx.Node] = {}

    def run(self) -> Traced:
        for node in self.graph.nodes:
            self._plan_batch_norm(node)
        for neighbour, norm in [*self.folded.items(), *self.normed_signs.items()]:
            self.result.norms[str(neighbour.target)] = str(norm.target)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_module":
                self._module(node)
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "output":
                self._output(node)
            else:
                raise PackingError(f"{node.name}: a packed graph has no {node.op}")
            if not self.vectors.isdisjoint(node.all_input_nodes):
                self.vectors.add(node)
        return self.result

    # -- planning -------------------------------------------------------------------------------------------

    def _module_of(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _plan_batch_norm(self, node: fx.Node) -> None:
        if not isinstance(self._module_of(node), nn.BatchNorm2d | nn.BatchNorm1d):
            return
        source = node.all_input_nodes[0]
        layer = self._module_of(source)
        signs = [user for user in node.users if isinstance(self._module_of(user), Sign)]
        is_threshold = isinstance(layer, BinaryConv2d | BinaryLinear) and 0 < len(signs) == len(node.users)
        foldable = isinstance(layer, nn.Conv2d | BinaryConv2d | nn.Linear | BinaryLinear) and len(source.users) == 1
        if foldable and not is_threshold:
            self.folded[source] = node
            return
        for user in signs:
            self.normed_signs[user] = node

    # -- lowering -------------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> None:
        if "image" in self.names.values():
            raise PackingError(f"{node.name}: a packed network reads one image, this one has several inputs")
        self.names[node] = g.Graph.image

    def _read(self, node: object) -> str:
        if not isinstance(node, fx.Node) or node not in self.names:
            raise PackingError(f"{node}: is not a traced activation")
        return self.names[node]

    def _emit(self, node: fx.Node, op: type[g.Op], source: str, **fields: Any) -> None:
        name = node.name
        try:
            self.result.ops.append(op(output=name, source=source, **fields))  # type: ignore[arg-type]
        except ValidationError as error:
            raise PackingError(f"{source or name}: {g.first_problem(error)}") from error
        self.names[node] = name

    def _store(self, name: str, value: Tensor | NDArray[Any], dtype: Any = np.float32) -> str:
        """Keep an array; where a module that is called twice has another for its second call, under another name."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        array = np.ascontiguousarray(array, dtype=dtype)
        if array.dtype == np.float32 and np.isnan(array).any():
            raise PackingError(f"{name}: holds NaN; the network did not train")
        free, count = name, 1
        while free in self.result.tensors and not np.array_equal(self.result.tensors[free], array):
            count += 1
            free = f"{name}.{count}"
        self.result.tensors[free] = array
        return free

    def _module(self, node: fx.Node) -> None:
        module, source = self._module_of(node), str(node.target)
        x = node.all_input_nodes[0]
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            self._batch_norm(node, module, source, x)
            return
        for kinds, lower in self._LOWERINGS:
            if isinstance(module, kinds):
                lower(self, node, module, source, self._read(self._before_norm(node, x)))
                return
        raise PackingError(f"{source}: a packed graph has no {type(module).__name__}")

    def _before_norm(self, node: fx.Node, x: fx.Node) -> fx.Node:
        norm = self.normed_signs.get(node)
        return x if norm is None else norm.all_input_nodes[0]

    def _alias(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        del module, source
        self.names[node] = x

    def _flatten(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.Flatten)
        self._vector(node, source, x, module.start_dim, module.end_dim)

    def _vector(self, node: fx.Node, source: str, x: str, start: object, end: object) -> None:
        # A graph's vectors are [1, 1, c]; `Graph.infer` refuses a linear layer on anything larger.
        if (start, end) not in ((1, -1), (1, 3)):
            raise PackingError(f"{source}: a packed flatten joins dimensions 1 to -1, not {start} to {end}")
        self.names[node] = x
        self.vectors.add(node)

    def _must_read_a_vector(self, node: fx.Node, source: str) -> None:
        if self.vectors.isdisjoint(node.all_input_nodes):
            raise PackingError(f"{source}: a packed linear layer reads a vector, so its input has to be flattened")

    def _must_read_last(self, node: fx.Node, source: str, x: str) -> None:
        """Refuse an op in place whose input is read again: a value of a packed graph never changes."""
        nodes = list(self.graph.nodes)
        for later in nodes[nodes.index(node) + 1 :]:
            if any(self.names.get(read) == x for read in later.all_input_nodes):
                raise PackingError(f"{source}: works in place on what {later.name} reads after it")

    def _batch_norm(self, node: fx.Node, module: nn.BatchNorm2d | nn.BatchNorm1d, source: str, x: fx.Node) -> None:
        if self.folded.get(x) is node:
            self.names[node] = self.names[x]
            return
        if node.users and all(user in self.normed_signs for user in node.users):
            return
        scale, bias = batch_norm_affine(module)
        self._emit(
            node,
            g.Affine,
            source,
            input=self._read(x),
            scale=self._store(f"{source}.scale", scale),
            bias=self._store(f"{source}.bias", bias),
        )

    def _sign(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        norm_node = self.normed_signs.get(node)
        channels = None
        judge: Callable[[Tensor], Tensor] = lambda value: value  # noqa: E731
        if norm_node is not None:
            norm = self._module_of(norm_node)
            assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
            channels = norm.num_features
            judge = _batch_norm_judge(norm)
        else:
            channels = self._channels(node.all_input_nodes[0])
        thresholds, flip = sign_thresholds(judge, channels)
        self._emit(
            node,
            g.Threshold,
            source,
            input=x,
            threshold=self._store(f"{source}.threshold", thresholds),
            flip=self._store(f"{source}.flip", flip, np.uint8) if flip.any() else None,
        )
        del module

    def _channels(self, node: fx.Node) -> int:
        """Channels of a traced value, followed back to a module that says them."""
        module = self._module_of(node)
        for attribute in ("out_channels", "num_features", "out_features"):
            count = getattr(module, attribute, None)
            if isinstance(count, int):
                return count
        inputs = node.all_input_nodes
        if not inputs:
            return 3
        if node.op == "call_function" and node.target is torch.cat:
            return sum(self._channels(part) for part in _concatenated(node))
        return self._channels(inputs[0])

    def _conv(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.Conv2d)
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise PackingError(f"{source}: a packed convolution pads with zeros and a number of pixels")
        self._real(
            node,
            source,
            x,
            module.weight,
            module.bias,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
        )

    def _linear(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.Linear)
        self._must_read_a_vector(node, source)
        self._real(node, source, x, module.weight[:, :, None, None], module.bias)

    def _pixel_conv(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, PixelConv2d)
        if x != g.Graph.image:
            raise PackingError(f"{source}: reads pixels, so its input has to be the network's")
        weight, scale = module.integers()
        zero = tuple(int(level) for level in module.zero.tolist())
        if not all(0 <= level <= 255 for level in zero):
            raise PackingError(f"{source}: pixel_mean is {module.pixel_mean.tolist()}, expected numbers from 0 to 1")
        self._integers(
            node, g.PixelConv2d, source, x, weight, scale, None,
            stride=module.stride, padding=module.padding, zero=zero,
        )  # fmt: skip

    def _int8(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, Int8Conv2d | Int8Linear)
        weight, scale = quantize_weight(module.weight)
        if isinstance(module, Int8Linear):
            self._must_read_a_vector(node, source)
            weight = weight[:, :, None, None]
        self._integers(node, g.Int8Conv2d, source, x, weight, scale, module.bias)

    def _integers(
        self,
        node: fx.Node,
        op: type[g.Op],
        source: str,
        x: str,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        **fields: Any,
    ) -> None:
        """A convolution of integers; a batch norm behind it goes into scale and bias."""
        norm_node = self.folded.get(node)
        if norm_node is not None:
            norm = self._module_of(norm_node)
            assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
            gain, shift = batch_norm_affine(norm)
            scale = (scale.double() * gain.double()).float()
            bias = shift if bias is None else (bias.double() * gain.double() + shift.double()).float()
        self._emit(
            node,
            op,
            source,
            input=x,
            weight=self._store(f"{source}.weight", weight.permute(0, 2, 3, 1), np.int8),
            scale=self._store(f"{source}.scale", scale),
            bias=None if bias is None else self._store(f"{source}.bias", bias),
            out_channels=weight.shape[0],
            kernel=tuple(weight.shape[2:]),
            **fields,
        )

    def _real(
        self, node: fx.Node, source: str, x: str, weight: Tensor, bias: Tensor | None, **convolution: Any
    ) -> None:
        weight, bias = self._fold(node, weight, bias)
        self._emit(
            node,
            g.Conv2d,
            source,
            input=x,
            weight=self._store(f"{source}.weight", weight.permute(0, 2, 3, 1)),
            bias=None if bias is None else self._store(f"{source}.bias", bias),
            out_channels=weight.shape[0],
            kernel=tuple(weight.shape[2:]),
            **convolution,
        )

    def _fold(self, node: fx.Node, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the batch norm that follows `node`, if one was planned into it."""
        norm_node = self.folded.get(node)
        if norm_node is None:
            return weight, bias
        norm = self._module_of(norm_node)
        assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
        scale, shift = batch_norm_affine(norm)
        folded = weight.double() * scale.double().reshape(-1, 1, 1, 1)
        total = shift.double() if bias is None else bias.double() * scale.double() + shift.double()
        return folded.float(), total.float()

    def _binary(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, BinaryConv2d | BinaryLinear)
        self._must_read_bits(node, source, x)
        if module.real_weights:
            raise PackingError(f"{source}: its weights are real: binarize is 'activations', the first of two stages")
        latent = module.latent.to_tensor()
        if not bool(torch.isfinite(latent).all()):
            raise PackingError(f"{source}: its latent weight is not finite; the network did not train")
        signs = module.binary_weight()
        if isinstance(module, BinaryLinear):
            self._must_read_a_vector(node, source)
            signs = signs[:, :, None, None]
        convolution: dict[str, Any] = {"kernel": (1, 1)}
        if isinstance(module, BinaryConv2d):
            convolution = {
                "kernel": module.kernel_size,
                "stride": module.stride,
                "padding": module.padding,
                "dilation": module.dilation,
                "groups": module.groups,
            }
        scales = self._binary_scales(node, source, module.scale, latent)
        self._emit(
            node,
            g.BinaryConv2d,
            source,
            input=x,
            weight=self._store(f"{source}.weight", pack_signs(signs.permute(0, 2, 3, 1)), np.uint64),
            out_channels=signs.shape[0],
            **convolution,
            **scales,
        )

    def _must_read_bits(self, node: fx.Node, source: str, x: str) -> None:
        by_output = {op.output: op for op in self.result.ops}
        op = by_output.get(x)
        while isinstance(op, g.Concat | g.Upsample):
            op = by_output.get(op.reads()[0])
        if not isinstance(op, g.Threshold):
            raise PackingError(f"{source}: would have to stay float, because its input is not the output of a Sign")
        del node

    def _binary_scales(self, node: fx.Node, source: str, scale: OutputScale, latent: Tensor) -> dict[str, str | None]:
        channel = scale.channel_scale(latent)
        fields: dict[str, str | None] = {"scale": None, "bias": None}
        if scale.kind == "rank1":
            fields["scale_height"] = self._store(f"{source}.scale_height", scale.beta)
            fields["scale_width"] = self._store(f"{source}.scale_width", scale.gamma)
        norm_node = self.folded.get(node)
        if norm_node is not None:
            norm = self._module_of(norm_node)
            assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
            gain, shift = batch_norm_affine(norm)
            channel = gain if channel is None else channel * gain
            fields["bias"] = self._store(f"{source}.bias", shift)
        if channel is not None:
            fields["scale"] = self._store(f"{source}.scale", channel)
        return fields

    def _relu(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.ReLU)
        if module.inplace:
            self._must_read_last(node, source, x)
        self._emit(node, g.Prelu, source, input=x)

    def _prelu(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.PReLU | RPReLU)
        slope: Tensor = module.weight
        if slope.numel() == 1:
            slope = slope.expand(self._channels(node.all_input_nodes[0]))
        fields = {"slope": self._store(f"{source}.slope", slope)}
        if isinstance(module, RPReLU):
            for name in ("shift_in", "shift_out"):
                fields[name] = self._store(f"{source}.{name}", getattr(module, name))
        self._emit(node, g.Prelu, source, input=x, **fields)

    def _max_pool(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.MaxPool2d)
        if module.ceil_mode or module.return_indices or _pair(module.dilation) != (1, 1):
            raise PackingError(f"{source}: a packed max-pool has neither ceil_mode, indices nor dilation")
        self._pool(node, g.MaxPool2d, source, x, module)

    def _avg_pool(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.AvgPool2d)
        padded = _pair(module.padding) != (0, 0)
        if module.ceil_mode or module.divisor_override or (padded and not module.count_include_pad):
            raise PackingError(f"{source}: a packed average pool divides by its kernel's size and has no ceil_mode")
        self._pool(node, g.AvgPool2d, source, x, module)

    def _pool(self, node: fx.Node, op: type[g.Op], source: str, x: str, module: nn.MaxPool2d | nn.AvgPool2d) -> None:
        kernel = _pair(module.kernel_size)
        stride = kernel if module.stride is None else _pair(module.stride)
        self._emit(node, op, source, input=x, kernel=kernel, stride=stride, padding=_pair(module.padding))

    def _global_pool(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.AdaptiveAvgPool2d)
        if module.output_size not in (1, (1, 1)):
            raise PackingError(f"{source}: a packed adaptive pool has output size 1, not {module.output_size}")
        self._emit(node, g.GlobalAvgPool, source, input=x)

    def _upsample(self, node: fx.Node, module: nn.Module, source: str, x: str) -> None:
        assert isinstance(module, nn.Upsample)
        factor = module.scale_factor
        if module.mode != "nearest" or not isinstance(factor, int | float) or factor != int(factor):
            raise PackingError(f"{source}: a packed upsample is nearest-neighbour by one whole factor")
        self._emit(node, g.Upsample, source, input=x, factor=int(factor))

    _LOWERINGS: tuple[tuple[Any, Callable[..., None]], ...] = (
        (PixelConv2d, _pixel_conv),
        ((Int8Conv2d, Int8Linear), _int8),
        (nn.Conv2d, _conv),
        (nn.Linear, _linear),
        ((BinaryConv2d, BinaryLinear), _binary),
        (Sign, _sign),
        (nn.ReLU, _relu),
        ((nn.PReLU, RPReLU), _prelu),
        (nn.MaxPool2d, _max_pool),
        (nn.AvgPool2d, _avg_pool),
        (nn.AdaptiveAvgPool2d, _global_pool),
        (nn.Upsample, _upsample),
        (nn.Flatten, _flatten),
        ((nn.Identity, nn.Dropout, nn.Dropout2d), _alias),
    )

    def _function(self, node: fx.Node) -> None:
        name = getattr(node.target, "__name__", str(node.target))
        if node.target in (operator.add, torch.add, operator.iadd) or name in ("add", "add_"):
            if len(node.args) != 2 or node.kwargs:
                raise PackingError(f"{node.name}: a packed sum has two activations and no other argument")
            left, right = (self._read(value) for value in node.args)
            if name in ("iadd", "add_"):
                self._must_read_last(node, node.name, left)
            self._emit(node, g.Add, "", inputs=(left, right))
        elif node.target is torch.cat:
            self._emit(node, g.Concat, "", inputs=tuple(self._read(part) for part in _concatenated(node)))
        elif name == "flatten":
            start, end = _arguments(node, start_dim=0, end_dim=-1)
            self._vector(node, node.name, self._read(node.all_input_nodes[0]), start, end)
        else:
            raise PackingError(f"{node.name}: a packed graph has no {name}")

    def _output(self, node: fx.Node) -> None:
        returned = node.args[0]
        values = list(returned) if isinstance(returned, list | tuple) else [returned]
        if len(values) != len(self.output_names):
            raise PackingError(
                f"output: the network returns {len(values)} values, expected {', '.join(self.output_names)}"
            )
        for name, value in zip(self.output_names, values, strict=True):
            self.result.outputs[name] = self._read(value)


def _arguments(node: fx.Node, **defaults: Any) -> list[Any]:
    """What a call says after its first argument, by position or by name, else the defaults."""
    given = dict(zip(defaults, node.args[1:], strict=False))
    return [given.get(name, node.kwargs.get(name, default)) for name, default in defaults.items()]


def _concatenated(node: fx.Node) -> list[Any]:
    """What a concatenation along channels joins."""
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    (dim,) = _arguments(node, dim=0)
    if not isinstance(parts, list | tuple) or dim != 1:
        raise PackingError(f"{node.name}: a packed concatenation joins channels (dim=1), not dim={dim}")
    return list(parts)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def batch_norm_affine(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and bias [C] of a batch norm in evaluation mode: y = x * scale + bias."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise PackingError("a batch norm without running statistics cannot be packed")
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias
    scale = gamma.double() / (variance.double() + norm.eps).sqrt()
    return scale.float(), (beta.double() - mean.double() * scale).float()


def _batch_norm_judge(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> Callable[[Tensor], Tensor]:
    """torch's own evaluation-mode batch norm of one number a channel: [C] -> [C]."""

    def judge(value: Tensor) -> Tensor:
        # A small image rather than one pixel: torch then takes the vectorised path that networks take.
        image = value[None, :, None, None].expand(1, -1, 8, 8).contiguous()
        out = nn.functional.batch_norm(
            image, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
        )
        return out[0, :, 0, 0]

    return judge


def sign_thresholds(judge: Callable[[Tensor], Tensor], channels: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Where `judge`, a monotone function a channel, changes sign: thresholds and flips, both [channels].

    The bit `judge(x) >= 0` equals `x >= threshold` where flip is 0 and `x <= threshold` where it is 1, for
    every finite float32 x. Constant channels get a threshold of -inf (always +1) or +inf (always -1).
    """
    top = float(np.finfo(np.float32).max)
    low_sign = judge(torch.full((channels,), -top)) >= 0
    high_sign = judge(torch.full((channels,), top)) >= 0
    flip = low_sign & ~high_sign
    # Search between two floats that differ in sign, over their rank in the order of all floats.
    limit = _float_rank(np.float32(top))
    low, high = np.full(channels, -limit, np.int64), np.full(channels, limit, np.int64)
    falling = flip.numpy()
    while (high - low > 1).any():
        middle = (low + high) // 2
        positive = (judge(torch.from_numpy(_from_rank(middle))) >= 0).numpy()
        below = positive == falling  # on the side of `low`
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    thresholds = _from_rank(np.where(falling, low, high))
    constant = (low_sign == high_sign).numpy()
    thresholds[constant & low_sign.numpy()] = -np.inf
    thresholds[constant & ~low_sign.numpy()] = np.inf
    return thresholds, falling.astype(np.uint8)


def _float_rank(value: np.float32) -> int:
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _from_rank(rank: NDArray[np.int64]) -> NDArray[np.float32]:
    magnitude = np.abs(rank).astype(np.int32).view(np.float32)
    return np.where(rank < 0, -magnitude, magnitude).astype(np.float32)


def pack_signs(signs: Tensor) -> NDArray[np.uint64]:
    """[..., channels] in {-1, +1} -> [..., ceil(channels / 64)] words; bit i of word j = channel 64 j + i."""
    bits = (signs > 0).cpu().numpy()
    padding = -bits.shape[-1] % g.WORD_BITS
    bits = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, padding)])
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return packed.view("<u8").astype(np.uint64)
