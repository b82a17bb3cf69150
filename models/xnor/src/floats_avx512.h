// 16 floats in one 512-bit register. Needs AVX-512 F, BW, DQ, VL. Included inside an anonymous namespace.
struct Floats {
    using Vector = __m512;
    static constexpr int kVectors = 4;  // x 6 pixels = 24 of 32 registers hold sums
    template <bool Half>
    struct Weight {
        using Type = float;
    };

    static Vector load(const float* from) { return _mm512_loadu_ps(from); }
    static Vector load(const uint16_t* half) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
    }
    static void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
    static Vector set1(float x) { return _mm512_set1_ps(x); }
    static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
    static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
    static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
    static Vector divide(Vector a, Vector b) { return _mm512_div_ps(a, b); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
    static __m512i load_counts(const int32_t* counts) { return _mm512_loadu_si512(counts); }
    static Vector from_counts(__m512i counts) { return _mm512_cvtepi32_ps(counts); }
    static Vector magnitude(Vector x) { return _mm512_abs_ps(x); }
    // 128 + round(x), for |x| <= 127.5.
    static void store_bytes(uint8_t* to, Vector x) {
        const __m512i rounded = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(128));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(rounded));
    }
    static Vector minus_twice(Vector total, Vector counts) {
        return _mm512_fnmadd_ps(counts, _mm512_set1_ps(2), total);
    }
    static Vector prelu(Vector x, Vector slope) {
        return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), x, slope);
    }
    static Vector flip_sign(Vector x, Vector sign) { return _mm512_xor_ps(x, sign); }
    static uint32_t at_least(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
};
template <>
struct Floats::Weight<true> {
    using Type = uint16_t;
};
