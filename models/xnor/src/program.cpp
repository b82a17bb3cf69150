#include "program.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>

namespace xnor {

namespace {

constexpr int kStripPixels = 16 * kTilePixels;
constexpr int64_t kSlackBytes = 256;  // vectors may read, never use, a little beyond a value of few channels

int round_up(int n, int to) { return (n + to - 1) / to * to; }
int words(int channels) { return (channels + 63) / 64; }
// Of each word of a pixel's bits, how many halves hold channels: 1 where all fit into the low one.
int used_halves(int channels) { return channels <= 32 ? 1 : 2; }
int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

int64_t element_bytes(Kind kind) {
    switch (kind) {
        case Kind::kFloat:
            return sizeof(float);
        case Kind::kBits:
            return sizeof(uint64_t);
        default:
            return 1;
    }
}

// Copies `count` bits to a place whose bits are 0.
void copy_bits(uint64_t* to, int64_t to_bit, const uint64_t* from, int64_t from_bit, int64_t count) {
    while (count > 0) {
        const int64_t part = std::min({count, 64 - to_bit % 64, 64 - from_bit % 64});
        uint64_t bits = from[from_bit / 64] >> (from_bit % 64);
        if (part < 64) bits &= (uint64_t{1} << part) - 1;
        to[to_bit / 64] |= bits << (to_bit % 64);
        to_bit += part;
        from_bit += part;
        count -= part;
    }
}

// ---- convolutions -------------------------------------------------------------------------------------------

// A block's weights are [kernel row][kernel column][input element][lane].
struct Block {
    const void* weight;
    int64_t input;  // where its group's channels begin, in elements
    int lanes;
    int at;  // its first lane in the window
};

// Output channels that `finish` takes at once, and the blocks that compute them. Usually one block; several
// where groups are so narrow that they do not fill whole vectors.
struct OutputWindow {
    int channel, lanes;
    int first_block, last_block;
};

struct Blocks {
    std::vector<Block> blocks;
    std::vector<OutputWindow> windows;
    std::vector<int> first_channel, channels;  // of each block, for packing
};

Blocks cut_channels(int out_channels, int groups, int64_t group_elements, int least, int most) {
    Blocks cut;
    const int each = out_channels / groups;
    const bool aligned = groups == 1 || each % kLanes == 0;
    for (int group = 0; group < groups; ++group) {
        for (int channel = group * each, end = channel + each; channel < end;) {
            int count = std::min(most, end - channel);
            if (!aligned) count = std::min(count, kWindowLanes - channel % kWindowLanes);
            int lanes = least;
            while (lanes < count) lanes *= 2;
            const int index = static_cast<int>(cut.blocks.size());
            const int at = aligned ? 0 : channel % kWindowLanes;
            if (at == 0) cut.windows.push_back({channel, 0, index, index});
            OutputWindow& window = cut.windows.back();
            window.last_block = index + 1;
            window.lanes = round_up(at + count, kLanes);
            cut.blocks.push_back({nullptr, group * group_elements, lanes, at});
            cut.first_channel.push_back(channel);
            cut.channels.push_back(count);
            channel += count;
        }
    }
    return cut;
}

// [channel][taps x elements] -> [block][taps x elements][lane], unused lanes 0.
template <class T>
void pack_weights(const T* weight, int64_t per_channel, Blocks& cut, Store& store) {
    for (size_t b = 0; b < cut.blocks.size(); ++b) {
        const int lanes = cut.blocks[b].lanes;
        const int64_t bytes = per_channel * lanes * static_cast<int64_t>(sizeof(T));
        T* to = static_cast<T*>(store.take(bytes));
        std::memset(to, 0, static_cast<size_t>(bytes));
        constexpr int64_t kPart = 64;  // a strip of each channel at a time keeps the writes in the cache
        for (int64_t begin = 0; begin < per_channel; begin += kPart) {
            const int64_t end = std::min(begin + kPart, per_channel);
            for (int lane = 0; lane < cut.channels[b]; ++lane) {
                const T* from = weight + (cut.first_channel[b] + lane) * per_channel;
                for (int64_t i = begin; i < end; ++i) to[i * lanes + lane] = from[i];
            }
        }
        cut.blocks[b].weight = to;
    }
}

// [channel][rows][row bytes] -> [block][rows][quads][lane][4]; a row's last quad is filled up with zeros.
void pack_quads(const int8_t* weight, int64_t rows, int64_t row_bytes, Blocks& cut, Store& store) {
    const int64_t quads = ceil_div(row_bytes, 4);
    for (size_t b = 0; b < cut.blocks.size(); ++b) {
        const int lanes = cut.blocks[b].lanes;
        const int64_t bytes = rows * quads * lanes * 4;
        int8_t* to = static_cast<int8_t*>(store.take(bytes));
        std::memset(to, 0, static_cast<size_t>(bytes));
        for (int lane = 0; lane < cut.channels[b]; ++lane) {
            const int8_t* from = weight + (cut.first_channel[b] + lane) * rows * row_bytes;
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t i = 0; i < row_bytes; ++i)
                    to[((row * quads + i / 4) * lanes + lane) * 4 + i % 4] = from[row * row_bytes + i];
        }
        cut.blocks[b].weight = to;
    }
}

// What a channel's sum begins with: minus the sum of its weights times their zeros; `zeros` repeats along a channel.
template <class Zeros>
std::vector<const int32_t*> dot_starts(const int8_t* weight, int64_t per_channel, const Zeros& zeros, const Blocks& cut,
                                       Store& store) {
    std::vector<const int32_t*> starts;
    for (size_t b = 0; b < cut.blocks.size(); ++b) {
        const int lanes = cut.blocks[b].lanes;
        int32_t* to = static_cast<int32_t*>(store.take(lanes * static_cast<int64_t>(sizeof(int32_t))));
        std::fill(to, to + lanes, 0);
        for (int lane = 0; lane < cut.channels[b]; ++lane) {
            const int8_t* from = weight + (cut.first_channel[b] + lane) * per_channel;
            for (int64_t i = 0; i < per_channel; ++i)
                to[lane] -= from[i] * zeros[static_cast<size_t>(i) % zeros.size()];
        }
        starts.push_back(to);
    }
    return starts;
}

struct TapRun {
    Window window;
    int64_t input;  // from the window's corner to its first valid tap
    int64_t tap;    // that tap's index in the kernel
};

// Where a kernel row's taps lie side by side in memory, they become one run.
TapRun tap_run(const Geometry::Class& cls, const Buffer& input, const Sliding& sliding, int64_t elements) {
    const int64_t in_row = sliding.dilation[0] * input.width * input.stride;
    const int64_t in_col = sliding.dilation[1] * input.stride;
    TapRun run{};
    run.window.rows = std::max(0, cls.row1 - cls.row0);
    run.window.cols = std::max(0, cls.col1 - cls.col0);
    run.window.run = elements;
    run.window.in_row = in_row;
    run.window.in_col = in_col;
    run.input = cls.row0 * in_row + cls.col0 * in_col;
    run.tap = static_cast<int64_t>(cls.row0) * sliding.kernel[1] + cls.col0;
    if (in_col == elements && run.window.cols > 1) {
        run.window.run *= run.window.cols;
        run.window.cols = 1;
    }
    return run;
}

// The stages of a binary convolution as a chain, if they are one.
bool as_chain(const std::vector<Stage>& stages, int channels, Store& store, Chain& chain) {
    const Stage* at = stages.data();
    const Stage* const end = at + stages.size();
    const auto take = [&](StageKind kind) { return at != end && at->kind == kind ? at++ : nullptr; };
    const Stage* scale = take(StageKind::kScaleShift);
    if (!scale) scale = take(StageKind::kScale);
    chain.prelu = take(StageKind::kPrelu);
    chain.add = take(StageKind::kAdd);
    chain.store = take(StageKind::kStore);
    chain.bits = take(StageKind::kBits);
    if (!scale || at != end) return false;
    const int room = round_up(channels, kLanes);
    float* doubled = static_cast<float*>(store.take(room * static_cast<int64_t>(sizeof(float))));
    for (int i = 0; i < room; ++i) {
        doubled[i] = 2 * scale->channel[i];
        if (!std::isfinite(doubled[i])) return false;
    }
    chain.scale = doubled;
    chain.shift = scale->shift;
    return true;
}

class ConvStep : public Step {
public:
    ConvStep(const Kernels& kernels, const Buffer& input, const Sliding& sliding, int group_channels,
             int64_t group_elements, bool half, std::shared_ptr<const Geometry> geometry, Blocks cut,
             std::vector<Stage> stages, int out_channels, Store& store)
        : kernels_(kernels),
          input_(input),
          elements_(group_elements),
          halves_(used_halves(group_channels)),
          kernel_cols_(sliding.kernel[1]),
          half_(half),
          geometry_(std::move(geometry)),
          cut_(std::move(cut)),
          stages_(std::move(stages)),
          is_chain_(input.kind == Kind::kBits && as_chain(stages_, out_channels, store, chain_)),
          strips_(static_cast<int64_t>(geometry_->strips.size())) {
        for (const Geometry::Class& cls : geometry_->classes) {
            runs_.push_back(tap_run(cls, input, sliding, group_elements));
            const TapRun& run = runs_.back();
            const int taps = std::max(0, cls.row1 - cls.row0) * std::max(0, cls.col1 - cls.col0);
            totals_.push_back(run.window.rows > 0 ? static_cast<float>(taps * group_channels) : 0.0f);
        }
    }

