// The inner loops that depend on the instruction set, as one table of function pointers.
//
// All of them work on a tile: up to kTilePixels output pixels that see the same taps of the window
// (so no tap needs a bounds check), times a block of output channels. A convolution writes its raw
// sums into a small tile buffer; `finish` turns a tile into floats and bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xnor {

constexpr int kTilePixels = 6;
constexpr int kLanes = 16;        // channels that `finish` handles at once; parameters are padded to it
constexpr int kTileLanes = 128;   // channels of a tile buffer's row: 64, and room for a block that overhangs
constexpr int kBlockLanes = 64;   // output channels a block of a convolution, at most
constexpr int kWindowLanes = 64;  // channels of a tile buffer that count
constexpr int kAlignBytes = 64;

// A window's valid part over a tile: `rows` x `cols` runs of `run` consecutive elements (64-bit words
// of bits, or floats), seen by pixel p at input + in_offset[p] + row * in_row + col * in_col.
struct Window {
    const int32_t* in_offset;
    int pixels;
    int rows, cols;
    int64_t run;
    int64_t in_row, in_col;
};

// Bits are compared 32 at a time, so that a vector of 16 channels holds 16 counts; the window counts 64-bit words.
struct BinaryTile {
    Window window;
    const uint64_t* input;
    const uint32_t* weight;  // [rows][cols][run][halves][lanes], with the strides below (in halves of words)
    int64_t weight_row, weight_col;
    int halves;       // of each word: 2, or 1 where its high half is never used
    int lanes;        // 16, 32 or 64
    int32_t* counts;  // [pixels][kTileLanes]: differing bits
};

struct FloatTile {
    Window window;
    const float* input;
    const void* weight;  // float, or float16 where `half`
    int64_t weight_row, weight_col;
    int lanes;  // 16, 32 or 64
    bool half;
    float* sums;  // [pixels][kTileLanes]
};

// Unsigned bytes times signed bytes, summed exactly in 32 bits; four neighbours (a quad) at a time. The window
// counts bytes, but its run quads.
struct DotTile {
    Window window;
    const uint8_t* input;
    const int8_t* weight;  // [rows][cols][run][lanes][4], with the strides below (in bytes)
    int64_t weight_row, weight_col;
    int lanes;             // 16, 32 or 64
    const int32_t* start;  // [lanes]: what each sum begins with
    int32_t* sums;         // [pixels][kTileLanes]
};

// Floats of a pixel become bytes 128 + round(127 x / max |x|), so that a zero is 128; the pixel's scale is max |x| /
// 127.
struct QuantizeTile {
    const float* input;
    int64_t stride;  // from pixel to pixel
    int channels, pixels;
    uint8_t* bytes;
    int64_t bytes_stride;  // what lies beyond the channels is left as it is
    float* scales;
};

enum class Pool { kMax, kMean, kMeanByRow };

struct PoolTile {
    Window window;  // run is unused
    const float* input;
    int lanes;
    Pool pool;
    float divisor;
    float* sums;  // [pixels][kTileLanes]
};

enum class StageKind : uint8_t {
    kScale,
    kShift,
    kScaleShift,
    kPixelScale,
    kPixelScaleAt,
    kPrelu,
    kRelu,
    kAdd,
    kStore,
    kBits
};

// One stage of what happens to a channel's value on its way to memory.
struct Stage {
    StageKind kind;
    const float* channel = nullptr;  // [channels] padded to kLanes; kPixelScale: [pixels]
    const float* shift = nullptr;    // kScaleShift: added after `channel` has multiplied
    const float* sign = nullptr;     // kBits: -0.0 where the comparison is flipped, else 0
    int64_t offset = 0;              // kAdd, kStore, kBits, kPixelScaleAt: where it lies in the arena, bytes
    int64_t stride = 0;              // from pixel to pixel: floats, or for kBits bytes
    int channels = 0;                // kBits
    int bytes = 0;                   // kBits: from a pixel's first bit to the end of its last word
};

// The stages of nearly every binary convolution, in their usual order, so that no loop over them is due: scale, shift,
// PReLU, add, store, bits; null what there is none of, but for the scale.
struct Chain {
    const float* scale = nullptr;  // [channels] padded to kLanes, times 2: of total / 2 - count
    const float* shift = nullptr;
    const Stage *prelu = nullptr, *add = nullptr, *store = nullptr, *bits = nullptr;
};

struct FinishTile {
    const int32_t* counts = nullptr;  // [pixels][kTileLanes], or
    const int32_t* sums = nullptr;    // the same, taken as they are, or
    const float* floats = nullptr;    // at float_offset[p]
    int64_t float_offset[kTilePixels] = {};
    float total = 0;  // counts become total - 2 count: exact, both are integers below 2^24
    const int32_t* out_pixel = nullptr;
    int pixels = 0;
    int channel = 0;  // the first one; a multiple of kLanes
    int lanes = 0;    // a multiple of kLanes
    const Stage* stages = nullptr;
    int stage_count = 0;
    const Chain* chain = nullptr;  // the same stages, where they are a chain
    char* arena = nullptr;
};

struct Kernels {
    const char* isa;
    // Counts a tile into its buffer. With a FinishTile, counts and finishes any number of pixels.
    void (*binary)(const BinaryTile&, const FinishTile*);
    void (*real)(const FloatTile&);
    // Sums a tile into its buffer. With a FinishTile, sums and finishes any number of pixels.
    void (*dot)(const DotTile&, const FinishTile*);
    void (*quantize)(const QuantizeTile&);
    void (*pool)(const PoolTile&);
    void (*finish)(const FinishTile&);
    // xor + popcount + add on registers alone, `rounds` times; returns the multiply-accumulates done.
    int64_t (*ceiling)(int64_t rounds);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_vpopcntdq_kernels();
#elif defined(__aarch64__)
const Kernels& neon_kernels();
#endif

}  // namespace xnor
