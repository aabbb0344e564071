// The encoder's attention with decomposed relative positions, global or within windows, as one kernel; the reference is cpu.rs.
//
// A block takes some queries of one head of one window and goes over the keys in tiles, with a running softmax in float32 (Milakov and
// Gimelshein 2018; tiled as by Dao 2023), so that scores never reach memory. 16-bit inputs are multiplied by the matrix units.
#include "device/common.cuh"

struct Sizes {
    int grid;    // tokens along the side of an image
    int side;    // tokens along the side of a window
    int windows; // windows along the side of an image
    int heads;
    int d; // width of a head
};

// ---- float32: every product by the ordinary units, exact to the last rounding ----

constexpr int QUERIES = 64;
constexpr int KEYS_F32 = 32;
constexpr int THREADS_F32 = 256;

// The row of qkv and of the output that a window's token has; -1 for padding, which is only its bias.
__device__ __forceinline__ long long token_row(const Sizes& g, int window, int token) {
    int per_image = g.windows * g.windows;
    int image = window / per_image, in_image = window % per_image;
    int y = in_image / g.windows * g.side + token / g.side, x = in_image % g.windows * g.side + token % g.side;
    if (token >= g.side * g.side || y >= g.grid || x >= g.grid) return -1;
    return (static_cast<long long>(image) * g.grid + y) * g.grid + x;
}

// Element `column` of part 0, 1 or 2 (query, key, value) of a token, with its bias.
__device__ __forceinline__ float element(const Sizes& g, const float* qkv, const float* bias, long long row, int part, int head, int column) {
    int width = g.heads * g.d;
    int at = part * width + head * g.d + column;
    return bias[at] + (row < 0 ? 0.0f : qkv[row * 3 * width + at]);
}

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

// ---- 16 bits ----

#include "rel_pos_attention/matrix_units.cuh"

#define DEFINE(T, suffix, D, PER_ROW)                                                                                       \
    KERNEL(rel_pos_attention_##D##_##PER_ROW##_##suffix, (const T* qkv, const float* bias, const T* table, T* out, Sizes g, \
                                                          float scale)) {                                                   \
        attend<D, PER_ROW>(qkv, bias, table, out, g, scale);                                                                \
    }
#define DEFINE_WIDTH(T, suffix, D) \
    DEFINE(T, suffix, D, 1)        \
    DEFINE(T, suffix, D, 2)        \
    DEFINE(T, suffix, D, 0)
#define DEFINE_WIDTHS(T, suffix) \
    DEFINE_WIDTH(T, suffix, 16)  \
    DEFINE_WIDTH(T, suffix, 32)  \
    DEFINE_WIDTH(T, suffix, 64)  \
    DEFINE_WIDTH(T, suffix, 80)
DEFINE_WIDTHS(__nv_bfloat16, bf16)
DEFINE_WIDTHS(__half, f16)
#undef DEFINE_WIDTHS
#undef DEFINE_WIDTH
#undef DEFINE
