// The kernels, written once over three vector types that each instruction set's file supplies:
//   Floats: 16 float lanes.     Words: 32-bit lanes and their population count.     Dots: sums of byte products.
// Each file includes this inside its own anonymous namespace and is compiled with its own flags; nothing
// here may call an inline function of the standard library, whose one linked copy could come from a file
// compiled for a newer machine.

// Runs f(Index<0>) .. f(Index<N - 1>), written out: arrays indexed so stay in registers.
template <int I>
struct Index {
    static constexpr int value = I;
    constexpr operator int() const { return I; }
};

#define XNOR_INLINE __attribute__((always_inline))

// What lies in memory is read anew after this. Without it the compiler keeps more addresses than there are registers
// for them, the rest in vector registers, where reading them waits behind all vector work.
XNOR_INLINE inline void forget() { asm volatile("" ::: "memory"); }

template <class F, int... I>
XNOR_INLINE inline void repeat_each(const F& f, std::integer_sequence<int, I...>) {
    (f(Index<I>{}), ...);
}

template <int N, class F>
XNOR_INLINE inline void repeat(const F& f) {
    repeat_each(f, std::make_integer_sequence<int, N>{});
}

// ---- from sums to values ----------------------------------------------------------------------------------

// The stages that are met most, over x[p * NV + v]: P pixels x NV vectors of channels.
template <int P, int NV>
XNOR_INLINE inline void multiply_by(const float* scales, Floats::Vector (&x)[P * NV]) {
    repeat<NV>([&](auto v) XNOR_INLINE {
        const Floats::Vector scale = Floats::load(scales + v * kLanes);
        repeat<P>([&](auto p) XNOR_INLINE { x[p * NV + v] = Floats::multiply(x[p * NV + v], scale); });
    });
}

template <int P, int NV>
XNOR_INLINE inline void scale_and_shift(const float* scales, const float* shifts, Floats::Vector (&x)[P * NV]) {
    repeat<NV>([&](auto v) XNOR_INLINE {
        const Floats::Vector scale = Floats::load(scales + v * kLanes), shift = Floats::load(shifts + v * kLanes);
        repeat<P>([&](auto p)
                      XNOR_INLINE { x[p * NV + v] = Floats::add(Floats::multiply(x[p * NV + v], scale), shift); });
    });
}

template <int P, int NV>
XNOR_INLINE inline void prelu(const float* slopes, Floats::Vector (&x)[P * NV]) {
    repeat<NV>([&](auto v) XNOR_INLINE {
        const Floats::Vector slope = Floats::load(slopes + v * kLanes);
        repeat<P>([&](auto p) XNOR_INLINE { x[p * NV + v] = Floats::prelu(x[p * NV + v], slope); });
    });
}

template <int P, int NV>
XNOR_INLINE inline void add_map(const Stage& stage, const char* arena, const int32_t* out_pixel, int channel,
                                Floats::Vector (&x)[P * NV]) {
    const float* from = reinterpret_cast<const float*>(arena + stage.offset) + channel;
    const int64_t stride = stage.stride;
    repeat<P>([&](auto p) XNOR_INLINE {
        const float* pixel = from + out_pixel[p] * stride;
        repeat<NV>([&](auto v)
                       XNOR_INLINE { x[p * NV + v] = Floats::add(x[p * NV + v], Floats::load(pixel + v * kLanes)); });
    });
}

template <int P, int NV>
XNOR_INLINE inline void store_map(const Stage& stage, char* arena, const int32_t* out_pixel, int channel,
                                  const Floats::Vector (&x)[P * NV]) {
    float* to = reinterpret_cast<float*>(arena + stage.offset) + channel;
    const int64_t stride = stage.stride;
    repeat<P>([&](auto p) XNOR_INLINE {
        float* pixel = to + out_pixel[p] * stride;
        repeat<NV>([&](auto v) XNOR_INLINE { Floats::store(pixel + v * kLanes, x[p * NV + v]); });
    });
}

// The signs of P pixels x NV vectors of channels against their thresholds, to bits.
template <int P, int NV>
XNOR_INLINE inline void store_bits(const Stage* stage, char* arena, const int32_t* out_pixel, int channel,
                                   const Floats::Vector (&x)[P * NV]) {
    const float* const parameters = stage->channel + channel;
    char* to = arena + stage->offset + channel / 8;
    const int64_t stride = stage->stride;
    const int left = stage->channels - channel;
    repeat<NV>([&](auto v) XNOR_INLINE {
        const Floats::Vector threshold = Floats::load(parameters + v * kLanes);
        const Floats::Vector sign = Floats::load(stage->sign + channel + v * kLanes);
        const int more = left - v * kLanes;
        const uint32_t valid = more >= kLanes ? 0xffffu : (1u << more) - 1;
        repeat<P>([&](auto p) XNOR_INLINE {
            const uint32_t bits = Floats::at_least(Floats::flip_sign(x[p * NV + v], sign), threshold) & valid;
            const uint16_t half_word = static_cast<uint16_t>(bits);
            __builtin_memcpy(to + out_pixel[p] * stride + v * 2, &half_word, sizeof half_word);
        });
    });
    // The last vector of a pixel also clears the unused part of the last word.
    if (left <= NV * kLanes) {
        const int tail = stage->bytes - channel / 8;
        for (int i = 2 * NV; i < tail; i += 2)
            for (int p = 0; p < P; ++p) __builtin_memset(to + out_pixel[p] * stride + i, 0, 2);
    }
}

