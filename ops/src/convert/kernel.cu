// Tensors in another number format; the reference is candle's cast.
#include "device/map.cuh"

template <int N, typename T, typename U>
__device__ __forceinline__ void convert_run(const T* x, U* out) {
    float v[N];
    load_run<N>(x, v);
    if constexpr (N == 4) {
        store_four(out, v);
    } else {
        *out = from_float<U>(v[0]);
    }
}

// A thread takes four elements, the last one the rest.
template <typename T, typename U>
__device__ void convert(const T* x, U* out, size_t n, int fours) {
    size_t at = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (fours && at + 4 <= n) {
        convert_run<4>(x + at, out + at);
        return;
    }
    for (size_t i = at; i < at + 4 && i < n; ++i) convert_run<1>(x + i, out + i);
}

#define DEFINE(T, from, U, to) \
    KERNEL(convert_##from##_##to, (const T* x, U* out, size_t n, int fours)) { convert(x, out, n, fours); }
DEFINE(float, f32, __nv_bfloat16, bf16)
DEFINE(float, f32, __half, f16)
DEFINE(__nv_bfloat16, bf16, float, f32)
DEFINE(__half, f16, float, f32)
#undef DEFINE

// Tensors of one launch: the table fits the 4 KiB that a kernel's arguments may take.
constexpr int TENSORS = 64;
// Elements of one block.
constexpr int CHUNK = 4096;

// As `table` in cuda.rs fills it.
struct Table {
    const float* from[TENSORS];
    void* to[TENSORS];
    uint32_t len[TENSORS];
    // The first block of each tensor, and one past the last.
    uint32_t start[TENSORS + 1];
    int32_t count;
};

// Each tensor of the table; both sides of each are aligned to four elements.
template <typename U>
__device__ __forceinline__ void convert_all(const Table& table) {
    int tensor = 0;
    while (tensor + 1 < table.count && blockIdx.x >= table.start[tensor + 1]) ++tensor;
    size_t begin = static_cast<size_t>(blockIdx.x - table.start[tensor]) * CHUNK, len = table.len[tensor];
    size_t end = begin + CHUNK < len ? begin + CHUNK : len;
    const float* from = table.from[tensor];
    U* to = static_cast<U*>(table.to[tensor]);
    for (size_t i = begin + threadIdx.x * 4; i < end; i += blockDim.x * 4) {
        if (i + 4 <= end) {
            convert_run<4>(from + i, to + i);
        } else {
            for (size_t j = i; j < end; ++j) convert_run<1>(from + j, to + j);
        }
    }
}

// out [n, k] = the sum of x [n, m, k] over its middle axis.
template <typename U>
__device__ void sum_middle(const float* x, U* out, unsigned n, unsigned m, unsigned k) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n * k) return;
    const float* from = x + static_cast<size_t>(at / k) * m * k + at % k;
    float sum = 0.0f;
    for (unsigned i = 0; i < m; ++i) sum += from[static_cast<size_t>(i) * k];
    out[at] = from_float<U>(sum);
}

#define DEFINE(U, suffix)                                                                                                     \
    KERNEL(convert_all_##suffix, (Table table)) { convert_all<U>(table); }                                                    \
    KERNEL(sum_middle_##suffix, (const float* x, U* out, unsigned n, unsigned m, unsigned k)) { sum_middle(x, out, n, m, k); }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