    int64_t items() const override { return strips_ * static_cast<int64_t>(cut_.windows.size()); }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        alignas(kAlignBytes) int32_t buffer[kTilePixels * kTileLanes] = {};
        FinishTile out;
        out.stages = stages_.data();
        out.stage_count = static_cast<int>(stages_.size());
        out.chain = is_chain_ ? &chain_ : nullptr;
        out.arena = context.arena;
        if (input_.kind == Kind::kBits)
            out.counts = buffer;
        else
            out.floats = reinterpret_cast<const float*>(buffer);
        for (int p = 0; p < kTilePixels; ++p) out.float_offset[p] = p * kTileLanes;
        for (int64_t item = begin; item < end; ++item) {
            const OutputWindow& window = cut_.windows[static_cast<size_t>(item / strips_)];
            const Geometry::Strip& strip = geometry_->strips[static_cast<size_t>(item % strips_)];
            out.channel = window.channel;
            out.lanes = window.lanes;
            out.total = totals_[static_cast<size_t>(strip.cls)];
            // A kernel that finishes its own sums takes the strip whole; the buffer holds one tile.
            const bool whole = input_.kind == Kind::kBits && window.last_block - window.first_block == 1;
            const int step = whole ? strip.count : kTilePixels;
            for (int at = 0; at < strip.count; at += step) {
                const Geometry::Strip tile{strip.first + at, std::min(step, strip.count - at), strip.cls};
                out.out_pixel = geometry_->out_pixel.data() + tile.first;
                out.pixels = tile.count;
                for (int b = window.first_block; b < window.last_block; ++b)
                    sum(context, tile, cut_.blocks[static_cast<size_t>(b)], buffer, whole ? &out : nullptr);
                if (!whole) kernels_.finish(out);
            }
        }
    }

private:
    template <class Tile>
    void place(Tile& to, const Geometry::Strip& tile, const Block& block, const TapRun& run) const {
        to.window = run.window;
        to.window.in_offset = geometry_->in_offset.data() + tile.first;
        to.window.pixels = tile.count;
        to.lanes = block.lanes;
        to.weight_col = elements_ * block.lanes;
        to.weight_row = to.weight_col * kernel_cols_;
    }

    void sum(const Context& context, const Geometry::Strip& tile, const Block& block, int32_t* buffer,
             const FinishTile* out) const {
        const TapRun& run = runs_[static_cast<size_t>(tile.cls)];
        const char* input = context.arena + input_.offset;
        const int64_t weight_start = run.tap * elements_ * block.lanes;
        if (input_.kind == Kind::kBits) {
            BinaryTile to;
            place(to, tile, block, run);
            to.input = reinterpret_cast<const uint64_t*>(input) + block.input + run.input;
            to.halves = halves_;
            to.weight = static_cast<const uint32_t*>(block.weight) + halves_ * weight_start;
            to.weight_col *= halves_;
            to.weight_row *= halves_;
            to.counts = buffer + block.at;
            kernels_.binary(to, out);
        } else {
            FloatTile to;
            place(to, tile, block, run);
            to.input = reinterpret_cast<const float*>(input) + block.input + run.input;
            to.weight = static_cast<const char*>(block.weight) + weight_start * (half_ ? 2 : 4);
            to.half = half_;
            to.sums = reinterpret_cast<float*>(buffer) + block.at;
            kernels_.real(to);
        }
    }

    const Kernels& kernels_;
    const Buffer input_;
    const int64_t elements_;
    const int halves_;
    const int kernel_cols_;
    const bool half_;
    const std::shared_ptr<const Geometry> geometry_;
    const Blocks cut_;
    const std::vector<Stage> stages_;
    Chain chain_;  // of stages_
    const bool is_chain_;
    const int64_t strips_;
    std::vector<TapRun> runs_;
    std::vector<float> totals_;
};

// ---- the picture's convolution ----------------------------------------------------------------------------------

class PaddedPixelsStep : public Step {
public:
    PaddedPixelsStep(const Buffer& output, std::array<int, 2> padding, std::array<uint8_t, 3> zero)
        : output_(output), padding_(padding), zero_(zero) {}

