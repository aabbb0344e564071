// The bias and activation after a linear layer's matrix product.
#include "gelu/gelu.cuh"

__device__ __forceinline__ float biased(float x, float bias, int activation) {
    float v = x + bias;
    return activation == 1 ? gelu(v) : v;
}

// x [n/c, c] += bias, in place; then GELU where activation is 1. A thread takes 16 bytes of a row if rows consist of them, else one element.
template <typename T>
__device__ void add_bias(T* x, const float* bias, unsigned n, unsigned c, int activation) {
    unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (c % RUN<T> != 0) {
        if (thread < n) x[thread] = from_float<T>(biased(to_float(x[thread]), bias[thread % c], activation));
        return;
    }
    if (thread >= n / RUN<T>) return;
    T* at = x + static_cast<size_t>(thread) * RUN<T>;
    const float* of_columns = bias + thread % (c / RUN<T>) * RUN<T>;
    float v[RUN<T>];
    load_16_bytes(at, v);
    #pragma unroll
    for (int i = 0; i < RUN<T>; i += 4) {
        float b[4];
        load_four(of_columns + i, b);
        #pragma unroll
        for (int j = 0; j < 4; ++j) v[i + j] = biased(v[i + j], b[j], activation);
    }
    store_16_bytes(at, v);
}

// x [g, n, c] += bias [g, c], in place, in groups of `group` = n·c elements; then ReLU where relu.
template <typename T>
__device__ void add_group_bias(T* x, const float* bias, unsigned elements, unsigned group, unsigned c, int relu) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= elements) return;
    float v = to_float(x[at]) + bias[at / group * c + at % c];
    x[at] = from_float<T>(relu && v < 0.0f ? 0.0f : v);
}

#define DEFINE(T, suffix)                                                                                                        \
    KERNEL(add_group_bias_##suffix, (T* x, const float* bias, unsigned elements, unsigned group, unsigned c, int relu)) {        \
        add_group_bias(x, bias, elements, group, c, relu);                                                                       \
    }                                                                                                                            \
    KERNEL(add_bias_##suffix, (T* x, const float* bias, unsigned n, unsigned c, int activation)) { add_bias(x, bias, n, c, activation); }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