// Takes NV x 16 channels of P pixels, x[p * NV + v], through all stages; they stay in registers from one to the next.
template <int P, int NV>
XNOR_INLINE inline void run_stages(const FinishTile& tile, const int32_t* out_pixel, int channel,
                                   Floats::Vector (&x)[P * NV]) {
    const Stage* const end = tile.stages + tile.stage_count;
    char* const arena = tile.arena;
    for (const Stage* stage = tile.stages; stage != end; ++stage) {
        const float* const parameters = stage->channel ? stage->channel + channel : nullptr;
        switch (stage->kind) {
            case StageKind::kScale:
                multiply_by<P, NV>(parameters, x);
                break;
            case StageKind::kShift:
                repeat<NV>([&](auto v) XNOR_INLINE {
                    const Floats::Vector shift = Floats::load(parameters + v * kLanes);
                    repeat<P>([&](auto p) XNOR_INLINE { x[p * NV + v] = Floats::add(x[p * NV + v], shift); });
                });
                break;
            case StageKind::kScaleShift:
                scale_and_shift<P, NV>(parameters, stage->shift + channel, x);
                break;
            case StageKind::kPixelScale:
                repeat<P>([&](auto p) XNOR_INLINE {
                    const Floats::Vector scale = Floats::set1(stage->channel[out_pixel[p]]);
                    repeat<NV>([&](auto v) XNOR_INLINE { x[p * NV + v] = Floats::multiply(x[p * NV + v], scale); });
                });
                break;
            case StageKind::kPixelScaleAt: {
                const float* scales = reinterpret_cast<const float*>(arena + stage->offset);
                repeat<P>([&](auto p) XNOR_INLINE {
                    const Floats::Vector scale = Floats::set1(scales[out_pixel[p]]);
                    repeat<NV>([&](auto v) XNOR_INLINE { x[p * NV + v] = Floats::multiply(x[p * NV + v], scale); });
                });
                break;
            }
            case StageKind::kPrelu:
                prelu<P, NV>(parameters, x);
                break;
            case StageKind::kRelu:
                repeat<P * NV>([&](auto i) XNOR_INLINE { x[i] = Floats::max(Floats::set1(0), x[i]); });
                break;
            case StageKind::kAdd:
                add_map<P, NV>(*stage, arena, out_pixel, channel, x);
                break;
            case StageKind::kStore:
                store_map<P, NV>(*stage, arena, out_pixel, channel, x);
                break;
            case StageKind::kBits: {
                store_bits<P, NV>(stage, arena, out_pixel, channel, x);
                break;
            }
        }
    }
}

inline bool is_plain(const Chain& chain) {
    return chain.shift && chain.store && !chain.prelu && !chain.add && !chain.bits;
}

// The same through a chain. Each vector goes on to the next stage at once: stages of many vectors one after the other
// would keep busy now one, now another of the processor's ports.
template <int P, int NV>
XNOR_INLINE inline void run_chain(const Chain& chain, char* arena, const int32_t* out_pixel, int channel,
                                  Floats::Vector (&x)[P * NV]) {
    if (chain.shift)
        scale_and_shift<P, NV>(chain.scale + channel, chain.shift + channel, x);
    else
        multiply_by<P, NV>(chain.scale + channel, x);
    if (chain.prelu) prelu<P, NV>(chain.prelu->channel + channel, x);
    if (chain.add) add_map<P, NV>(*chain.add, arena, out_pixel, channel, x);
    if (chain.store) store_map<P, NV>(*chain.store, arena, out_pixel, channel, x);
    if (chain.bits) store_bits<P, NV>(chain.bits, arena, out_pixel, channel, x);
}

