// Losses beyond the paper's, value and gradient, without waiting on the host; the reference is cpu.rs.
#include "device/common.cuh"

// Maximal number of classes, which a thread holds in registers.
constexpr int CLASSES = 32;

// A pixel's probabilities, the logarithm of that of its class, and one minus it, summed from the others.
struct Pixel {
    float p[CLASSES];
    float log_own;
    float other;
};

template <typename T>
__device__ __forceinline__ void softmax(const T* logits, size_t start, int classes, int hw, int own, Pixel& pixel) {
    float largest = -INFINITY, total = 0.0f, others = 0.0f, own_logit = 0.0f;
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        pixel.p[c] = to_float(logits[start + static_cast<size_t>(c) * hw]);
        if (c == own) own_logit = pixel.p[c];
        // Not fmaxf, which would drop a NaN.
        if (pixel.p[c] > largest || isnan(pixel.p[c])) largest = pixel.p[c];
    }
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        pixel.p[c] = expf(pixel.p[c] - largest);
        total += pixel.p[c];
        if (c != own) others += pixel.p[c];
    }
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        pixel.p[c] /= total;
    }
    pixel.log_own = own_logit - largest - logf(total);
    pixel.other = others / total;
}

__device__ __forceinline__ float focus(float other, float gamma) { return gamma == 0.0f ? 1.0f : powf(other, gamma); }

// Not inlined: a copy for each sum of each class would take most of the time in which a driver compiles the module.
__device__ NOT_INLINED double total_of_block(double v) { return block_sum(v); }

// partial [gridDim.x, 2 + 4·classes]: Σ w·(1 - p)^γ·(-log p) and Σ w of the pixel's class, then Σ p·t, Σ p², Σ p and Σ t of each class, over the
// pixels whose label is not `ignore`. A label outside the classes makes the first sum NaN, and so the step's losses.
template <typename T>
__device__ void sums(const T* logits, const uint8_t* labels, const float* weights, double* partial, int b, int classes, int hw, int ignore,
                     float gamma) {
    Pixel pixel;
    float both[CLASSES] = {}, squares[CLASSES] = {}, predicted[CLASSES] = {}, there[CLASSES] = {}, cost = 0.0f, weight = 0.0f;
    unsigned pixels = static_cast<unsigned>(b) * hw;
    for (unsigned at = blockIdx.x * blockDim.x + threadIdx.x; at < pixels; at += gridDim.x * blockDim.x) {
        int own = labels[at];
        if (own == ignore) continue;
        size_t start = static_cast<size_t>(at / hw) * classes * hw + at % hw;
        softmax(logits, start, classes, hw, own, pixel);
        float own_weight = own < classes ? weights[own] : NAN;
        cost -= own_weight * focus(pixel.other, gamma) * pixel.log_own;
        weight += own_weight;
        #pragma unroll
        for (int c = 0; c < CLASSES; ++c) {
            if (c >= classes) break;
            squares[c] += pixel.p[c] * pixel.p[c];
            predicted[c] += pixel.p[c];
            both[c] += c == own ? pixel.p[c] : 0.0f;
            there[c] += c == own ? 1.0f : 0.0f;
        }
    }
    double* out = partial + static_cast<size_t>(blockIdx.x) * (2 + 4 * classes);
    double of_cost = total_of_block(cost);
    double of_weight = total_of_block(weight);
    if (threadIdx.x == 0) {
        out[0] = of_cost;
        out[1] = of_weight;
    }
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        double of_both = total_of_block(both[c]);
        double of_squares = total_of_block(squares[c]);
        double of_predicted = total_of_block(predicted[c]);
        double of_there = total_of_block(there[c]);
        if (threadIdx.x == 0) {
            out[2 + c] = of_both;
            out[2 + classes + c] = of_squares;
            out[2 + 2 * classes + c] = of_predicted;
            out[2 + 3 * classes + c] = of_there;
        }
    }
}

constexpr int DICE = 0, TVERSKY = 1;

