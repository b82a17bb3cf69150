// AVX2, FMA and F16C: bits are counted a nibble at a time through a byte shuffle.
#include <immintrin.h>

#include <utility>

#include "kernels.h"

namespace xnor {
namespace {

struct Floats {
    struct Vector {
        __m256 low, high;
    };
    static constexpr int kVectors = 1;  // two registers x 6 pixels = 12 of 16 hold sums
    template <bool Half>
    struct Weight {
        using Type = float;
    };

    static Vector load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
    static Vector load(const uint16_t* half) {
        const __m128i* from = reinterpret_cast<const __m128i*>(half);
        return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
    }
    static void store(float* to, Vector x) {
        _mm256_storeu_ps(to, x.low);
        _mm256_storeu_ps(to + 8, x.high);
    }
    static Vector set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static Vector add(Vector a, Vector b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    static Vector subtract(Vector a, Vector b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
    static Vector multiply(Vector a, Vector b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
    static Vector divide(Vector a, Vector b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
    static Vector multiply_add(Vector a, Vector b, Vector c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static Vector max(Vector a, Vector b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
    static Vector load_counts(const int32_t* counts) {
        const __m256i* from = reinterpret_cast<const __m256i*>(counts);
        return {_mm256_cvtepi32_ps(_mm256_loadu_si256(from)), _mm256_cvtepi32_ps(_mm256_loadu_si256(from + 1))};
    }
    static Vector from_counts(Vector counts) { return counts; }
    static Vector magnitude(Vector x) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
    }
    // 128 + round(x), for |x| <= 127.5.
    static void store_bytes(uint8_t* to, Vector x) {
        const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
        const __m256i words = _mm256_permute4x64_epi64(both, 0xd8);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_xor_si128(bytes, _mm_set1_epi8(-128)));
    }
    static Vector minus_twice(Vector total, Vector counts) {
        const __m256 two = _mm256_set1_ps(2);
        return {_mm256_fnmadd_ps(counts.low, two, total.low), _mm256_fnmadd_ps(counts.high, two, total.high)};
    }
    // The sign bit of x chooses; -0.0 becomes -0.0 * slope, which equals 0 as torch's does.
    static Vector prelu(Vector x, Vector slope) {
        const Vector scaled = multiply(x, slope);
        return {_mm256_blendv_ps(x.low, scaled.low, x.low), _mm256_blendv_ps(x.high, scaled.high, x.high)};
    }
    static Vector flip_sign(Vector x, Vector sign) {
        return {_mm256_xor_ps(x.low, sign.low), _mm256_xor_ps(x.high, sign.high)};
    }
    static uint32_t at_least(Vector a, Vector b) {
        const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ));
        const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ));
        return static_cast<uint32_t>(low | high << 8);
    }
};
template <>
struct Floats::Weight<true> {
    using Type = uint16_t;
};

struct Words {
    using Vector = __m256i;
    static constexpr int kLanes = 8;
    static constexpr int kVectors = 2;
    static constexpr int kPixels = 4;
    static constexpr int kBudget = 31;
    static constexpr int kTogether = 1;  // with sixteen registers and no operation on three of them, four gain nothing
    static constexpr int kGroup = 0;
    static constexpr bool kFinish = true;

    static Vector set1(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static Vector load(const uint32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static Vector broadcast(const uint32_t* from) { return set1(*from); }
    static Vector add(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
    static Vector add_count(Vector sum, Vector x, Vector w) {
        const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3,
                                                1, 2, 2, 3, 2, 3, 3, 4);
        const __m256i nibble = _mm256_set1_epi8(15);
        const __m256i d = _mm256_xor_si256(x, w);
        const __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(d, nibble));
        const __m256i high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(d, 4), nibble));
        return _mm256_add_epi8(sum, _mm256_add_epi8(low, high));
    }
    static Vector widen(Vector sum) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(sum, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
    }
    static void store(int32_t* to, Vector sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum); }
    static Floats::Vector as_floats(const Vector* sums, int group) {
        return {_mm256_castsi256_ps(sums[2 * group]), _mm256_castsi256_ps(sums[2 * group + 1])};
    }
    static void keep(Vector& x) { asm volatile("" : "+x"(x)); }
};

// Without VNNI a pair of products must fit 16 bits: the byte is taken as 2 (x >> 1) + (x & 1).
struct Dots {
    using Vector = __m256i;
    using Weights = __m256i;
    struct Bytes {
        __m256i half, odd;
    };
    static constexpr int kLanes = 8;
    static constexpr int kVectors = 2;
    static constexpr int kPixels = 3;
    static constexpr bool kFinish = false;

    static Vector load_sums(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static Weights load(const int8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static Bytes broadcast(const uint8_t* from) {
        int32_t quad;
        __builtin_memcpy(&quad, from, sizeof quad);
        const __m256i x = _mm256_set1_epi32(quad);
        return {_mm256_and_si256(_mm256_srli_epi16(x, 1), _mm256_set1_epi8(127)),
                _mm256_and_si256(x, _mm256_set1_epi8(1))};
    }
    static Vector add_dot(Vector sum, Bytes x, Weights w) {
        const __m256i half = _mm256_madd_epi16(_mm256_maddubs_epi16(x.half, w), _mm256_set1_epi16(2));
        const __m256i odd = _mm256_madd_epi16(_mm256_maddubs_epi16(x.odd, w), _mm256_set1_epi16(1));
        return _mm256_add_epi32(sum, _mm256_add_epi32(half, odd));
    }
    static void store(int32_t* to, Vector sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sum); }
};

#include "kernels_body.h"

}  // namespace

const Kernels& avx2_kernels() {
    static const Kernels table{"avx2", binary, real, dot, quantize, pool, finish, ceiling};
    return table;
}

}  // namespace xnor
