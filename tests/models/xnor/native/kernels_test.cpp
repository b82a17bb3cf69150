// Every kernel of every table that this machine runs, on random tiles, against plain loops: integers, bits and single
// roundings exactly, sums of products within their rounding. Inputs lie in arrays of just the size that a tile may
// read, so that a sanitizer sees a step too far.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"

using namespace xnor;

namespace {

constexpr int kTiles = 120;  // of each kernel
constexpr int kArenaPixels = 64;
constexpr int32_t kUntouched = 0x5a5a5a5a;

std::mt19937 engine(20240607);

int between(int least, int most) { return std::uniform_int_distribution<int>(least, most)(engine); }
bool maybe() { return between(0, 1) == 1; }
float value() { return std::normal_distribution<float>()(engine); }

template <class T>
T any() {
    return static_cast<T>(std::uniform_int_distribution<uint64_t>()(engine));
}

template <class T, class Make>
std::vector<T> filled(int64_t count, const Make& make) {
    std::vector<T> values(static_cast<size_t>(count));
    for (T& x : values) x = static_cast<T>(make());
    return values;
}

const char* now_isa = "";
const char* now_kernel = "";

void expect(bool holds, const char* what, int pixel, int lane, double found, double wanted) {
    if (holds) return;
    std::printf("%s %s: %s, pixel %d lane %d: %.9g, expected %.9g\n", now_isa, now_kernel, what, pixel, lane, found,
                wanted);
    std::exit(1);
}

// ---- tiles ----------------------------------------------------------------------------------------------------

// A window and all that it may read: `reach` elements, of `unit` elements each step of the run.
struct RandomWindow {
    Window window{};
    std::vector<int32_t> offsets;
    int64_t reach = 0;

    RandomWindow(int pixels, int unit) {
        window.pixels = pixels;
        window.rows = between(1, 4);
        window.cols = between(1, 4);
        window.run = between(0, 3) == 0 ? between(10, 70) : between(1, 9);
        window.in_col = unit * window.run + between(0, 5);
        window.in_row = window.in_col * window.cols + between(0, 9);
        offsets = filled<int32_t>(pixels, [&] { return between(0, 40); });
        window.in_offset = offsets.data();
        const int furthest = *std::max_element(offsets.begin(), offsets.end());
        reach = furthest + (window.rows - 1) * window.in_row + (window.cols - 1) * window.in_col + unit * window.run;
    }
};

// Weights of a window that shows only a part of a kernel: there are columns beyond it.
struct WeightStrides {
    int64_t col, row, size;

    WeightStrides(const Window& window, int64_t step)
        : col(window.run * step), row(col * (window.cols + between(0, 2))), size(row * window.rows) {}
};

int some_lanes() { return kLanes << between(0, 2); }
int tile_pixels() { return between(1, kTilePixels); }

// ---- what a sum becomes -----------------------------------------------------------------------------------------

// An arena with two maps of floats to read and write, a scale a pixel, and a map of bits; and stages over them.
struct Finishing {
    int channels, padded;
    int64_t pixel_bytes, used_bytes;   // of the bits, which may begin within a word
    int64_t add, store, scales, bits;  // offsets, bytes
    std::vector<char> arena;
    std::vector<int32_t> out_pixel;
    std::vector<float> per_channel[4], signs, per_pixel;
    std::vector<Stage> stages;
    std::vector<float> doubled;
    Chain chain;
    FinishTile tile{};

    Finishing(int pixels, int lanes) {
        const int first = kLanes * between(0, 3);
        const int last = maybe() ? 0 : between(1, 90);  // channels behind the tile's own
        channels = first + (last != 0 ? lanes + last : between(lanes - kLanes + 1, lanes));
        padded = (channels + kLanes - 1) / kLanes * kLanes;
        const int64_t before = 2 * between(0, 3), whole = (8 * before + channels + 63) / 64 * 8;
        used_bytes = whole - before;
        pixel_bytes = whole + 8 * between(0, 1);
        const int64_t map = int64_t{kArenaPixels} * padded * 4;
        add = 0;
        store = map;
        scales = 2 * map;
        const int64_t words = scales + kArenaPixels * 4;
        bits = words + before;
        arena.resize(static_cast<size_t>(words + kArenaPixels * pixel_bytes));
        for (int64_t at = 0; at < words; at += 4) {
            const float x = value();
            std::memcpy(arena.data() + at, &x, sizeof x);
        }
        for (size_t at = static_cast<size_t>(words); at < arena.size(); ++at) arena[at] = any<char>();
        out_pixel.resize(kArenaPixels);
        for (int p = 0; p < kArenaPixels; ++p) out_pixel[static_cast<size_t>(p)] = p;
        std::shuffle(out_pixel.begin(), out_pixel.end(), engine);
        for (auto& values : per_channel) values = filled<float>(padded, value);
        signs = filled<float>(padded, [] { return maybe() ? -0.0f : 0.0f; });
        per_pixel = filled<float>(kArenaPixels, value);

        for (int count = between(0, 6); count > 0; --count)
            stages.push_back(stage(static_cast<StageKind>(between(0, 7))));
        stages.push_back(stage(StageKind::kStore));
        if (maybe()) stages.push_back(stage(StageKind::kBits));
        set_stages();
        tile.out_pixel = out_pixel.data();
        tile.pixels = pixels;
        tile.channel = first;
        tile.lanes = lanes;
        tile.arena = arena.data();
    }

