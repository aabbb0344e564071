// The encoder's attention with decomposed relative positions, global or within windows, as one kernel; the reference is cpu.rs.
//
// A block takes 64 queries of one head of one window and goes over the keys 64 (32 in float32) at a time, with a running softmax in float32
// (Milakov and Gimelshein 2018; tiled as by Dao 2023), so that scores never reach memory. 16-bit inputs are multiplied by the matrix units.
// A padding token of a window is only its bias.
#include "device/common.cuh"

constexpr int QUERIES = 64;

struct Sizes {
    int grid;    // tokens along the side of an image
    int side;    // tokens along the side of a window
    int windows; // windows along the side of an image
    int heads;
    int d; // width of a head
};

// The row of qkv and of the output that a window's token has; -1 for padding.
__device__ __forceinline__ long long token_row(const Sizes& g, int window, int token) {
    int per_image = g.windows * g.windows;
    int image = window / per_image, in_image = window % per_image;
    int y = in_image / g.windows * g.side + token / g.side, x = in_image % g.windows * g.side + token % g.side;
    if (token >= g.side * g.side || y >= g.grid || x >= g.grid) return -1;
    return (static_cast<long long>(image) * g.grid + y) * g.grid + x;
}

// Element `column` of part 0, 1 or 2 (query, key, value) of a token, with its bias.
template <typename T>
__device__ __forceinline__ float element(const Sizes& g, const T* qkv, const float* bias, long long row, int part, int head, int column) {
    int width = g.heads * g.d;
    int at = part * width + head * g.d + column;
    return bias[at] + (row < 0 ? 0.0f : to_float(qkv[row * 3 * width + at]));
}

// ---- float32: every product by the ordinary units, exact to the last rounding ----

constexpr int KEYS_F32 = 32;
constexpr int THREADS_F32 = 256;

// Columns of `out` a thread holds: COLUMNS·16 ≥ d. table [2·(2·side - 1), d]: heights, then widths.
template <int COLUMNS>
__device__ void attend_f32(const float* qkv, const float* bias, const float* table, float* out, Sizes g, float scale) {
    DYNAMIC_SHARED(float, memory);
    int stride = g.d + 4, tokens = g.side * g.side, terms_stride = 2 * g.side + 1;
    float* q = memory;                               // [64, stride]
    float* k = q + QUERIES * stride;                 // [32, stride]
    float* v = k + KEYS_F32 * stride;                // [32, stride]
    float* p = v + KEYS_F32 * stride;                // [64, 33]
    float* terms = p + QUERIES * (KEYS_F32 + 1);     // [64, terms_stride]: q·R of each key row, then of each key column
    int first = blockIdx.x * QUERIES, head = blockIdx.y, window = blockIdx.z;

    for (int i = threadIdx.x; i < QUERIES * g.d; i += THREADS_F32) {
        int query = i / g.d, column = i % g.d;
        q[query * stride + column] = element(g, qkv, bias, token_row(g, window, first + query), 0, head, column);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < QUERIES * 2 * g.side; i += THREADS_F32) {
        int query = i / (2 * g.side), place = i % (2 * g.side);
        int token = first + query;
        int axis = place / g.side, key = place % g.side;
        int own = axis == 0 ? token / g.side : token % g.side;
        float sum = 0.0f;
        if (token < tokens) {
            const float* row = table + (static_cast<size_t>(axis) * (2 * g.side - 1) + own - key + g.side - 1) * g.d;
            for (int j = 0; j < g.d; ++j) sum += q[query * stride + j] * row[j];
        }
        terms[query * terms_stride + place] = sum;
    }

    // Thread (group, member): queries 4·group.., keys and columns member + 16·j. A group lies within a warp.
    int group = threadIdx.x / 16, member = threadIdx.x % 16;
    float sums[4][COLUMNS] = {}, largest[4], total[4] = {};
    #pragma unroll
    for (int i = 0; i < 4; ++i) largest[i] = -INFINITY;
    for (int start = 0; start < tokens; start += KEYS_F32) {
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS_F32 * g.d; i += THREADS_F32) {
            int key = i / g.d, column = i % g.d;
            bool real = start + key < tokens;
            long long row = token_row(g, window, start + key);
            k[key * stride + column] = real ? element(g, qkv, bias, row, 1, head, column) : 0.0f;
            v[key * stride + column] = real ? element(g, qkv, bias, row, 2, head, column) : 0.0f;
        }
        __syncthreads();
        float s[4][2] = {};
        for (int j = 0; j < g.d; ++j) {
            float k0 = k[member * stride + j], k1 = k[(member + 16) * stride + j];
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                float query = q[(4 * group + i) * stride + j];
                s[i][0] += query * k0;
                s[i][1] += query * k1;
            }
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* row_terms = terms + (4 * group + i) * terms_stride;
            float best = largest[i];
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                int key = start + member + 16 * j;
                s[i][j] = key < tokens ? s[i][j] * scale + row_terms[key / g.side] + row_terms[g.side + key % g.side] : -INFINITY;
                best = fmaxf(best, s[i][j]);
            }
            for (int lanes = 8; lanes > 0; lanes >>= 1) best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, lanes));
            float shrink = expf(largest[i] - best), part = 0.0f;
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                float weight = expf(s[i][j] - best);
                part += weight;
                p[(4 * group + i) * (KEYS_F32 + 1) + member + 16 * j] = weight;
            }
            for (int lanes = 8; lanes > 0; lanes >>= 1) part += __shfl_xor_sync(FULL_WARP, part, lanes);
            total[i] = total[i] * shrink + part;
            largest[i] = best;
            #pragma unroll
            for (int c = 0; c < COLUMNS; ++c) sums[i][c] *= shrink;
        }
        __syncwarp();
        for (int key = 0; key < KEYS_F32; ++key) {
            #pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                int column = member + 16 * c;
                float value = column < g.d ? v[key * stride + column] : 0.0f;
                #pragma unroll
                for (int i = 0; i < 4; ++i) sums[i][c] += p[(4 * group + i) * (KEYS_F32 + 1) + key] * value;
            }
        }
    }
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        long long row = token_row(g, window, first + 4 * group + i);
        if (row < 0) continue;
        #pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            int column = member + 16 * c;
            if (column < g.d) out[row * g.heads * g.d + head * g.d + column] = sums[i][c] / total[i];
        }
    }
}

