// Sums over the rows of [rows, c], and those of a layer norm's gradients; the reference is cpu.rs.
#include "device/common.cuh"

// A block adds COLUMNS columns over its share of the rows; LANES threads share a column.
constexpr int COLUMNS = 64;
constexpr int LANES = 4;

// Adds the threads' sums of a column, and writes them for the block's split.
__device__ void write_sum(float sum, double* partial, int column, int c) {
    __shared__ double parts[LANES][COLUMNS];
    int lane = threadIdx.x / COLUMNS, own = threadIdx.x % COLUMNS;
    parts[lane][own] = sum;
    __syncthreads();
    if (lane == 0 && column < c) {
        double total = 0.0;
        for (int i = 0; i < LANES; ++i) total += parts[i][own];
        partial[static_cast<size_t>(column) * gridDim.x + blockIdx.x] = total;
    }
    __syncthreads();
}

// Calls f(row) for each row of this thread.
template <typename F>
__device__ __forceinline__ void over_rows(int rows, F f) {
    int share = (rows + gridDim.x - 1) / gridDim.x;
    int begin = blockIdx.x * share, end = begin + share < rows ? begin + share : rows;
    for (int row = begin + threadIdx.x / COLUMNS; row < end; row += LANES) f(row);
}

#define DEFINE(T, suffix)                                                                                                   \
    /* partial [c, gridDim.x] */                                                                                            \
    KERNEL(column_sums_##suffix, (const T* x, double* partial, int rows, int c)) {                                          \
        int column = blockIdx.y * COLUMNS + threadIdx.x % COLUMNS;                                                          \
        float sum = 0.0f;                                                                                                   \
        if (column < c) over_rows(rows, [&](int row) { sum += to_float(x[static_cast<size_t>(row) * c + column]); });       \
        write_sum(sum, partial, column, c);                                                                                 \
    }                                                                                                                       \
    /* partial [2, c, gridDim.x]: Σ g·normalised x, then Σ g; statistics [2, rows]: mean and inverse deviation. */          \
    KERNEL(norm_column_sums_##suffix,                                                                                       \
           (const T* x, const T* g, const float* statistics, double* partial, int rows, int c)) {                           \
        int column = blockIdx.y * COLUMNS + threadIdx.x % COLUMNS;                                                          \
        float of_scale = 0.0f, of_shift = 0.0f;                                                                             \
        if (column < c) {                                                                                                   \
            over_rows(rows, [&](int row) {                                                                                  \
                size_t at = static_cast<size_t>(row) * c + column;                                                          \
                float d = to_float(g[at]);                                                                                  \
                of_shift += d;                                                                                              \
                of_scale += d * (to_float(x[at]) - statistics[row]) * statistics[rows + row];                               \
            });                                                                                                             \
        }                                                                                                                   \
        write_sum(of_scale, partial, column, c);                                                                            \
        write_sum(of_shift, partial + static_cast<size_t>(c) * gridDim.x, column, c);                                       \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
