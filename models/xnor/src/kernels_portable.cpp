// Any 64-bit little-endian machine: 128-bit vectors as the compiler makes them, bits counted by shifts.
#include "kernels.h"

namespace xnor {
namespace {

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
    static Vector minus_twice(Vector total, const int32_t* counts) {
        for (int i = 0; i < kLanes; ++i)
            total.quad[i / 4][i % 4] = total.quad[i / 4][i % 4] - 2.0f * static_cast<float>(counts[i]);
        return total;
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

struct Words {
    typedef uint64_t Vector __attribute__((vector_size(16)));
    static constexpr int kLanes = 2;
    static constexpr int kVectors = 4;
    static constexpr int kPixels = 1;
    static constexpr int kBudget = 31;

    static Vector zero() { return Vector{}; }
    static Vector load(const uint64_t* from) {
        Vector x;
        __builtin_memcpy(&x, from, sizeof x);
        return x;
    }
    static Vector broadcast(const uint64_t* from) { return Vector{*from, *from}; }
    static Vector add(Vector a, Vector b) { return a + b; }
    static Vector add_count(Vector sum, Vector x, Vector w) {
        Vector d = x ^ w;
        d -= (d >> 1) & 0x5555555555555555u;
        d = (d & 0x3333333333333333u) + ((d >> 2) & 0x3333333333333333u);
        return sum + ((d + (d >> 4)) & 0x0f0f0f0f0f0f0f0fu);  // eight byte counts; no byte overflows in 31 words
    }
    static Vector widen(Vector sum) {
        sum = (sum & 0x00ff00ff00ff00ffu) + ((sum >> 8) & 0x00ff00ff00ff00ffu);
        sum += sum >> 16;
        return (sum + (sum >> 32)) & 0xffffu;
    }
    template <int N>
    static void store(int32_t* to, const Vector (&sums)[N]) {
        for (int v = 0; v < N; ++v)
            for (int i = 0; i < kLanes; ++i) to[v * kLanes + i] = static_cast<int32_t>(sums[v][i]);
    }
    static void keep(Vector& x) { asm volatile("" : "+m"(x)); }
};

#include "kernels_body.h"

}  // namespace

const Kernels& portable_kernels() {
    static const Kernels table{"portable", binary, real, pool, finish, ceiling};
    return table;
}

}  // namespace xnor
