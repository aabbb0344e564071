// The loss of the paper's equation (4), value and gradient, without waiting on the host; the reference is cpu.rs.
#include "device/common.cuh"

// Maximal number of classes, which a thread holds in registers.
constexpr int CLASSES = 32;

// Probabilities of one pixel, and the logarithm of that of its class.
template <typename T>
__device__ __forceinline__ float softmax(const T* logits, size_t start, int classes, int hw, int own, float (&p)[CLASSES]) {
    float largest = -INFINITY, total = 0.0f, own_logit = 0.0f;
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        p[c] = to_float(logits[start + static_cast<size_t>(c) * hw]);
        if (c == own) own_logit = p[c];
        // Not fmaxf, which would drop a NaN.
        if (p[c] > largest || isnan(p[c])) largest = p[c];
    }
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        p[c] = expf(p[c] - largest);
        total += p[c];
    }
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        p[c] /= total;
    }
    return own_logit - largest - logf(total);
}

// Not inlined: 97 copies of it took half of the time in which a driver compiles all of our kernels.
__device__ NOT_INLINED double total_of_block(double v) { return block_sum(v); }

// partial [gridDim.x, 1 + 3·classes]: Σ log p of the pixel's class, then Σ p·t, Σ p² and Σ t of each class. A label outside the classes makes
// the first sum NaN, and so the step's losses.
template <typename T>
__device__ void sums(const T* logits, const uint8_t* labels, double* partial, int b, int classes, int hw) {
    float p[CLASSES], intersection[CLASSES] = {}, squares[CLASSES] = {}, count[CLASSES] = {}, likelihood = 0.0f;
    unsigned pixels = static_cast<unsigned>(b) * hw;
    for (unsigned pixel = blockIdx.x * blockDim.x + threadIdx.x; pixel < pixels; pixel += gridDim.x * blockDim.x) {
        int own = labels[pixel];
        size_t start = static_cast<size_t>(pixel / hw) * classes * hw + pixel % hw;
        float log_p = softmax(logits, start, classes, hw, own, p);
        likelihood += own < classes ? log_p : NAN;
        #pragma unroll
        for (int c = 0; c < CLASSES; ++c) {
            if (c >= classes) break;
            squares[c] += p[c] * p[c];
            intersection[c] += c == own ? p[c] : 0.0f;
            count[c] += c == own ? 1.0f : 0.0f;
        }
    }
    double* out = partial + static_cast<size_t>(blockIdx.x) * (1 + 3 * classes);
    double total = total_of_block(likelihood);
    if (threadIdx.x == 0) out[0] = total;
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        double of_intersection = total_of_block(intersection[c]);
        double of_squares = total_of_block(squares[c]);
        double of_count = total_of_block(count[c]);
        if (threadIdx.x == 0) {
            out[1 + c] = of_intersection;
            out[1 + classes + c] = of_squares;
            out[1 + 2 * classes + c] = of_count;
        }
    }
}

// out [4 + 2·classes]: total, cross-entropy and Dice losses, the weight of cross-entropy per pixel, then toward and away of each class, where
// dDice/dp = toward·t + away·p. One block.
KERNEL(dice_ce_losses, (const double* partial, float* out, int splits, int classes, double pixels, double lambda, double smooth)) {
    DYNAMIC_SHARED(double, totals);
    int values = 1 + 3 * classes;
    for (int i = threadIdx.x; i < values; i += blockDim.x) {
        double sum = 0.0;
        for (int s = 0; s < splits; ++s) sum += partial[static_cast<size_t>(s) * values + i];
        totals[i] = sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    double ce = -totals[0] / pixels, similarity = 0.0;
    for (int c = 0; c < classes; ++c) {
        double numerator = 2.0 * totals[1 + c] + smooth;
        double denominator = totals[1 + classes + c] + totals[1 + 2 * classes + c] + smooth;
        similarity += numerator / denominator;
        out[4 + c] = static_cast<float>(-2.0 * lambda / classes / denominator);
        out[4 + classes + c] = static_cast<float>(2.0 * lambda / classes * numerator / (denominator * denominator));
    }
    double dice = 1.0 - similarity / classes;
    out[0] = static_cast<float>((1.0 - lambda) * ce + lambda * dice);
    out[1] = static_cast<float>(ce);
    out[2] = static_cast<float>(dice);
    out[3] = static_cast<float>((1.0 - lambda) / pixels);
}

// The gradient of the logits; `losses` is the output of dice_ce_losses.
template <typename T>
__device__ void gradient(const T* logits, const uint8_t* labels, const float* losses, T* grad, int b, int classes, int hw) {
    unsigned pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= static_cast<unsigned>(b) * hw) return;
    float p[CLASSES], ce = losses[3], inner = 0.0f;
    const float *toward = losses + 4, *away = losses + 4 + classes;
    int own = labels[pixel];
    size_t start = static_cast<size_t>(pixel / hw) * classes * hw + pixel % hw;
    softmax(logits, start, classes, hw, own, p);
    // Σ over the classes of p·dDice/dp
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        inner += p[c] * (away[c] * p[c] + (c == own ? toward[c] : 0.0f));
    }
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        float d = p[c] * (ce + away[c] * p[c] - inner);
        if (c == own) d += toward[c] * p[c] - ce;
        grad[start + static_cast<size_t>(c) * hw] = from_float<T>(d);
    }
}

#define DEFINE(T, suffix)                                                                                                        \
    KERNEL(dice_ce_sums_##suffix, (const T* logits, const uint8_t* labels, double* partial, int b, int classes, int hw)) {       \
        sums(logits, labels, partial, b, classes, hw);                                                                           \
    }                                                                                                                            \
    KERNEL(dice_ce_gradient_##suffix, (const T* logits, const uint8_t* labels, const float* losses, T* grad, int b, int classes, \
                                       int hw)) {                                                                                \
        gradient(logits, labels, losses, grad, b, classes, hw);                                                                  \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