template <int P>
__attribute__((noinline)) void finish_pixels(const FinishTile& tile) {
    for (int lane = 0; lane < tile.lanes; lane += kLanes) {
        Floats::Vector x[P];
        if (tile.counts) {
            const Floats::Vector total = Floats::set1(tile.total);
            const int32_t* counts = tile.counts + lane;
            repeat<P>([&](auto p) XNOR_INLINE {
                const Floats::Vector count = Floats::from_counts(Floats::load_counts(counts + p * kTileLanes));
                x[p] = Floats::minus_twice(total, count);
            });
        } else if (tile.sums) {
            const int32_t* sums = tile.sums + lane;
            repeat<P>([&](auto p)
                          XNOR_INLINE { x[p] = Floats::from_counts(Floats::load_counts(sums + p * kTileLanes)); });
        } else {
            const float* floats = tile.floats + lane;
            repeat<P>([&](auto p) XNOR_INLINE { x[p] = Floats::load(floats + tile.float_offset[p]); });
        }
        run_stages<P, 1>(tile, tile.out_pixel, tile.channel + lane, x);
    }
}

void finish(const FinishTile& tile) {
    static_assert(kTilePixels == 6, "one case a number of pixels");
    switch (tile.pixels) {
        case 1:
            return finish_pixels<1>(tile);
        case 2:
            return finish_pixels<2>(tile);
        case 3:
            return finish_pixels<3>(tile);
        case 4:
            return finish_pixels<4>(tile);
        case 5:
            return finish_pixels<5>(tile);
        default:
            return finish_pixels<6>(tile);
    }
}

// ---- binary convolution: channels in lanes, half an activation word broadcast ----------------------------

// Counts that stay in registers begin as the bits of 2^23: bits of a float to which a count is added are those of
// 2^23 + count, so that no conversion is due. 2^24 + total - 2 (2^23 + count) is exact as long as totals are even.
constexpr uint32_t kCountBase = 0x4b000000;
constexpr float kTwiceCountBase = 16777216.0f;

inline bool total_suits_base(float total) {
    const int32_t whole = static_cast<int32_t>(total);
    return whole % 2 == 0 && whole < 1 << 22;
}

// One pixel's half of a word against NV vectors of weights.
template <int NV, class W = Words>
XNOR_INLINE inline void add_counts(typename W::Vector* sums, const uint32_t* word, const typename W::Vector* weights) {
    if constexpr (NV == W::kGroup) {
        W::add_group(sums, word, weights);
    } else {
        const typename W::Vector x = W::broadcast(word);
        repeat<NV>([&](auto v) XNOR_INLINE { sums[v] = W::add_count(sums[v], x, weights[v]); });
    }
}

// What a vector of channels has seen of a pixel where four halves of words are added before they are counted
// (carry-save adders, as in Harley and Seal's population count): of each bit a number of `ones` and `twos`, of each
// byte a count of fours.
template <class W = Words>
struct Carried {
    typename W::Vector ones, twos, fours;
};

// Adds R halves, 1 to 4, that lie `step` apart.
template <int R, class W = Words>
XNOR_INLINE inline void add_carried(Carried<W>& to, const uint32_t* half, int64_t step,
                                    const typename W::Vector* weights) {
    using Vector = typename W::Vector;
    const auto add_ones = [&](auto first, auto count) XNOR_INLINE {
        const Vector x = W::broadcast(half + first * step);
        if constexpr (count == 2)
            return W::add_two(to.ones, x, weights[first], W::broadcast(half + (first + 1) * step), weights[first + 1]);
        const Vector differ = W::differ(x, weights[first]), twos = W::both(to.ones, differ);
        to.ones = W::differ(to.ones, differ);
        return twos;
    };
    const Vector twos = add_ones(Index<0>{}, Index<R == 1 ? 1 : 2>{});
    Vector fours;
    if constexpr (R > 2) {
        fours = W::carry(to.twos, twos, add_ones(Index<2>{}, Index<R - 2>{}));
    } else {
        fours = W::both(to.twos, twos);
        to.twos = W::differ(to.twos, twos);
    }
    to.fours = W::add_bytes(to.fours, W::count_bytes(fours));
}

// Halves that a byte's count can take; what is left of a run, fewer than kTogether, takes as much as they.
constexpr int64_t kByteBudget = int64_t{Words::kBudget} * Words::kTogether;

inline int64_t taken(int64_t halves) { return (halves + Words::kTogether - 1) / Words::kTogether * Words::kTogether; }

