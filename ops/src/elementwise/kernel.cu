// Elementwise passes; the references are elementwise.rs and activation.rs.
#include "device/common.cuh"

template <int N, typename T>
__device__ __forceinline__ void load_run(const T* from, float (&to)[N]) {
    if constexpr (N == 4) {
        load_four(from, to);
    } else {
        to[0] = to_float(*from);
    }
}

// out[i] = f(a[i], b[i], c[i]); b and c may be absent.
template <int N, typename T, typename F>
__device__ void map_run(const T* a, const T* b, const T* c, T* out, size_t at, F f) {
    float x[N], y[N] = {}, z[N] = {};
    load_run<N>(a + at, x);
    if (b != nullptr) load_run<N>(b + at, y);
    if (c != nullptr) load_run<N>(c + at, z);
    for (int i = 0; i < N; ++i) x[i] = f(x[i], y[i], z[i]);
    if constexpr (N == 4) {
        store_four(out + at, x);
    } else {
        out[at] = from_float<T>(x[0]);
    }
}

// A thread takes four elements, the last one what is left.
template <typename T, typename F>
__device__ void map(const T* a, const T* b, const T* c, T* out, size_t n, int fours, F f) {
    size_t at = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (fours && at + 4 <= n) {
        map_run<4>(a, b, c, out, at, f);
        return;
    }
    for (size_t i = at; i < at + 4 && i < n; ++i) map_run<1>(a, b, c, out, i, f);
}

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// Φ(x) + x·φ(x)
__device__ __forceinline__ float gelu_slope(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
}

// NaN stays NaN.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(add_relu_##suffix, (const T* a, const T* b, T* out, size_t n, int fours)) {                                               \
        map<T>(a, b, nullptr, out, n, fours, [](float x, float y, float) { return relu(x + y); });                                   \
    }                                                                                                                                \
    KERNEL(relu_backward_##suffix, (const T* y, const T* g, T* out, size_t n, int fours)) {                                          \
        map<T>(y, g, nullptr, out, n, fours, [](float y_, float g_, float) { return y_ <= 0.0f ? 0.0f : g_; });                      \
    }                                                                                                                                \
    KERNEL(relu_backward_sum_##suffix, (const T* y, const T* a, const T* b, T* out, size_t n, int fours)) {                          \
        map<T>(y, a, b, out, n, fours, [](float y_, float a_, float b_) { return y_ <= 0.0f ? 0.0f : a_ + b_; });                    \
    }                                                                                                                                \
    KERNEL(gelu_##suffix, (const T* x, T* out, size_t n, int fours)) {                                                               \
        map<T>(x, nullptr, nullptr, out, n, fours, [](float x_, float, float) { return gelu(x_); });                                 \
    }                                                                                                                                \
    KERNEL(gelu_backward_##suffix, (const T* g, const T* x, T* out, size_t n, int fours)) {                                          \
        map<T>(g, x, nullptr, out, n, fours, [](float g_, float x_, float) { return g_ * gelu_slope(x_); });                         \
    }                                                                                                                                \
    /* Adds a bias to every row of x [rows, c], in place; then GELU where activation is 1. */                                        \
    KERNEL(add_bias_##suffix, (T* x, const float* bias, size_t n, int c, int activation)) {                                          \
        size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                                      \
        if (at >= n) return;                                                                                                         \
        float v = to_float(x[at]) + bias[at % c];                                                                                    \
        x[at] = from_float<T>(activation == 1 ? gelu(v) : v);                                                                        \
    }                                                                                                                                \
    /* cnn + gate·(sam - cnn), the gate a number on the device. */                                                                   \
    KERNEL(mix_##suffix, (const T* sam, const T* cnn, const float* gate, T* out, size_t n, int fours)) {                             \
        float share = *gate;                                                                                                         \
        map<T>(sam, cnn, nullptr, out, n, fours, [=](float s, float c, float) { return c + share * (s - c); });                      \
    }                                                                                                                                \
    KERNEL(mix_backward_cnn_##suffix, (const T* g, const float* gate, T* out, size_t n, int fours)) {                                \
        float share = *gate;                                                                                                         \
        map<T>(g, nullptr, nullptr, out, n, fours, [=](float g_, float, float) { return g_ - share * g_; });                         \
    }                                                                                                                                \
    /* partial [gridDim.x]: Σ g·(sam - cnn) of each block's share, the gradient of the gate. */                                      \
    KERNEL(mix_backward_gate_##suffix, (const T* g, const T* sam, const T* cnn, double* partial, size_t n)) {                        \
        size_t share = (n + gridDim.x - 1) / gridDim.x;                                                                              \
        size_t end = (blockIdx.x + 1) * share < n ? (blockIdx.x + 1) * share : n;                                                    \
        float sum = 0.0f;                                                                                                            \
        for (size_t i = blockIdx.x * share + threadIdx.x; i < end; i += blockDim.x) {                                                \
            sum += to_float(g[i]) * (to_float(sam[i]) - to_float(cnn[i]));                                                           \
        }                                                                                                                            \
        double total = block_sum(static_cast<double>(sum));                                                                          \
        if (threadIdx.x == 0) partial[blockIdx.x] = total;                                                                           \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

// out [c] = Σ over the splits of partial [c, splits], in order. One thread a sum.
KERNEL(sum_partials, (const double* partial, float* out, int splits, int c)) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= c) return;
    double sum = 0.0;
    for (int i = 0; i < splits; ++i) sum += partial[static_cast<size_t>(at) * splits + i];
    out[at] = static_cast<float>(sum);
}
