"""From a graph of ops to the steps that the engine runs, and the arena they share.

A step is one producer (a convolution, a pool, or just reading a value) and the chain of elementwise ops
that follow it, ended by stores and thresholds: the chain runs on registers, so batch norms, activations,
residuals and signs are never passes of their own, and a value that only thresholds read is never stored.
Values that are stored get their place in one arena by when they are alive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.packing.file import PackedFile, PackedFileError
from models.packing.graph import (
    MAX_EXACT_SUM,
    Add,
    Affine,
    AvgPool2d,
    BinaryConv2d,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    Int8Conv2d,
    MaxPool2d,
    Op,
    PixelConv2d,
    Prelu,
    Threshold,
    Upsample,
    Value,
    words,
)
from models.xnor import _engine
from models.xnor.errors import EngineError

ALIGN_BYTES = 64
LANES = 16
MAX_ARENA_BYTES = 8 << 30
MAX_PARAMETER_BYTES = 4 << 30
MAX_OPERATIONS = 10**13
"""A few bytes of a file can ask for any amount of memory and time; beyond these no file is loaded."""

VECTORS = ("scale", "bias", "threshold", "flip", "slope", "shift_in", "shift_out")
"""Fields of ops that name one number a channel."""

CHAINED = (
    Conv2d,
    PixelConv2d,
    Int8Conv2d,
    BinaryConv2d,
    MaxPool2d,
    AvgPool2d,
    GlobalAvgPool,
    Affine,
    Prelu,
    Add,
)
"""Ops whose output goes through a chain of stages before it is stored."""

Arrays = Callable[[str], NDArray[np.float32]]
Buffers = Callable[[str], _engine.Buffer]
MakeStage = Callable[[Buffers], _engine.Stage]
Emit = Callable[[_engine.Program, Buffers, list[_engine.Stage]], None]


@dataclass(frozen=True)
class Layout:
    """How a stored value lies in the arena: `stride` elements (floats, words or bytes) from pixel to pixel.

    `as_bytes` : a float value kept as bytes, the picture's pixels or quantised activations.
    `whole`, `start` : the value is the channels from `start` of another one and lies within that.
    """

    value: Value
    stride: int
    as_bytes: bool = False
    whole: str | None = None
    start: int = 0

    @property
    def kind(self) -> str:
        """What its elements are: `float`, `bits` or `bytes`."""
        return "bytes" if self.as_bytes else self.value.kind

    @property
    def bytes(self) -> int:
        """Size in the arena, a multiple of the alignment."""
        size = self.value.height * self.value.width * self.stride * {"float": 4, "bits": 8, "bytes": 1}[self.kind]
        return -(-size // ALIGN_BYTES) * ALIGN_BYTES

    @property
    def start_bytes(self) -> int:
        """From the whole's beginning to its own."""
        return self.start // 8 if self.kind == "bits" else self.start * 4


@dataclass(frozen=True)
class Part:
    """An input of a concatenation that can be made where it belongs: the channels from `start` of the output.

    `concat`, `add` : indices of the concatenation, and of the sum that alone reads it, if that is so.
    """

    concat: int
    add: int | None
    start: int
    channels: int

    def of(self, name: str) -> str:
        """The name of these channels of a value."""
        return f"{name}\0{self.start}+{self.channels}"


@dataclass
class Step:
    """One call of the engine: what it reads and writes (names of stored values), and how to say it.

    `ops` names the graph's ops that it covers, the producer first. `sums` are pairs of a stored value and a value that
    was added to it on the way there: an element is read just before its sum is written, so both may share one place.
    """

    ops: list[str]
    reads: list[str]
    emit: Emit
    writes: list[str] = field(default_factory=list)
    stages: list[MakeStage] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    sums: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Steps in order, where each stored value lies, and the arena's size."""

    steps: list[Step]
    layouts: dict[str, Layout]
    offsets: dict[str, int]
    arena_bytes: int
    outputs: dict[str, str]


