// Sums with an activation, and the gate's sum, in one pass over memory; the reference is cpu.rs.
#include "device/map.cuh"

// NaN stays NaN.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(add_relu_##suffix, (const T* a, const T* b, T* out, size_t n, int fours)) {                                               \
        map<T>(a, b, nullptr, out, n, fours, [](float x, float y, float) { return relu(x + y); });                                   \
    }                                                                                                                                \
    KERNEL(relu_##suffix, (const T* x, T* out, size_t n, int fours)) {                                                               \
        map<T>(x, nullptr, nullptr, out, n, fours, [](float x_, float, float) { return relu(x_); });                                 \
    }                                                                                                                                \
    KERNEL(relu_backward_##suffix, (const T* y, const T* g, T* out, size_t n, int fours)) {                                          \
        map<T>(y, g, nullptr, out, n, fours, [](float y_, float g_, float) { return y_ <= 0.0f ? 0.0f : g_; });                      \
    }                                                                                                                                \
    KERNEL(relu_backward_sum_##suffix, (const T* y, const T* a, const T* b, T* out, size_t n, int fours)) {                          \
        map<T>(y, a, b, out, n, fours, [](float y_, float a_, float b_) { return y_ <= 0.0f ? 0.0f : a_ + b_; });                    \
    }                                                                                                                                \
    /* cnn + g·(sam - cnn) with g = sigmoid(alpha), alpha a number on the device. */                                                 \
    KERNEL(mix_##suffix, (const T* sam, const T* cnn, const float* alpha, T* out, size_t n, int fours)) {                            \
        float gate = sigmoid(*alpha);                                                                                                \
        map<T>(sam, cnn, nullptr, out, n, fours, [=](float s, float c, float) { return c + gate * (s - c); });                       \
    }                                                                                                                                \
    KERNEL(mix_backward_cnn_##suffix, (const T* g, const float* alpha, T* out, size_t n, int fours)) {                               \
        float gate = sigmoid(*alpha);                                                                                                \
        map<T>(g, nullptr, nullptr, out, n, fours, [=](float g_, float, float) { return g_ - gate * g_; });                          \
    }                                                                                                                                \
    /* partial [gridDim.x]: each block's share of the gradient of alpha, Σ g·(sam - cnn)·gate·(1 - gate). */                         \
    KERNEL(mix_backward_alpha_##suffix, (const T* g, const T* sam, const T* cnn, const float* alpha, double* partial, size_t n)) {   \
        size_t share = (n + gridDim.x - 1) / gridDim.x;                                                                              \
        size_t end = (blockIdx.x + 1) * share < n ? (blockIdx.x + 1) * share : n;                                                    \
        float sum = 0.0f;                                                                                                            \
        for (size_t i = blockIdx.x * share + threadIdx.x; i < end; i += blockDim.x) {                                                \
            sum += to_float(g[i]) * (to_float(sam[i]) - to_float(cnn[i]));                                                           \
        }                                                                                                                            \
        double total = block_sum(static_cast<double>(sum)), gate = sigmoid(*alpha);                                                  \
        if (threadIdx.x == 0) partial[blockIdx.x] = total * gate * (1.0 - gate);                                                     \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
