// Elementwise kernels, which move four elements at a time if the alignment allows.
#pragma once
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

// A thread takes four elements, the last one the rest.
template <typename T, typename F>
__device__ void map(const T* a, const T* b, const T* c, T* out, size_t n, int fours, F f) {
    size_t at = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (fours && at + 4 <= n) {
        map_run<4>(a, b, c, out, at, f);
        return;
    }
    for (size_t i = at; i < at + 4 && i < n; ++i) map_run<1>(a, b, c, out, i, f);
}
