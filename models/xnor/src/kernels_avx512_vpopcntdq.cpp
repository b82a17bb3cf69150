// AVX-512 with VPOPCNTDQ and VNNI: xor, popcount, add, one instruction each for sixteen channels; and byte dot
// products.
#include <immintrin.h>

#include <utility>

#include "kernels.h"

namespace xnor {
namespace {

#include "floats_avx512.h"

struct Words {
    using Vector = __m512i;
    static constexpr int kLanes = 16;
    static constexpr int kVectors = 4;
    static constexpr int kPixels = 6;  // x 4 vectors = 24 of 32 registers hold sums
    static constexpr int kBudget = 0;
    static constexpr int kTogether = 1;
    static constexpr bool kFinish = true;

    static Vector set1(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Vector load(const uint32_t* from) { return _mm512_loadu_si512(from); }
    static Vector broadcast(const uint32_t* from) { return set1(*from); }
    static Vector add(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
    static Vector add_count(Vector sum, Vector x, Vector w) {
        return _mm512_add_epi32(sum, _mm512_popcnt_epi32(_mm512_xor_si512(x, w)));
    }
#if defined(__SANITIZE_ADDRESS__)
    static constexpr int kGroup = 0;  // what assembly reads is not checked
#else
    // Four vectors' counts in a fixed order, each xor reading the word: so the ports stay as busy as in the loop on
    // registers alone, and stores beside it cost nothing. As compilers order it, 6 to 10 % is lost on Zen 4.
    static constexpr int kGroup = 4;
    static void add_group(Vector* sums, const uint32_t* x, const Vector* w) {
        Vector a, b;
        asm("vpxord %[x]%{1to16%}, %[w0], %[a]\n\t vpopcntd %[a], %[a]\n\t vpaddd %[a], %[s0], %[s0]\n\t"
            "vpxord %[x]%{1to16%}, %[w1], %[b]\n\t vpopcntd %[b], %[b]\n\t vpaddd %[b], %[s1], %[s1]\n\t"
            "vpxord %[x]%{1to16%}, %[w2], %[a]\n\t vpopcntd %[a], %[a]\n\t vpaddd %[a], %[s2], %[s2]\n\t"
            "vpxord %[x]%{1to16%}, %[w3], %[b]\n\t vpopcntd %[b], %[b]\n\t vpaddd %[b], %[s3], %[s3]"
            : [a] "=&v"(a), [b] "=&v"(b), [s0] "+v"(sums[0]), [s1] "+v"(sums[1]), [s2] "+v"(sums[2]), [s3] "+v"(sums[3])
            : [x] "m"(*x), [w0] "v"(w[0]), [w1] "v"(w[1]), [w2] "v"(w[2]), [w3] "v"(w[3]));
    }
#endif
    static Vector widen(Vector sum) { return sum; }
    static void store(int32_t* to, Vector sum) { _mm512_storeu_si512(to, sum); }
    static Floats::Vector as_floats(const Vector* sums, int group) { return _mm512_castsi512_ps(sums[group]); }
    static void keep(Vector& x) { asm volatile("" : "+v"(x)); }
};

struct Dots {
    using Vector = __m512i;
    using Weights = __m512i;
    static constexpr int kLanes = 16;
    static constexpr int kVectors = 4;
    static constexpr int kPixels = 6;
    static constexpr bool kFinish = true;

    static Vector load_sums(const int32_t* from) { return _mm512_loadu_si512(from); }
    static Weights load(const int8_t* from) { return _mm512_loadu_si512(from); }
    static __m512i broadcast(const uint8_t* from) {
        int32_t quad;
        __builtin_memcpy(&quad, from, sizeof quad);
        return _mm512_set1_epi32(quad);
    }
    static Vector add_dot(Vector sum, __m512i x, Weights w) { return _mm512_dpbusd_epi32(sum, x, w); }
    static void store(int32_t* to, Vector sum) { _mm512_storeu_si512(to, sum); }
};

#include "kernels_body.h"

}  // namespace

const Kernels& avx512_vpopcntdq_kernels() {
    static const Kernels table{"avx512_vpopcntdq", binary, real, dot, quantize, pool, finish, ceiling};
    return table;
}

}  // namespace xnor