// Counts differing bits of P pixels x NV vectors of channels. Where the instruction set counts bytes, a byte holds at
// most 255 / 8 = 31 counts, then `widen` moves them to 32-bit totals; windows that need no more are `Short` and need no
// totals. With `out`, whose total suits kCountBase, the counts go on to their values while still in registers; else
// to the tile buffer.
template <int P, int NV, bool Finish, int Halves, bool Short, class W = Words>
__attribute__((noinline)) void count_block(const BinaryTile& tile, int begin, int end_pixel, int first_lane,
                                           const FinishTile* out) {
    constexpr bool kBytes = Words::kBudget != 0;
    constexpr bool kTotals = kBytes && !Short;
    constexpr bool kCarry = W::kTogether > 1;
    constexpr int64_t kStep = 3 - Halves;
    const Window& window = tile.window;
    const int64_t lanes = tile.lanes;
    const int64_t steps = Halves * window.run;
    // From the end of a run to the next one of its row, and from there to the next row.
    struct {
        int64_t weight_col, weight_row, at_col, at_row;
    } skip = {tile.weight_col - steps * lanes, tile.weight_row - window.cols * tile.weight_col,
              2 * window.in_col - steps * kStep, 2 * (window.in_row - window.cols * window.in_col)};
    const int64_t run = taken(steps);
    const int64_t full_budget = run <= kByteBudget ? kByteBudget / run * run : kByteBudget;
    for (int first_pixel = begin; first_pixel < end_pixel; first_pixel += P) {
        struct {
            const uint32_t* at[P];
        } pixels;
        repeat<P>([&](auto p) XNOR_INLINE {
            pixels.at[p] = reinterpret_cast<const uint32_t*>(tile.input + window.in_offset[first_pixel + p]);
        });
        Words::Vector sums[P * NV], totals[kTotals ? P * NV : 1];
        Carried<> carried[kCarry ? P * NV : 1];
        const Words::Vector start = Finish ? Words::set1(kCountBase) : Words::set1(0);
        repeat<P * NV>([&](auto i) XNOR_INLINE {
            sums[i] = kBytes ? Words::set1(0) : start;
            if constexpr (kCarry) carried[i] = {Words::set1(0), Words::set1(0), Words::set1(0)};
        });
        if constexpr (kTotals) repeat<P * NV>([&](auto i) XNOR_INLINE { totals[i] = start; });
        int64_t budget = full_budget;
        const uint32_t* weight = tile.weight + first_lane;
        int64_t at = 0;
        for (int row = window.rows; row > 0; --row) {
            for (int col = window.cols; col > 0; --col) {
                asm volatile("" : "+m"(pixels), "+m"(skip) : : "memory");
                const uint32_t* const* pixel = pixels.at;
                int64_t left = steps;
                do {
                    int64_t part = left;
                    if constexpr (kTotals) {
                        if (part > budget) part = budget;
                        budget -= taken(part);
                        left -= part;
                    }
                    const int64_t end = at + part * kStep;
                    if constexpr (kCarry) {
                        const auto add = [&](auto halves) XNOR_INLINE {
                            repeat<NV>([&](auto v) XNOR_INLINE {
                                Words::Vector w[halves.value];
                                repeat<halves.value>([&](auto i) XNOR_INLINE {
                                    w[i] = Words::load(weight + i * lanes + v * Words::kLanes);
                                });
                                repeat<P>([&](auto p) XNOR_INLINE {
                                    add_carried<halves.value>(carried[p * NV + v], pixel[p] + at, kStep, w);
                                });
                            });
                            weight += halves * lanes;
                            at += halves * kStep;
                        };
                        while (at + 3 * kStep < end) add(Index<4>{});
                        if (at + 2 * kStep < end)
                            add(Index<3>{});
                        else if (at + kStep < end)
                            add(Index<2>{});
                        else if (at < end)
                            add(Index<1>{});
                    } else {
                        do {
                            Words::Vector w[NV];
                            repeat<NV>([&](auto v) XNOR_INLINE { w[v] = Words::load(weight + v * Words::kLanes); });
                            repeat<P>([&](auto p) XNOR_INLINE { add_counts<NV>(sums + p * NV, pixel[p] + at, w); });
                            weight += lanes;
                            at += kStep;
                        } while (at < end);
                    }
                    if constexpr (kTotals) {
                        if (budget == 0) {
                            repeat<P * NV>([&](auto i) XNOR_INLINE {
                                if constexpr (kCarry) {
                                    totals[i] = Words::add(totals[i], W::widen_fours(carried[i].fours));
                                    carried[i].fours = Words::set1(0);
                                } else {
                                    totals[i] = Words::add(totals[i], W::widen(sums[i]));
                                    sums[i] = Words::set1(0);
                                }
                            });
                            budget = full_budget;
                        }
                    }
                } while (kTotals && left > 0);
                weight += skip.weight_col;
                at += skip.at_col;
            }
            weight += skip.weight_row;
            at += skip.at_row;
        }
        if constexpr (kBytes)
            repeat<P * NV>([&](auto i) XNOR_INLINE {
                if constexpr (kCarry)
                    sums[i] = W::widen(carried[i]);
                else
                    sums[i] = W::widen(sums[i]);
                sums[i] = Words::add(kTotals ? totals[kTotals ? int(i) : 0] : start, sums[i]);
            });
        if constexpr (Finish) {
            const float base = kTwiceCountBase + out->total;
            const Floats::Vector total = Floats::set1(base), half = Floats::set1(base / 2);
            const Floats::Vector minus = Floats::set1(-1);
            constexpr int kGroups = NV * Words::kLanes / kLanes;
            const int32_t* out_pixel = out->out_pixel + first_pixel;
            const int channel = out->channel + first_lane;
            if (out->chain && is_plain(*out->chain)) {
                // One vector from its sum to memory before the next begins.
                const float* const scales = out->chain->scale + channel;
                const float* const shifts = out->chain->shift + channel;
                float* const to = reinterpret_cast<float*>(out->arena + out->chain->store->offset) + channel;
                const int64_t stride = out->chain->store->stride;
                repeat<P>([&](auto p) XNOR_INLINE {
                    float* const to_pixel = to + out_pixel[p] * stride;
                    repeat<kGroups>([&](auto v) XNOR_INLINE {
                        const Floats::Vector count = W::as_floats(sums + p * NV, v);
                        const Floats::Vector x = (p * kGroups + v) % 2 ? Floats::multiply_add(count, minus, half)
                                                                       : Floats::subtract(half, count);
                        const Floats::Vector scaled = Floats::multiply(x, Floats::load(scales + v * kLanes));
                        Floats::store(to_pixel + v * kLanes, Floats::add(scaled, Floats::load(shifts + v * kLanes)));
                        if constexpr (kGroups > 1) forget();  // one vector a pixel needs few addresses
                    });
                });
            } else if (out->chain) {
                constexpr int kTogether = P % 2 ? 1 : 2;  // more keep too many ports waiting, fewer branch too often
                repeat<P / kTogether>([&](auto group) XNOR_INLINE {
                    Floats::Vector x[kTogether * kGroups];
                    repeat<kTogether>([&](auto p) XNOR_INLINE {
                        repeat<kGroups>([&](auto v) XNOR_INLINE {
                            x[p * kGroups + v] =
                                Floats::subtract(half, W::as_floats(sums + (group * kTogether + p) * NV, v));
                        });
                    });
                    run_chain<kTogether, kGroups>(*out->chain, out->arena, out_pixel + group * kTogether, channel, x);
                });
            } else {
                Floats::Vector x[P * kGroups];
                repeat<P>([&](auto p) XNOR_INLINE {
                    repeat<kGroups>([&](auto v) XNOR_INLINE {
                        x[p * kGroups + v] = Floats::minus_twice(total, W::as_floats(sums + p * NV, v));
                    });
                });
                run_stages<P, kGroups>(*out, out_pixel, channel, x);
            }
        } else {
            repeat<P>([&](auto p) XNOR_INLINE {
                int32_t* to = tile.counts + (first_pixel + p) * kTileLanes + first_lane;
                repeat<NV>([&](auto v) XNOR_INLINE { Words::store(to + v * Words::kLanes, sums[p * NV + v]); });
            });
        }
    }
}