def make_plan(file: PackedFile, *, fuse: bool = True, keep: Iterable[str] = ()) -> Plan:
    """Plan a proven file. `keep` names values to return beside the outputs; `fuse=False` keeps every op apart.

    Raises PackedFileError where the weights are not what the format says, EngineError beyond the engine's limits.
    """
    outputs = dict(file.header.graph.outputs)
    for name in keep:
        if name not in file.values:
            raise EngineError(f"keep: the graph has no value {name!r}")
        outputs[name] = name
    return _Planner(file, fuse, outputs).plan()


def build(file: PackedFile, plan: Plan, *, isa: str, threads: int) -> _engine.Program:
    """The compiled program: weights repacked for the machine, parameters copied."""
    size = file.header.input
    program = _engine.Program(isa, plan.arena_bytes, threads, size.height, size.width)

    def buffer(name: str) -> _engine.Buffer:
        layout = plan.layouts[name]
        value = layout.value
        offset = plan.offsets[layout.whole or name] + layout.start_bytes
        return _engine.Buffer(layout.kind, offset, value.height, value.width, value.channels, layout.stride)

    for step in plan.steps:
        step.emit(program, buffer, [make(buffer) for make in step.stages])
        program.name_step(" ".join(step.ops))
    for name, value in plan.outputs.items():
        program.output(name, buffer(value))
    return program


