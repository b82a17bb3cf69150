// AVX-512 with VPOPCNTDQ: xor, popcount, add, one instruction each for eight channels' words.
#include <immintrin.h>

#include <utility>

#include "kernels.h"

namespace xnor {
namespace {

#include "floats_avx512.h"

struct Words {
    using Vector = __m512i;
    static constexpr int kLanes = 8;
    static constexpr int kVectors = 4;
    static constexpr int kPixels = 6;  // x 4 vectors = 24 of 32 registers hold sums
    static constexpr int kBudget = 0;
    static constexpr bool kFinish = true;

    static Vector zero() { return _mm512_setzero_si512(); }
    static Vector load(const uint64_t* from) { return _mm512_loadu_si512(from); }
    static Vector broadcast(const uint64_t* from) { return _mm512_set1_epi64(static_cast<long long>(*from)); }
    static Vector add(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
    static Vector add_count(Vector sum, Vector x, Vector w) {
        return _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(x, w)));
    }
    static Vector widen(Vector sum) { return sum; }
    static void store(int32_t* to, Vector sum) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(sum));
    }
    static __m512i pair(Vector a, Vector b) {
        const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        return _mm512_permutex2var_epi32(a, even, b);
    }
    static void keep(Vector& x) { asm volatile("" : "+v"(x)); }
};

#include "kernels_body.h"

}  // namespace

const Kernels& avx512_vpopcntdq_kernels() {
    static const Kernels table{"avx512_vpopcntdq", binary, real, pool, finish, ceiling};
    return table;
}

}  // namespace xnor
