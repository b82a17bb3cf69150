// The kernels, written once over two vector types that each instruction set's file supplies:
//   Floats: 16 float lanes.                Words: 64-bit lanes and their population count.
// Each file includes this inside its own anonymous namespace and is compiled with its own flags; nothing
// here may call an inline function of the standard library, whose one linked copy could come from a file
// compiled for a newer machine.

// ---- binary convolution: channels in lanes, the activation word broadcast --------------------------------

// Counts differing bits of P pixels x NV vectors of channels. Where the instruction set counts bytes, a
// byte holds at most 255 / 8 = 31 words' counts, then `widen` moves them to 64-bit totals.
template <int P, int NV>
inline void count_block(const BinaryTile& tile, const int32_t* in_offset, int first_lane, int32_t* counts) {
    const Window& window = tile.window;
    const uint64_t* pixel[P];
    for (int p = 0; p < P; ++p) pixel[p] = tile.input + in_offset[p];
    Words::Vector sums[P][NV];
    Words::Vector totals[P][NV];
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < NV; ++v) sums[p][v] = totals[p][v] = Words::zero();
    int budget = Words::kBudget;
    for (int row = 0; row < window.rows; ++row) {
        for (int col = 0; col < window.cols; ++col) {
            const uint64_t* weight = tile.weight + first_lane + row * tile.weight_row + col * tile.weight_col;
            int64_t at = row * window.in_row + col * window.in_col;
            int64_t left = window.run;
            while (left > 0) {
                int64_t part = left;
                if (Words::kBudget != 0) {
                    if (part > budget) part = budget;
                    budget -= static_cast<int>(part);
                }
                left -= part;
                for (const int64_t end = at + part; at < end; ++at) {
                    Words::Vector w[NV];
                    for (int v = 0; v < NV; ++v) w[v] = Words::load(weight + v * Words::kLanes);
                    for (int p = 0; p < P; ++p) {
                        const Words::Vector x = Words::broadcast(pixel[p] + at);
                        for (int v = 0; v < NV; ++v) sums[p][v] = Words::add_count(sums[p][v], x, w[v]);
                    }
                    weight += tile.lanes;
                }
                if (Words::kBudget != 0 && budget == 0) {
                    for (int p = 0; p < P; ++p)
                        for (int v = 0; v < NV; ++v) {
                            totals[p][v] = Words::add(totals[p][v], Words::widen(sums[p][v]));
                            sums[p][v] = Words::zero();
                        }
                    budget = Words::kBudget;
                }
            }
        }
    }
    for (int p = 0; p < P; ++p) {
        for (int v = 0; v < NV && Words::kBudget != 0; ++v)
            sums[p][v] = Words::add(totals[p][v], Words::widen(sums[p][v]));
        Words::store<NV>(counts + p * kTileLanes + first_lane, sums[p]);
    }
}

template <int P>
inline void count_pixels(const BinaryTile& tile, int first_pixel) {
    const int32_t* in_offset = tile.window.in_offset + first_pixel;
    int32_t* counts = tile.counts + first_pixel * kTileLanes;
    constexpr int kWide = Words::kVectors * Words::kLanes;
    int lane = 0;
    for (; lane + kWide <= tile.lanes; lane += kWide) count_block<P, Words::kVectors>(tile, in_offset, lane, counts);
    for (; lane < tile.lanes; lane += 8) count_block<P, 8 / Words::kLanes>(tile, in_offset, lane, counts);
}

void binary(const BinaryTile& tile) {
    int p = 0;
    for (; p + Words::kPixels <= tile.window.pixels; p += Words::kPixels) count_pixels<Words::kPixels>(tile, p);
    switch (tile.window.pixels - p) {
        case 1:
            return count_pixels<1>(tile, p);
        case 2:
            return count_pixels<2>(tile, p);
        case 3:
            return count_pixels<3>(tile, p);
        case 4:
            return count_pixels<4>(tile, p);
        case 5:
            return count_pixels<5>(tile, p);
        default:
            return;
    }
}