#define DEFINE(COLUMNS)                                                                                                            \
    KERNEL(rel_pos_attention_##COLUMNS##_f32, (const float* qkv, const float* bias, const float* table, float* out, Sizes g,    \
                                               float scale)) {                                                                     \
        attend_f32<COLUMNS>(qkv, bias, table, out, g, scale);                                                                      \
    }
DEFINE(1)
DEFINE(2)
DEFINE(4)
DEFINE(5)
#undef DEFINE

// ---- 16 bits: products by the matrix units, sums and softmax in float32 ----

constexpr int KEYS = 64;
constexpr int THREADS = 128;
constexpr int PAD = 8;

#ifdef __CUDACC__
// c (16×8) += a (16×16) · b (16×8)
template <typename T>
__device__ __forceinline__ void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16816<__half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
template <typename T>
void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated_mma_16816<T>(c, a, b, [](T v) { return to_float(v); });
}
#endif

// Two neighbouring 16-bit elements as one register.
template <typename T>
__device__ __forceinline__ uint32_t pair_at(const T* from) {
    return *reinterpret_cast<const uint32_t*>(from);
}

template <typename T>
struct alignas(4) Pair {
    T v[2];
};

template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    Pair<T> pair{{from_float<T>(low), from_float<T>(high)}};
    return *reinterpret_cast<uint32_t*>(&pair);
}

