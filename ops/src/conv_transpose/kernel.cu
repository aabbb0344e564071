// The steps around the matrix product of a 2×2 transposed convolution with stride 2; the reference is cpu.rs.
#include "device/common.cuh"

#define DEFINE(T, suffix)                                                                                                           \
    /* patches [b, co·4, h·w] and bias [co] → out [b, co, 2h, 2w]. One thread per pair of neighbouring outputs. */                    \
    KERNEL(unfold_patches_##suffix, (const T* patches, const float* bias, T* out, int co, int h, int w, size_t pairs)) {            \
        size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                                     \
        if (at >= pairs) return;                                                                                                    \
        int x = static_cast<int>(at % w);                                                                                           \
        int y = static_cast<int>(at / w % (2 * h));                                                                                 \
        size_t plane = at / w / (2 * h); /* image·co + channel */                                                                   \
        float shift = bias[plane % co];                                                                                             \
        size_t from = ((plane * 4 + y % 2 * 2) * h + y / 2) * w + x;                                                                \
        out[2 * at] = from_float<T>(to_float(patches[from]) + shift);                                                               \
        out[2 * at + 1] = from_float<T>(to_float(patches[from + static_cast<size_t>(h) * w]) + shift);                              \
    }                                                                                                                               \
    /* grad [b, co, 2h, 2w] → patches [b, co·4, h·w]. */                                                                            \
    KERNEL(fold_patches_##suffix, (const T* grad, T* patches, int h, int w, size_t pairs)) {                                        \
        size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                                     \
        if (at >= pairs) return;                                                                                                    \
        int x = static_cast<int>(at % w);                                                                                           \
        int y = static_cast<int>(at / w % (2 * h));                                                                                 \
        size_t plane = at / w / (2 * h);                                                                                            \
        size_t to = ((plane * 4 + y % 2 * 2) * h + y / 2) * w + x;                                                                  \
        patches[to] = grad[2 * at];                                                                                                 \
        patches[to + static_cast<size_t>(h) * w] = grad[2 * at + 1];                                                                \
    }                                                                                                                               \
    /* partial [c, gridDim.x]: sums of x [b, c, hw] over all but the channels. */                                                   \
    KERNEL(channel_sums_##suffix, (const T* x, double* partial, int b, int c, int hw)) {                                            \
        unsigned n = static_cast<unsigned>(b) * hw;                                                                                 \
        unsigned share = (n + gridDim.x - 1) / gridDim.x;                                                                           \
        unsigned begin = blockIdx.x * share, end = begin + share < n ? begin + share : n;                                           \
        float sum = 0.0f;                                                                                                           \
        for (unsigned i = begin + threadIdx.x; i < end; i += blockDim.x) {                                                          \
            sum += to_float(x[(static_cast<size_t>(i / hw) * c + blockIdx.y) * hw + i % hw]);                                       \
        }                                                                                                                           \
        double total = block_sum(static_cast<double>(sum));                                                                         \
        if (threadIdx.x == 0) partial[static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x] = total;                            \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