// out [4 + 3·classes]: (1 - λ)·A + λ·B, A, B, (1 - λ) / Σ w, then toward, away and flat of each class, where λ·dB/dp = toward·t + away·p + flat. One
// block.
KERNEL(segmentation_loss_losses, (const double* partial, float* out, int splits, int classes, int region, double lambda, double alpha, double beta,
                                  double smooth)) {
    DYNAMIC_SHARED(double, totals);
    int values = 2 + 4 * classes;
    for (int i = threadIdx.x; i < values; i += blockDim.x) {
        double sum = 0.0;
        for (int s = 0; s < splits; ++s) sum += partial[static_cast<size_t>(s) * values + i];
        totals[i] = sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    const double *both = totals + 2, *squares = both + classes, *predicted = squares + classes, *there = predicted + classes;
    float *toward = out + 4, *away = toward + classes, *flat = away + classes;
    double mean = lambda / classes, similarity = 0.0;
    if (region == DICE || region == TVERSKY) {
        for (int c = 0; c < classes; ++c) {
            double up, down;
            if (region == DICE) {
                up = 2.0 * both[c] + smooth;
                down = squares[c] + there[c] + smooth;
                toward[c] = static_cast<float>(-2.0 * mean / down);
                away[c] = static_cast<float>(2.0 * mean * up / (down * down));
                flat[c] = 0.0f;
            } else {
                up = both[c] + smooth;
                down = both[c] + alpha * (predicted[c] - both[c]) + beta * (there[c] - both[c]) + smooth;
                double steep = mean * up / (down * down);
                toward[c] = static_cast<float>(-mean / down + steep * (1.0 - alpha - beta));
                away[c] = 0.0f;
                flat[c] = static_cast<float>(steep * alpha);
            }
            similarity += up / down / classes;
        }
    } else {
        double largest = 0.0, up = smooth, down = smooth;
        for (int c = 0; c < classes; ++c) {
            if (there[c] > 0.0 && 1.0 / (there[c] * there[c]) > largest) largest = 1.0 / (there[c] * there[c]);
        }
        for (int c = 0; c < classes; ++c) {
            double w = there[c] > 0.0 ? 1.0 / (there[c] * there[c]) : largest;
            up += 2.0 * w * both[c];
            down += w * (predicted[c] + there[c]);
        }
        for (int c = 0; c < classes; ++c) {
            double w = there[c] > 0.0 ? 1.0 / (there[c] * there[c]) : largest;
            toward[c] = static_cast<float>(-2.0 * lambda * w / down);
            away[c] = 0.0f;
            flat[c] = static_cast<float>(lambda * w * up / (down * down));
        }
        similarity = up / down;
    }
    // A NaN is not 0.
    double a = totals[1] == 0.0 ? 0.0 : totals[0] / totals[1], b = 1.0 - similarity;
    out[0] = static_cast<float>((1.0 - lambda) * a + lambda * b);
    out[1] = static_cast<float>(a);
    out[2] = static_cast<float>(b);
    out[3] = totals[1] == 0.0 ? 0.0f : static_cast<float>((1.0 - lambda) / totals[1]);
}

// Writes a pixel's gradient of the logits: that of A, and that of λ·B, of which `slope(c)` is the derivative by p of a class and `inner` the sum of
// p·slope. -p·d/dp of (1 - p)^γ·(-log p): both terms vanish with 1 - p, and p·log p with p.
template <typename T, typename Slope>
__device__ __forceinline__ void write_gradient(const Pixel& pixel, int own, float own_weight, float inner, float gamma, int classes, int hw, T* grad,
                                               const Slope& slope) {
    float own_p = 0.0f;
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        if (c == own) own_p = pixel.p[c];
    }
    float pull = focus(pixel.other, gamma);
    if (gamma != 0.0f && pixel.other > 0.0f && own_p > 0.0f) pull -= gamma * own_p * powf(pixel.other, gamma - 1.0f) * logf(own_p);
    pull *= own_weight;
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        float t = c == own ? 1.0f : 0.0f;
        grad[static_cast<size_t>(c) * hw] = from_float<T>(pull * (pixel.p[c] - t) + pixel.p[c] * (slope(c) - inner));
    }
}

// No gradient, at a pixel that counts nowhere.
template <typename T>
__device__ __forceinline__ void write_zeros(int classes, int hw, T* grad) {
    for (int c = 0; c < classes; ++c) grad[static_cast<size_t>(c) * hw] = from_float<T>(0.0f);
}

// The gradient of the logits; `losses` is the output of segmentation_loss_losses.
template <typename T>
__device__ void gradient(const T* logits, const uint8_t* labels, const float* weights, const float* losses, T* grad, int b, int classes, int hw,
                         int ignore, float gamma) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= static_cast<unsigned>(b) * hw) return;
    int own = labels[at];
    size_t start = static_cast<size_t>(at / hw) * classes * hw + at % hw;
    if (own == ignore) return write_zeros(classes, hw, grad + start);
    Pixel pixel;
    const float *toward = losses + 4, *away = toward + classes, *flat = away + classes;
    softmax(logits, start, classes, hw, own, pixel);
    auto slope = [&](int c) { return (c == own ? toward[c] : 0.0f) + away[c] * pixel.p[c] + flat[c]; };
    float inner = 0.0f;
    #pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
        if (c >= classes) break;
        inner += pixel.p[c] * slope(c);
    }
    float own_weight = losses[3] * (own < classes ? weights[own] : NAN);
    write_gradient(pixel, own, own_weight, inner, gamma, classes, hw, grad + start, slope);
}

