// Gathers a batch from stored numbers in the device's memory; the reference is cpu.rs.
#include "device/common.cuh"

// 8-bit codes with a scale and an offset for each channel, [item, channels, 2].
__device__ __forceinline__ float dequantize(const uint8_t* codes, const float* quantization, size_t item, size_t at, int channels, size_t item_len) {
    size_t channel = at / (item_len / channels);
    const float* pair = quantization + (item * channels + channel) * 2;
    return pair[1] + pair[0] * static_cast<float>(codes[at]);
}

// The row of the result that takes the block's item: of `rows`, or the item's own place.
__device__ __forceinline__ size_t row_of(const uint32_t* rows) { return rows != nullptr ? rows[blockIdx.y] : blockIdx.y; }

// out [rows, item_len] gets the gridDim.y items that `picks` names, of `stored` [items, item_bytes], in the rows that `rows` names
#define DEFINE(FROM, from_suffix, T, suffix)                                                                                          \
    KERNEL(gather_##from_suffix##_##suffix, (const uint8_t* stored, const uint32_t* picks, const uint32_t* rows, T* out, size_t item_len, \
                                            size_t item_bytes)) {                                                                             \
        size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                                       \
        if (at >= item_len) return;                                                                                                   \
        const FROM* item = reinterpret_cast<const FROM*>(stored + picks[blockIdx.y] * item_bytes);                                    \
        out[row_of(rows) * item_len + at] = from_float<T>(to_float(item[at]));                                                        \
    }
#define DEFINE_FROM(T, suffix)             \
    DEFINE(float, f32, T, suffix)          \
    DEFINE(__nv_bfloat16, bf16, T, suffix) \
    DEFINE(__half, f16, T, suffix)         \
    KERNEL(gather_q8_##suffix, (const uint8_t* stored, const uint32_t* picks, const uint32_t* rows, const float* quantization, T* out, int channels, \
                                size_t item_len, size_t item_bytes)) {                                                                \
        size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                                       \
        if (at >= item_len) return;                                                                                                   \
        size_t item = picks[blockIdx.y];                                                                                              \
        float v = dequantize(stored + item * item_bytes, quantization, item, at, channels, item_len);                                 \
        out[row_of(rows) * item_len + at] = from_float<T>(v);                                                                         \
    }
FOR_EACH_TYPE(DEFINE_FROM)
#undef DEFINE_FROM
#undef DEFINE

KERNEL(gather_bytes, (const uint8_t* stored, const uint32_t* picks, const uint32_t* rows, uint8_t* out, size_t item_len)) {
    size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= item_len) return;
    out[row_of(rows) * item_len + at] = stored[picks[blockIdx.y] * item_len + at];
}
