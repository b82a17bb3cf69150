// The engine as Python sees it. Arrays are checked here; graphs were proven sound before (models/packing).
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <stdexcept>

#include "dispatch.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using xnor::Buffer;
using xnor::FollowingPool;
using xnor::Kind;
using xnor::Program;
using xnor::Sliding;
using xnor::StageKind;
using xnor::StageSpec;

using FloatVector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weight = nb::ndarray<nb::ro, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint64_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const int8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Images = nb::ndarray<const uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<nb::c_contig, nb::device::cpu>;

std::vector<float> copy(const FloatVector& array) { return {array.data(), array.data() + array.size()}; }

StageSpec channel_stage(StageKind kind, const FloatVector& array) { return {kind, copy(array), {}, {}}; }

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

template <class Array>
void check_weight(const Array& weight, int out_channels, const Sliding& sliding, int64_t elements) {
    require(static_cast<int64_t>(weight.shape(0)) == out_channels &&
                static_cast<int64_t>(weight.shape(1)) == sliding.kernel[0] &&
                static_cast<int64_t>(weight.shape(2)) == sliding.kernel[1] &&
                static_cast<int64_t>(weight.shape(3)) == elements,
            "weight: wrong shape");
}

const xnor::Kernels& kernels(const std::string& isa) {
    for (const xnor::Kernels* table : xnor::available_kernels())
        if (isa == table->isa) return *table;
    throw std::invalid_argument("isa: not available: " + isa);
}

void run(Program& program, const Images& images, const std::vector<Out>& outputs, int threads) {
    require(threads > 0, "threads: none");
    require(static_cast<int64_t>(images.shape(1)) == program.height() &&
                static_cast<int64_t>(images.shape(2)) == program.width() && images.shape(3) == 3,
            "images: wrong shape");
    require(outputs.size() == program.outputs().size(), "outputs: wrong number");
    std::vector<char*> pointers;
    for (size_t i = 0; i < outputs.size(); ++i) {
        const Buffer& buffer = program.outputs()[i].buffer;
        const bool bits = buffer.kind == Kind::kBits;
        const int64_t row = bits ? (buffer.channels + 63) / 64 * 8 : int64_t{4} * buffer.channels;
        require(
            static_cast<int64_t>(outputs[i].nbytes()) == static_cast<int64_t>(images.shape(0)) * buffer.pixels() * row,
            "outputs: wrong size");
        pointers.push_back(static_cast<char*>(outputs[i].data()));
    }
    const uint8_t* data = images.data();
    const int64_t count = static_cast<int64_t>(images.shape(0));
    nb::gil_scoped_release release;
    program.run(data, count, pointers, threads);
}

double ceiling(const std::string& isa, double seconds) {
    using Clock = std::chrono::steady_clock;
    const xnor::Kernels& table = kernels(isa);
    nb::gil_scoped_release release;
    double best = 0;
    const auto until = Clock::now() + std::chrono::duration<double>(seconds);
    do {
        const auto begin = Clock::now();
        const int64_t macs = table.ceiling(20000);
        const double took = std::chrono::duration<double>(Clock::now() - begin).count();
        if (macs / took > best) best = macs / took;
    } while (Clock::now() < until);
    return best;
}

}  // namespace

