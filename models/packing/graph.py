"""The vocabulary of a packed network: ops, the values between them, and their shapes.

A graph is a list of ops in execution order. Each op names the values it reads and the one value it
writes. A value is one image's activation `[height, width, channels]`, either `float` (float32) or
`bits` (one bit a channel, 1 = +1 and 0 = -1). The value `image` exists before the first op: it is the
normalised picture, float, `[input.height, input.width, 3]`. A vector (after global pooling, in a
classifier's head) has height = width = 1, and a linear layer is a 1x1 convolution of it.

Graphs are read from files that nobody vouches for, so `Graph.infer` proves everything an engine relies
on: values exist before they are read (hence no loops), tensors exist with the very type and shape that
the op implies, and no dimension or total is beyond the limits below.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_SIDE_PX = 8192
MAX_CHANNELS = 65_536
MAX_VALUE_ELEMENTS = 1 << 28
MAX_OPS = 10_000
WORD_BITS = 64

MAX_EXACT_SUM = 1 << 24
"""Integer sums stay below this, so that float32 holds each exactly."""

FLOAT_DTYPES = ("F32", "F16")


class GraphError(ValueError):
    """A graph that no engine may run. The message names the op or field and what was expected."""


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor's safetensors dtype (`F32`, `F16`, `U64`, `U8`, `I8`) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * {"F32": 4, "F16": 2, "U64": 8, "U8": 1, "I8": 1}[self.dtype]


@dataclass(frozen=True)
class Value:
    """One image's activation: `kind` is `float` or `bits`; sizes in elements."""

    kind: Literal["float", "bits"]
    height: int
    width: int
    channels: int

    @property
    def elements(self) -> int:
        """height x width x channels."""
        return self.height * self.width * self.channels

    def __str__(self) -> str:
        return f"{self.kind}[{self.height}, {self.width}, {self.channels}]"


Side = Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\P{Cc}+$")]  # no control characters
Kernel = tuple[Annotated[int, Field(ge=1, le=31)], Annotated[int, Field(ge=1, le=31)]]
Stride = tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]]
Level = Annotated[int, Field(ge=0, le=255)]
Padding = tuple[Annotated[int, Field(ge=0, le=64)], Annotated[int, Field(ge=0, le=64)]]
Dilation = tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]]


class Strict(BaseModel):
    """A part of the file: unknown fields are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def first_problem(error: ValidationError) -> str:
    """`field: what is wrong` of the first field that does not fit."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "model"
    return f"{field}: {problem['msg']}"


