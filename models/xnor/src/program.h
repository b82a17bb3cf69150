// A planned graph: steps over one arena, run for a batch in one call.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace xnor {

enum class Kind { kFloat, kBits, kBytes };

// Where a value lies in the arena. Pixel-major; `stride` from pixel to pixel in elements (floats, words or bytes).
struct Buffer {
    Kind kind;
    int64_t offset;  // bytes, a multiple of 64
    int height, width, channels;
    int64_t stride;

    int64_t pixels() const { return static_cast<int64_t>(height) * width; }
};

// A stage of a step's epilogue, with the arrays that it needs.
struct StageSpec {
    StageKind kind;
    std::vector<float> channel;
    std::vector<float> sign;
    Buffer buffer{};
};

struct Sliding {
    std::array<int, 2> kernel, stride, padding, dilation;
};

// What a thread keeps of a map that is pooled as it is made; a pool's window must find room in it.
constexpr int64_t kPooledRowsBytes = 256 << 10;

// A max-pool that follows a convolution of the picture at once, so that the map between them is never whole.
struct FollowingPool {
    int height, width;  // of its output
    Sliding sliding;
    std::vector<StageSpec> stages;
};

// Memory for parameters, aligned and padded; freed with the program.
class Store {
public:
    void* take(int64_t bytes);
    int64_t bytes() const { return bytes_; }

private:
    std::vector<std::unique_ptr<Arena>> blocks_;
    int64_t bytes_ = 0;
};

// A sliding window over an input: output pixels sorted by which taps they see, cut into strips.
struct Geometry {
    struct Class {
        int row0, row1, col0, col1;  // taps that lie inside the input
    };
    struct Strip {
        int first, count, cls;
    };
    std::vector<int32_t> in_offset;  // of the window's (maybe padded) corner, in elements
    std::vector<int32_t> out_pixel;
    std::vector<Class> classes;
    std::vector<Strip> strips;
};

struct Context {
    char* arena;
    const uint8_t* image;
};

class Step {
public:
    virtual ~Step() = default;
    virtual int64_t items() const = 0;
    virtual void run(const Context& context, int64_t begin, int64_t end) const = 0;
    std::string name;
};

struct Output {
    std::string name;
    Buffer buffer;
};

class Program {
public:
    Program(const Kernels& kernels, int64_t arena_bytes, int threads, int height, int width);

    void pixels(const Buffer& output, const float* table);
    void binary_conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding, int groups,
                       const uint64_t* weight, const std::vector<StageSpec>& stages);
    void conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding, int groups,
                const void* weight, bool half, const std::vector<StageSpec>& stages);
    // The picture as bytes, with `padding` more pixels of the colour `zero` on each side.
    void padded_pixels(const Buffer& output, std::array<int, 2> padding, std::array<uint8_t, 3> zero);
    // Over padded pixels: the exact sum of weight * (pixel - zero). Where a pool follows, `stages` may only be of
    // channels.
    void pixel_conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
                      std::array<uint8_t, 3> zero, const int8_t* weight, const std::vector<StageSpec>& stages,
                      const FollowingPool* pool);
    void quantize(const Buffer& input, const Buffer& bytes, const Buffer& scales);
    // A 1x1 convolution of quantised bytes: the exact sum of weight * (byte - 128).
    void byte_conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
                     const int8_t* weight, const std::vector<StageSpec>& stages);
    void pool2d(const Buffer& input, int height, int width, const Sliding& sliding, Pool pool,
                const std::vector<StageSpec>& stages);
    void pointwise(const Buffer& input, const std::vector<StageSpec>& stages);
    void concat(const std::vector<Buffer>& inputs, const Buffer& output);
    void upsample(const Buffer& input, const Buffer& output, int factor);
    // A max-pool of values of which only bits are wanted: a bit of its output is set where one of the window's is, or
    // where `flipped` has the channel's bit (x <= t instead of x >= t) where all are. `flipped`: a pixel's words.
    void bit_pool2d(const Buffer& input, const Buffer& output, const Sliding& sliding, std::vector<uint64_t> flipped);
    // Bits whose every group of channels begins a new word.
    void regroup(const Buffer& input, const Buffer& output, int groups);
    void output(const std::string& name, const Buffer& buffer);
    void name_step(const std::string& name) { steps_.back()->name = name; }

    // images: [count, height, width, 3]; outputs: one dense array [count, height, width, channels or words] each.
    // The call takes no more than `threads` threads.
    void run(const uint8_t* images, int64_t count, const std::vector<char*>& outputs, int threads);
    // Seconds of each step, the least of `repeats` runs of one image on one thread.
    std::vector<double> profile(const uint8_t* image, int repeats);

    const std::vector<Output>& outputs() const { return outputs_; }
    std::vector<std::string> step_names() const;
    int64_t parameter_bytes() const { return store_.bytes() + geometry_bytes_; }
    int64_t allocated_arena_bytes() const { return tokens_->allocated_bytes(); }
    int64_t arena_bytes() const { return arena_bytes_; }
    int threads() const { return threads_; }
    int height() const { return height_; }
    int width() const { return width_; }
    const char* isa() const { return kernels_.isa; }

private:
    void check(const Buffer& buffer) const;
    std::shared_ptr<const Geometry> geometry(const Buffer& input, int height, int width, const Sliding& sliding);
    std::vector<Stage> stages(const std::vector<StageSpec>& specs, int64_t pixels, int channels);
    void run_image(const Context& context, int64_t index, const std::vector<char*>& outputs) const;
    void copy_outputs(const char* arena, int64_t index, const std::vector<char*>& outputs) const;

    const Kernels& kernels_;
    const int64_t arena_bytes_;
    const int threads_, height_, width_;
    Store store_;
    int64_t geometry_bytes_ = 0;
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<Output> outputs_;
    std::map<std::array<int64_t, 13>, std::shared_ptr<const Geometry>> geometries_;
    const OwnedAtHome<Tokens> tokens_;
    const OwnedAtHome<Workers> workers_;
};

}  // namespace xnor
