// 64-bit ARM: bits are counted a byte at a time (CNT) and summed pairwise (UADDLP).
#include <arm_neon.h>

#include <utility>

#include "kernels.h"

namespace xnor {
namespace {

#include "floats_portable.h"

struct Words {
    using Vector = uint32x4_t;
    static constexpr int kLanes = 4;
    static constexpr int kVectors = 4;
    static constexpr int kPixels = 3;  // x 4 vectors = 12 of 32 registers hold byte counts, 12 their totals
    static constexpr int kBudget = 31;
    static constexpr int kTogether = 1;
    static constexpr int kGroup = 0;
    static constexpr bool kFinish = false;

    static Vector set1(uint32_t x) { return vdupq_n_u32(x); }
    static Vector load(const uint32_t* from) { return vld1q_u32(from); }
    static Vector broadcast(const uint32_t* from) { return vld1q_dup_u32(from); }
    static Vector add(Vector a, Vector b) { return vaddq_u32(a, b); }
    static Vector add_count(Vector sum, Vector x, Vector w) {
        const uint8x16_t counts = vcntq_u8(vreinterpretq_u8_u32(veorq_u32(x, w)));
        return vreinterpretq_u32_u8(vaddq_u8(vreinterpretq_u8_u32(sum), counts));
    }
    static Vector widen(Vector sum) { return vpaddlq_u16(vpaddlq_u8(vreinterpretq_u8_u32(sum))); }
    static void store(int32_t* to, Vector sum) { vst1q_s32(to, vreinterpretq_s32_u32(sum)); }
    static void keep(Vector& x) { asm volatile("" : "+w"(x)); }
};

#include "dots_portable.h"
#include "kernels_body.h"

}  // namespace

const Kernels& neon_kernels() {
    static const Kernels table{"neon", binary, real, dot, quantize, pool, finish, ceiling};
    return table;
}

}  // namespace xnor