    int64_t items() const override { return output_.height; }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        const int64_t inner = output_.width - 2 * static_cast<int64_t>(padding_[1]);
        for (int64_t y = begin; y < end; ++y) {
            uint8_t* row = reinterpret_cast<uint8_t*>(context.arena + output_.offset) + y * output_.width * 3;
            const int64_t from_y = y - padding_[0];
            if (from_y < 0 || from_y >= output_.height - 2 * static_cast<int64_t>(padding_[0])) {
                fill(row, output_.width);
                continue;
            }
            fill(row, padding_[1]);
            std::memcpy(row + padding_[1] * 3, context.image + from_y * inner * 3, static_cast<size_t>(inner * 3));
            fill(row + (padding_[1] + inner) * 3, padding_[1]);
        }
    }

private:
    void fill(uint8_t* to, int pixels) const {
        for (int i = 0; i < pixels; ++i) std::copy(zero_.begin(), zero_.end(), to + 3 * i);
    }

    const Buffer output_;
    const std::array<int, 2> padding_;
    const std::array<uint8_t, 3> zero_;
};

// A row at a time. With a pool behind it, rows go to a small buffer of the thread's own and only the pool's output to
// the arena.
class PixelConvStep : public Step {
public:
    struct RowPool {
        Sliding sliding;
        int height, width;
        std::vector<Stage> stages;
    };
    static constexpr int64_t kMaxWindowBytes = (1 << 24) / (255 * 128);  // or sums would be beyond 2^24

    static int rows_kept(int width, int channels) {
        return static_cast<int>(kPooledRowsBytes / (static_cast<int64_t>(width) * round_up(channels, kLanes) * 4));
    }

    PixelConvStep(const Kernels& kernels, const Buffer& input, const Buffer& output, const Sliding& sliding, Blocks cut,
                  std::vector<const int32_t*> starts, std::vector<Stage> stages, std::unique_ptr<RowPool> pool)
        : kernels_(kernels),
          input_(input),
          output_(output),
          sliding_(sliding),
          cut_(std::move(cut)),
          starts_(std::move(starts)),
          stages_(std::move(stages)),
          pool_(std::move(pool)),
          kept_(rows_kept(output.width, output.channels)) {
        for (int64_t i = 0, pixels = pool_ ? int64_t{kept_} * output.width : output.pixels(); i < pixels; ++i)
            identity_.push_back(static_cast<int32_t>(i));
        for (int x = 0; x < output.width; ++x) in_offset_.push_back(x * sliding.stride[1] * 3);
        if (!pool_) return;
        const int column = static_cast<int>(output.stride);
        for (int x = 0; x < pool_->width; ++x) {
            const auto [first, last] = inside(1, x, output.width);
            if (columns_.empty() || columns_.back().col0 != first || columns_.back().col1 != last)
                columns_.push_back({x, x, first, last});
            columns_.back().last = x + 1;
            pool_offset_.push_back((x * pool_->sliding.stride[1] - pool_->sliding.padding[1]) * column);
        }
        for (int64_t i = 0; i < static_cast<int64_t>(pool_->height) * pool_->width; ++i)
            pooled_.push_back(static_cast<int32_t>(i));
    }

    int64_t items() const override { return pool_ ? pool_->height : output_.height; }
    int64_t table_bytes() const {
        return static_cast<int64_t>(sizeof(int32_t) * (identity_.size() + pooled_.size() + in_offset_.size()));
    }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        const uint8_t* image = reinterpret_cast<const uint8_t*>(context.arena + input_.offset);
        if (!pool_) {
            for (int64_t y = begin; y < end; ++y)
                conv_row(image, static_cast<int>(y), context.arena, identity_.data() + y * output_.width);
            return;
        }
        alignas(kAlignBytes) char rows[kPooledRowsBytes];
        const int64_t row_floats = output_.width * output_.stride;
        int first = 0, last = 0;  // rows of the map that are in the buffer
        for (int64_t y = begin; y < end; ++y) {
            const auto [tap0, tap1] = inside(0, static_cast<int>(y), output_.height);
            const int corner = static_cast<int>(y) * pool_->sliding.stride[0] - pool_->sliding.padding[0];
            if (corner + tap0 > last) first = last = corner + tap0;
            if (corner + tap1 - first > kept_) {
                const int keep = corner + tap0;
                std::memmove(rows, rows + (keep - first) * row_floats * 4,
                             static_cast<size_t>((last - keep) * row_floats * 4));
                first = keep;
            }
            for (; last < corner + tap1; ++last)
                conv_row(image, last, rows, identity_.data() + static_cast<int64_t>(last - first) * output_.width);
            const float* top = reinterpret_cast<const float*>(rows) + (corner - first) * row_floats;
            pool_row(context, top, static_cast<int>(y), tap0, tap1);
        }
    }

private:
    struct Columns {
        int first, last, col0, col1;
    };

    // The taps of the pool's window `out` that lie inside the map.
    std::pair<int, int> inside(int axis, int out, int size) const {
        const int corner = out * pool_->sliding.stride[axis] - pool_->sliding.padding[axis];
        return {std::max(0, -corner), std::min(pool_->sliding.kernel[axis], size - corner)};
    }

    void conv_row(const uint8_t* image, int y, char* arena, const int32_t* out_pixel) const {
        const int64_t in_row = static_cast<int64_t>(input_.width) * 3;
        const int64_t quads = ceil_div(int64_t{3} * sliding_.kernel[1], 4);
        FinishTile out;
        out.stages = stages_.data();
        out.stage_count = static_cast<int>(stages_.size());
        out.arena = arena;
        out.out_pixel = out_pixel;
        out.pixels = output_.width;
        alignas(kAlignBytes) int32_t sums[kTilePixels * kTileLanes] = {};
        out.sums = sums;
        for (size_t b = 0; b < cut_.blocks.size(); ++b) {
            const Block& block = cut_.blocks[b];
            DotTile tile;
            tile.window = {in_offset_.data(), output_.width, sliding_.kernel[0], 1, quads, in_row, 0};
            tile.input = image + y * sliding_.stride[0] * in_row;
            tile.weight = static_cast<const int8_t*>(block.weight);
            tile.weight_row = quads * block.lanes * 4;
            tile.weight_col = 0;
            tile.lanes = block.lanes;
            tile.start = starts_[b];
            tile.sums = sums;
            out.channel = cut_.first_channel[b];
            out.lanes = round_up(cut_.channels[b], kLanes);
            kernels_.dot(tile, &out);
        }
    }

    void pool_row(const Context& context, const float* top, int y, int tap0, int tap1) const {
        alignas(kAlignBytes) float buffer[kTilePixels * kTileLanes];
        FinishTile out;
        out.stages = pool_->stages.data();
        out.stage_count = static_cast<int>(pool_->stages.size());
        out.arena = context.arena;
        out.floats = buffer;
        for (int p = 0; p < kTilePixels; ++p) out.float_offset[p] = p * kTileLanes;
        const int lanes = round_up(output_.channels, kLanes);
        PoolTile tile;
        tile.pool = Pool::kMax;
        tile.divisor = 1;
        tile.sums = buffer;
        for (const Columns& columns : columns_) {
            tile.window = {
                nullptr,       0, tap1 - tap0, columns.col1 - columns.col0, 0, output_.width * output_.stride,
                output_.stride};
            for (int x = columns.first; x < columns.last; x += kTilePixels) {
                tile.window.in_offset = pool_offset_.data() + x;
                tile.window.pixels = out.pixels = std::min(kTilePixels, columns.last - x);
                out.out_pixel = pooled_.data() + static_cast<int64_t>(y) * pool_->width + x;
                for (int channel = 0; channel < lanes; channel += kWindowLanes) {
                    tile.lanes = out.lanes = std::min(kWindowLanes, lanes - channel);
                    out.channel = channel;
                    tile.input = top + tap0 * tile.window.in_row + columns.col0 * output_.stride + channel;
                    kernels_.pool(tile);
                    kernels_.finish(out);
                }
            }
        }
    }

    const Kernels& kernels_;
    const Buffer input_, output_;
    const Sliding sliding_;
    const Blocks cut_;
    const std::vector<const int32_t*> starts_;
    const std::vector<Stage> stages_;
    const std::unique_ptr<const RowPool> pool_;
    const int kept_;
    std::vector<int32_t> identity_, pooled_, in_offset_, pool_offset_;
    std::vector<Columns> columns_;
};

