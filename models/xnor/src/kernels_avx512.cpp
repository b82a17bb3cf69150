// AVX-512 F/BW/DQ/VL without VPOPCNTDQ: words are added four at a time, and what is carried is counted a nibble at a
// time through a byte shuffle.
#include <immintrin.h>

#include <utility>

#include "kernels.h"

namespace xnor {
namespace {

#include "floats_avx512.h"

struct Words {
    using Vector = __m512i;
    static constexpr int kLanes = 16;
    static constexpr int kVectors = 2;
    static constexpr int kPixels = 3;  // x 2 vectors x 3 of Carried = 18 of 32 registers
    static constexpr int kBudget = 31;
    static constexpr int kTogether = 4;
    static constexpr int kGroup = 0;
    static constexpr bool kFinish = true;

    static Vector set1(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Vector load(const uint32_t* from) { return _mm512_loadu_si512(from); }
    static Vector broadcast(const uint32_t* from) { return set1(*from); }
    static Vector add(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
    static Vector add_bytes(Vector a, Vector b) { return _mm512_add_epi8(a, b); }
    static Vector differ(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
    static Vector both(Vector a, Vector b) { return _mm512_and_si512(a, b); }
    // The ones of x0 ^ w0 and x1 ^ w1 join `ones`; returns the twos. Where ones ^ x0 ^ w0 is set, the carry is the
    // third bit, whose xor with it is `sum`; else the first bit.
    static Vector add_two(Vector& ones, Vector x0, Vector w0, Vector x1, Vector w1) {
        const Vector first = _mm512_ternarylogic_epi32(ones, x0, w0, 0x96);
        const Vector sum = _mm512_ternarylogic_epi32(first, x1, w1, 0x96);
        const Vector carry = _mm512_ternarylogic_epi32(ones, first, sum, 0x74);
        ones = sum;
        return carry;
    }
    // Adds three bits: `sum` becomes their sum's low bit; returns the high one.
    static Vector carry(Vector& sum, Vector a, Vector b) {
        const Vector most = _mm512_ternarylogic_epi32(sum, a, b, 0xe8);
        sum = _mm512_ternarylogic_epi32(sum, a, b, 0x96);
        return most;
    }
    static Vector count_bytes(Vector x) {
        const __m512i counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const __m512i nibble = _mm512_set1_epi8(15);
        const __m512i low = _mm512_shuffle_epi8(counts, _mm512_and_si512(x, nibble));
        const __m512i high = _mm512_shuffle_epi8(counts, _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble));
        return _mm512_add_epi8(low, high);
    }
    static Vector add_count(Vector sum, Vector x, Vector w) { return add_bytes(sum, count_bytes(differ(x, w))); }
    static Vector widen_fours(Vector fours) {
        return _mm512_madd_epi16(_mm512_maddubs_epi16(fours, _mm512_set1_epi8(4)), _mm512_set1_epi16(1));
    }
    template <class Carried>
    static Vector widen(const Carried& x) {
        const __m512i ones = _mm512_maddubs_epi16(count_bytes(x.ones), _mm512_set1_epi8(1));
        const __m512i twos = _mm512_maddubs_epi16(count_bytes(x.twos), _mm512_set1_epi8(2));
        const __m512i fours = _mm512_maddubs_epi16(x.fours, _mm512_set1_epi8(4));
        return _mm512_madd_epi16(_mm512_add_epi16(_mm512_add_epi16(ones, twos), fours), _mm512_set1_epi16(1));
    }
    static void store(int32_t* to, Vector sum) { _mm512_storeu_si512(to, sum); }
    static Floats::Vector as_floats(const Vector* sums, int group) { return _mm512_castsi512_ps(sums[group]); }
    static void keep(Vector& x) { asm volatile("" : "+v"(x)); }
};

// Without VNNI a pair of products must fit 16 bits: the byte is taken as 2 (x >> 1) + (x & 1).
struct Dots {
    using Vector = __m512i;
    using Weights = __m512i;
    struct Bytes {
        __m512i half, odd;
    };
    static constexpr int kLanes = 16;
    static constexpr int kVectors = 2;
    static constexpr int kPixels = 6;
    static constexpr bool kFinish = true;

    static Vector load_sums(const int32_t* from) { return _mm512_loadu_si512(from); }
    static Weights load(const int8_t* from) { return _mm512_loadu_si512(from); }
    static Bytes broadcast(const uint8_t* from) {
        int32_t quad;
        __builtin_memcpy(&quad, from, sizeof quad);
        const __m512i x = _mm512_set1_epi32(quad);
        return {_mm512_and_si512(_mm512_srli_epi16(x, 1), _mm512_set1_epi8(127)),
                _mm512_and_si512(x, _mm512_set1_epi8(1))};
    }
    static Vector add_dot(Vector sum, Bytes x, Weights w) {
        const __m512i half = _mm512_madd_epi16(_mm512_maddubs_epi16(x.half, w), _mm512_set1_epi16(2));
        const __m512i odd = _mm512_madd_epi16(_mm512_maddubs_epi16(x.odd, w), _mm512_set1_epi16(1));
        return _mm512_add_epi32(sum, _mm512_add_epi32(half, odd));
    }
    static void store(int32_t* to, Vector sum) { _mm512_storeu_si512(to, sum); }
};

#include "kernels_body.h"

}  // namespace

const Kernels& avx512_kernels() {
    static const Kernels table{"avx512", binary, real, dot, quantize, pool, finish, ceiling};
    return table;
}

}  // namespace xnor