// As `sums`, of unions of classes: Σ q·u, Σ q², Σ q and Σ u of each, with q the sum of its classes' probabilities and u whether the pixel's class is one
// of them. `members` [unions, classes] is 1 for those. Each union takes a pass over the pixels, so that nothing is indexed by it in registers.
template <typename T>
__device__ void unions_sums(const T* logits, const uint8_t* labels, const float* weights, double* partial, int b, int classes, int hw, int ignore,
                            float gamma, const float* members, int unions) {
    Pixel pixel;
    unsigned pixels = static_cast<unsigned>(b) * hw;
    double* out = partial + static_cast<size_t>(blockIdx.x) * (2 + 4 * unions);
    for (int u = 0; u < unions; ++u) {
        const float* belongs = members + static_cast<size_t>(u) * classes;
        float both = 0.0f, squares = 0.0f, predicted = 0.0f, there = 0.0f, cost = 0.0f, weight = 0.0f;
        for (unsigned at = blockIdx.x * blockDim.x + threadIdx.x; at < pixels; at += gridDim.x * blockDim.x) {
            int own = labels[at];
            if (own == ignore) continue;
            size_t start = static_cast<size_t>(at / hw) * classes * hw + at % hw;
            softmax(logits, start, classes, hw, own, pixel);
            float own_weight = own < classes ? weights[own] : NAN;
            cost -= own_weight * focus(pixel.other, gamma) * pixel.log_own;
            weight += own_weight;
            float q = 0.0f;
            #pragma unroll
            for (int c = 0; c < CLASSES; ++c) {
                if (c >= classes) break;
                q += belongs[c] * pixel.p[c];
            }
            float is_own = own < classes ? belongs[own] : 0.0f;
            squares += q * q;
            predicted += q;
            both += is_own * q;
            there += is_own;
        }
        double of_cost = total_of_block(cost), of_weight = total_of_block(weight);
        double of_both = total_of_block(both), of_squares = total_of_block(squares);
        double of_predicted = total_of_block(predicted), of_there = total_of_block(there);
        if (threadIdx.x == 0) {
            // The same for every union.
            out[0] = of_cost;
            out[1] = of_weight;
            out[2 + u] = of_both;
            out[2 + unions + u] = of_squares;
            out[2 + 2 * unions + u] = of_predicted;
            out[2 + 3 * unions + u] = of_there;
        }
    }
}

// As `gradient`, of unions of classes: a class has the slopes of all that it belongs to.
template <typename T>
__device__ void unions_gradient(const T* logits, const uint8_t* labels, const float* weights, const float* losses, T* grad, int b, int classes,
                                int hw, int ignore, float gamma, const float* members, int unions) {
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= static_cast<unsigned>(b) * hw) return;
    int own = labels[at];
    size_t start = static_cast<size_t>(at / hw) * classes * hw + at % hw;
    if (own == ignore) return write_zeros(classes, hw, grad + start);
    Pixel pixel;
    const float *toward = losses + 4, *away = toward + unions, *flat = away + unions;
    softmax(logits, start, classes, hw, own, pixel);
    float slopes[CLASSES] = {}, inner = 0.0f;
    for (int u = 0; u < unions; ++u) {
        const float* belongs = members + static_cast<size_t>(u) * classes;
        float q = 0.0f;
        #pragma unroll
        for (int c = 0; c < CLASSES; ++c) {
            if (c >= classes) break;
            q += belongs[c] * pixel.p[c];
        }
        float slope = (own < classes ? belongs[own] : 0.0f) * toward[u] + away[u] * q + flat[u];
        inner += q * slope;
        #pragma unroll
        for (int c = 0; c < CLASSES; ++c) {
            if (c >= classes) break;
            slopes[c] += belongs[c] * slope;
        }
    }
    float own_weight = losses[3] * (own < classes ? weights[own] : NAN);
    auto slope = [&](int c) { return slopes[c]; };
    write_gradient(pixel, own, own_weight, inner, gamma, classes, hw, grad + start, slope);
}

#define DEFINE(T, suffix)                                                                                                                       \
    KERNEL(segmentation_loss_sums_##suffix, (const T* logits, const uint8_t* labels, const float* weights, double* partial, int b, int classes, \
                                             int hw, int ignore, double gamma)) {                                                               \
        sums(logits, labels, weights, partial, b, classes, hw, ignore, static_cast<float>(gamma));                                              \
    }                                                                                                                                           \
    KERNEL(segmentation_loss_gradient_##suffix, (const T* logits, const uint8_t* labels, const float* weights, const float* losses, T* grad,    \
                                                 int b, int classes, int hw, int ignore, double gamma)) {                                       \
        gradient(logits, labels, weights, losses, grad, b, classes, hw, ignore, static_cast<float>(gamma));                                     \
    }                                                                                                                                           \
    KERNEL(segmentation_loss_unions_sums_##suffix,                                                                                              \
           (const T* logits, const uint8_t* labels, const float* weights, double* partial, int b, int classes, int hw, int ignore,              \
            double gamma, const float* members, int unions)) {                                                                                  \
        unions_sums(logits, labels, weights, partial, b, classes, hw, ignore, static_cast<float>(gamma), members, unions);                      \
    }                                                                                                                                           \
    KERNEL(segmentation_loss_unions_gradient_##suffix,                                                                                          \
           (const T* logits, const uint8_t* labels, const float* weights, const float* losses, T* grad, int b, int classes, int hw, int ignore, \
            double gamma, const float* members, int unions)) {                                                                                  \
        unions_gradient(logits, labels, weights, losses, grad, b, classes, hw, ignore, static_cast<float>(gamma), members, unions);             \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