// ---- quantised 1x1 convolutions -----------------------------------------------------------------------------------

class QuantizeStep : public Step {
public:
    QuantizeStep(const Kernels& kernels, const Buffer& input, const Buffer& bytes, const Buffer& scales)
        : kernels_(kernels), input_(input), bytes_(bytes), scales_(scales) {}

    int64_t items() const override { return ceil_div(input_.pixels(), kStripPixels); }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        const int64_t first = begin * kStripPixels, last = std::min(end * kStripPixels, input_.pixels());
        QuantizeTile tile;
        tile.stride = input_.stride;
        tile.input = reinterpret_cast<const float*>(context.arena + input_.offset) + first * tile.stride;
        tile.channels = input_.channels;
        tile.pixels = static_cast<int>(last - first);
        tile.bytes_stride = bytes_.stride;
        tile.bytes = reinterpret_cast<uint8_t*>(context.arena + bytes_.offset) + first * tile.bytes_stride;
        tile.scales = reinterpret_cast<float*>(context.arena + scales_.offset) + first;
        kernels_.quantize(tile);
    }

private:
    const Kernels& kernels_;
    const Buffer input_, bytes_, scales_;
};

class ByteConvStep : public Step {
public:
    ByteConvStep(const Kernels& kernels, const Buffer& input, std::shared_ptr<const Geometry> geometry, Blocks cut,
                 std::vector<const int32_t*> starts, std::vector<Stage> stages)
        : kernels_(kernels),
          input_(input),
          geometry_(std::move(geometry)),
          cut_(std::move(cut)),
          starts_(std::move(starts)),
          stages_(std::move(stages)),
          strips_(static_cast<int64_t>(geometry_->strips.size())) {}

    int64_t items() const override { return strips_ * static_cast<int64_t>(cut_.blocks.size()); }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        alignas(kAlignBytes) int32_t sums[kTilePixels * kTileLanes] = {};
        FinishTile out;
        out.stages = stages_.data();
        out.stage_count = static_cast<int>(stages_.size());
        out.arena = context.arena;
        out.sums = sums;
        const int64_t quads = ceil_div(input_.channels, 4);
        for (int64_t item = begin; item < end; ++item) {
            const size_t b = static_cast<size_t>(item / strips_);
            const Block& block = cut_.blocks[b];
            const Geometry::Strip& strip = geometry_->strips[static_cast<size_t>(item % strips_)];
            DotTile tile;
            tile.window = {geometry_->in_offset.data() + strip.first, strip.count, 1, 1, quads, 0, 0};
            tile.input = reinterpret_cast<const uint8_t*>(context.arena + input_.offset);
            tile.weight = static_cast<const int8_t*>(block.weight);
            tile.weight_row = tile.weight_col = 0;
            tile.lanes = block.lanes;
            tile.start = starts_[b];
            tile.sums = sums;
            out.channel = cut_.first_channel[b];
            out.lanes = round_up(cut_.channels[b], kLanes);
            out.out_pixel = geometry_->out_pixel.data() + strip.first;
            out.pixels = strip.count;
            kernels_.dot(tile, &out);
        }
    }

private:
    const Kernels& kernels_;
    const Buffer input_;
    const std::shared_ptr<const Geometry> geometry_;
    const Blocks cut_;
    const std::vector<const int32_t*> starts_;
    const std::vector<Stage> stages_;
    const int64_t strips_;
};

// ---- the other steps ------------------------------------------------------------------------------------------

class PoolStep : public Step {
public:
    PoolStep(const Kernels& kernels, const Buffer& input, const Sliding& sliding, Pool pool,
             std::shared_ptr<const Geometry> geometry, std::vector<Stage> stages)
        : kernels_(kernels),
          input_(input),
          pool_(pool),
          divisor_(static_cast<float>(sliding.kernel[0] * sliding.kernel[1])),
          geometry_(std::move(geometry)),
          stages_(std::move(stages)) {
        for (const Geometry::Class& cls : geometry_->classes) {
            runs_.push_back(tap_run(cls, input, sliding, -1));
            require(runs_.back().window.rows > 0 && runs_.back().window.cols > 0, "pool: a window sees only padding");
        }
    }

    int64_t items() const override { return static_cast<int64_t>(geometry_->strips.size()); }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        alignas(kAlignBytes) float buffer[kTilePixels * kTileLanes];
        FinishTile out;
        out.stages = stages_.data();
        out.stage_count = static_cast<int>(stages_.size());
        out.arena = context.arena;
        out.floats = buffer;
        for (int p = 0; p < kTilePixels; ++p) out.float_offset[p] = p * kTileLanes;
        const int lanes = round_up(input_.channels, kLanes);
        for (int64_t item = begin; item < end; ++item) {
            const Geometry::Strip& strip = geometry_->strips[static_cast<size_t>(item)];
            const TapRun& run = runs_[static_cast<size_t>(strip.cls)];
            PoolTile to;
            to.window = run.window;
            to.pool = pool_;
            to.divisor = divisor_;
            to.sums = buffer;
            for (int first = strip.first, last = strip.first + strip.count; first < last; first += kTilePixels) {
                to.window.in_offset = geometry_->in_offset.data() + first;
                out.out_pixel = geometry_->out_pixel.data() + first;
                to.window.pixels = out.pixels = std::min(kTilePixels, last - first);
                for (int channel = 0; channel < lanes; channel += kWindowLanes) {
                    to.lanes = out.lanes = std::min(kWindowLanes, lanes - channel);
                    out.channel = channel;
                    to.input = reinterpret_cast<const float*>(context.arena + input_.offset) + run.input + channel;
                    kernels_.pool(to);
                    kernels_.finish(out);
                }
            }
        }
    }