// Pixels [begin, end), a multiple of P, of all the tile's lanes; of those that are finished, with `out`.
template <int P, bool Finish, int Halves, bool Short>
inline void count_pixels(const BinaryTile& tile, int begin, int end, const FinishTile* out) {
    constexpr int kVectors = Words::kVectors;
    constexpr int kWide = kVectors * Words::kLanes;
    constexpr int kNarrow = kLanes / Words::kLanes;
    const int lanes = Finish ? out->lanes : tile.lanes;
    int lane = 0;
    for (; lane + kWide <= lanes; lane += kWide)
        count_block<P, kVectors, Finish, Halves, Short>(tile, begin, end, lane, out);
    if constexpr (kVectors > 2 * kNarrow)
        for (; lane + 2 * kLanes <= lanes; lane += 2 * kLanes)
            count_block<P, 2 * kNarrow, Finish, Halves, Short>(tile, begin, end, lane, out);
    for (; lane < lanes; lane += kLanes) count_block<P, kNarrow, Finish, Halves, Short>(tile, begin, end, lane, out);
}

template <bool Finish, int Halves, bool Short>
inline void count_strip(const BinaryTile& tile, const FinishTile* out) {
    const int end = tile.window.pixels;
    const int rest = end % Words::kPixels;
    if (end > rest) count_pixels<Words::kPixels, Finish, Halves, Short>(tile, 0, end - rest, out);
    switch (rest) {
        case 1:
            return count_pixels<1, Finish, Halves, Short>(tile, end - rest, end, out);
        case 2:
            return count_pixels<2, Finish, Halves, Short>(tile, end - rest, end, out);
        case 3:
            return count_pixels<3, Finish, Halves, Short>(tile, end - rest, end, out);
        case 4:
            return count_pixels<4, Finish, Halves, Short>(tile, end - rest, end, out);
        case 5:
            return count_pixels<5, Finish, Halves, Short>(tile, end - rest, end, out);
        default:
            return;
    }
}

