// The gate of equation (3), in one pass over memory; the reference is cpu.rs.
#include "device/map.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Of the maps [images, channels, pixels].
struct Sizes {
    int images, channels, pixels;
};

// Sets this thread's index into the maps and its gate, in a grid of (blocks of pixels, channels, images); false for a thread past the last pixel.
__device__ __forceinline__ bool place(const float* logits, Sizes sizes, int of_channels, size_t& at, float& gate) {
    size_t pixel = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, channel = blockIdx.y, image = blockIdx.z;
    if (pixel >= sizes.pixels) return false;
    at = (image * sizes.channels + channel) * sizes.pixels + pixel;
    gate = sigmoid(logits[of_channels ? channel : image * sizes.pixels + pixel]);
    return true;
}

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(mix_##suffix, (const T* sam, const T* cnn, const float* alpha, T* out, size_t n, int fours)) {                            \
        float gate = sigmoid(*alpha);                                                                                                \
        map<T>(sam, cnn, nullptr, out, n, fours, [=](float s, float c, float) { return c + gate * (s - c); });                       \
    }                                                                                                                                \
    KERNEL(mix_backward_sam_##suffix, (const T* g, const float* alpha, T* out, size_t n, int fours)) {                               \
        float gate = sigmoid(*alpha);                                                                                                \
        map<T>(g, nullptr, nullptr, out, n, fours, [=](float g_, float, float) { return gate * g_; });                               \
    }                                                                                                                                \
    KERNEL(mix_backward_cnn_##suffix, (const T* g, const float* alpha, T* out, size_t n, int fours)) {                               \
        float gate = sigmoid(*alpha);                                                                                                \
        map<T>(g, nullptr, nullptr, out, n, fours, [=](float g_, float, float) { return g_ - gate * g_; });                          \
    }                                                                                                                                \
    /* partial [gridDim.x]: each block's share of the gradient of alpha, Σ g·(sam - cnn)·gate·(1 - gate). */                         \
    KERNEL(mix_backward_alpha_##suffix, (const T* g, const T* sam, const T* cnn, const float* alpha, double* partial, size_t n)) {   \
        size_t share = (n + gridDim.x - 1) / gridDim.x;                                                                              \
        size_t end = (blockIdx.x + 1) * share < n ? (blockIdx.x + 1) * share : n;                                                    \
        float sum = 0.0f;                                                                                                            \
        for (size_t i = blockIdx.x * share + threadIdx.x; i < end; i += blockDim.x) {                                                \
            sum += to_float(g[i]) * (to_float(sam[i]) - to_float(cnn[i]));                                                           \
        }                                                                                                                            \
        double total = block_sum(static_cast<double>(sum)), gate = sigmoid(*alpha);                                                  \
        if (threadIdx.x == 0) partial[blockIdx.x] = total * gate * (1.0 - gate);                                                     \
    }                                                                                                                                \
    KERNEL(mix_gates_##suffix, (const T* sam, const T* cnn, const float* logits, T* out, Sizes sizes, int of_channels)) {            \
        size_t at;                                                                                                                   \
        float gate;                                                                                                                  \
        if (!place(logits, sizes, of_channels, at, gate)) return;                                                                    \
        float s = to_float(sam[at]), c = to_float(cnn[at]);                                                                          \
        out[at] = from_float<T>(c + gate * (s - c));                                                                                 \
    }                                                                                                                                \
    /* The gradient of sam, or of cnn. */                                                                                            \
    KERNEL(mix_gates_backward_##suffix, (const T* g, const float* logits, T* out, Sizes sizes, int of_channels, int of_cnn)) {       \
        size_t at;                                                                                                                   \
        float gate;                                                                                                                  \
        if (!place(logits, sizes, of_channels, at, gate)) return;                                                                    \
        float of_sam = gate * to_float(g[at]);                                                                                       \
        out[at] = from_float<T>(of_cnn ? to_float(g[at]) - of_sam : of_sam);                                                         \
    }                                                                                                                                \
    /* A block sums over a channel of all images. */                                                                                 \
    KERNEL(mix_backward_channels_##suffix, (const T* g, const T* sam, const T* cnn, const float* logits, float* out, Sizes sizes)) { \
        float sum = 0.0f;                                                                                                            \
        for (int image = 0; image < sizes.images; ++image) {                                                                         \
            size_t start = (static_cast<size_t>(image) * sizes.channels + blockIdx.x) * sizes.pixels;                                \
            for (size_t i = start + threadIdx.x; i < start + sizes.pixels; i += blockDim.x) {                                        \
                sum += to_float(g[i]) * (to_float(sam[i]) - to_float(cnn[i]));                                                       \
            }                                                                                                                        \
        }                                                                                                                            \
        double total = block_sum(static_cast<double>(sum)), gate = sigmoid(logits[blockIdx.x]);                                      \
        if (threadIdx.x == 0) out[blockIdx.x] = static_cast<float>(total * gate * (1.0 - gate));                                     \
    }                                                                                                                                \
    /* A thread sums over the channels of a pixel of the image blockIdx.y. */                                                        \
    KERNEL(mix_backward_pixels_##suffix, (const T* g, const T* sam, const T* cnn, const float* logits, float* out, Sizes sizes)) {   \
        size_t pixel = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, image = blockIdx.y;                               \
        if (pixel >= sizes.pixels) return;                                                                                           \
        size_t at = image * sizes.channels * sizes.pixels + pixel;                                                                   \
        float sum = 0.0f;                                                                                                            \
        for (int channel = 0; channel < sizes.channels; ++channel, at += sizes.pixels) {                                             \
            sum += to_float(g[at]) * (to_float(sam[at]) - to_float(cnn[at]));                                                        \
        }                                                                                                                            \
        float gate = sigmoid(logits[image * sizes.pixels + pixel]);                                                                  \
        out[image * sizes.pixels + pixel] = sum * gate * (1.0f - gate);                                                              \
    }                                                                                                                                \
    KERNEL(add_number_##suffix, (const T* x, const float* number, float* out, size_t n)) {                                           \
        size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;                                                       \
        if (i < n) out[i] = to_float(x[i]) + *number;                                                                                \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

// One block: the mean of the logits and of their sigmoids.
KERNEL(gate_means, (const float* logits, float* means, size_t n)) {
    double sum = 0.0, of_sigmoids = 0.0;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) {
        sum += logits[i];
        of_sigmoids += sigmoid(logits[i]);
    }
    sum = block_sum(sum);
    of_sigmoids = block_sum(of_sigmoids);
    if (threadIdx.x == 0) {
        means[0] = static_cast<float>(sum / n);
        means[1] = static_cast<float>(of_sigmoids / n);
    }
}