private:
    const Kernels& kernels_;
    const Buffer input_;
    const Pool pool_;
    const float divisor_;
    const std::shared_ptr<const Geometry> geometry_;
    const std::vector<Stage> stages_;
    std::vector<TapRun> runs_;
};

class PointwiseStep : public Step {
public:
    PointwiseStep(const Kernels& kernels, const Buffer& input, std::vector<Stage> stages)
        : kernels_(kernels), input_(input), stages_(std::move(stages)) {}

    int64_t items() const override { return ceil_div(input_.pixels(), kStripPixels); }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        int32_t pixels[kTilePixels];
        FinishTile out;
        out.stages = stages_.data();
        out.stage_count = static_cast<int>(stages_.size());
        out.arena = context.arena;
        out.lanes = round_up(input_.channels, kLanes);
        out.floats = reinterpret_cast<const float*>(context.arena + input_.offset);
        out.out_pixel = pixels;
        const int64_t last = std::min(end * kStripPixels, input_.pixels());
        for (int64_t pixel = begin * kStripPixels; pixel < last; pixel += kTilePixels) {
            out.pixels = static_cast<int>(std::min<int64_t>(kTilePixels, last - pixel));
            for (int p = 0; p < out.pixels; ++p) {
                pixels[p] = static_cast<int32_t>(pixel + p);
                out.float_offset[p] = (pixel + p) * input_.stride;
            }
            kernels_.finish(out);
        }
    }

private:
    const Kernels& kernels_;
    const Buffer input_;
    const std::vector<Stage> stages_;
};

class PixelsStep : public Step {
public:
    PixelsStep(const Buffer& output, const float* table) : output_(output), table_(table) {}

    int64_t items() const override { return output_.height; }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        const int64_t row = static_cast<int64_t>(output_.width) * 3;
        const uint8_t* from = context.image + begin * row;
        float* to = reinterpret_cast<float*>(context.arena + output_.offset) + begin * row;
        for (int64_t i = 0; i < (end - begin) * row; i += 3) {
            to[i] = table_[from[i]];
            to[i + 1] = table_[256 + from[i + 1]];
            to[i + 2] = table_[512 + from[i + 2]];
        }
    }

private:
    const Buffer output_;
    const float* table_;  // [3][256]
};

// Steps that only move values, a pixel at a time.
class MoveStep : public Step {
public:
    using Move = std::function<void(char* arena, int64_t pixel)>;
    MoveStep(int64_t pixels, Move move) : pixels_(pixels), move_(std::move(move)) {}

    int64_t items() const override { return ceil_div(pixels_, kPixelsPerItem); }

    void run(const Context& context, int64_t begin, int64_t end) const override {
        for (int64_t pixel = begin * kPixelsPerItem; pixel < std::min(end * kPixelsPerItem, pixels_); ++pixel)
            move_(context.arena, pixel);
    }

private:
    static constexpr int64_t kPixelsPerItem = 64;
    const int64_t pixels_;
    const Move move_;
};

}  // namespace

void* Store::take(int64_t bytes) {
    blocks_.push_back(std::make_unique<Arena>(bytes));
    bytes_ += bytes;
    return blocks_.back()->data();
}

Program::Program(const Kernels& kernels, int64_t arena_bytes, int threads, int height, int width)
    : kernels_(kernels),
      arena_bytes_(arena_bytes),
      threads_(threads),
      height_(height),
      width_(width),
      tokens_(new Tokens(threads, arena_bytes + kSlackBytes)),
      workers_(new Workers(threads - 1)) {}

void Program::check(const Buffer& buffer) const {
    // A part of another value's channels begins between two alignments, bits even between two words.
    const bool bits = buffer.kind == Kind::kBits;
    const int64_t least = bits ? ceil_div(buffer.channels, 8) : buffer.channels * element_bytes(buffer.kind);
    const int64_t stride = buffer.stride * element_bytes(buffer.kind);
    require(buffer.height > 0 && buffer.width > 0 && buffer.channels > 0 && stride >= least && buffer.offset >= 0 &&
                buffer.offset % (bits ? 2 : kAlignBytes) == 0 &&
                (buffer.pixels() - 1) * stride + least <= arena_bytes_ - buffer.offset,
            "buffer: does not lie in the arena");
}

std::shared_ptr<const Geometry> Program::geometry(const Buffer& input, int height, int width, const Sliding& sliding) {
    const std::array<int64_t, 13> key = {input.height,
                                         input.width,
                                         input.stride,
                                         height,
                                         width,
                                         sliding.kernel[0],
                                         sliding.kernel[1],
                                         sliding.stride[0],
                                         sliding.stride[1],
                                         sliding.padding[0],
                                         sliding.padding[1],
                                         sliding.dilation[0],
                                         sliding.dilation[1]};
    std::shared_ptr<const Geometry>& known = geometries_[key];
    if (known) return known;

    using Range = std::pair<int, int>;
    const auto classes = [&](int axis, int in_size, int out_size) {
        std::map<Range, std::vector<int>> found;
        for (int out = 0; out < out_size; ++out) {
            const int start = out * sliding.stride[axis] - sliding.padding[axis];
            int first = 0, last = sliding.kernel[axis];
            while (first < last && start + first * sliding.dilation[axis] < 0) ++first;
            while (last > first && start + (last - 1) * sliding.dilation[axis] >= in_size) --last;
            found[{first, last}].push_back(out);
        }
        return found;
    };
    const int64_t furthest = (static_cast<int64_t>(input.height) + 2 * 64) * (input.width + 2 * 64) * input.stride;
    require(furthest < INT32_MAX, "input: is too large to be addressed");
    auto made = std::make_shared<Geometry>();
    const auto rows = classes(0, input.height, height);
    const auto cols = classes(1, input.width, width);
    for (const auto& [row, ys] : rows) {
        for (const auto& [col, xs] : cols) {
            const int cls = static_cast<int>(made->classes.size());
            made->classes.push_back({row.first, row.second, col.first, col.second});
            const int first = static_cast<int>(made->out_pixel.size());
            for (const int y : ys) {
                for (const int x : xs) {
                    const int64_t corner_y = static_cast<int64_t>(y) * sliding.stride[0] - sliding.padding[0];
                    const int64_t corner_x = static_cast<int64_t>(x) * sliding.stride[1] - sliding.padding[1];
                    made->out_pixel.push_back(y * width + x);
                    made->in_offset.push_back(static_cast<int32_t>((corner_y * input.width + corner_x) * input.stride));
                }
            }
            const int last = static_cast<int>(made->out_pixel.size());
            for (int at = first; at < last; at += kStripPixels)
                made->strips.push_back({at, std::min(kStripPixels, last - at), cls});
        }
    }
    geometry_bytes_ += static_cast<int64_t>(made->out_pixel.size() * 2 * sizeof(int32_t) +
                                            made->strips.size() * sizeof(Geometry::Strip));
    return known = made;
}