NB_MODULE(_engine, m) {
    m.doc() = "The compiled part of models.xnor.";

    m.attr("POOLED_ROWS_BYTES") = xnor::kPooledRowsBytes;

    m.def("available_isas", [] {
        std::vector<std::string> names;
        for (const xnor::Kernels* table : xnor::available_kernels()) names.emplace_back(table->isa);
        return names;
    });
    m.def("ceiling", &ceiling, "isa"_a, "seconds"_a);

    nb::class_<Buffer>(m, "Buffer")
        .def(
            "__init__",
            [](Buffer* self, const std::string& kind, int64_t offset, int height, int width, int channels,
               int64_t stride) {
                require(kind == "float" || kind == "bits" || kind == "bytes", "buffer: unknown kind");
                const Kind as = kind == "float" ? Kind::kFloat : kind == "bits" ? Kind::kBits : Kind::kBytes;
                new (self) Buffer{as, offset, height, width, channels, stride};
            },
            "kind"_a, "offset"_a, "height"_a, "width"_a, "channels"_a, "stride"_a);

    nb::class_<Sliding>(m, "Sliding")
        .def(
            "__init__",
            [](Sliding* self, std::array<int, 2> kernel, std::array<int, 2> stride, std::array<int, 2> padding,
               std::array<int, 2> dilation) {
                for (int i = 0; i < 2; ++i)
                    require(kernel[i] > 0 && stride[i] > 0 && padding[i] >= 0 && padding[i] <= 64 && dilation[i] > 0,
                            "sliding: out of range");
                new (self) Sliding{kernel, stride, padding, dilation};
            },
            "kernel"_a, "stride"_a, "padding"_a, "dilation"_a);

    nb::class_<StageSpec>(m, "Stage")
        .def_static(
            "scale", [](const FloatVector& array) { return channel_stage(StageKind::kScale, array); }, "channel"_a)
        .def_static(
            "shift", [](const FloatVector& array) { return channel_stage(StageKind::kShift, array); }, "channel"_a)
        .def_static(
            "pixel_scale", [](const FloatVector& array) { return channel_stage(StageKind::kPixelScale, array); },
            "pixel"_a)
        .def_static(
            "pixel_scale_at", [](const Buffer& buffer) { return StageSpec{StageKind::kPixelScaleAt, {}, {}, buffer}; },
            "buffer"_a)
        .def_static(
            "prelu", [](const FloatVector& array) { return channel_stage(StageKind::kPrelu, array); }, "slope"_a)
        .def_static("relu", [] { return StageSpec{StageKind::kRelu, {}, {}, {}}; })
        .def_static(
            "add", [](const Buffer& buffer) { return StageSpec{StageKind::kAdd, {}, {}, buffer}; }, "buffer"_a)
        .def_static(
            "store", [](const Buffer& buffer) { return StageSpec{StageKind::kStore, {}, {}, buffer}; }, "buffer"_a)
        .def_static(
            "bits",
            [](const Buffer& buffer, const FloatVector& threshold, const FloatVector& sign) {
                return StageSpec{StageKind::kBits, copy(threshold), copy(sign), buffer};
            },
            "buffer"_a, "threshold"_a, "sign"_a);

    nb::class_<FollowingPool>(m, "FollowingPool")
        .def(
            "__init__",
            [](FollowingPool* self, int height, int width, const Sliding& sliding,
               const std::vector<StageSpec>& stages) { new (self) FollowingPool{height, width, sliding, stages}; },
            "height"_a, "width"_a, "sliding"_a, "stages"_a);

    nb::class_<Program>(m, "Program")
        .def(
            "__init__",
            [](Program* self, const std::string& isa, int64_t arena_bytes, int threads, int height, int width) {
                require(arena_bytes > 0 && threads > 0 && threads <= 1024, "program: out of range");
                new (self) Program(kernels(isa), arena_bytes, threads, height, width);
            },
            "isa"_a, "arena_bytes"_a, "threads"_a, "height"_a, "width"_a)
        .def(
            "pixels",
            [](Program& self, const Buffer& output, const FloatVector& table) {
                require(table.size() == 3 * 256, "pixels: expected 3 x 256 numbers");
                self.pixels(output, table.data());
            },
            "output"_a, "table"_a)
        .def(
            "binary_conv2d",
            [](Program& self, const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
               int groups, const Bits& weight, const std::vector<StageSpec>& stages) {
                require(groups > 0, "binary_conv2d: groups");
                check_weight(weight, out_channels, sliding, (input.channels / groups + 63) / 64);
                self.binary_conv2d(input, height, width, out_channels, sliding, groups, weight.data(), stages);
            },
            "input"_a, "height"_a, "width"_a, "out_channels"_a, "sliding"_a, "groups"_a, "weight"_a, "stages"_a)
        .def(
            "conv2d",
            [](Program& self, const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
               int groups, const Weight& weight, const std::vector<StageSpec>& stages) {
                require(groups > 0, "conv2d: groups");
                check_weight(weight, out_channels, sliding, input.channels / groups);
                const nb::dlpack::dtype type = weight.dtype();
                require(type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) &&
                            (type.bits == 16 || type.bits == 32),
                        "conv2d: expected float32 or float16 weights");
                self.conv2d(input, height, width, out_channels, sliding, groups, weight.data(), type.bits == 16,
                            stages);
            },
            "input"_a, "height"_a, "width"_a, "out_channels"_a, "sliding"_a, "groups"_a, "weight"_a, "stages"_a)
        .def("padded_pixels", &Program::padded_pixels, "output"_a, "padding"_a, "zero"_a)
        .def(
            "pixel_conv2d",
            [](Program& self, const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
               std::array<uint8_t, 3> zero, const Bytes& weight, const std::vector<StageSpec>& stages,
               const FollowingPool* pool) {
                check_weight(weight, out_channels, sliding, 3);
                self.pixel_conv2d(input, height, width, out_channels, sliding, zero, weight.data(), stages, pool);
            },
            "input"_a, "height"_a, "width"_a, "out_channels"_a, "sliding"_a, "zero"_a, "weight"_a, "stages"_a,
            "pool"_a.none())
        .def("quantize", &Program::quantize, "input"_a, "bytes"_a, "scales"_a)
        .def(
            "byte_conv2d",
            [](Program& self, const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
               const Bytes& weight, const std::vector<StageSpec>& stages) {
                check_weight(weight, out_channels, sliding, input.channels);
                self.byte_conv2d(input, height, width, out_channels, sliding, weight.data(), stages);
            },
            "input"_a, "height"_a, "width"_a, "out_channels"_a, "sliding"_a, "weight"_a, "stages"_a)
        .def(
            "pool2d",
            [](Program& self, const Buffer& input, int height, int width, const Sliding& sliding,
               const std::string& pool, const std::vector<StageSpec>& stages) {
                require(pool == "max" || pool == "mean" || pool == "global_mean", "pool2d: unknown pool");
                self.pool2d(input, height, width, sliding,
                            pool == "max"    ? xnor::Pool::kMax
                            : pool == "mean" ? xnor::Pool::kMean
                                             : xnor::Pool::kMeanByRow,
                            stages);
            },
            "input"_a, "height"_a, "width"_a, "sliding"_a, "pool"_a, "stages"_a)
        .def("pointwise", &Program::pointwise, "input"_a, "stages"_a)
        .def("concat", &Program::concat, "inputs"_a, "output"_a)
        .def("upsample", &Program::upsample, "input"_a, "output"_a, "factor"_a)
        .def("bit_pool2d", &Program::bit_pool2d, "input"_a, "output"_a, "sliding"_a, "flipped"_a)
        .def("regroup", &Program::regroup, "input"_a, "output"_a, "groups"_a)
        .def("output", &Program::output, "name"_a, "buffer"_a)
        .def("name_step", &Program::name_step, "name"_a)
        .def("run", &run, "images"_a, "outputs"_a, "threads"_a)
        .def(
            "profile",
            [](Program& self, const Images& image, int repeats) {
                require(image.shape(0) == 1 && static_cast<int64_t>(image.shape(1)) == self.height() &&
                            static_cast<int64_t>(image.shape(2)) == self.width() && image.shape(3) == 3,
                        "image: wrong shape");
                const uint8_t* data = image.data();
                nb::gil_scoped_release release;
                return self.profile(data, repeats);
            },
            "image"_a, "repeats"_a)
        .def_prop_ro("step_names", &Program::step_names)
        .def_prop_ro("parameter_bytes", &Program::parameter_bytes)
        .def_prop_ro("allocated_arena_bytes", &Program::allocated_arena_bytes)
        .def_prop_ro("threads", &Program::threads)
        .def_prop_ro("isa", [](const Program& self) { return std::string(self.isa()); });
}
