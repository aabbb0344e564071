// Contiguous copies of tensors of any strides.
#include "device/common.cuh"

constexpr int AXES = 12;
constexpr int TILE = 32;

// Sizes and strides, outermost axis first.
struct Axes {
    unsigned long long size[AXES], stride[AXES];
};

// out[m][i][j] = x[m·between + j·stride + i] for i < rows and j < columns; a block moves a tile through shared memory, so that both sides are
// read and written along their rows.
template <typename T>
__device__ void transpose(const T* x, T* out, int rows, int columns, int stride, size_t between) {
    __shared__ T tile[TILE][TILE + 1];
    const T* from = x + blockIdx.z * between;
    T* to = out + static_cast<size_t>(blockIdx.z) * rows * columns;
    int first_column = blockIdx.x * TILE, first_row = blockIdx.y * TILE;
    int lane = threadIdx.x % TILE, step = blockDim.x / TILE;
    for (int j = threadIdx.x / TILE; j < TILE; j += step) {
        if (first_column + j < columns && first_row + lane < rows) {
            tile[j][lane] = from[static_cast<size_t>(first_column + j) * stride + first_row + lane];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x / TILE; i < TILE; i += step) {
        if (first_row + i < rows && first_column + lane < columns) {
            to[static_cast<size_t>(first_row + i) * columns + first_column + lane] = tile[lane][i];
        }
    }
}

// out [.., total, inner] = x [.., len, inner] in the rows from `start` on, and zeros in the others; n is the number of elements of out.
template <typename T>
__device__ void with_zeros(const T* x, T* out, size_t n, unsigned len, unsigned total, unsigned start, unsigned inner) {
    size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n) return;
    size_t column = at % inner, rest = at / inner, outer = rest / total, row = rest % total;
    bool inside = row >= start && row < start + len;
    out[at] = inside ? x[(outer * len + row - start) * inner + column] : from_float<T>(0.0f);
}

#define DEFINE(T, suffix)                                                                                                 \
    KERNEL(transpose_##suffix, (const T* x, T* out, int rows, int columns, int stride, size_t between)) {                 \
        transpose(x, out, rows, columns, stride, between);                                                                \
    }                                                                                                                     \
    KERNEL(with_zeros_##suffix, (const T* x, T* out, size_t n, unsigned len, unsigned total, unsigned start, unsigned inner)) { \
        with_zeros(x, out, n, len, total, start, inner);                                                                  \
    }                                                                                                                     \
    KERNEL(strided_copy_##suffix, (const T* x, T* out, Axes axes, int count, size_t n)) {                                 \
        size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                           \
        if (at >= n) return;                                                                                              \
        size_t rest = at, from = 0;                                                                                       \
        _Pragma("unroll") for (int axis = AXES - 1; axis >= 0; --axis) {                                                 \
            if (axis >= count) continue;                                                                                  \
            from += rest % axes.size[axis] * axes.stride[axis];                                                           \
            rest /= axes.size[axis];                                                                                      \
        }                                                                                                                 \
        out[at] = x[from];                                                                                                \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
