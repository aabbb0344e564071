// Attention of 16-bit numbers by the matrix units, with sums and softmax in float32, tiled as FlashAttention-2 is (Dao 2023).
//
// Tokens are taken in chunks of 16 of one row of the window, so that a chunk of queries and a chunk of keys have one row each, and the place
// of a key within its row is the same in every row. `PER_ROW` is the number of chunks per row, 0 if it is only known at run time. A warp has
// two chunks of queries and goes over the keys in tiles, of which the next is copied while the present one is multiplied.
//
// Positions are added before the product: the sums begin as (q·R_h + q·R_w)/scale. They are -∞ for places beyond the end of a row.
//
// Only queries need their bias. That of the keys adds the same number to all scores of a query, which the softmax takes away again, and that
// of the values is added to the result, whose weights sum to 1. So a padding token, which is only its bias, is zeros.
#pragma once

#include "device/matrix.cuh"

constexpr int CHUNK = 16;
constexpr int WARP_CHUNKS = 2;
constexpr int PAD = 8; // between rows in shared memory, so that the eight rows of a matrix lie in different banks

// Chunks of a tile of keys: as many as leave the registers of wide heads free.
constexpr int tile_chunks(int d) { return d <= 64 ? 4 : 2; }

// A window of an image.
struct Window {
    long long first_row; // of the image
    int y, x;            // of its first token
};

__device__ __forceinline__ Window window_of(const Sizes& g, int window) {
    int per_image = g.windows * g.windows;
    int image = window / per_image, in_image = window % per_image;
    return {static_cast<long long>(image) * g.grid * g.grid, in_image / g.windows * g.side, in_image % g.windows * g.side};
}

// The row of qkv and of the output of a token; -1 for what is no token of the image.
__device__ __forceinline__ long long row_of(const Sizes& g, const Window& window, int y, int x) {
    bool real = y < g.side && x < g.side && window.y + y < g.grid && window.x + x < g.grid;
    return real ? window.first_row + static_cast<long long>(window.y + y) * g.grid + window.x + x : -1;
}

// Begins to copy keys and values of the tile from chunk `start` on to [keys, D + PAD], twice.
template <int D, typename T>
__device__ __forceinline__ void copy_tile(const T* qkv, T* k, const Sizes& g, const Window& window, int per_row, int start) {
    constexpr int KEYS = CHUNK * tile_chunks(D), PIECES = D / 8, STRIDE = D + PAD;
    int width = g.heads * D;
    const T* heads = qkv + width + blockIdx.y * D;
    for (int i = threadIdx.x; i < KEYS * PIECES; i += blockDim.x) {
        int key = i / PIECES, piece = i % PIECES;
        int chunk = start + key / CHUNK;
        long long row = row_of(g, window, chunk / per_row, chunk % per_row * CHUNK + key % CHUNK);
        const T* from = heads + (row < 0 ? 0 : row) * 3 * width + 8 * piece;
        T* to = k + key * STRIDE + 8 * piece;
        copy_16_bytes(to, from, row >= 0);
        copy_16_bytes(to + KEYS * STRIDE, from + width, row >= 0);
    }
}

// Queries with their bias, as left operands.
template <int D, typename T>
__device__ __forceinline__ void load_queries(uint32_t (&q)[D / 16][4], const T* qkv, const float* bias, const Sizes& g, const Window& window, int y, int x) {
    int row = lane_index() / 4, t = lane_index() % 4, head = blockIdx.y;
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
        long long token = row_of(g, window, y, x + row + 8 * half);
        #pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            #pragma unroll
            for (int right = 0; right < 2; ++right) {
                int column = head * D + 16 * step + 8 * right + 2 * t;
                Pair<T> pair{{from_float<T>(0.0f), from_float<T>(0.0f)}};
                if (token >= 0) pair = *reinterpret_cast<const Pair<T>*>(qkv + token * 3 * g.heads * D + column);
                q[step][half + 2 * right] = pack<T>(to_float(pair.v[0]) + bias[column], to_float(pair.v[1]) + bias[column + 1]);
            }
        }
    }
}