std::vector<Stage> Program::stages(const std::vector<StageSpec>& specs, int64_t pixels, int channels) {
    std::vector<Stage> made;
    const auto padded = [&](const std::vector<float>& values, int64_t count) {
        require(static_cast<int64_t>(values.size()) == count, "stage: array of a wrong length");
        const int64_t room = ceil_div(count, kLanes) * kLanes;
        float* to = static_cast<float*>(store_.take(room * static_cast<int64_t>(sizeof(float))));
        std::copy(values.begin(), values.end(), to);
        std::fill(to + count, to + room, 0.0f);
        return to;
    };
    for (const StageSpec& spec : specs) {
        if (spec.kind == StageKind::kShift && !made.empty() && made.back().kind == StageKind::kScale) {
            made.back().kind = StageKind::kScaleShift;
            made.back().shift = padded(spec.channel, channels);
            continue;
        }
        Stage stage;
        stage.kind = spec.kind;
        switch (spec.kind) {
            case StageKind::kScale:
            case StageKind::kShift:
            case StageKind::kPrelu:
                stage.channel = padded(spec.channel, channels);
                break;
            case StageKind::kPixelScale:
                stage.channel = padded(spec.channel, pixels);
                break;
            case StageKind::kRelu:
                break;
            case StageKind::kScaleShift:
                require(false, "stage: scale and shift come one by one");
                break;
            case StageKind::kPixelScaleAt:
                check(spec.buffer);
                require(spec.buffer.kind == Kind::kFloat && spec.buffer.pixels() == pixels &&
                            spec.buffer.channels == 1 && spec.buffer.stride == 1,
                        "stage: expected one scale a pixel");
                stage.offset = spec.buffer.offset;
                break;
            case StageKind::kAdd:
            case StageKind::kStore:
            case StageKind::kBits: {
                const Buffer& buffer = spec.buffer;
                const bool bits = spec.kind == StageKind::kBits;
                check(buffer);
                require(buffer.kind == (bits ? Kind::kBits : Kind::kFloat) && buffer.pixels() == pixels &&
                            buffer.channels == channels,
                        "stage: a buffer of another shape");
                require(spec.kind != StageKind::kStore || buffer.stride >= round_up(channels, kLanes),
                        "stage: no room for whole vectors");
                stage.offset = buffer.offset;
                stage.stride = bits ? buffer.stride * 8 : buffer.stride;
                if (bits) {
                    const int first = static_cast<int>(buffer.offset % 8) * 8;  // its first bit in a word
                    stage.channels = channels;
                    stage.bytes = (round_up(first + channels, 64) - first) / 8;
                    stage.channel = padded(spec.channel, channels);
                    stage.sign = padded(spec.sign, channels);
                }
                break;
            }
        }
        made.push_back(stage);
    }
    return made;
}

void Program::pixels(const Buffer& output, const float* table) {
    check(output);
    require(output.kind == Kind::kFloat && output.channels == 3 && output.stride == 3 && output.height == height_ &&
                output.width == width_,
            "pixels: expected the image's buffer");
    float* copy = static_cast<float*>(store_.take(3 * 256 * sizeof(float)));
    std::copy(table, table + 3 * 256, copy);
    steps_.push_back(std::make_unique<PixelsStep>(output, copy));
}

void Program::binary_conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
                            int groups, const uint64_t* weight, const std::vector<StageSpec>& specs) {
    check(input);
    require(input.kind == Kind::kBits && input.channels % groups == 0 && out_channels % groups == 0,
            "binary_conv2d: groups do not fit");
    const int group_channels = input.channels / groups;
    const int64_t elements = words(group_channels);
    require(groups == 1 || elements * groups <= input.stride, "binary_conv2d: groups are not apart");
    const int64_t taps = static_cast<int64_t>(sliding.kernel[0]) * sliding.kernel[1];
    require(taps * group_channels < 1 << 24, "binary_conv2d: sums are beyond 2^24");
    Blocks cut = cut_channels(out_channels, groups, elements, kLanes, kBlockLanes);
    if (used_halves(group_channels) == 1) {
        const std::vector<uint32_t> low(weight, weight + out_channels * taps);  // each word's low half
        pack_weights(low.data(), taps, cut, store_);
    } else {
        // Little-endian words are pairs of halves in memory, low half first.
        pack_weights(reinterpret_cast<const uint32_t*>(weight), 2 * taps * elements, cut, store_);
    }
    steps_.push_back(std::make_unique<ConvStep>(
        kernels_, input, sliding, group_channels, elements, false, geometry(input, height, width, sliding),
        std::move(cut), stages(specs, static_cast<int64_t>(height) * width, out_channels), out_channels, store_));
}

void Program::conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding, int groups,
                     const void* weight, bool half, const std::vector<StageSpec>& specs) {
    check(input);
    require(input.kind == Kind::kFloat && input.channels % groups == 0 && out_channels % groups == 0,
            "conv2d: groups do not fit");
    const int64_t elements = input.channels / groups;
    const int64_t per_channel = elements * sliding.kernel[0] * sliding.kernel[1];
    Blocks cut = cut_channels(out_channels, groups, elements, kLanes, kBlockLanes);
    if (half)
        pack_weights(static_cast<const uint16_t*>(weight), per_channel, cut, store_);
    else
        pack_weights(static_cast<const float*>(weight), per_channel, cut, store_);
    steps_.push_back(std::make_unique<ConvStep>(
        kernels_, input, sliding, 0, elements, half, geometry(input, height, width, sliding), std::move(cut),
        stages(specs, static_cast<int64_t>(height) * width, out_channels), out_channels, store_));
}

void Program::padded_pixels(const Buffer& output, std::array<int, 2> padding, std::array<uint8_t, 3> zero) {
    check(output);
    require(output.kind == Kind::kBytes && output.channels == 3 && output.stride == 3 &&
                output.height == height_ + 2 * padding[0] && output.width == width_ + 2 * padding[1],
            "padded_pixels: expected the image's buffer");
    steps_.push_back(std::make_unique<PaddedPixelsStep>(output, padding, zero));
}