template <bool Finish, int Halves>
inline void count_halves(const BinaryTile& tile, const FinishTile* out) {
    const Window& window = tile.window;
    if (Words::kBudget != 0 && window.rows * window.cols * taken(Halves * window.run) <= kByteBudget)
        count_strip<Finish, Halves, Words::kBudget != 0>(tile, out);
    else
        count_strip<Finish, Halves, false>(tile, out);
}

template <bool Finish>
inline void count_tile(const BinaryTile& tile, const FinishTile* out) {
    if (tile.halves == 1)
        count_halves<Finish, 1>(tile, out);
    else
        count_halves<Finish, 2>(tile, out);
}

// Sums a few pixels at a time into the tile's buffer and finishes them from there.
template <class Tile, class Sum>
inline void finish_in_parts(const Tile& tile, const FinishTile& out, const Sum& sum) {
    Tile part = tile;
    FinishTile finished = out;
    for (int first = 0; first < tile.window.pixels; first += kTilePixels) {
        const int left = tile.window.pixels - first;
        part.window.pixels = finished.pixels = left < kTilePixels ? left : kTilePixels;
        sum(part);
        finish(finished);
        part.window.in_offset += kTilePixels;
        finished.out_pixel += kTilePixels;
    }
}

void binary(const BinaryTile& tile, const FinishTile* out) {
    if (!out) return count_tile<false>(tile, nullptr);
    if (Words::kFinish && total_suits_base(out->total)) return count_tile<Words::kFinish>(tile, out);
    finish_in_parts(tile, *out, [](const BinaryTile& part) { count_tile<false>(part, nullptr); });
}