// q·R/scale of 16 queries: by_row [16, row_stride] for each row of keys, by_place [16, place_stride] for each place within a row.
template <int D, typename T>
__device__ __forceinline__ void position_terms(const uint32_t (&q)[D / 16][4], const T* table, const Sizes& g, int y, int x, float inverse_scale,
                                               float* by_row, int row_stride, float* by_place, int place_stride) {
    int row = lane_index() / 4, t = lane_index() % 4, last = 2 * g.side - 2;
    auto product = [&](float (&c)[4], int table_row) {
        const T* from = table + static_cast<size_t>(table_row) * D + 2 * t;
        #pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            const uint32_t* pair = reinterpret_cast<const uint32_t*>(from + 16 * step);
            multiply_add<T>(c, q[step], pair[0], pair[4]);
        }
    };
    // Row `own - key + side - 1` of each half of the table belongs to a key, by its row and by its place. The rows differ by
    // one from query to query of a chunk only for the places.
    for (int n = 0; n < g.side; n += 8) {
        float c[4] = {};
        product(c, min(y, g.side - 1) + g.side - 1 - min(n + row, g.side - 1));
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            int key = n + 2 * t + i % 2;
            if (key < g.side) by_row[(row + i / 2 * 8) * row_stride + key] = c[i] * inverse_scale;
        }
    }
    for (int n = 0; n < g.side + CHUNK - 1; n += 8) {
        float c[4] = {};
        product(c, last + 1 + min(x + n + row, last));
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            int query = row + i / 2 * 8, key = query + g.side - 1 - (n + 2 * t + i % 2);
            if (key >= 0 && key < g.side) by_place[query * place_stride + key] = c[i] * inverse_scale;
        }
    }
    for (int place = g.side + t; place < place_stride; place += 4) {
        by_place[row * place_stride + place] = by_place[(row + 8) * place_stride + place] = -INFINITY;
    }
}

