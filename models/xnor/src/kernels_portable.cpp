// Any 64-bit little-endian machine: 128-bit vectors as the compiler makes them, bits counted by shifts.
#include <utility>

#include "kernels.h"

namespace xnor {
namespace {

#include "floats_portable.h"

struct Words {
    typedef uint32_t Vector __attribute__((vector_size(16)));
    static constexpr int kLanes = 4;
    static constexpr int kVectors = 4;
    static constexpr int kPixels = 1;
    static constexpr int kBudget = 31;
    static constexpr int kTogether = 1;
    static constexpr int kGroup = 0;
    static constexpr bool kFinish = false;

    static Vector set1(uint32_t x) { return Vector{x, x, x, x}; }
    static Vector load(const uint32_t* from) {
        Vector x;
        __builtin_memcpy(&x, from, sizeof x);
        return x;
    }
    static Vector broadcast(const uint32_t* from) { return set1(*from); }
    static Vector add(Vector a, Vector b) { return a + b; }
    static Vector add_count(Vector sum, Vector x, Vector w) {
        Vector d = x ^ w;
        d -= (d >> 1) & 0x55555555u;
        d = (d & 0x33333333u) + ((d >> 2) & 0x33333333u);
        return sum + ((d + (d >> 4)) & 0x0f0f0f0fu);  // four byte counts; no byte overflows in 31 steps
    }
    static Vector widen(Vector sum) {
        sum = (sum & 0x00ff00ffu) + ((sum >> 8) & 0x00ff00ffu);
        return (sum + (sum >> 16)) & 0xffffu;
    }
    static void store(int32_t* to, Vector sum) { __builtin_memcpy(to, &sum, sizeof sum); }
    static void keep(Vector& x) { asm volatile("" : "+m"(x)); }
};

#include "dots_portable.h"
#include "kernels_body.h"

}  // namespace

const Kernels& portable_kernels() {
    static const Kernels table{"portable", binary, real, dot, quantize, pool, finish, ceiling};
    return table;
}

}  // namespace xnor