class _Planner:
    def __init__(self, file: PackedFile, fuse: bool, outputs: dict[str, str]) -> None:
        self.file = file
        self.fuse = fuse
        self.outputs = outputs
        self.values = file.values
        self.layouts: dict[str, Layout] = {}
        self.steps: list[Step] = []
        self.done: set[int] = set()
        self.ops = _needed(file.header.graph, set(outputs.values()))
        self.readers: dict[str, list[int]] = defaultdict(list)
        for index, op in enumerate(self.ops):
            for name in dict.fromkeys(op.reads()):
                self.readers[name].append(index)
        self.parts = self._find_parts() if fuse else {}
        # Of a value that is made part by part: the parts that are still to be made.
        self.missing: dict[str, set[str]] = defaultdict(set)
        for name, part in self.parts.items():
            self.missing[self.ops[part.concat].output].add(name)
        # Bytes of the tables of pixels that steps go by; steps whose windows are alike share one.
        self.tables: dict[Hashable, int] = {}

    def plan(self) -> Plan:
        operations = sum(_operations(op, self.values) for op in self.ops)
        self._limit("an image takes", operations, "operations", MAX_OPERATIONS)
        readers = [self.ops[index] for index in self.readers[Graph.image]]
        if Graph.image in self.outputs.values() or any(not isinstance(op, PixelConv2d) for op in readers):
            self._image()
        for index, op in enumerate(self.ops):
            if index not in self.done:
                self.done.add(index)
                self._step(op)
        parameters = sum(self.tables.values()) + sum(_parameter_bytes(op, self.file) for op in self.ops)
        self._limit("its weights and tables need", parameters, "bytes", MAX_PARAMETER_BYTES)
        self.steps = [step for step in self.steps if step.writes]
        offsets, arena_bytes = _place(self.steps, self.layouts, set(self.outputs.values()))
        self._limit("its activations need", arena_bytes, "bytes", MAX_ARENA_BYTES)
        return Plan(self.steps, self.layouts, offsets, arena_bytes, self.outputs)

    def _limit(self, what: str, total: int, unit: str, limit: int) -> None:
        if total > limit:
            raise EngineError(f"{self.file.path}: {what} {total} {unit}, the limit is {limit}")

    # ---- producers ----

    def _image(self) -> None:
        spec = self.file.header.input
        pixel = np.arange(256, dtype=np.float32) / np.float32(255)
        with np.errstate(all="ignore"):  # a file may name any mean and std
            mean, std = np.asarray(spec.mean).astype(np.float32), np.asarray(spec.std).astype(np.float32)
            table = ((pixel - mean[:, None]) / std[:, None]).reshape(-1)
        step = Step(["image"], [], lambda program, buffer, _: program.pixels(buffer(Graph.image), table))
        self._write(step, Graph.image, stride=3)
        self.steps.append(step)

    def _step(self, op: Op) -> None:
        match op:
            case Conv2d():
                self._conv(op)
            case PixelConv2d():
                self._pixel_conv(op)
            case Int8Conv2d():
                self._int8_conv(op)
            case BinaryConv2d():
                self._binary_conv(op)
            case MaxPool2d() | AvgPool2d():
                self._pool(op, op.kernel, op.stride, op.padding, "max" if isinstance(op, MaxPool2d) else "mean")
            case GlobalAvgPool():
                x = self.values[op.input]
                self._pool(op, (x.height, x.width), (1, 1), (0, 0), "global_mean")
            case Concat():
                self._move(
                    op, lambda program, buffer: program.concat([buffer(n) for n in op.inputs], buffer(op.output))
                )
            case Upsample():
                source, factor = op.input, op.factor
                self._move(op, lambda program, buffer: program.upsample(buffer(source), buffer(op.output), factor))
            case _:
                self._pointwise(op)

    def _conv(self, op: Conv2d) -> None:
        out = self.values[op.output]
        weight = self.file.tensors[op.weight]
        sliding = self._sliding(op.input, out, op.kernel, op.stride, op.padding, op.dilation)

        def emit(program: _engine.Program, buffer: Buffers, stages: list[_engine.Stage]) -> None:
            program.conv2d(buffer(op.input), out.height, out.width, out.channels, sliding, op.groups, weight, stages)

        step = Step([_title(op)], [op.input], emit)
        if op.bias is not None:
            self._channel_stage(step, _engine.Stage.shift, op.bias)
        self._chain(step, op.output)

    def _pixel_conv(self, op: PixelConv2d) -> None:
        """The picture's convolution, and if a max-pool follows, that too: its rows are pooled as they are made."""
        x, out = self.values[op.input], self.values[op.output]
        padded = f"{Graph.image}\0{op.padding}{op.zero}"
        if padded not in self.layouts:
            rows, columns = op.padding
            whole = Value("float", x.height + 2 * rows, x.width + 2 * columns, 3)
            step = Step(
                ["image"], [], lambda program, buffer, _: program.padded_pixels(buffer(padded), op.padding, op.zero)
            )
            self._write_as(step, padded, Layout(whole, 3, as_bytes=True))
            self.steps.append(step)
        sliding = _engine.Sliding(op.kernel, op.stride, (0, 0), (1, 1))
        self.tables[op.output] = 8 * out.height * out.width
        weight = self.file.tensors[op.weight]
        step = Step([_title(op)], [padded], _nothing)
        self._channel_stage(step, _engine.Stage.scale, op.scale)
        if op.bias is not None:
            self._channel_stage(step, _engine.Stage.shift, op.bias)
        name, pool = self._until_pool(step, op.output) if self.fuse else (op.output, None)
        before: list[MakeStage] = []
        if pool is not None:
            before, step.stages = step.stages, []

        def emit(program: _engine.Program, buffer: Buffers, stages: list[_engine.Stage]) -> None:
            following = None
            if pool is not None:
                pooled = self.values[pool.output]
                window = _engine.Sliding(pool.kernel, pool.stride, pool.padding, (1, 1))
                following = _engine.FollowingPool(pooled.height, pooled.width, window, stages)
                stages = [make(buffer) for make in before]
            program.pixel_conv2d(
                buffer(padded), out.height, out.width, out.channels, sliding, op.zero, weight, stages, following
            )

        step.emit = emit
        self._chain(step, name)

    def _until_pool(self, step: Step, name: str) -> tuple[str, MaxPool2d | None]:
        """Absorb what only channels decide, as far as a max-pool that nothing else competes with.

        The pool's output and the pool; where there is none, `name`, and nothing is absorbed.
        """
        value, found, at = self.values[name], [], name
        while True:
            readers = self.readers[at]
            if len(readers) != 1 or at in self.outputs.values():
                return name, None
            op = self.ops[readers[0]]
            found.append(readers[0])
            if isinstance(op, MaxPool2d):
                if self._pools_bits(op):
                    return name, None
                break
            if not isinstance(op, Affine | Prelu):
                return name, None
            at = op.output
        row_bytes = value.width * _padded(value.channels) * 4
        if op.kernel[0] * row_bytes > _engine.POOLED_ROWS_BYTES:
            return name, None
        for index in found:
            self.done.add(index)
            step.ops.append(_title(self.ops[index]))
            if self.ops[index] is not op:
                self._elementwise(step, self.ops[index], name)
        return op.output, op

    def _int8_conv(self, op: Int8Conv2d) -> None:
        out = self.values[op.output]
        source, scales = self._quantised(op.input)
        sliding = self._sliding(source, out, op.kernel, op.stride)
        weight = self.file.tensors[op.weight]

        def emit(program: _engine.Program, buffer: Buffers, stages: list[_engine.Stage]) -> None:
            program.byte_conv2d(buffer(source), out.height, out.width, out.channels, sliding, weight, stages)

        step = Step([_title(op)], [source, scales], emit)
        step.stages.append(lambda buffer: _engine.Stage.pixel_scale_at(buffer(scales)))
        self._channel_stage(step, _engine.Stage.scale, op.scale)
        if op.bias is not None:
            self._channel_stage(step, _engine.Stage.shift, op.bias)
        self._chain(step, op.output)

    def _quantised(self, name: str) -> tuple[str, str]:
        """The value's bytes and the scale of each pixel."""
        x = self.values[name]
        quantised, scales = f"{name}\0bytes", f"{name}\0scales"
        if quantised not in self.layouts:
            step = Step(
                ["quantize"],
                [name],
                lambda program, buffer, _: program.quantize(buffer(name), buffer(quantised), buffer(scales)),
            )
            self._write_as(step, quantised, Layout(x, -(-x.channels // 4) * 4, as_bytes=True))
            self._write_as(step, scales, Layout(Value("float", x.height, x.width, 1), 1))
            self.steps.append(step)
        return quantised, scales

    def _binary_conv(self, op: BinaryConv2d) -> None:
        x, out = self.values[op.input], self.values[op.output]
        each = x.channels // op.groups
        if prod(op.kernel) * each >= MAX_EXACT_SUM:
            raise EngineError(f"{self.file.path}: {_title(op)}: sums reach {MAX_EXACT_SUM}, which float32 cannot count")
        weight = self.file.tensors[op.weight]
        if each % 64 and (weight[..., -1] >> np.uint64(each % 64)).any():
            raise PackedFileError(self.file.path, f"tensors.{op.weight}: has bits beyond its {each} channels")
        source = op.input
        if op.groups > 1 and each % 64:
            source = self._regrouped(op.input, op.groups)
        sliding = self._sliding(source, out, op.kernel, op.stride, op.padding, op.dilation)

        def emit(program: _engine.Program, buffer: Buffers, stages: list[_engine.Stage]) -> None:
            program.binary_conv2d(
                buffer(source), out.height, out.width, out.channels, sliding, op.groups, weight, stages
            )

        step = Step([_title(op)], [source], emit)
        if op.scale is not None:
            self._channel_stage(step, _engine.Stage.scale, op.scale)
        if op.scale_height is not None:
            self._pixel_scale(step, op.scale_height, lambda rows: np.repeat(rows, out.width), out)
        if op.scale_width is not None:
            self._pixel_scale(step, op.scale_width, lambda columns: np.tile(columns, out.height), out)
        if op.bias is not None:
            self._channel_stage(step, _engine.Stage.shift, op.bias)
        self._chain(step, op.output)

    def _pixel_scale(
        self, step: Step, name: str, spread: Callable[[NDArray[np.float32]], NDArray[np.float32]], out: Value
    ) -> None:
        """A stage that multiplies by one number a pixel, `spread` from those of the rows or the columns."""
        self.tables[step.ops[0], name] = 4 * out.height * out.width
        step.stages.append(lambda _: _engine.Stage.pixel_scale(spread(self._array(name))))

    def _regrouped(self, name: str, groups: int) -> str:
        """The same bits with every group of channels at the start of a word."""
        grouped = f"{name}\0{groups} groups"
        if grouped not in self.layouts:
            x = self.values[name]
            step = Step(
                ["regroup"], [name], lambda program, buffer, _: program.regroup(buffer(name), buffer(grouped), groups)
            )
            self.layouts[grouped] = Layout(x, groups * words(x.channels // groups))
            step.writes.append(grouped)
            self.steps.append(step)
        return grouped

    def _pool(
        self,
        op: MaxPool2d | AvgPool2d | GlobalAvgPool,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        pool: str,
    ) -> None:
        out = self.values[op.output]
        sliding = self._sliding(op.input, out, kernel, stride, padding)

        def emit(program: _engine.Program, buffer: Buffers, stages: list[_engine.Stage]) -> None:
            program.pool2d(buffer(op.input), out.height, out.width, sliding, pool, stages)

        self._chain(Step([_title(op)], [op.input], emit), op.output)

    def _sliding(
        self,
        source: str,
        out: Value,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> _engine.Sliding:
        """A window that slides over a value that is there: two numbers of 4 bytes for each pixel of what comes out."""
        x = self.layouts[source]
        alike = (x.value.height, x.value.width, x.stride, out.height, out.width, kernel, stride, padding, dilation)
        self.tables[alike] = 8 * out.height * out.width
        return _engine.Sliding(kernel, stride, padding, dilation)

    def _move(self, op: Concat | Upsample, call: Callable[[_engine.Program, Buffers], None]) -> None:
        step = Step([_title(op)], list(op.reads()), lambda program, buffer, _: call(program, buffer))
        self._write(step, op.output)
        self.steps.append(step)

    def _pointwise(self, op: Op) -> None:
        """An elementwise op or threshold that nothing before it could absorb: its first input is read from memory."""
        source = op.reads()[0]
        step = Step([_title(op)], [source], lambda program, buffer, stages: program.pointwise(buffer(source), stages))
        if isinstance(op, Threshold):
            self._threshold(step, op)
            self.steps.append(step)
        else:
            self._elementwise(step, op, source)
            self._chain(step, op.output)

    # ---- concatenations ----

    def _find_parts(self) -> dict[str, Part]:
        """Inputs of concatenations that nothing keeps from being made in place, by name.

        A sum that may itself be made part by part is made in its own place, and what is enlarged lies by itself.
        """
        makers = {op.output: index for index, op in enumerate(self.ops)}
        found: dict[str, Part] = {}
        totals: set[str] = set()
        for index, op in enumerate(self.ops):
            if not isinstance(op, Concat) or any(name in self.outputs.values() for name in (*op.inputs, op.output)):
                continue
            starts = [0]
            for name in op.inputs:
                starts.append(starts[-1] + self.values[name].channels)
            order = [makers.get(name, -1) for name in op.inputs]
            if (
                order != sorted(set(order))
                or any(start % LANES for start in starts[:-1])
                or any(not isinstance(self.ops[maker], CHAINED) for maker in order)
                or any(name in found or name in totals for name in op.inputs)
                or any(isinstance(self.ops[i], Upsample) for name in op.inputs for i in self.readers[name])
            ):
                continue
            add = self._sum_of_all(op)
            if add is not None:
                totals.add(self.ops[add].output)
            for start, name in zip(starts, op.inputs, strict=False):
                found[name] = Part(index, add, start, self.values[name].channels)
        return found

    def _sum_of_all(self, concat: Concat) -> int | None:
        """The sum that may be made part by part: it alone reads the concatenation, whose inputs feed but thresholds."""
        readers = self.readers[concat.output]
        inputs = [self.ops[i] for name in concat.inputs for i in self.readers[name]]
        if len(readers) != 1 or any(not isinstance(op, Threshold) and op is not concat for op in inputs):
            return None
        op = self.ops[readers[0]]
        return readers[0] if isinstance(op, Add) and op.inputs[0] != op.inputs[1] else None

    def _join(self, step: Step, name: str, part: Part) -> None:
        """Make a part where it belongs: in the concatenation, or in the sum of that and a value that is there.

        Parts come in any order, since an earlier step may have absorbed one; which of the two it is, the first decides.
        """
        concat = self.ops[part.concat]
        missing = self.missing[concat.output]
        if part.add is not None:
            add = self.ops[part.add]
            other = next(value for value in add.reads() if value != concat.output)
            is_first = len(missing) == len(concat.reads())
            if is_first and self._is_whole(other) and self.layouts[other].whole is None:
                self.missing[add.output] = missing
            if add.output in self.missing:
                missing.remove(name)
                self._join_sum(step, part, add.output, other)
                return
        missing.remove(name)
        self._write_as(step, concat.output, self._layout(concat.output))
        self.layouts[name] = self._slice(concat.output, part)
        step.stages.append(lambda buffer: _engine.Stage.store(buffer(name)))
        if not missing:
            self.done.add(part.concat)
            step.ops.append(_title(concat))

    def _join_sum(self, step: Step, part: Part, total: str, other: str) -> None:
        self.layouts[part.of(other)] = self._slice(other, part)
        step.added.append(other)
        step.stages.append(lambda buffer: _engine.Stage.add(buffer(part.of(other))))
        thresholds = [i for i in self.readers[total] if isinstance(self.ops[i], Threshold)]
        for index in thresholds:
            op = self.ops[index]
            assert isinstance(op, Threshold)
            self._threshold(step, op, part)
        if len(thresholds) < len(self.readers[total]) or total in self.outputs.values():
            self._write_as(step, total, self._layout(total))
            self.layouts[part.of(total)] = self._slice(total, part)
            step.stages.append(lambda buffer: _engine.Stage.store(buffer(part.of(total))))
        if not self.missing[total]:
            assert part.add is not None
            done = (part.concat, part.add, *thresholds)
            self.done.update(done)
            step.ops += [_title(self.ops[index]) for index in done]
            if total in self.layouts:
                step.sums.append((total, other))

    def _is_whole(self, name: str) -> bool:
        """Whether a value is computed by now, all of it."""
        return name in self.layouts and not self.missing.get(name)

    def _slice(self, whole: str, part: Part) -> Layout:
        value, layout = self.values[whole], self.layouts[whole]
        own = Value(value.kind, value.height, value.width, part.channels)
        return Layout(own, layout.stride, whole=whole, start=part.start)

    # ---- chains ----

    def _chain(self, step: Step, name: str) -> None:
        """Let the step absorb all that follows value `name` elementwise, and store what others will read."""
        pools: list[Step] = []
        while True:
            readers = [(i, self.ops[i]) for i in self.readers[name] if i not in self.done]
            following: tuple[int, Op] | None = None
            part = self.parts.get(name)
            if self.fuse:
                for index, op in readers:
                    if isinstance(op, Threshold):
                        self.done.add(index)
                        self._threshold(step, op)
                        step.ops.append(_title(op))
                    elif isinstance(op, MaxPool2d) and self._pools_bits(op):
                        self.done.update((index, *self.readers[op.output]))
                        pools += [self._bit_pool(step, op, self.ops[i]) for i in self.readers[op.output]]
                following = next((r for r in readers if self._absorbable(r[1], name)), None)
            others = [i for i, _ in readers if i not in self.done and (following is None or i != following[0])]
            if part is not None:
                self._join(step, name, part)
            elif others or name in self.outputs.values():
                self._store(step, name)
            if following is None:
                break
            index, op = following
            self.done.add(index)
            step.ops.append(_title(op))
            self._elementwise(step, op, name)
            name = op.output
        self.steps += [step, *pools]

    def _pools_bits(self, pool: MaxPool2d) -> bool:
        """Whether thresholds alone read a max-pool: then its input's bits are pooled, a word at a time."""
        readers = [self.ops[i] for i in self.readers[pool.output]]
        return pool.output not in self.outputs.values() and all(isinstance(op, Threshold) for op in readers)

    def _bit_pool(self, step: Step, pool: MaxPool2d, threshold: Op) -> Step:
        """Let `step` ask the threshold before the pool: the largest is >= t where any is, <= t where all are."""
        assert isinstance(threshold, Threshold)
        x, name = self.values[pool.input], f"{threshold.output}\0unpooled"
        self._write_as(step, name, Layout(Value("bits", x.height, x.width, x.channels), words(x.channels)))
        self._bits(step, threshold, name)
        step.ops.append(_title(threshold))
        flip = np.zeros(64 * words(x.channels), np.uint8)
        if threshold.flip is not None:
            flip[: x.channels] = self.file.tensors[threshold.flip] != 0
        flipped = np.packbits(flip, bitorder="little").view(np.uint64).tolist()
        sliding = self._sliding(name, self.values[pool.output], pool.kernel, pool.stride, pool.padding)
        after = Step(
            [_title(pool)],
            [name],
            lambda program, buffer, _: program.bit_pool2d(buffer(name), buffer(threshold.output), sliding, flipped),
        )
        self._write(after, threshold.output)
        return after

    def _absorbable(self, op: Op, name: str) -> bool:
        if isinstance(op, Add):
            a, b = op.inputs
            return a != b and self._is_whole(b if a == name else a)
        return isinstance(op, Affine | Prelu)

    def _elementwise(self, step: Step, op: Op, name: str) -> None:
        match op:
            case Affine():
                self._channel_stage(step, _engine.Stage.scale, op.scale)
                self._channel_stage(step, _engine.Stage.shift, op.bias)
            case Prelu():
                if op.shift_in is not None:
                    self._channel_stage(step, lambda shift: _engine.Stage.shift(-shift), op.shift_in)
                if op.slope is None:
                    step.stages.append(lambda _: _engine.Stage.relu())
                else:
                    self._channel_stage(step, _engine.Stage.prelu, op.slope)
                if op.shift_out is not None:
                    self._channel_stage(step, _engine.Stage.shift, op.shift_out)
            case Add():
                other = op.inputs[1] if op.inputs[0] == name else op.inputs[0]
                step.added.append(other)
                step.sums = [pair for pair in step.sums if pair[1] != other]  # what was stored must leave it as it is
                step.stages.append(lambda buffer: _engine.Stage.add(buffer(other)))
            case _:
                raise EngineError(f"{_title(op)}: the engine does not know this op")

    def _threshold(self, step: Step, op: Threshold, part: Part | None = None) -> None:
        """With `part`, the bits of those channels."""
        self._write(step, op.output)
        if part is None:
            self._bits(step, op, op.output)
            return
        self.layouts[part.of(op.output)] = self._slice(op.output, part)
        self._bits(step, op, part.of(op.output), slice(part.start, part.start + part.channels))

    def _bits(self, step: Step, op: Threshold, name: str, chosen: slice = slice(None)) -> None:
        """A stage that writes the bits of the `chosen` channels. With flip, `x <= t` is asked as `-x >= -t`: exact."""

        def make(buffer: Buffers) -> _engine.Stage:
            threshold = self._array(op.threshold)
            sign = np.zeros(len(threshold), np.float32)
            if op.flip is not None and self.file.tensors[op.flip].any():
                flip = self.file.tensors[op.flip] != 0
                sign = np.where(flip, np.float32(-0.0), np.float32(0.0)).astype(np.float32)
                threshold = np.where(flip, -threshold, threshold).astype(np.float32)
            return _engine.Stage.bits(buffer(name), threshold[chosen], sign[chosen])

        step.stages.append(make)

    def _store(self, step: Step, name: str) -> None:
        self._write(step, name)
        step.sums += [(name, added) for added in step.added]
        step.stages.append(lambda buffer: _engine.Stage.store(buffer(name)))

    def _channel_stage(self, step: Step, make: Callable[[NDArray[np.float32]], _engine.Stage], name: str) -> None:
        step.stages.append(lambda _: make(self._array(name)))

    def _layout(self, name: str) -> Layout:
        value = self.values[name]
        return Layout(value, words(value.channels) if value.kind == "bits" else _padded(value.channels))

    def _write(self, step: Step, name: str, stride: int | None = None) -> None:
        self._write_as(step, name, self._layout(name) if stride is None else Layout(self.values[name], stride))

    def _write_as(self, step: Step, name: str, layout: Layout) -> None:
        self.layouts[name] = layout
        step.writes.append(name)

    def _array(self, name: str) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.file.tensors[name], dtype=np.float32)


def _nothing(program: _engine.Program, buffer: Buffers, stages: list[_engine.Stage]) -> None:
    """Stands in until the step's own call is known."""


def _needed(graph: Graph, wanted: set[str]) -> list[Op]:
    """The ops that the wanted values depend on, in order."""
    wanted = set(wanted)
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.output in wanted:
            kept.append(op)
            wanted.update(op.reads())
    return kept[::-1]


def _operations(op: Op, values: Mapping[str, Value]) -> int:
    """Multiply-accumulates for one image; of a pool the taps, of any other op the elements that it writes."""
    elements = values[op.output].elements
    match op:
        case MaxPool2d() | AvgPool2d():
            return elements * prod(op.kernel)
        case GlobalAvgPool():
            return values[op.input].elements
    return op.macs(values) or elements


def _parameter_bytes(op: Op, file: PackedFile) -> int:
    """What the op's weights and vectors take when they are repacked: a group fills aligned blocks of whole vectors."""
    vectors = sum(getattr(op, field, None) is not None for field in VECTORS)
    total = 4 * vectors * _padded(file.values[op.output].channels)
    if isinstance(op, Conv2d | PixelConv2d | Int8Conv2d | BinaryConv2d):
        each = op.out_channels // op.groups
        total += file.tensors[op.weight].nbytes * _padded(each) // each + op.groups * 2 * ALIGN_BYTES
    return total


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _title(op: Op) -> str:
    kind: Any = getattr(op, "op", type(op).__name__)
    return f"{kind}:{op.source or op.output}"


def _place(steps: Sequence[Step], layouts: dict[str, Layout], forever: set[str]) -> tuple[dict[str, int], int]:
    """Offsets such that values alive at the same time never overlap; the largest values choose first.

    A sum takes the place of an addend that nothing else reads from its first part on.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    read: dict[str, list[int]] = defaultdict(list)
    added_by: dict[str, list[int]] = defaultdict(list)
    for index, step in enumerate(steps):
        for name in step.writes:
            first.setdefault(name, index)
            last[name] = index
        for name in step.reads:
            read[layouts[name].whole or name].append(index)
        for name in step.added:
            added_by[layouts[name].whole or name].append(index)
        for name in (*step.reads, *step.added):
            last[layouts[name].whole or name] = index
    for name in forever:
        last[name] = len(steps)
    place: dict[str, str] = {}
    for index, step in enumerate(steps):
        taken: set[str] = set()
        for stored, added in step.sums:
            if stored in place or added in taken or not _alike(layouts, stored, added):
                continue
            over = (
                last[added] == index
                and all(i < first[stored] for i in read[added])
                and all(i < first[stored] or stored in steps[i].writes for i in added_by[added])
            )
            if over:
                taken.add(added)
                place[stored] = place.get(added, added)
                last[place[stored]] = max(last[place[stored]], last[stored])
    offsets: dict[str, int] = {}
    end = ALIGN_BYTES
    for name in sorted(first.keys() - place.keys(), key=lambda n: (-layouts[n].bytes, first[n])):
        size = layouts[name].bytes
        rivals = sorted(
            (offsets[other], layouts[other].bytes)
            for other in offsets
            if first[other] <= last[name] and first[name] <= last[other]
        )
        at = 0
        for begin, length in rivals:
            if at + size <= begin:
                break
            at = max(at, begin + length)
        offsets[name] = at
        end = max(end, at + size)
    return offsets | {stored: offsets[root] for stored, root in place.items()}, end


def _alike(layouts: dict[str, Layout], a: str, b: str) -> bool:
    """Whether two values lie in memory the same way, neither as a part of another."""
    x, y = layouts[a], layouts[b]
    return x.whole is None and y.whole is None and (x.value, x.stride) == (y.value, y.stride)
