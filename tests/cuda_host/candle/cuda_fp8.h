// The program uses no 8-bit floating-point numbers; candle's kernels only name them.
#pragma once
#include "cuda_fp16.h"

enum { __NV_E4M3 };

struct __nv_fp8_e4m3 {
    uint8_t __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float) { std::abort(); }
};

inline __half __nv_cvt_fp8_to_halfraw(uint8_t, int) { std::abort(); }
