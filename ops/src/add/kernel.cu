// Sums of tensors.
#include "device/map.cuh"

// out = x + delta + rows, in float32; x may be absent, and rows are repeated: [n/period, period] + [period]. A thread takes four elements, the last
// one the rest; with `fours` all sizes are multiples of four.
template <int N, typename T>
__device__ __forceinline__ void widened_run(const float* x, const T* delta, const float* rows, float* out, size_t at, size_t period) {
    float v[N], r[N], s[N] = {};
    load_run<N>(delta + at, v);
    load_run<N>(rows + at % period, r);
    if (x != nullptr) load_run<N>(x + at, s);
    for (int i = 0; i < N; ++i) v[i] = s[i] + v[i] + r[i];
    if constexpr (N == 4) {
        store_four(out + at, v);
    } else {
        out[at] = v[0];
    }
}

template <typename T>
__device__ void add_widened(const float* x, const T* delta, const float* rows, float* out, size_t n, size_t period, int fours) {
    size_t at = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (fours && at + 4 <= n) {
        widened_run<4>(x, delta, rows, out, at, period);
        return;
    }
    for (size_t i = at; i < at + 4 && i < n; ++i) widened_run<1>(x, delta, rows, out, i, period);
}

#define DEFINE(T, suffix)                                                                            \
    KERNEL(add_widened_##suffix, (const float* x, const T* delta, const float* rows, float* out,     \
                                  size_t n, size_t period, int fours)) {                             \
        add_widened(x, delta, rows, out, n, period, fours);                                          \
    }                                                                                                \
    KERNEL(add_##suffix, (const T* a, const T* b, T* out, size_t n, int fours)) {                    \
        map<T>(a, b, nullptr, out, n, fours, [](float x, float y, float) { return x + y; });         \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