    void set_stages() {
        tile.stages = stages.data();
        tile.stage_count = static_cast<int>(stages.size());
    }

    // Stages that are a chain instead, any of them but for the scale left out.
    void become_chain() {
        stages.clear();
        stages.push_back(stage(maybe() ? StageKind::kScale : StageKind::kScaleShift));
        const StageKind usual[] = {StageKind::kPrelu, StageKind::kAdd, StageKind::kStore, StageKind::kBits};
        const bool plain = stages[0].kind == StageKind::kScaleShift && maybe();
        for (const StageKind kind : usual)
            if (plain ? kind == StageKind::kStore : maybe()) stages.push_back(stage(kind));
        set_stages();
        doubled = std::vector<float>(stages[0].channel, stages[0].channel + padded);
        for (float& scale : doubled) scale *= 2;
        chain.scale = doubled.data();
        for (const Stage& one : stages) {
            if (one.kind == StageKind::kScaleShift) chain.shift = one.shift;
            if (one.kind == StageKind::kPrelu) chain.prelu = &one;
            if (one.kind == StageKind::kAdd) chain.add = &one;
            if (one.kind == StageKind::kStore) chain.store = &one;
            if (one.kind == StageKind::kBits) chain.bits = &one;
        }
        tile.chain = &chain;
    }

    Stage stage(StageKind kind) const {
        Stage made;
        made.kind = kind;
        made.channel = kind == StageKind::kPixelScale ? per_pixel.data() : per_channel[between(0, 3)].data();
        made.shift = per_channel[between(0, 3)].data();
        made.sign = signs.data();
        made.channels = channels;
        made.offset = kind == StageKind::kAdd     ? add
                      : kind == StageKind::kStore ? store
                      : kind == StageKind::kBits  ? bits
                                                  : scales;
        made.stride = kind == StageKind::kBits ? pixel_bytes : padded;
        made.bytes = static_cast<int>(used_bytes);
        return made;
    }

    float* floats(std::vector<char>& in, int64_t offset) const { return reinterpret_cast<float*>(in.data() + offset); }

    // One lane of one pixel, in `in`, from the value of its sum.
    void apply(std::vector<char>& in, int p, int lane, float x) const {
        const int pixel = out_pixel[static_cast<size_t>(p)], channel = tile.channel + lane;
        for (const Stage& stage : stages) {
            const float own = stage.kind == StageKind::kPixelScale ? stage.channel[pixel] : stage.channel[channel];
            switch (stage.kind) {
                case StageKind::kScale:
                case StageKind::kPixelScale:
                    x *= own;
                    break;
                case StageKind::kShift:
                    x += own;
                    break;
                case StageKind::kScaleShift:
                    x *= own;
                    x += stage.shift[channel];
                    break;
                case StageKind::kPixelScaleAt:
                    x *= floats(in, scales)[pixel];
                    break;
                case StageKind::kPrelu:
                    x = x < 0 ? x * own : x;
                    break;
                case StageKind::kRelu:
                    x = x < 0 ? 0 : x;
                    break;
                case StageKind::kAdd:
                    x += floats(in, add)[int64_t{pixel} * padded + channel];
                    break;
                case StageKind::kStore:
                    floats(in, store)[int64_t{pixel} * padded + channel] = x;
                    break;
                case StageKind::kBits: {
                    const float compared = std::signbit(stage.sign[channel]) ? -x : x;
                    put_bit(in, pixel, channel, channel < channels && compared >= own);
                    if (channel + 1 == padded)
                        for (int64_t rest = padded; rest < used_bytes * 8; ++rest) put_bit(in, pixel, rest, false);
                    break;
                }
            }
        }
    }

