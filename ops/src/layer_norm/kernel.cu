// Layer norm over the last axis; the reference is cpu.rs.
#include "device/common.cuh"

// Mean and 1/sqrt(variance + eps) of a row that a warp reads together.
template <typename Get>
__device__ __forceinline__ void row_statistics(int c, float eps, Get get, float& mean, float& inverse) {
    float sum = 0.0f;
    for (int i = lane_index(); i < c; i += 32) sum += get(i);
    mean = warp_sum(sum) / c;
    float squares = 0.0f;
    for (int i = lane_index(); i < c; i += 32) {
        float d = get(i) - mean;
        squares += d * d;
    }
    inverse = 1.0f / sqrtf(warp_sum(squares) / c + eps);
}

// The row of this warp: blockDim.x/32 rows per block.
__device__ __forceinline__ int row_index() { return blockIdx.x * (blockDim.x >> 5) + warp_index(); }

// x += delta + added (absent where null), then y = norm(x), for a row of any width c.
template <typename T>
__device__ void add_norm(float* x, const T* delta, const float* added, const float* weight, const float* bias, T* y, int c, float eps) {
    for (int i = lane_index(); i < c; i += 32) {
        x[i] += (delta != nullptr ? to_float(delta[i]) : 0.0f) + (added != nullptr ? added[i] : 0.0f);
    }
    // Each lane reads again what it wrote itself.
    float mean, inverse;
    row_statistics(c, eps, [&](int i) { return x[i]; }, mean, inverse);
    for (int i = lane_index(); i < c; i += 32) y[i] = from_float<T>((x[i] - mean) * inverse * weight[i] + bias[i]);
}

// The same for rows of at most 128·FOURS, a multiple of 4: each lane keeps its part of the row and moves four elements at a time.
template <int FOURS, typename T>
__device__ void add_norm_in_registers(float* x, const T* delta, const float* added, const float* weight, const float* bias, T* y, int c, float eps) {
    float v[FOURS][4] = {}, sum = 0.0f, squares = 0.0f;
    #pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        int at = (32 * i + lane_index()) * 4;
        if (at >= c) continue;
        float more[4];
        load_four(x + at, v[i]);
        if (delta != nullptr) {
            load_four(delta + at, more);
            for (int j = 0; j < 4; ++j) v[i][j] += more[j];
        }
        if (added != nullptr) {
            load_four(added + at, more);
            for (int j = 0; j < 4; ++j) v[i][j] += more[j];
        }
        if (delta != nullptr || added != nullptr) store_four(x + at, v[i]);
        for (int j = 0; j < 4; ++j) sum += v[i][j];
    }
    float mean = warp_sum(sum) / c;
    #pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        if ((32 * i + lane_index()) * 4 >= c) continue;
        for (int j = 0; j < 4; ++j) squares += (v[i][j] - mean) * (v[i][j] - mean);
    }
    float inverse = 1.0f / sqrtf(warp_sum(squares) / c + eps);
    #pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        int at = (32 * i + lane_index()) * 4;
        if (at >= c) continue;
        float w[4], b[4];
        load_four(weight + at, w);
        load_four(bias + at, b);
        for (int j = 0; j < 4; ++j) v[i][j] = (v[i][j] - mean) * inverse * w[j] + b[j];
        store_four(y + at, v[i]);
    }
}

#define DEFINE(T, suffix)                                                                                                              \
    /* y = norm(x)·weight + bias, of rows [rows, c]; unless `added` is null, of sum = x + added. One warp per row. */                  \
    KERNEL(layer_norm_##suffix, (const T* x, const T* added, const float* weight, const float* bias, T* sum, T* y, int rows, int c,    \
                                 float eps)) {                                                                                         \
        int row = row_index();                                                                                                         \
        if (row >= rows) return;                                                                                                       \
        size_t start = static_cast<size_t>(row) * c;                                                                                   \
        const T* in = x + start;                                                                                                       \
        if (added != nullptr) {                                                                                                        \
            /* Each lane reads again what it wrote itself. */                                                                          \
            for (int i = lane_index(); i < c; i += 32) sum[start + i] = from_float<T>(to_float(in[i]) + to_float(added[start + i]));   \
            in = sum + start;                                                                                                          \
        }                                                                                                                              \
        float mean, inverse;                                                                                                           \
        row_statistics(c, eps, [&](int i) { return to_float(in[i]); }, mean, inverse);                                                 \
        for (int i = lane_index(); i < c; i += 32) {                                                                                   \
            y[start + i] = from_float<T>((to_float(in[i]) - mean) * inverse * weight[i] + bias[i]);                                    \
        }                                                                                                                              \
    }                                                                                                                                  \
    /* The gradient of x; and unless null, statistics [2, rows]: mean and inverse deviation of each row. */                            \
    KERNEL(layer_norm_backward_##suffix, (const T* x, const float* weight, const T* g, T* grad, float* statistics, int rows, int c,    \
                                          float eps)) {                                                                                \
        int row = row_index();                                                                                                         \
        if (row >= rows) return;                                                                                                       \
        const T* in = x + static_cast<size_t>(row) * c;                                                                                \
        const T* d = g + static_cast<size_t>(row) * c;                                                                                 \
        float mean, inverse, sum = 0.0f, dot = 0.0f;                                                                                   \
        row_statistics(c, eps, [&](int i) { return to_float(in[i]); }, mean, inverse);                                                 \
        if (statistics != nullptr && lane_index() == 0) {                                                                              \
            statistics[row] = mean;                                                                                                    \
            statistics[rows + row] = inverse;                                                                                          \
        }                                                                                                                              \
        for (int i = lane_index(); i < c; i += 32) {                                                                                   \
            float scaled = to_float(d[i]) * weight[i];                                                                                 \
            sum += scaled;                                                                                                             \
            dot += scaled * (to_float(in[i]) - mean) * inverse;                                                                        \
        }                                                                                                                              \
        sum = warp_sum(sum) / c;                                                                                                       \
        dot = warp_sum(dot) / c;                                                                                                       \
        for (int i = lane_index(); i < c; i += 32) {                                                                                   \
            float normalised = (to_float(in[i]) - mean) * inverse;                                                                     \
            grad[static_cast<size_t>(row) * c + i] = from_float<T>((to_float(d[i]) * weight[i] - sum - normalised * dot) * inverse);   \
        }                                                                                                                              \
    }                                                                                                                                  \
    /* x += delta + added (absent where null), then y = norm(x): a layer's bias, the residual sum and the next norm in one pass. */    \
    KERNEL(add_layer_norm_##suffix, (float* x, const T* delta, const float* added, const float* weight, const float* bias, T* y,       \
                                     int rows, int c, float eps)) {                                                                    \
        int row = row_index();                                                                                                         \
        if (row >= rows) return;                                                                                                       \
        size_t start = static_cast<size_t>(row) * c;                                                                                   \
        const T* of_row = delta == nullptr ? nullptr : delta + start;                                                                  \
        if (c % 4 == 0 && c <= 768) add_norm_in_registers<6>(x + start, of_row, added, weight, bias, y + start, c, eps);               \
        else if (c % 4 == 0 && c <= 1280) add_norm_in_registers<10>(x + start, of_row, added, weight, bias, y + start, c, eps);        \
        else add_norm(x + start, of_row, added, weight, bias, y + start, c, eps);                                                      \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