void Program::pixel_conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
                           std::array<uint8_t, 3> zero, const int8_t* weight, const std::vector<StageSpec>& specs,
                           const FollowingPool* pool) {
    check(input);
    require(input.kind == Kind::kBytes && input.channels == 3 && input.stride == 3 && height > 0 && width > 0 &&
                (height - 1) * static_cast<int64_t>(sliding.stride[0]) + sliding.kernel[0] <= input.height &&
                (width - 1) * static_cast<int64_t>(sliding.stride[1]) + sliding.kernel[1] <= input.width,
            "pixel_conv2d: windows leave the input");
    const int64_t row_bytes = int64_t{3} * sliding.kernel[1];
    require(sliding.kernel[0] * row_bytes <= PixelConvStep::kMaxWindowBytes, "pixel_conv2d: sums are beyond 2^24");
    const int64_t pixels = static_cast<int64_t>(height) * width;
    Blocks cut = cut_channels(out_channels, 1, 0, kLanes, kBlockLanes);
    pack_quads(weight, sliding.kernel[0], row_bytes, cut, store_);
    auto starts = dot_starts(weight, sliding.kernel[0] * row_bytes, zero, cut, store_);
    const Buffer output{Kind::kFloat, 0, height, width, out_channels, round_up(out_channels, kLanes)};
    std::vector<Stage> made = stages(specs, pixels, out_channels);
    std::unique_ptr<PixelConvStep::RowPool> following;
    if (pool) {
        const Sliding& window = pool->sliding;
        require(
            window.kernel[0] <= PixelConvStep::rows_kept(width, out_channels) && pool->height > 0 && pool->width > 0,
            "pixel_conv2d: the pool's rows do not fit");
        for (int axis = 0; axis < 2; ++axis) {
            const int size = axis == 0 ? height : width, out = axis == 0 ? pool->height : pool->width;
            require(window.padding[axis] < window.kernel[axis] && window.dilation[axis] == 1 &&
                        (out - 1) * static_cast<int64_t>(window.stride[axis]) - window.padding[axis] < size,
                    "pixel_conv2d: a window of the pool sees only padding");
        }
        for (const Stage& stage : made)
            require(stage.kind == StageKind::kScale || stage.kind == StageKind::kShift ||
                        stage.kind == StageKind::kScaleShift || stage.kind == StageKind::kPrelu ||
                        stage.kind == StageKind::kRelu,
                    "pixel_conv2d: before a pool only stages of channels");
        Stage store;
        store.kind = StageKind::kStore;
        store.stride = output.stride;
        made.push_back(store);
        following = std::make_unique<PixelConvStep::RowPool>();
        following->sliding = window;
        following->height = pool->height;
        following->width = pool->width;
        following->stages = stages(pool->stages, static_cast<int64_t>(pool->height) * pool->width, out_channels);
    }
    auto step = std::make_unique<PixelConvStep>(kernels_, input, output, sliding, std::move(cut), std::move(starts),
                                                std::move(made), std::move(following));
    geometry_bytes_ += step->table_bytes();
    steps_.push_back(std::move(step));
}

void Program::quantize(const Buffer& input, const Buffer& bytes, const Buffer& scales) {
    check(input);
    check(bytes);
    check(scales);
    require(input.kind == Kind::kFloat && bytes.kind == Kind::kBytes && scales.kind == Kind::kFloat &&
                input.pixels() == bytes.pixels() && input.channels == bytes.channels && bytes.stride % 4 == 0 &&
                scales.pixels() == input.pixels() && scales.channels == 1 && scales.stride == 1,
            "quantize: shapes do not fit");
    steps_.push_back(std::make_unique<QuantizeStep>(kernels_, input, bytes, scales));
}

void Program::byte_conv2d(const Buffer& input, int height, int width, int out_channels, const Sliding& sliding,
                          const int8_t* weight, const std::vector<StageSpec>& specs) {
    check(input);
    require(input.kind == Kind::kBytes && input.stride % 4 == 0 && sliding.kernel == std::array<int, 2>{1, 1} &&
                sliding.padding == std::array<int, 2>{0, 0},
            "byte_conv2d: expected a 1x1 convolution of bytes");
    require(int64_t{127} * 128 * input.channels < 1 << 24, "byte_conv2d: sums are beyond 2^24");
    Blocks cut = cut_channels(out_channels, 1, 0, kLanes, kBlockLanes);
    pack_quads(weight, 1, input.channels, cut, store_);
    auto starts = dot_starts(weight, input.channels, std::array<uint8_t, 1>{128}, cut, store_);
    steps_.push_back(std::make_unique<ByteConvStep>(kernels_, input, geometry(input, height, width, sliding),
                                                    std::move(cut), std::move(starts),
                                                    stages(specs, static_cast<int64_t>(height) * width, out_channels)));
}

void Program::pool2d(const Buffer& input, int height, int width, const Sliding& sliding, Pool pool,
                     const std::vector<StageSpec>& specs) {
    check(input);
    require(input.kind == Kind::kFloat, "pool2d: expected a float input");
    steps_.push_back(std::make_unique<PoolStep>(kernels_, input, sliding, pool, geometry(input, height, width, sliding),
                                                stages(specs, static_cast<int64_t>(height) * width, input.channels)));
}

void Program::bit_pool2d(const Buffer& input, const Buffer& output, const Sliding& sliding,
                         std::vector<uint64_t> flipped) {
    check(input);
    check(output);
    require(input.kind == Kind::kBits && output.kind == Kind::kBits && input.channels == output.channels &&
                static_cast<int64_t>(flipped.size()) == ceil_div(input.channels, 64),
            "bit_pool2d: shapes do not fit");
    geometry(input, output.height, output.width, sliding);  // proves that every window meets the input
    steps_.push_back(std::make_unique<MoveStep>(output.pixels(), [=](char* arena, int64_t pixel) {
        const auto taps = [&](int axis, int64_t out, int size) {
            const int64_t corner = out * sliding.stride[axis] - sliding.padding[axis];
            return std::pair(std::max<int64_t>(0, corner), std::min<int64_t>(size, corner + sliding.kernel[axis]));
        };
        const auto [top, bottom] = taps(0, pixel / output.width, input.height);
        const auto [left, right] = taps(1, pixel % output.width, input.width);
        const uint64_t* from = reinterpret_cast<const uint64_t*>(arena + input.offset);
        uint64_t* to = reinterpret_cast<uint64_t*>(arena + output.offset) + pixel * output.stride;
        for (size_t word = 0; word < flipped.size(); ++word) {
            uint64_t any = 0, all = ~uint64_t{0};
            for (int64_t y = top; y < bottom; ++y)
                for (int64_t x = left; x < right; ++x) {
                    const uint64_t bits = from[(y * input.width + x) * input.stride + static_cast<int64_t>(word)];
                    any |= bits;
                    all &= bits;
                }
            to[word] = (any & ~flipped[word]) | (all & flipped[word]);
        }
    }));
}

void Program::pointwise(const Buffer& input, const std::vector<StageSpec>& specs) {
    check(input);
    require(input.kind == Kind::kFloat && input.pixels() < INT32_MAX, "pointwise: expected a float input");
    steps_.push_back(std::make_unique<PointwiseStep>(kernels_, input, stages(specs, input.pixels(), input.channels)));
}