// The same work on registers alone: what the machine could do if memory and loops cost nothing.
int64_t ceiling(int64_t rounds) {
    constexpr int kSums = Words::kPixels * Words::kVectors;
    Words::Vector sums[kSums], w[Words::kVectors];
    const uint32_t seed[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    repeat<Words::kVectors>([&](auto v) XNOR_INLINE {
        w[v] = Words::load(seed);
        Words::keep(w[v]);
    });
    repeat<kSums>([&](auto i) XNOR_INLINE { sums[i] = Words::set1(0); });
    Words::Vector x = Words::broadcast(seed);
    for (int64_t round = 0; round < rounds; ++round) {
        repeat<Words::kPixels>([&](auto p) XNOR_INLINE {
            repeat<Words::kVectors>([&](auto v) XNOR_INLINE {
                Words::Vector& sum = sums[p * Words::kVectors + v];
                sum = Words::add_count(sum, x, w[v]);
            });
            Words::keep(x);  // or the compiler would see that the next row adds the same counts
        });
    }
    repeat<kSums>([&](auto i) XNOR_INLINE { Words::keep(sums[i]); });
    return rounds * Words::kPixels * Words::kVectors * Words::kLanes * 32;
}

// ---- float convolution ------------------------------------------------------------------------------------

template <int P, int NV, bool Half>
__attribute__((noinline)) void sum_block(const FloatTile& tile, int first_lane) {
    using Weight = typename Floats::Weight<Half>::Type;
    const Window& window = tile.window;
    const float* pixel[P];
    Floats::Vector sums[P * NV];
    repeat<P>([&](auto p) XNOR_INLINE { pixel[p] = tile.input + window.in_offset[p]; });
    repeat<P * NV>([&](auto i) XNOR_INLINE { sums[i] = Floats::set1(0); });
    const int64_t lanes = tile.lanes;
    for (int row = 0; row < window.rows; ++row) {
        for (int col = 0; col < window.cols; ++col) {
            const Weight* weight =
                static_cast<const Weight*>(tile.weight) + first_lane + row * tile.weight_row + col * tile.weight_col;
            int64_t at = row * window.in_row + col * window.in_col;
            for (const int64_t end = at + window.run; at < end; ++at) {
                Floats::Vector w[NV];
                repeat<NV>([&](auto v) XNOR_INLINE { w[v] = Floats::load(weight + v * kLanes); });
                repeat<P>([&](auto p) XNOR_INLINE {
                    const Floats::Vector x = Floats::set1(pixel[p][at]);
                    repeat<NV>([&](auto v)
                                   XNOR_INLINE { sums[p * NV + v] = Floats::multiply_add(x, w[v], sums[p * NV + v]); });
                });
                weight += lanes;
            }
        }
    }
    repeat<P>([&](auto p) XNOR_INLINE {
        repeat<NV>([&](auto v) XNOR_INLINE {
            Floats::store(tile.sums + p * kTileLanes + first_lane + v * kLanes, sums[p * NV + v]);
        });
    });
}

template <int P, bool Half>
inline void sum_pixels(const FloatTile& tile) {
    constexpr int kWide = Floats::kVectors * kLanes;
    int lane = 0;
    for (; lane + kWide <= tile.lanes; lane += kWide) sum_block<P, Floats::kVectors, Half>(tile, lane);
    for (; lane < tile.lanes; lane += kLanes) sum_block<P, 1, Half>(tile, lane);
}

template <bool Half>
inline void real_as(const FloatTile& tile) {
    static_assert(kTilePixels == 6, "one case a number of pixels");
    switch (tile.window.pixels) {
        case 1:
            return sum_pixels<1, Half>(tile);
        case 2:
            return sum_pixels<2, Half>(tile);
        case 3:
            return sum_pixels<3, Half>(tile);
        case 4:
            return sum_pixels<4, Half>(tile);
        case 5:
            return sum_pixels<5, Half>(tile);
        default:
            return sum_pixels<6, Half>(tile);
    }
}

void real(const FloatTile& tile) {
    if (tile.half)
        real_as<true>(tile);
    else
        real_as<false>(tile);
}

// ---- byte dot products -----------------------------------------------------------------------------------------

template <int P, int NV, bool Finish, class D = Dots>
__attribute__((noinline)) void dot_block(const DotTile& tile, int begin, int end_pixel, int first_lane,
                                         const FinishTile* out) {
    const Window& window = tile.window;
    const int64_t quad_bytes = 4 * static_cast<int64_t>(tile.lanes);
    for (int first_pixel = begin; first_pixel < end_pixel; first_pixel += P) {
        const uint8_t* pixel[P];
        typename D::Vector sums[P * NV];
        repeat<P>([&](auto p) XNOR_INLINE { pixel[p] = tile.input + window.in_offset[first_pixel + p]; });
        repeat<NV>([&](auto v) XNOR_INLINE {
            const typename D::Vector start = D::load_sums(tile.start + first_lane + v * D::kLanes);
            repeat<P>([&](auto p) XNOR_INLINE { sums[p * NV + v] = start; });
        });
        for (int row = 0; row < window.rows; ++row) {
            for (int col = 0; col < window.cols; ++col) {
                const int8_t* weight = tile.weight + 4 * first_lane + row * tile.weight_row + col * tile.weight_col;
                int64_t at = row * window.in_row + col * window.in_col;
                for (const int64_t end = at + 4 * window.run; at < end; at += 4) {
                    typename D::Weights w[NV];
                    repeat<NV>([&](auto v) XNOR_INLINE { w[v] = D::load(weight + 4 * v * D::kLanes); });
                    repeat<P>([&](auto p) XNOR_INLINE {
                        const auto x = D::broadcast(pixel[p] + at);
                        repeat<NV>([&](auto v)
                                       XNOR_INLINE { sums[p * NV + v] = D::add_dot(sums[p * NV + v], x, w[v]); });
                    });
                    weight += quad_bytes;
                }
            }
        }
        if constexpr (Finish) {
            Floats::Vector x[P * NV];
            repeat<P * NV>([&](auto i) XNOR_INLINE { x[i] = Floats::from_counts(sums[i]); });
            run_stages<P, NV>(*out, out->out_pixel + first_pixel, out->channel + first_lane, x);
        } else {
            repeat<P>([&](auto p) XNOR_INLINE {
                int32_t* to = tile.sums + (first_pixel + p) * kTileLanes + first_lane;
                repeat<NV>([&](auto v) XNOR_INLINE { D::store(to + v * D::kLanes, sums[p * NV + v]); });
            });
        }
    }
}

template <int P, bool Finish>
inline void dot_pixels(const DotTile& tile, int begin, int end, const FinishTile* out) {
    constexpr int kNarrow = kLanes / Dots::kLanes;
    constexpr int kWide = Dots::kVectors * Dots::kLanes;
    const int lanes = Finish ? out->lanes : tile.lanes;
    int lane = 0;
    for (; lane + kWide <= lanes; lane += kWide) dot_block<P, Dots::kVectors, Finish>(tile, begin, end, lane, out);
    for (; lane < lanes; lane += kLanes) dot_block<P, kNarrow, Finish>(tile, begin, end, lane, out);
}

template <bool Finish>
inline void dot_tile(const DotTile& tile, const FinishTile* out) {
    const int end = tile.window.pixels;
    const int rest = end % Dots::kPixels;
    if (end > rest) dot_pixels<Dots::kPixels, Finish>(tile, 0, end - rest, out);
    switch (rest) {
        case 1:
            return dot_pixels<1, Finish>(tile, end - rest, end, out);
        case 2:
            return dot_pixels<2, Finish>(tile, end - rest, end, out);
        case 3:
            return dot_pixels<3, Finish>(tile, end - rest, end, out);
        case 4:
            return dot_pixels<4, Finish>(tile, end - rest, end, out);
        case 5:
            return dot_pixels<5, Finish>(tile, end - rest, end, out);
        default:
            return;
    }
}

void dot(const DotTile& tile, const FinishTile* out) {
    if (!out) return dot_tile<false>(tile, nullptr);
    if (Dots::kFinish) return dot_tile<Dots::kFinish>(tile, out);
    finish_in_parts(tile, *out, [](const DotTile& part) { dot_tile<false>(part, nullptr); });
}

// Rounds half to even. Where the largest value is 0 or infinite, every byte is 128 and the scale 0. What is not a
// number gets some byte.
void quantize(const QuantizeTile& tile) {
    for (int p = 0; p < tile.pixels; ++p) {
        const float* from = tile.input + p * tile.stride;
        uint8_t* to = tile.bytes + p * tile.bytes_stride;
        Floats::Vector most = Floats::set1(0);
        int channel = 0;
        for (; channel + kLanes <= tile.channels; channel += kLanes)
            most = Floats::max(most, Floats::magnitude(Floats::load(from + channel)));
        float lanes[kLanes];
        Floats::store(lanes, most);
        float largest = 0;
        for (int lane = 0; lane < kLanes; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
        for (int rest = channel; rest < tile.channels; ++rest) {
            const float x = __builtin_fabsf(from[rest]);
            largest = x > largest ? x : largest;
        }
        const bool usable = largest > 1e-30f && largest < 1e30f;
        const float factor = usable ? 127.0f / largest : 0.0f;
        tile.scales[p] = usable ? largest / 127.0f : 0.0f;
        for (channel = 0; channel < tile.channels; channel += kLanes) {
            float x[kLanes] = {};
            const int left = tile.channels - channel;
            if (left < kLanes) {
                for (int lane = 0; lane < left; ++lane) x[lane] = from[channel + lane];
                uint8_t bytes[kLanes];
                Floats::store_bytes(bytes, Floats::multiply(Floats::load(x), Floats::set1(factor)));
                for (int lane = 0; lane < left; ++lane) to[channel + lane] = bytes[lane];
            } else {
                Floats::store_bytes(to + channel, Floats::multiply(Floats::load(from + channel), Floats::set1(factor)));
            }
        }
    }
}

// ---- pooling ----------------------------------------------------------------------------------------------

// One pixel of NV vectors of channels: their sums do not wait for one another.
template <Pool Kind, int NV>
XNOR_INLINE inline void pool_vectors(const PoolTile& tile, const float* corner, float* to) {
    const Window& window = tile.window;
    Floats::Vector sum[NV];
    repeat<NV>([&](auto v)
                   XNOR_INLINE { sum[v] = Kind == Pool::kMax ? Floats::load(corner + v * kLanes) : Floats::set1(0); });
    for (int row = 0; row < window.rows; ++row) {
        const float* x = corner + row * window.in_row;
        Floats::Vector row_sum[NV];
        if (Kind == Pool::kMeanByRow) repeat<NV>([&](auto v) XNOR_INLINE { row_sum[v] = Floats::set1(0); });
        for (int col = 0; col < window.cols; ++col, x += window.in_col) {
            repeat<NV>([&](auto v) XNOR_INLINE {
                const Floats::Vector value = Floats::load(x + v * kLanes);
                if (Kind == Pool::kMax) sum[v] = Floats::max(sum[v], value);
                if (Kind == Pool::kMean) sum[v] = Floats::add(sum[v], value);
                if (Kind == Pool::kMeanByRow) row_sum[v] = Floats::add(row_sum[v], value);
            });
        }
        if (Kind == Pool::kMeanByRow) repeat<NV>([&](auto v) XNOR_INLINE { sum[v] = Floats::add(sum[v], row_sum[v]); });
    }
    repeat<NV>([&](auto v) XNOR_INLINE {
        if (Kind != Pool::kMax) sum[v] = Floats::divide(sum[v], Floats::set1(tile.divisor));
        Floats::store(to + v * kLanes, sum[v]);
    });
}

template <Pool Kind>
inline void pool_as(const PoolTile& tile) {
    const Window& window = tile.window;
    for (int p = 0; p < window.pixels; ++p) {
        const float* corner = tile.input + window.in_offset[p];
        float* to = tile.sums + p * kTileLanes;
        int lane = 0;
        for (; lane + 4 * kLanes <= tile.lanes; lane += 4 * kLanes)
            pool_vectors<Kind, 4>(tile, corner + lane, to + lane);
        for (; lane < tile.lanes; lane += kLanes) pool_vectors<Kind, 1>(tile, corner + lane, to + lane);
    }
}

void pool(const PoolTile& tile) {
    switch (tile.pool) {
        case Pool::kMax:
            return pool_as<Pool::kMax>(tile);
        case Pool::kMean:
            return pool_as<Pool::kMean>(tile);
        case Pool::kMeanByRow:
            return pool_as<Pool::kMeanByRow>(tile);
    }
}