def words(channels: int) -> int:
    """64-bit words that hold `channels` bits."""
    return -(-channels // WORD_BITS)


def window(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Output size of a sliding window along one axis (torch's formula, floor); may be < 1."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class Context:
    """What an op may look at while its output is inferred: earlier values and the stored tensors."""

    def __init__(self, tensors: Mapping[str, TensorInfo], image: Value) -> None:
        self.tensors = tensors
        self.values: dict[str, Value] = {"image": image}
        self.used: set[str] = set()
        self.where = ""

    def fail(self, message: str) -> GraphError:
        return GraphError(f"{self.where}: {message}")

    def value(self, field: str, name: str, kind: str | None = None) -> Value:
        """The value that an op reads, of the kind that it must be."""
        value = self.values.get(name)
        if value is None:
            raise self.fail(f"{field}: value {name!r} is not written by an earlier op")
        if kind is not None and value.kind != kind:
            raise self.fail(f"{field}: expected a {kind} value, {name!r} is {value}")
        return value

    def tensor(self, field: str, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Check that a tensor is stored with one of `dtypes` and exactly `shape`."""
        info = self.tensors.get(name)
        if info is None:
            raise self.fail(f"{field}: the file holds no tensor {name!r}")
        if info.dtype not in dtypes:
            raise self.fail(f"{field}: tensor {name!r} is {info.dtype}, expected {' or '.join(dtypes)}")
        if info.shape != shape:
            raise self.fail(f"{field}: tensor {name!r} has shape {list(info.shape)}, expected {list(shape)}")
        self.used.add(name)

    def optional(self, field: str, name: str | None, shape: tuple[int, ...]) -> None:
        """The same for a float tensor that may be absent."""
        if name is not None:
            self.tensor(field, name, FLOAT_DTYPES, shape)


class Op(Strict):
    """One step of a graph.

    Attributes
    ----------
    output : the name of the value it writes.
    source : the module of the trained network that it came from, for tables and messages.
    """

    output: Name
    source: str = ""

    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Names of the values it reads."""

    @abstractmethod
    def infer(self, ctx: Context) -> Value:
        """The value it writes; raises GraphError where something does not fit."""

    def macs(self, values: Mapping[str, Value]) -> int:  # noqa: ARG002 - most ops have none
        """Multiply-accumulates for one image (binary or real, as the op is), given every value's shape."""
        return 0


class Unary(Op):
    """An op that reads one value."""

    input: Name

    def reads(self) -> tuple[str, ...]:
        return (self.input,)


class _Conv(Unary):
    """What real and binary convolutions share. Zero padding: a padded tap adds 0."""

    weight: Name
    out_channels: Channels
    kernel: Kernel
    stride: Stride = (1, 1)
    padding: Padding = (0, 0)
    dilation: Dilation = (1, 1)
    groups: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 1
    bias: Name | None = None

    def _output(self, ctx: Context, x: Value) -> Value:
        if x.channels % self.groups or self.out_channels % self.groups:
            raise ctx.fail(f"groups: {self.groups} divides not both {x.channels} and {self.out_channels} channels")
        ctx.optional("bias", self.bias, (self.out_channels,))
        sides = [
            window(size, self.kernel[i], self.stride[i], self.padding[i], self.dilation[i])
            for i, size in enumerate((x.height, x.width))
        ]
        if min(sides) < 1:
            raise ctx.fail(f"kernel: {self.kernel} does not fit into {x}")
        return Value("float", sides[0], sides[1], self.out_channels)

    def macs(self, values: Mapping[str, Value]) -> int:
        out, x = values[self.output], values[self.input]
        return out.elements * prod(self.kernel) * (x.channels // self.groups)


class Conv2d(_Conv):
    """Real convolution (or, on a vector, a linear layer): float -> float.

    `weight` F32/F16 `[out_channels, kh, kw, channels / groups]`, `bias` `[out_channels]`.
    """

    op: Literal["conv2d"] = "conv2d"

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        out = self._output(ctx, x)
        ctx.tensor("weight", self.weight, FLOAT_DTYPES, (self.out_channels, *self.kernel, x.channels // self.groups))
        return out


class PixelConv2d(_Conv):
    """Convolution of the picture with 8-bit weights: pixels -> float, `(acc * scale) + bias` in this order.

    `acc` is the exact integer sum of `weight * (pixel - zero)` over the taps inside the picture, pixels from 0 to 255;
    `zero` is the pixel that counts as nothing, a channel. `weight` I8 `[out_channels, kh, kw, 3]`, `scale`
    `[out_channels]`.
    """

    op: Literal["pixel_conv2d"] = "pixel_conv2d"
    input: Literal["image"] = "image"
    groups: Literal[1] = 1
    dilation: tuple[Literal[1], Literal[1]] = (1, 1)
    zero: tuple[Level, Level, Level]
    scale: Name

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        out = self._output(ctx, x)
        ctx.tensor("weight", self.weight, ("I8",), (self.out_channels, *self.kernel, 3))
        ctx.tensor("scale", self.scale, FLOAT_DTYPES, (self.out_channels,))
        if prod(self.kernel) * 3 * 255 * 128 >= MAX_EXACT_SUM:
            raise ctx.fail(f"kernel: sums over {self.kernel} reach {MAX_EXACT_SUM}")
        return out


class Int8Conv2d(_Conv):
    """1x1 convolution with 8-bit weights and activations: float -> float, `acc * step * scale + bias` in this order.

    Of each pixel, m = the largest |x| of its channels, step = m / 127, q = round(x * (127 / m)), half to even; where m
    is not between 1e-30 and 1e30, q and step are 0. `acc` is the exact integer sum of `weight * q`. `weight` I8
    `[out_channels, 1, 1, channels]`, `scale` `[out_channels]`.
    """

    op: Literal["int8_conv2d"] = "int8_conv2d"
    kernel: tuple[Literal[1], Literal[1]] = (1, 1)
    stride: tuple[Literal[1], Literal[1]] = (1, 1)
    dilation: tuple[Literal[1], Literal[1]] = (1, 1)
    padding: tuple[Literal[0], Literal[0]] = (0, 0)
    groups: Literal[1] = 1
    scale: Name

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        out = self._output(ctx, x)
        ctx.tensor("weight", self.weight, ("I8",), (self.out_channels, 1, 1, x.channels))
        ctx.tensor("scale", self.scale, FLOAT_DTYPES, (self.out_channels,))
        if x.channels * 127 * 128 >= MAX_EXACT_SUM:
            raise ctx.fail(f"input: sums over {x.channels} channels reach {MAX_EXACT_SUM}")
        return out


class BinaryConv2d(_Conv):
    """Binary convolution: bits -> float, `(acc * scale * scale_height * scale_width) + bias` in this order.

    `weight` U64 `[out_channels, kh, kw, ceil(channels / groups / 64)]`, bit i of word j = channel
    64 j + i of the group, 1 = +1, unused bits 0. `acc` is the exact integer sum of the +-1 products.
    `scale` `[out_channels]`, `scale_height` `[output height]`, `scale_width` `[output width]`: absent = 1.
    """

    op: Literal["binary_conv2d"] = "binary_conv2d"
    scale: Name | None = None
    scale_height: Name | None = None
    scale_width: Name | None = None

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "bits")
        out = self._output(ctx, x)
        shape = (self.out_channels, *self.kernel, words(x.channels // self.groups))
        ctx.tensor("weight", self.weight, ("U64",), shape)
        ctx.optional("scale", self.scale, (out.channels,))
        ctx.optional("scale_height", self.scale_height, (out.height,))
        ctx.optional("scale_width", self.scale_width, (out.width,))
        return out


class Threshold(Unary):
    """Sign of a batch-normalised value: float -> bits.

    A channel's bit is `x >= threshold` where its `flip` is 0, `x <= threshold` where it is 1.
    A threshold of -inf or +inf (flip 0) is a channel that is always +1 or always -1.
    `threshold` F32 `[channels]`, `flip` U8 `[channels]` (absent = all 0).
    """

    op: Literal["threshold"] = "threshold"
    threshold: Name
    flip: Name | None = None

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        ctx.tensor("threshold", self.threshold, ("F32",), (x.channels,))
        if self.flip is not None:
            ctx.tensor("flip", self.flip, ("U8",), (x.channels,))
        return Value("bits", x.height, x.width, x.channels)


class Affine(Unary):
    """`x * scale + bias` a channel (a batch norm that nothing could absorb): float -> float."""

    op: Literal["affine"] = "affine"
    scale: Name
    bias: Name

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        ctx.optional("scale", self.scale, (x.channels,))
        ctx.optional("bias", self.bias, (x.channels,))
        return x


class Prelu(Unary):
    """`p(x - shift_in) + shift_out`, p(z) = z where z >= 0, else slope z: float -> float.

    All tensors `[channels]`; absent shifts are 0; an absent slope is 0 everywhere (ReLU).
    """

    op: Literal["prelu"] = "prelu"
    slope: Name | None = None
    shift_in: Name | None = None
    shift_out: Name | None = None

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        for field in ("slope", "shift_in", "shift_out"):
            ctx.optional(field, getattr(self, field), (x.channels,))
        return x


class Add(Op):
    """Sum of two float values of one shape."""

    op: Literal["add"] = "add"
    inputs: tuple[Name, Name]

    def reads(self) -> tuple[str, ...]:
        return self.inputs

    def infer(self, ctx: Context) -> Value:
        a, b = (ctx.value(f"inputs[{i}]", name, "float") for i, name in enumerate(self.inputs))
        if a != b:
            raise ctx.fail(f"inputs: {self.inputs[0]!r} is {a}, {self.inputs[1]!r} is {b}")
        return a


class Concat(Op):
    """Values of one kind and size joined along channels."""

    op: Literal["concat"] = "concat"
    inputs: Annotated[tuple[Name, ...], Field(min_length=2, max_length=64)]

    def reads(self) -> tuple[str, ...]:
        return self.inputs

    def infer(self, ctx: Context) -> Value:
        parts = [ctx.value(f"inputs[{i}]", name) for i, name in enumerate(self.inputs)]
        first = parts[0]
        for name, part in zip(self.inputs, parts, strict=True):
            if (part.kind, part.height, part.width) != (first.kind, first.height, first.width):
                raise ctx.fail(f"inputs: {self.inputs[0]!r} is {first}, {name!r} is {part}")
        return Value(first.kind, first.height, first.width, sum(p.channels for p in parts))


class _Pool(Unary):
    kernel: Kernel
    stride: Stride
    padding: Padding = (0, 0)

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        if any(p * 2 > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise ctx.fail(f"padding: {self.padding} is more than half of the kernel {self.kernel}")
        sides = [
            window(size, self.kernel[i], self.stride[i], self.padding[i]) for i, size in enumerate((x.height, x.width))
        ]
        if min(sides) < 1:
            raise ctx.fail(f"kernel: {self.kernel} does not fit into {x}")
        return Value("float", sides[0], sides[1], x.channels)


class MaxPool2d(_Pool):
    """Largest value of each window; padding never wins."""

    op: Literal["max_pool2d"] = "max_pool2d"


class AvgPool2d(_Pool):
    """Mean of each window; padded taps are zeros that count."""

    op: Literal["avg_pool2d"] = "avg_pool2d"


class GlobalAvgPool(Unary):
    """Mean over height and width: `[h, w, c]` -> `[1, 1, c]`."""

    op: Literal["global_avg_pool"] = "global_avg_pool"

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input, "float")
        return Value("float", 1, 1, x.channels)


class Upsample(Unary):
    """Nearest-neighbour enlargement by a whole factor."""

    op: Literal["upsample"] = "upsample"
    factor: Annotated[int, Field(ge=2, le=8)] = 2

    def infer(self, ctx: Context) -> Value:
        x = ctx.value("input", self.input)
        return Value(x.kind, x.height * self.factor, x.width * self.factor, x.channels)


AnyOp = Annotated[
    Conv2d
    | PixelConv2d
    | Int8Conv2d
    | BinaryConv2d
    | Threshold
    | Affine
    | Prelu
    | Add
    | Concat
    | MaxPool2d
    | AvgPool2d
    | GlobalAvgPool
    | Upsample,
    Field(discriminator="op"),
]


class Graph(Strict):
    """Ops in execution order and the named outputs (`{"logits": value}` or `{"heatmaps": value}`)."""

    image: ClassVar[str] = "image"
    ops: Annotated[list[AnyOp], Field(min_length=1, max_length=MAX_OPS)]
    outputs: Annotated[dict[Name, Name], Field(min_length=1, max_length=64)]

    def infer(self, tensors: Mapping[str, TensorInfo], height: int, width: int) -> dict[str, Value]:
        """Prove the graph sound for an input of `height` x `width` pixels.

        Returns the shape of every value by name, `image` included.
        Raises GraphError naming the op, its field, and what was expected.
        """
        ctx = Context(tensors, Value("float", height, width, 3))
        for index, op in enumerate(self.ops):
            ctx.where = f"graph.ops[{index}] ({op.op}{' ' + op.source if op.source else ''})"
            value = op.infer(ctx)
            if max(value.height, value.width) > MAX_SIDE_PX or value.channels > MAX_CHANNELS:
                raise ctx.fail(f"output {value} is beyond {MAX_SIDE_PX} px or {MAX_CHANNELS} channels")
            if value.elements > MAX_VALUE_ELEMENTS:
                raise ctx.fail(f"output {value} holds more than {MAX_VALUE_ELEMENTS} elements")
            if op.output in ctx.values:
                raise ctx.fail(f"output: value {op.output!r} is written twice")
            ctx.values[op.output] = value
        ctx.where = "graph.outputs"
        for name, value_name in self.outputs.items():
            ctx.value(name, value_name, "float")
        unused = sorted(set(tensors) - ctx.used)
        if unused:
            raise GraphError(f"tensors: {unused[0]!r} is stored but no op names it")
        return ctx.values
