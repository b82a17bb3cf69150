// 16 floats in four 128-bit vectors, as the compiler makes them. Included inside an anonymous namespace.
struct Floats {
    typedef float Quad __attribute__((vector_size(16)));
    typedef int32_t Ints __attribute__((vector_size(16)));
    struct Vector {
        Quad quad[4];
    };
    static constexpr int kVectors = 1;
    template <bool Half>
    struct Weight {
        using Type = float;
    };

    static Vector load(const float* from) {
        Vector x;
        __builtin_memcpy(&x, from, sizeof x);
        return x;
    }
    static Vector load(const uint16_t* half) {
        Vector x;
        for (int i = 0; i < kLanes; ++i) x.quad[i / 4][i % 4] = from_half(half[i]);
        return x;
    }
    static void store(float* to, Vector x) { __builtin_memcpy(to, &x, sizeof x); }
    static Vector set1(float x) {
        const Quad quad = {x, x, x, x};
        return {{quad, quad, quad, quad}};
    }
    template <class Op>
    static Vector each(Vector a, Vector b, Op op) {
        for (int i = 0; i < 4; ++i) a.quad[i] = op(a.quad[i], b.quad[i]);
        return a;
    }
    static Quad choose(Ints mask, Quad yes, Quad no) {
        return reinterpret_cast<Quad>((mask & reinterpret_cast<Ints>(yes)) | (~mask & reinterpret_cast<Ints>(no)));
    }
    static Vector add(Vector a, Vector b) {
        return each(a, b, [](Quad x, Quad y) { return x + y; });
    }
    static Vector subtract(Vector a, Vector b) {
        return each(a, b, [](Quad x, Quad y) { return x - y; });
    }
    static Vector multiply(Vector a, Vector b) {
        return each(a, b, [](Quad x, Quad y) { return x * y; });
    }
    static Vector divide(Vector a, Vector b) {
        return each(a, b, [](Quad x, Quad y) { return x / y; });
    }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return add(multiply(a, b), c); }
    static Vector max(Vector a, Vector b) {
        return each(a, b, [](Quad x, Quad y) { return choose(x > y, x, y); });
    }
    static Vector load_counts(const int32_t* counts) {
        Vector x;
        for (int i = 0; i < kLanes; ++i) x.quad[i / 4][i % 4] = static_cast<float>(counts[i]);
        return x;
    }
    static Vector from_counts(Vector counts) { return counts; }
    static Vector magnitude(Vector x) {
        return each(x, x, [](Quad a, Quad) { return reinterpret_cast<Quad>(reinterpret_cast<Ints>(a) & 0x7fffffff); });
    }
    // 128 + round(x), for |x| <= 127.5: adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    static void store_bytes(uint8_t* to, Vector x) {
        for (int i = 0; i < kLanes; ++i) {
            const float shifted = x.quad[i / 4][i % 4] + 12582912.0f;
            uint32_t bits;
            __builtin_memcpy(&bits, &shifted, sizeof bits);
            to[i] = static_cast<uint8_t>(bits + 128);
        }
    }
    static Vector minus_twice(Vector total, Vector counts) {
        return each(total, counts, [](Quad t, Quad c) { return t - 2.0f * c; });
    }
    static Vector prelu(Vector x, Vector slope) {
        return each(x, slope, [](Quad a, Quad s) { return choose(a < Quad{}, a * s, a); });
    }
    static Vector flip_sign(Vector x, Vector sign) {
        return each(x, sign, [](Quad a, Quad s) {
            return reinterpret_cast<Quad>(reinterpret_cast<Ints>(a) ^ reinterpret_cast<Ints>(s));
        });
    }
    static uint32_t at_least(Vector a, Vector b) {
        uint32_t bits = 0;
        for (int i = 0; i < kLanes; ++i)
            bits |= static_cast<uint32_t>(a.quad[i / 4][i % 4] >= b.quad[i / 4][i % 4]) << i;
        return bits;
    }

private:
    // IEEE half to float by integer arithmetic: rebias the exponent; subnormals through a subtraction.
    static float from_half(uint16_t half) {
        const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
        uint32_t bits = static_cast<uint32_t>(half & 0x7fffu) << 13;
        const uint32_t exponent = bits & (0x7c00u << 13);
        bits += (127u - 15u) << 23;
        float x;
        if (exponent == 0x7c00u << 13) {
            bits += (128u - 16u) << 23;
            __builtin_memcpy(&x, &bits, sizeof x);
        } else if (exponent == 0) {
            const uint32_t magic = 113u << 23;
            bits += 1u << 23;
            float base;
            __builtin_memcpy(&x, &bits, sizeof x);
            __builtin_memcpy(&base, &magic, sizeof base);
            x -= base;
        } else {
            __builtin_memcpy(&x, &bits, sizeof x);
        }
        uint32_t out;
        __builtin_memcpy(&out, &x, sizeof out);
        out |= sign;
        __builtin_memcpy(&x, &out, sizeof x);
        return x;
    }
};
template <>
struct Floats::Weight<true> {
    using Type = uint16_t;
};