    void put_bit(std::vector<char>& in, int pixel, int64_t channel, bool bit) const {
        char& byte = in[static_cast<size_t>(bits + pixel * pixel_bytes + channel / 8)];
        const int mask = 1 << (channel % 8);
        byte = static_cast<char>(bit ? byte | mask : byte & ~mask);
    }

    void compare(std::vector<char>& wanted) {
        for (int64_t i = 0; i < (scales + kArenaPixels * 4) / 4; ++i) {
            const float found = floats(arena, 0)[i], right = floats(wanted, 0)[i];
            expect(found == right, "a float of the arena", static_cast<int>(i), -1, found, right);
        }
        for (size_t i = static_cast<size_t>(scales + kArenaPixels * 4); i < arena.size(); ++i)
            expect(arena[i] == wanted[i], "a byte of the bits", static_cast<int>(i), -1, arena[i], wanted[i]);
    }
};

// Runs `kernel` with stages behind it and compares with `sum(pixel, lane)` taken through them.
template <class Run, class Sum>
void check_finished(Finishing& finishing, const Run& run, const Sum& sum) {
    std::vector<char> wanted = finishing.arena;
    for (int p = 0; p < finishing.tile.pixels; ++p)
        for (int lane = 0; lane < finishing.tile.lanes; ++lane) finishing.apply(wanted, p, lane, sum(p, lane));
    run();
    finishing.compare(wanted);
}

template <class T, class Sum>
void check_buffer(const std::vector<T>& buffer, int pixels, int lanes, const Sum& sum) {
    for (int p = 0; p < kTilePixels; ++p) {
        for (int lane = 0; lane < kTileLanes; ++lane) {
            const T found = buffer[static_cast<size_t>(p * kTileLanes + lane)];
            if (p < pixels && lane < lanes)
                sum(p, lane, found);
            else
                expect(found == static_cast<T>(kUntouched), "written beyond the tile", p, lane, found, kUntouched);
        }
    }
}

template <class T>
std::vector<T> untouched() {
    return std::vector<T>(kTilePixels * kTileLanes, static_cast<T>(kUntouched));
}

// ---- the kernels ------------------------------------------------------------------------------------------------

void test_binary(const Kernels& kernels) {
    const bool finished = maybe();
    RandomWindow random(finished ? between(1, kArenaPixels) : tile_pixels(), 1);
    const Window& window = random.window;
    const int lanes = some_lanes();
    const int halves = between(1, 2);
    const WeightStrides strides(window, halves * lanes);
    const auto input = filled<uint64_t>(random.reach, any<uint64_t>);
    const auto weight = filled<uint32_t>(strides.size, any<uint32_t>);
    auto counts = untouched<int32_t>();
    const BinaryTile tile{window, input.data(), weight.data(), strides.row, strides.col, halves, lanes, counts.data()};
    const auto differing = [&](int p, int lane) {
        int count = 0;
        for (int row = 0; row < window.rows; ++row)
            for (int col = 0; col < window.cols; ++col)
                for (int64_t i = 0; i < window.run; ++i) {
                    const uint64_t x = input[static_cast<size_t>(random.offsets[static_cast<size_t>(p)] +
                                                                 row * window.in_row + col * window.in_col + i)];
                    const uint32_t* w =
                        weight.data() + row * strides.row + col * strides.col + i * halves * lanes + lane;
                    count += __builtin_popcount(static_cast<uint32_t>(x) ^ w[0]);
                    if (halves == 2) count += __builtin_popcount(static_cast<uint32_t>(x >> 32) ^ w[lanes]);
                }
        return count;
    };
    if (!finished) {
        kernels.binary(tile, nullptr);
        return check_buffer(counts, window.pixels, lanes, [&](int p, int lane, int32_t found) {
            expect(found == differing(p, lane), "a count", p, lane, found, differing(p, lane));
        });
    }
    Finishing finishing(window.pixels, kLanes * between(1, lanes / kLanes));
    if (maybe()) finishing.become_chain();
    finishing.tile.counts = counts.data();
    const float total = static_cast<float>(between(0, 5000));
    finishing.tile.total = total;
    check_finished(
        finishing, [&] { kernels.binary(tile, &finishing.tile); },
        [&](int p, int lane) { return total - 2 * static_cast<float>(differing(p, lane)); });
}

void test_dot(const Kernels& kernels) {
    const bool finished = maybe();
    RandomWindow random(finished ? between(1, kArenaPixels) : tile_pixels(), 4);
    const Window& window = random.window;
    const int lanes = some_lanes();
    const bool extreme = maybe();
    const WeightStrides strides(window, 4 * lanes);
    const auto input = filled<uint8_t>(random.reach, [&] { return extreme ? 255 : between(0, 255); });
    const auto weight =
        filled<int8_t>(strides.size, [&] { return extreme ? -127 + 254 * between(0, 1) : between(-128, 127); });
    const auto start = filled<int32_t>(lanes, [] { return between(-1000000, 1000000); });
    auto sums = untouched<int32_t>();
    DotTile tile{window, input.data(), weight.data(), strides.row, strides.col, lanes, start.data(), sums.data()};
    const auto sum = [&](int p, int lane) {
        int32_t total = start[static_cast<size_t>(lane)];
        for (int row = 0; row < window.rows; ++row)
            for (int col = 0; col < window.cols; ++col)
                for (int64_t i = 0; i < 4 * window.run; ++i) {
                    const int x = input[static_cast<size_t>(random.offsets[static_cast<size_t>(p)] +
                                                            row * window.in_row + col * window.in_col + i)];
                    const int64_t at = row * strides.row + col * strides.col + i / 4 * 4 * lanes + 4 * lane + i % 4;
                    total += x * weight[static_cast<size_t>(at)];
                }
        return total;
    };
    if (!finished) {
        kernels.dot(tile, nullptr);
        return check_buffer(sums, window.pixels, lanes, [&](int p, int lane, int32_t found) {
            expect(found == sum(p, lane), "a sum", p, lane, found, sum(p, lane));
        });
    }
    Finishing finishing(window.pixels, kLanes * between(1, lanes / kLanes));
    finishing.tile.sums = sums.data();
    check_finished(
        finishing, [&] { kernels.dot(tile, &finishing.tile); },
        [&](int p, int lane) { return static_cast<float>(sum(p, lane)); });
}

// A finite half and its value: zeros, subnormals and normal numbers of both signs.
uint16_t any_half() {
    const int exponent = between(0, 3) == 0 ? between(0, 2) : between(0, 30);
    return static_cast<uint16_t>(between(0, 1) << 15 | exponent << 10 | between(0, 1023));
}

double half_value(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double size = exponent != 0 ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return half & 0x8000 ? -size : size;
}

void test_real(const Kernels& kernels) {
    RandomWindow random(tile_pixels(), 1);
    const Window& window = random.window;
    const int lanes = some_lanes();
    const WeightStrides strides(window, lanes);
    const bool half = maybe();
    const auto input = filled<float>(random.reach, value);
    const auto floats = filled<float>(strides.size, value);
    const auto halves = filled<uint16_t>(strides.size, any_half);
    auto sums = untouched<float>();
    const void* weight = half ? static_cast<const void*>(halves.data()) : floats.data();
    kernels.real({window, input.data(), weight, strides.row, strides.col, lanes, half, sums.data()});
    check_buffer(sums, window.pixels, lanes, [&](int p, int lane, float found) {
        double sum = 0, size = 0;
        int64_t terms = 0;
        for (int row = 0; row < window.rows; ++row)
            for (int col = 0; col < window.cols; ++col)
                for (int64_t i = 0; i < window.run; ++i, ++terms) {
                    const double x = input[static_cast<size_t>(random.offsets[static_cast<size_t>(p)] +
                                                               row * window.in_row + col * window.in_col + i)];
                    const size_t at = static_cast<size_t>(row * strides.row + col * strides.col + i * lanes + lane);
                    const double product = x * (half ? half_value(halves[at]) : floats[at]);
                    sum += product;
                    size += std::fabs(product);
                }
        const double rounding = size * static_cast<double>(terms + 1) * 6e-8;
        expect(std::fabs(found - sum) <= rounding, "a sum", p, lane, found, sum);
    });
}

void test_quantize(const Kernels& kernels) {
    const int channels = between(1, 70), pixels = between(1, 20);
    const int64_t stride = channels + between(0, 9), bytes_stride = channels + between(0, 9);
    auto input = filled<float>((pixels - 1) * stride + channels, value);
    if (maybe())  // halves that must round to even
        for (float& x : input) x = static_cast<float>(between(-126, 125)) + 0.5f;
    const float sizes[] = {1, 0, 1e-38f, 1e-20f, 1e20f, 1e36f};
    for (int p = 0; p < pixels; ++p) {
        input[static_cast<size_t>(p * stride + between(0, channels - 1))] = 127;
        const float size = sizes[maybe() ? 0 : between(0, 5)];
        for (int c = 0; c < channels; ++c) input[static_cast<size_t>(p * stride + c)] *= size;
    }
    std::vector<uint8_t> bytes(static_cast<size_t>(pixels * bytes_stride), 77);
    std::vector<float> scales(static_cast<size_t>(pixels), -1.0f);
    kernels.quantize({input.data(), stride, channels, pixels, bytes.data(), bytes_stride, scales.data()});
    for (int p = 0; p < pixels; ++p) {
        float most = 0;
        for (int c = 0; c < channels; ++c) most = std::max(most, std::fabs(input[static_cast<size_t>(p * stride + c)]));
        const bool usable = most > 1e-30f && most < 1e30f;
        const float factor = 127.0f / most, scale = usable ? most / 127.0f : 0.0f;
        expect(scales[static_cast<size_t>(p)] == scale, "a scale", p, -1, scales[static_cast<size_t>(p)], scale);
        for (int64_t c = 0; c < bytes_stride; ++c) {
            int wanted = 77;
            if (c < channels)
                wanted =
                    usable ? 128 + static_cast<int>(std::nearbyint(input[static_cast<size_t>(p * stride + c)] * factor))
                           : 128;
            const int found = bytes[static_cast<size_t>(p * bytes_stride + c)];
            expect(found == wanted, "a byte", p, static_cast<int>(c), found, wanted);
        }
    }
}

void test_pool(const Kernels& kernels) {
    const int lanes = kLanes * between(1, 4);
    RandomWindow random(tile_pixels(), lanes);
    random.window.run = 1;
    const Window& window = random.window;
    const auto input = filled<float>(random.reach, value);
    const Pool pool = static_cast<Pool>(between(0, 2));
    const float divisor = static_cast<float>(between(1, 50));
    auto sums = untouched<float>();
    kernels.pool({window, input.data(), lanes, pool, divisor, sums.data()});
    check_buffer(sums, window.pixels, lanes, [&](int p, int lane, float found) {
        const float* corner = input.data() + random.offsets[static_cast<size_t>(p)] + lane;
        float sum = pool == Pool::kMax ? *corner : 0;
        for (int row = 0; row < window.rows; ++row) {
            float row_sum = 0;
            for (int col = 0; col < window.cols; ++col) {
                const float x = corner[row * window.in_row + col * window.in_col];
                if (pool == Pool::kMax) sum = std::max(sum, x);
                if (pool == Pool::kMean) sum += x;
                row_sum += x;
            }
            if (pool == Pool::kMeanByRow) sum += row_sum;
        }
        if (pool != Pool::kMax) sum /= divisor;
        expect(found == sum, "a value", p, lane, found, sum);
    });
}

void test_finish(const Kernels& kernels) {
    const int pixels = tile_pixels(), lanes = kLanes * between(1, 8);
    Finishing finishing(pixels, lanes);
    const auto floats = filled<float>(kTilePixels * kTileLanes, value);
    const auto counts = filled<int32_t>(kTilePixels * kTileLanes, [] { return between(-4000000, 4000000); });
    const int from = between(0, 2);
    finishing.tile.total = static_cast<float>(between(0, 5000));
    if (from == 0) finishing.tile.counts = counts.data();
    if (from == 1) finishing.tile.sums = counts.data();
    if (from == 2) finishing.tile.floats = floats.data();
    for (int p = 0; p < kTilePixels; ++p) finishing.tile.float_offset[p] = (kTilePixels - 1 - p) * kTileLanes;
    check_finished(
        finishing, [&] { kernels.finish(finishing.tile); },
        [&](int p, int lane) {
            const float count = static_cast<float>(counts[static_cast<size_t>(p * kTileLanes + lane)]);
            if (from == 0) return finishing.tile.total - 2 * count;
            if (from == 1) return count;
            return floats[static_cast<size_t>((kTilePixels - 1 - p) * kTileLanes + lane)];
        });
}

void test_ceiling(const Kernels& kernels) {
    const int64_t one = kernels.ceiling(1);
    expect(one > 0 && kernels.ceiling(7) == 7 * one, "rounds do equal work", 0, 0, 0, 0);
}

}  // namespace

int main() {
    const struct {
        const char* name;
        void (*test)(const Kernels&);
        int tiles;
    } tests[] = {{"binary", test_binary, kTiles},     {"dot", test_dot, kTiles},   {"real", test_real, kTiles},
                 {"quantize", test_quantize, kTiles}, {"pool", test_pool, kTiles}, {"finish", test_finish, kTiles},
                 {"ceiling", test_ceiling, 1}};
    for (const Kernels* kernels : available_kernels()) {
        now_isa = kernels->isa;
        std::printf("%s:", now_isa);
        for (const auto& test : tests) {
            now_kernel = test.name;
            for (int tile = 0; tile < test.tiles; ++tile) test.test(*kernels);
            std::printf(" %s", test.name);
        }
        std::printf(" ok\n");
    }
    return 0;
}
