// Max-pooling 3×3, stride 2, padding 1; the reference is cpu.rs.
#include "max_pool/windows.cuh"

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(max_pool_##suffix, (const T* x, T* y, int c, int h, int w)) {                                                             \
        forward<false>(x, nullptr, nullptr, nullptr, nullptr, y, nullptr, c, h, w);                                                  \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
