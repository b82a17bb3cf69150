#include "dispatch.h"

namespace xnor {

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> found = [] {
        std::vector<const Kernels*> list;
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool avx2 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (avx512 && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni"))
            list.push_back(&avx512_vpopcntdq_kernels());
        if (avx512) list.push_back(&avx512_kernels());
        if (avx2) list.push_back(&avx2_kernels());
#elif defined(__aarch64__)
        list.push_back(&neon_kernels());
#endif
        list.push_back(&portable_kernels());
        return list;
    }();
    return found;
}

}  // namespace xnor