template <int D, int PER_ROW, typename T>
__device__ void attend(const T* qkv, const float* bias, const T* table, T* out, Sizes g, float scale) {
    DYNAMIC_SHARED(unsigned char, memory);
    constexpr int CHUNKS = tile_chunks(D), KEYS = CHUNK * CHUNKS, STRIDE = D + PAD, STEPS = D / 16;
    constexpr float LOG2_E = 1.44269504f;
    int per_row = PER_ROW > 0 ? PER_ROW : (g.side + CHUNK - 1) / CHUNK, chunks = g.side * per_row;
    int queries = blockDim.x / 32 * WARP_CHUNKS * CHUNK, row_stride = g.side | 1, place_stride = per_row * CHUNK + 8;
    T* tiles = reinterpret_cast<T*>(memory);                       // [2, 2, KEYS, STRIDE]: two tiles of keys and values
    float* by_row = reinterpret_cast<float*>(tiles + 4 * KEYS * STRIDE); // [queries, row_stride]
    float* by_place = by_row + queries * row_stride + (queries * row_stride & 1); // [queries, place_stride]
    int row = lane_index() / 4, t = lane_index() % 4, own = warp_index() * WARP_CHUNKS;
    Window window = window_of(g, blockIdx.z);

    copy_tile<D>(qkv, tiles, g, window, per_row, 0);
    uint32_t q[WARP_CHUNKS][STEPS][4];
    #pragma unroll
    for (int m = 0; m < WARP_CHUNKS; ++m) {
        int chunk = blockIdx.x * (queries / CHUNK) + own + m, first = (own + m) * CHUNK;
        load_queries<D>(q[m], qkv, bias, g, window, chunk / per_row, chunk % per_row * CHUNK);
        position_terms<D>(q[m], table, g, chunk / per_row, chunk % per_row * CHUNK, 1.0f / scale, by_row + first * row_stride, row_stride,
                          by_place + first * place_stride, place_stride);
    }
    __syncwarp();
    // The terms of this lane's places, where they are few.
    float places[PER_ROW > 0 ? PER_ROW : 1][WARP_CHUNKS][2][4];
    auto load_places = [&](float (&to)[WARP_CHUNKS][2][4], int of_row) {
        #pragma unroll
        for (int m = 0; m < WARP_CHUNKS; ++m) {
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                int query = (own + m) * CHUNK + row + i / 2 % 2 * 8;
                to[m][i / 4][i % 4] = by_place[query * place_stride + of_row * CHUNK + i / 4 * 8 + 2 * t + i % 2];
            }
        }
    };
    if constexpr (PER_ROW > 0) {
        #pragma unroll
        for (int of_row = 0; of_row < PER_ROW; ++of_row) load_places(places[of_row], of_row);
    }

    float sums[WARP_CHUNKS][D / 8][4] = {}, largest[WARP_CHUNKS][2], total[WARP_CHUNKS][2] = {};
    #pragma unroll
    for (int m = 0; m < WARP_CHUNKS; ++m) largest[m][0] = largest[m][1] = -INFINITY;
    int key_row = 0, of_row = 0; // of the next chunk of keys
    for (int start = 0; start < chunks; start += CHUNKS) {
        const T* k = tiles + start / CHUNKS % 2 * (2 * KEYS * STRIDE);
        const T* v = k + KEYS * STRIDE;
        finish_copies();
        __syncthreads();
        if (start + CHUNKS < chunks) copy_tile<D>(qkv, tiles + (start / CHUNKS + 1) % 2 * (2 * KEYS * STRIDE), g, window, per_row, start + CHUNKS);

        float s[WARP_CHUNKS][2 * CHUNKS][4];
        #pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            if (start + chunk >= chunks) {
                #pragma unroll
                for (int i = 0; i < 8 * WARP_CHUNKS; ++i) s[i / 8][2 * chunk + i / 4 % 2][i % 4] = -INFINITY;
                continue;
            }
            if constexpr (PER_ROW == 0) load_places(places[0], of_row);
            #pragma unroll
            for (int i = 0; i < 4 * WARP_CHUNKS; ++i) {
                int m = i / 4, half = i / 2 % 2;
                float term = by_row[((own + m) * CHUNK + row + 8 * half) * row_stride + key_row];
                const float(&of_places)[2][4] = places[PER_ROW > 0 ? chunk % (PER_ROW > 0 ? PER_ROW : 1) : 0][m];
                s[m][2 * chunk][i % 4] = term + of_places[0][i % 4];
                s[m][2 * chunk + 1][i % 4] = term + of_places[1][i % 4];
            }
            if (++of_row == per_row) {
                of_row = 0;
                ++key_row;
            }
            #pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                uint32_t b[4];
                int lane = lane_index();
                load_matrices(b, k + (CHUNK * chunk + lane % 8 + lane / 16 * 8) * STRIDE + 16 * step + lane / 8 % 2 * 8);
                #pragma unroll
                for (int m = 0; m < WARP_CHUNKS; ++m) {
                    multiply_add<T>(s[m][2 * chunk], q[m][step], b[0], b[1]);
                    multiply_add<T>(s[m][2 * chunk + 1], q[m][step], b[2], b[3]);
                }
            }
        }
        #pragma unroll
        for (int m = 0; m < WARP_CHUNKS; ++m) {
            #pragma unroll
            for (int half = 0; half < 2; ++half) {
                float best = largest[m][half];
                #pragma unroll
                for (int n = 0; n < 2 * CHUNKS; ++n) best = fmaxf(best, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 1));
                best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 2));
                float offset = best * (scale * LOG2_E), shrink = power_of_two(largest[m][half] * (scale * LOG2_E) - offset), part = 0.0f;
                #pragma unroll
                for (int n = 0; n < 2 * CHUNKS; ++n) {
                    #pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        float& score = s[m][n][2 * half + j];
                        score = power_of_two(score * (scale * LOG2_E) - offset);
                        part += score;
                    }
                }
                total[m][half] = total[m][half] * shrink + part;
                largest[m][half] = best;
                #pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    sums[m][n][2 * half] *= shrink;
                    sums[m][n][2 * half + 1] *= shrink;
                }
            }
        }
        #pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            if (start + chunk >= chunks) continue;
            uint32_t a[WARP_CHUNKS][4];
            #pragma unroll
            for (int i = 0; i < 4 * WARP_CHUNKS; ++i) {
                const float(&from)[4] = s[i / 4][2 * chunk + i / 2 % 2];
                a[i / 4][i % 4] = pack<T>(from[i % 2 * 2], from[i % 2 * 2 + 1]); // scores lie as a left operand does
            }
            #pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                uint32_t b[4];
                int lane = lane_index();
                load_matrices_transposed(b, v + (CHUNK * chunk + lane % 16) * STRIDE + 16 * n + lane / 16 * 8);
                #pragma unroll
                for (int m = 0; m < WARP_CHUNKS; ++m) {
                    multiply_add<T>(sums[m][2 * n], a[m], b[0], b[1]);
                    multiply_add<T>(sums[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    // By way of shared memory, so that 16 bytes are written at once.
    __syncthreads();
    T* rows = tiles + own * CHUNK * STRIDE; // [32, STRIDE] for each warp
    const float* value_bias = bias + 2 * g.heads * D + blockIdx.y * D;
    #pragma unroll
    for (int i = 0; i < 2 * WARP_CHUNKS; ++i) {
        int m = i / 2, half = i % 2;
        float all = total[m][half];
        all += __shfl_xor_sync(FULL_WARP, all, 1);
        all += __shfl_xor_sync(FULL_WARP, all, 2);
        float inverse = 1.0f / all;
        #pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            int column = 8 * n + 2 * t;
            *reinterpret_cast<uint32_t*>(rows + (m * CHUNK + row + 8 * half) * STRIDE + column) =
                pack<T>(sums[m][n][2 * half] * inverse + value_bias[column], sums[m][n][2 * half + 1] * inverse + value_bias[column + 1]);
        }
    }
    __syncwarp();
    for (int i = lane_index(); i < WARP_CHUNKS * CHUNK * (D / 8); i += 32) {
        int query = i / (D / 8), piece = i % (D / 8);
        int chunk = blockIdx.x * (queries / CHUNK) + own + query / CHUNK;
        long long token = row_of(g, window, chunk / per_row, chunk % per_row * CHUNK + query % CHUNK);
        if (token < 0) continue;
        *reinterpret_cast<uint4*>(out + (token * g.heads + blockIdx.y) * D + 8 * piece) = *reinterpret_cast<const uint4*>(rows + query * STRIDE + 8 * piece);
    }
}