// Within a warp lane 4·row + t holds, of each 8 columns, columns 2t and 2t + 1, of rows `row` and `row` + 8 of the warp's 16 queries.
template <int D, typename T>
__device__ void attend_mma(const T* qkv, const float* bias, const T* table, T* out, Sizes g, float scale) {
    DYNAMIC_SHARED(unsigned char, memory);
    constexpr int K_STRIDE = D + PAD, V_STRIDE = KEYS + PAD, STEPS = D / 16;
    int tokens = g.side * g.side, rows = 2 * g.side - 1;
    int terms_stride = (2 * rows + 7) / 8 * 8 + 4;
    T* k = reinterpret_cast<T*>(memory);                              // [KEYS, K_STRIDE]
    T* v = k + KEYS * K_STRIDE;                                       // [D, V_STRIDE]: values turned, so that two keys are one register
    float* terms = reinterpret_cast<float*>(v + D * V_STRIDE);        // [QUERIES, terms_stride]: q·R of every row of the table
    int* places = reinterpret_cast<int*>(terms + QUERIES * terms_stride); // [2, KEYS]: row and column of each key of the tile
    int first = blockIdx.x * QUERIES, head = blockIdx.y, window = blockIdx.z;
    int warp = warp_index(), lane = lane_index(), row = lane / 4, t = lane % 4;

    uint32_t q[STEPS][4];
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
        long long token = token_row(g, window, first + 16 * warp + row + 8 * half);
        #pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            #pragma unroll
            for (int right = 0; right < 2; ++right) {
                int column = 16 * step + 8 * right + 2 * t;
                q[step][half + 2 * right] = pack<T>(element(g, qkv, bias, token, 0, head, column), element(g, qkv, bias, token, 0, head, column + 1));
            }
        }
    }
    for (int n = 0; n < 2 * rows; n += 8) {
        float c[4] = {};
        int table_row = n + row < 2 * rows ? n + row : 2 * rows - 1;
        #pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const T* from = table + static_cast<size_t>(table_row) * D + 16 * step + 2 * t;
            uint32_t b[2] = {pair_at(from), pair_at(from + 8)};
            mma_16816<T>(c, q[step], b);
        }
        float* to = terms + (16 * warp + row) * terms_stride + n + 2 * t;
        to[0] = c[0];
        to[1] = c[1];
        to[8 * terms_stride] = c[2];
        to[8 * terms_stride + 1] = c[3];
    }
    __syncwarp();

    // Where the terms of key row and key column 0 stand for this lane's two queries; those of the next key stand one before.
    const float* by_row[2];
    const float* by_column[2];
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
        int query = 16 * warp + row + 8 * half;
        int token = first + query < tokens ? first + query : tokens - 1;
        const float* of_query = terms + query * terms_stride;
        by_row[half] = of_query + token / g.side + g.side - 1;
        by_column[half] = of_query + rows + token % g.side + g.side - 1;
    }

    float sums[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    for (int start = 0; start < tokens; start += KEYS) {
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS * (D / 2); i += THREADS) {
            int key = i / (D / 2), column = i % (D / 2) * 2;
            bool real = start + key < tokens;
            long long token = token_row(g, window, start + key);
            float values[4] = {};
            if (real) {
                #pragma unroll
                for (int j = 0; j < 2; ++j) {
                    values[j] = element(g, qkv, bias, token, 1, head, column + j);
                    values[2 + j] = element(g, qkv, bias, token, 2, head, column + j);
                }
            }
            *reinterpret_cast<uint32_t*>(k + key * K_STRIDE + column) = pack<T>(values[0], values[1]);
            v[column * V_STRIDE + key] = from_float<T>(values[2]);
            v[(column + 1) * V_STRIDE + key] = from_float<T>(values[3]);
        }
        int slot = threadIdx.x;
        if (slot < KEYS) {
            int key = start + slot < tokens ? start + slot : tokens - 1;
            places[slot] = key / g.side;
            places[KEYS + slot] = key % g.side;
        }
        __syncthreads();

        float s[KEYS / 8][4] = {};
        #pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
            #pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const T* from = k + (8 * n + row) * K_STRIDE + 16 * step + 2 * t;
                uint32_t b[2] = {pair_at(from), pair_at(from + 8)};
                mma_16816<T>(s[n], q[step], b);
            }
        }
        #pragma unroll
        for (int half = 0; half < 2; ++half) {
            float best = largest[half];
            #pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                #pragma unroll
                for (int j = 0; j < 2; ++j) {
                    int key = 8 * n + 2 * t + j;
                    float& score = s[n][2 * half + j];
                    score = start + key < tokens ? score * scale + by_row[half][-places[key]] + by_column[half][-places[KEYS + key]] : -INFINITY;
                    best = fmaxf(best, score);
                }
            }
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 1));
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 2));
            float shrink = expf(largest[half] - best), part = 0.0f;
            #pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                #pragma unroll
                for (int j = 0; j < 2; ++j) {
                    float& score = s[n][2 * half + j];
                    score = expf(score - best);
                    part += score;
                }
            }
            part += __shfl_xor_sync(FULL_WARP, part, 1);
            part += __shfl_xor_sync(FULL_WARP, part, 2);
            total[half] = total[half] * shrink + part;
            largest[half] = best;
            #pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                sums[n][2 * half] *= shrink;
                sums[n][2 * half + 1] *= shrink;
            }
        }
        #pragma unroll
        for (int step = 0; step < KEYS / 16; ++step) {
            // The scores lie as the left operand of the next product wants them.
            uint32_t a[4] = {pack<T>(s[2 * step][0], s[2 * step][1]), pack<T>(s[2 * step][2], s[2 * step][3]),
                             pack<T>(s[2 * step + 1][0], s[2 * step + 1][1]), pack<T>(s[2 * step + 1][2], s[2 * step + 1][3])};
            #pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const T* from = v + (8 * n + row) * V_STRIDE + 16 * step + 2 * t;
                uint32_t b[2] = {pair_at(from), pair_at(from + 8)};
                mma_16816<T>(sums[n], a, b);
            }
        }
    }
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
        long long token = token_row(g, window, first + 16 * warp + row + 8 * half);
        if (token < 0) continue;
        T* to = out + token * g.heads * D + head * D + 2 * t;
        #pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            to[8 * n] = from_float<T>(sums[n][2 * half] / total[half]);
            to[8 * n + 1] = from_float<T>(sums[n][2 * half + 1] / total[half]);
        }
    }
}

#define DEFINE(T, suffix, D)                                                                                                    \
    KERNEL(rel_pos_attention_##D##_##suffix, (const T* qkv, const float* bias, const T* table, T* out, Sizes g, float scale)) { \
        attend_mma<D>(qkv, bias, table, out, g, scale);                                                                         \
    }
#define DEFINE_WIDTHS(T, suffix) \
    DEFINE(T, suffix, 16)        \
    DEFINE(T, suffix, 32)        \
    DEFINE(T, suffix, 64)        \
    DEFINE(T, suffix, 80)
DEFINE_WIDTHS(__nv_bfloat16, bf16)
DEFINE_WIDTHS(__half, f16)
#undef DEFINE_WIDTHS
#undef DEFINE