void Program::concat(const std::vector<Buffer>& inputs, const Buffer& output) {
    check(output);
    int channels = 0;
    for (const Buffer& input : inputs) {
        check(input);
        require(input.kind == output.kind && input.pixels() == output.pixels(), "concat: parts of different shapes");
        channels += input.channels;
    }
    require(channels == output.channels, "concat: channels do not add up");
    const auto floats = [inputs, output](char* arena, int64_t pixel) {
        float* to = reinterpret_cast<float*>(arena + output.offset) + pixel * output.stride;
        for (const Buffer& input : inputs) {
            const float* from = reinterpret_cast<const float*>(arena + input.offset) + pixel * input.stride;
            std::memcpy(to, from, static_cast<size_t>(input.channels) * sizeof(float));
            to += input.channels;
        }
    };
    const auto bits = [inputs, output](char* arena, int64_t pixel) {
        uint64_t* to = reinterpret_cast<uint64_t*>(arena + output.offset) + pixel * output.stride;
        std::fill(to, to + output.stride, 0);
        int64_t at = 0;
        for (const Buffer& input : inputs) {
            copy_bits(to, at, reinterpret_cast<const uint64_t*>(arena + input.offset) + pixel * input.stride, 0,
                      input.channels);
            at += input.channels;
        }
    };
    if (output.kind == Kind::kFloat)
        steps_.push_back(std::make_unique<MoveStep>(output.pixels(), floats));
    else
        steps_.push_back(std::make_unique<MoveStep>(output.pixels(), bits));
}

void Program::upsample(const Buffer& input, const Buffer& output, int factor) {
    check(input);
    check(output);
    require(input.kind == output.kind && input.channels == output.channels && factor > 0 &&
                input.height * factor == output.height && input.width * factor == output.width &&
                input.stride <= output.stride,
            "upsample: shapes do not fit");
    const int64_t size = element_bytes(input.kind);
    steps_.push_back(std::make_unique<MoveStep>(output.pixels(), [=](char* arena, int64_t pixel) {
        const int64_t y = pixel / output.width / factor, x = pixel % output.width / factor;
        std::memcpy(arena + output.offset + pixel * output.stride * size,
                    arena + input.offset + (y * input.width + x) * input.stride * size,
                    static_cast<size_t>(input.stride * size));
    }));
}

void Program::regroup(const Buffer& input, const Buffer& output, int groups) {
    check(input);
    check(output);
    require(input.kind == Kind::kBits && output.kind == Kind::kBits && input.pixels() == output.pixels() &&
                groups > 0 && input.channels % groups == 0 && input.channels == output.channels &&
                words(input.channels / groups) * static_cast<int64_t>(groups) <= output.stride,
            "regroup: shapes do not fit");
    const int each = input.channels / groups;
    steps_.push_back(std::make_unique<MoveStep>(output.pixels(), [=](char* arena, int64_t pixel) {
        uint64_t* to = reinterpret_cast<uint64_t*>(arena + output.offset) + pixel * output.stride;
        const uint64_t* from = reinterpret_cast<const uint64_t*>(arena + input.offset) + pixel * input.stride;
        std::fill(to, to + output.stride, 0);
        for (int group = 0; group < groups; ++group)
            copy_bits(to + static_cast<int64_t>(group) * words(each), 0, from, static_cast<int64_t>(group) * each,
                      each);
    }));
}

void Program::output(const std::string& name, const Buffer& buffer) {
    check(buffer);
    outputs_.push_back({name, buffer});
}

void Program::copy_outputs(const char* arena, int64_t index, const std::vector<char*>& outputs) const {
    for (size_t i = 0; i < outputs_.size(); ++i) {
        const Buffer& buffer = outputs_[i].buffer;
        const int64_t size = element_bytes(buffer.kind);
        const int64_t row = (buffer.kind == Kind::kFloat ? buffer.channels : words(buffer.channels)) * size;
        char* to = outputs[i] + index * buffer.pixels() * row;
        const char* from = arena + buffer.offset;
        for (int64_t pixel = 0; pixel < buffer.pixels(); ++pixel)
            std::memcpy(to + pixel * row, from + pixel * buffer.stride * size, static_cast<size_t>(row));
    }
}

void Program::run_image(const Context& context, int64_t index, const std::vector<char*>& outputs) const {
    for (const auto& step : steps_) step->run(context, 0, step->items());
    copy_outputs(context.arena, index, outputs);
}

void Program::run(const uint8_t* images, int64_t count, const std::vector<char*>& outputs, int threads) {
    if (count == 0) return;
    struct Held {
        Tokens& tokens;
        std::vector<Arena*> arenas;
        ~Held() {
            for (Arena* arena : arenas) tokens.give_back(arena);
        }
    } held{*tokens_, {}};
    threads = std::min(threads, threads_);
    held.arenas.reserve(static_cast<size_t>(threads));
    held.arenas.push_back(tokens_->take());
    while (static_cast<int>(held.arenas.size()) < threads) {
        Arena* more = tokens_->try_take();
        if (!more) break;
        held.arenas.push_back(more);
    }
    const int team = static_cast<int>(held.arenas.size());
    const int64_t image_bytes = static_cast<int64_t>(height_) * width_ * 3;

    if (team == 1 || count >= team) {
        std::atomic<int64_t> next{0};
        workers_->run(team - 1, [&](int member) {
            char* arena = held.arenas[static_cast<size_t>(member)]->data();
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
                run_image({arena, images + i * image_bytes}, i, outputs);
        });
        return;
    }
    // Fewer images than threads: the whole team on each image, step by step.
    for (int64_t i = 0; i < count; ++i) {
        const Context context{held.arenas[0]->data(), images + i * image_bytes};
        Steps steps(steps_.size());
        for (size_t s = 0; s < steps_.size(); ++s) steps.set_items(s, steps_[s]->items());
        workers_->run(team - 1, [&](int) {
            for (size_t s = 0; s < steps_.size(); ++s) {
                const int64_t items = steps_[s]->items();
                const int64_t grain = std::max<int64_t>(1, items / (team * 4));
                for (int64_t begin; (begin = steps.take(s, grain)) < items;) {
                    const int64_t end = std::min(begin + grain, items);
                    steps_[s]->run(context, begin, end);
                    steps.done(s, end - begin);
                }
                steps.wait(s);
            }
        });
        copy_outputs(context.arena, i, outputs);
    }
}

std::vector<double> Program::profile(const uint8_t* image, int repeats) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> seconds(steps_.size(), 1e30);
    struct Held {
        Tokens& tokens;
        Arena* arena;
        ~Held() { tokens.give_back(arena); }
    } held{*tokens_, tokens_->take()};
    const Context context{held.arena->data(), image};
    for (int repeat = 0; repeat < repeats; ++repeat) {
        for (size_t s = 0; s < steps_.size(); ++s) {
            const auto begin = Clock::now();
            steps_[s]->run(context, 0, steps_[s]->items());
            seconds[s] = std::min(seconds[s], std::chrono::duration<double>(Clock::now() - begin).count());
        }
    }
    return seconds;
}

std::vector<std::string> Program::step_names() const {
    std::vector<std::string> names;
    for (const auto& step : steps_) names.push_back(step->name);
    return names;
}

}  // namespace xnor
