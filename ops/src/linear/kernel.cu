// The bias and activation after a linear layer's matrix product.
#include "gelu/gelu.cuh"

#define DEFINE(T, suffix)                                                                                                            \
    /* Adds a bias to every row of x [rows, c], in place; then GELU where activation is 1. */                                        \
    KERNEL(add_bias_##suffix, (T* x, const float* bias, size_t n, int c, int activation)) {                                          \
        size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                                      \
        if (at >= n) return;                                                                                                         \
        float v = to_float(x[at]) + bias[at % c];                                                                                    \
        x[at] = from_float<T>(activation == 1 ? gelu(v) : v);                                                                        \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
