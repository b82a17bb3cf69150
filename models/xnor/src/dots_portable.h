// Byte dot products as the compiler makes them. Included inside an anonymous namespace.
struct Dots {
    typedef int32_t Vector __attribute__((vector_size(16)));
    struct Weights {
        Vector byte[4];
    };
    struct Bytes {
        int32_t byte[4];
    };
    static constexpr int kLanes = 4;
    static constexpr int kVectors = 4;
    static constexpr int kPixels = 2;
    static constexpr bool kFinish = false;

    static Vector load_sums(const int32_t* from) {
        Vector x;
        __builtin_memcpy(&x, from, sizeof x);
        return x;
    }
    static Weights load(const int8_t* from) {
        Weights w;
        for (int i = 0; i < 4; ++i)
            for (int lane = 0; lane < kLanes; ++lane) w.byte[i][lane] = from[4 * lane + i];
        return w;
    }
    static Bytes broadcast(const uint8_t* from) { return {{from[0], from[1], from[2], from[3]}}; }
    static Vector add_dot(Vector sum, Bytes x, const Weights& w) {
        for (int i = 0; i < 4; ++i) sum += x.byte[i] * w.byte[i];
        return sum;
    }
    static void store(int32_t* to, Vector sum) { __builtin_memcpy(to, &sum, sizeof sum); }
};
