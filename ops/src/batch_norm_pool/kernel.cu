// Max-pooling after batch norm and ReLU; the reference is cpu.rs.
#include "max_pool/windows.cuh"

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(norm_relu_max_pool_##suffix, (const T* x, const float* mean, const float* inv_std, const float* weight, const float* bias, \
                                         T* y, int c, int h, int w)) {                                                               \
        forward<true>(x, mean, inv_std, weight, bias, y, c, h, w);                                                                   \
    }                                                                                                                                \
    KERNEL(norm_relu_max_pool_backward_##suffix, (const T* x, const T* g, const float* mean, const float* inv_std, const float* weight, \
                                                  const float* bias, T* grad, int c, int h, int w)) {                                \
        backward<true>(x, g, mean, inv_std, weight, bias, grad, c, h, w);                                                            \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