// The same work on registers alone: what the machine could do if memory and loops cost nothing.
int64_t ceiling(int64_t rounds) {
    Words::Vector sums[Words::kPixels][Words::kVectors];
    Words::Vector w[Words::kVectors];
    const uint64_t seed[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (auto& weight : w) {
        weight = Words::load(seed);
        Words::keep(weight);
    }
    for (auto& row : sums)
        for (auto& sum : row) sum = Words::zero();
    Words::Vector x = Words::broadcast(seed);
    for (int64_t round = 0; round < rounds; ++round) {
        for (auto& row : sums) {
            for (int v = 0; v < Words::kVectors; ++v) row[v] = Words::add_count(row[v], x, w[v]);
            Words::keep(x);  // or the compiler would see that the next row adds the same counts
        }
    }
    for (auto& row : sums)
        for (auto& sum : row) Words::keep(sum);
    return rounds * Words::kPixels * Words::kVectors * Words::kLanes * 64;
}

// ---- float convolution ------------------------------------------------------------------------------------

template <int P, int NV, bool Half>
inline void sum_block(const FloatTile& tile, int first_lane) {
    using Weight = typename Floats::Weight<Half>::Type;
    const Window& window = tile.window;
    const float* pixel[P];
    for (int p = 0; p < P; ++p) pixel[p] = tile.input + window.in_offset[p];
    Floats::Vector sums[P][NV];
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < NV; ++v) sums[p][v] = Floats::set1(0);
    for (int row = 0; row < window.rows; ++row) {
        for (int col = 0; col < window.cols; ++col) {
            const Weight* weight =
                static_cast<const Weight*>(tile.weight) + first_lane + row * tile.weight_row + col * tile.weight_col;
            int64_t at = row * window.in_row + col * window.in_col;
            for (const int64_t end = at + window.run; at < end; ++at) {
                Floats::Vector w[NV];
                for (int v = 0; v < NV; ++v) w[v] = Floats::load(weight + v * kLanes);
                for (int p = 0; p < P; ++p) {
                    const Floats::Vector x = Floats::set1(pixel[p][at]);
                    for (int v = 0; v < NV; ++v) sums[p][v] = Floats::multiply_add(x, w[v], sums[p][v]);
                }
                weight += tile.lanes;
            }
        }
    }
    for (int p = 0; p < P; ++p)
        for (int v = 0; v < NV; ++v) Floats::store(tile.sums + p * kTileLanes + first_lane + v * kLanes, sums[p][v]);
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

// ---- pooling ----------------------------------------------------------------------------------------------

template <Pool Kind>
inline void pool_as(const PoolTile& tile) {
    const Window& window = tile.window;
    for (int p = 0; p < window.pixels; ++p) {
        for (int lane = 0; lane < tile.lanes; lane += kLanes) {
            const float* corner = tile.input + window.in_offset[p] + lane;
            Floats::Vector sum = Kind == Pool::kMax ? Floats::load(corner) : Floats::set1(0);
            for (int row = 0; row < window.rows; ++row) {
                const float* x = corner + row * window.in_row;
                Floats::Vector row_sum = Floats::set1(0);
                for (int col = 0; col < window.cols; ++col, x += window.in_col) {
                    if (Kind == Pool::kMax) sum = Floats::max(sum, Floats::load(x));
                    if (Kind == Pool::kMean) sum = Floats::add(sum, Floats::load(x));
                    if (Kind == Pool::kMeanByRow) row_sum = Floats::add(row_sum, Floats::load(x));
                }
                if (Kind == Pool::kMeanByRow) sum = Floats::add(sum, row_sum);
            }
            if (Kind != Pool::kMax) sum = Floats::divide(sum, Floats::set1(tile.divisor));
            Floats::store(tile.sums + p * kTileLanes + lane, sum);
        }
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

// ---- from sums to values ----------------------------------------------------------------------------------

template <int P>
inline void store_bits(const Stage& stage, const FinishTile& tile, int channel, const Floats::Vector (&x)[P]) {
    const Floats::Vector threshold = Floats::load(stage.channel + channel);
    const int left = stage.channels - channel;
    const uint32_t valid = left >= kLanes ? 0xffffu : (1u << left) - 1;
    // The last vector of a pixel also clears the unused part of the last word.
    const int tail = left <= kLanes ? static_cast<int>(((stage.channels + 63) / 64) * 8 - (channel + kLanes) / 8) : 0;
    char* base = tile.arena + stage.offset + channel / 8;
    for (int p = 0; p < P; ++p) {
        const Floats::Vector value = stage.sign ? Floats::flip_sign(x[p], Floats::load(stage.sign + channel)) : x[p];
        const uint16_t bits = static_cast<uint16_t>(Floats::at_least(value, threshold) & valid);
        char* to = base + tile.out_pixel[p] * stage.stride;
        __builtin_memcpy(to, &bits, sizeof bits);
        for (int i = 0; i < tail; i += 2) __builtin_memset(to + 2 + i, 0, 2);
    }
}

template <int P>
inline void finish_pixels(const FinishTile& tile) {
    for (int lane = 0; lane < tile.lanes; lane += kLanes) {
        const int channel = tile.channel + lane;
        Floats::Vector x[P];
        if (tile.counts) {
            // Both steps are exact: counts and totals are integers below 2^24.
            const Floats::Vector total = Floats::set1(tile.total);
            for (int p = 0; p < P; ++p) x[p] = Floats::minus_twice(total, tile.counts + p * kTileLanes + lane);
        } else {
            for (int p = 0; p < P; ++p) x[p] = Floats::load(tile.floats + tile.float_offset[p] + lane);
        }
        for (const Stage *stage = tile.stages, *end = stage + tile.stage_count; stage != end; ++stage) {
            switch (stage->kind) {
                case StageKind::kScale: {
                    const Floats::Vector scale = Floats::load(stage->channel + channel);
                    for (int p = 0; p < P; ++p) x[p] = Floats::multiply(x[p], scale);
                    break;
                }
                case StageKind::kShift: {
                    const Floats::Vector shift = Floats::load(stage->channel + channel);
                    for (int p = 0; p < P; ++p) x[p] = Floats::add(x[p], shift);
                    break;
                }
                case StageKind::kPixelScale:
                    for (int p = 0; p < P; ++p)
                        x[p] = Floats::multiply(x[p], Floats::set1(stage->channel[tile.out_pixel[p]]));
                    break;
                case StageKind::kPrelu: {
                    const Floats::Vector slope = Floats::load(stage->channel + channel);
                    for (int p = 0; p < P; ++p) x[p] = Floats::prelu(x[p], slope);
                    break;
                }
                case StageKind::kRelu:
                    for (int p = 0; p < P; ++p) x[p] = Floats::max(Floats::set1(0), x[p]);
                    break;
                case StageKind::kAdd: {
                    const float* from = reinterpret_cast<const float*>(tile.arena + stage->offset) + channel;
                    for (int p = 0; p < P; ++p)
                        x[p] = Floats::add(x[p], Floats::load(from + tile.out_pixel[p] * stage->stride));
                    break;
                }
                case StageKind::kStore: {
                    float* to = reinterpret_cast<float*>(tile.arena + stage->offset) + channel;
                    for (int p = 0; p < P; ++p) Floats::store(to + tile.out_pixel[p] * stage->stride, x[p]);
                    break;
                }
                case StageKind::kBits:
                    store_bits<P>(*stage, tile, channel, x);
                    break;
            }
        }
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
