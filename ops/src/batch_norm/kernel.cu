// Batch normalisation over [b, c, h·w], with ReLU and the residual sum in the same pass; the reference is cpu.rs.
//
// gridDim.x blocks sum over a channel in parallel, and a second kernel adds their sums, in float64 and in a fixed order.
#include "device/common.cuh"

// N neighbouring elements of one channel.
template <int N, typename T>
__device__ __forceinline__ void load_run(const T* from, float (&to)[N]) {
    if constexpr (N == 4) {
        load_four(from, to);
    } else {
        to[0] = to_float(*from);
    }
}

template <int N, typename T>
__device__ __forceinline__ void store_run(T* to, const float (&from)[N]) {
    if constexpr (N == 4) {
        store_four(to, from);
    } else {
        *to = from_float<T>(from[0]);
    }
}

// Calls visit(first element) for this block's part of the channel blockIdx.y, in runs of N elements.
template <int N, typename F>
__device__ __forceinline__ void for_each_run(int b, int c, int hw, F visit) {
    unsigned plane_runs = static_cast<unsigned>(hw) / N;
    unsigned runs = plane_runs * b;
    unsigned share = (runs + gridDim.x - 1) / gridDim.x;
    unsigned begin = blockIdx.x * share;
    unsigned end = begin + share < runs ? begin + share : runs;
    for (unsigned run = begin + threadIdx.x; run < end; run += blockDim.x) {
        unsigned image = run / plane_runs;
        visit((static_cast<size_t>(image) * c + blockIdx.y) * hw + static_cast<size_t>(run - image * plane_runs) * N);
    }
}

// partial [c, gridDim.x, 2]: Σ(x - shift) and Σ(x - shift)²; shifts [c]: a value near the mean, so that the squares do not cancel.
template <int N, typename T>
__device__ void statistics_sums(const T* x, double* partial, float* shifts, int b, int c, int hw) {
    int sampled = hw < static_cast<int>(blockDim.x) ? hw : static_cast<int>(blockDim.x);
    const T* first_plane = x + static_cast<size_t>(blockIdx.y) * hw;
    float shift = block_sum(static_cast<int>(threadIdx.x) < sampled ? to_float(first_plane[threadIdx.x]) : 0.0f) / sampled;
    float sum = 0.0f, squares = 0.0f;
    for_each_run<N>(b, c, hw, [&](size_t at) {
        float v[N];
        load_run<N>(x + at, v);
        for (int i = 0; i < N; ++i) {
            float d = v[i] - shift;
            sum += d;
            squares += d * d;
        }
    });
    double total = block_sum(static_cast<double>(sum));
    double total_squares = block_sum(static_cast<double>(squares));
    if (threadIdx.x == 0) {
        double* out = partial + (static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * 2;
        out[0] = total;
        out[1] = total_squares;
        if (blockIdx.x == 0) shifts[blockIdx.y] = shift;
    }
}

#define DEFINE(T, suffix)                                                                                                     \
    KERNEL(batch_norm_sums_##suffix, (const T* x, double* partial, float* shifts, int b, int c, int hw, int runs_of_four)) {  \
        if (runs_of_four) {                                                                                                   \
            statistics_sums<4>(x, partial, shifts, b, c, hw);                                                                 \
        } else {                                                                                                              \
            statistics_sums<1>(x, partial, shifts, b, c, hw);                                                                 \
        }                                                                                                                     \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

// out [3, c]: mean, variance with Bessel's correction, 1/sqrt(biased variance + eps). Unless null, the running statistics become
// (1 - momentum)·running + momentum·batch. One thread per channel.
KERNEL(batch_norm_statistics, (const double* partial, const float* shifts, float* out, float* running_mean, float* running_var,
                               float momentum, int splits, int c, double count, double eps)) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= c) return;
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < splits; ++i) {
        sum += partial[(static_cast<size_t>(channel) * splits + i) * 2];
        squares += partial[(static_cast<size_t>(channel) * splits + i) * 2 + 1];
    }
    double deviations = squares - sum * sum / count;
    if (deviations < 0.0) deviations = 0.0;
    float mean = static_cast<float>(shifts[channel] + sum / count), var = static_cast<float>(deviations / (count - 1.0));
    out[channel] = mean;
    out[c + channel] = var;
    out[2 * c + channel] = static_cast<float>(1.0 / sqrt(deviations / count + eps));
    if (running_mean != nullptr) {
        running_mean[channel] = (1.0f - momentum) * running_mean[channel] + momentum * mean;
        running_var[channel] = (1.0f - momentum) * running_var[channel] + momentum * var;
    }
}

// How a shortcut is normalised; a null mean where it is not.
struct Shortcut {
    const float* mean;
    const float* inv_std;
    const float* weight;
    const float* bias;
};

// y = (x - mean)·inv_std·weight + bias, plus the shortcut if there is one, then ReLU if relu. NaN stays NaN.
template <int N, typename T>
__device__ void apply(const T* x, const float* mean, const float* inv_std, const float* weight, const float* bias, const T* shortcut,
                      Shortcut norm, T* y, int c, int hw, unsigned runs, int relu) {
    unsigned run = blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    int channel = run / (static_cast<unsigned>(hw) / N) % c;
    float centre = mean[channel], scale = inv_std[channel] * weight[channel], offset = bias[channel];
    size_t at = static_cast<size_t>(run) * N;
    float v[N], s[N] = {};
    load_run<N>(x + at, v);
    if (shortcut != nullptr) load_run<N>(shortcut + at, s);
    if (norm.mean != nullptr) {
        float of_centre = norm.mean[channel], of_scale = norm.inv_std[channel] * norm.weight[channel], of_offset = norm.bias[channel];
        for (int i = 0; i < N; ++i) s[i] = (s[i] - of_centre) * of_scale + of_offset;
    }
    for (int i = 0; i < N; ++i) {
        float value = (v[i] - centre) * scale + offset + s[i];
        v[i] = relu && value < 0.0f ? 0.0f : value;
    }
    store_run<N>(y + at, v);
}

#define DEFINE(T, suffix)                                                                                                           \
    KERNEL(batch_norm_apply_##suffix, (const T* x, const float* mean, const float* inv_std, const float* weight, const float* bias, \
                                       const T* shortcut, const float* shortcut_mean, const float* shortcut_inv_std,                \
                                       const float* shortcut_weight, const float* shortcut_bias, T* y, int c, int hw, unsigned runs, \
                                       int relu, int runs_of_four)) {                                                               \
        Shortcut norm{shortcut_mean, shortcut_inv_std, shortcut_weight, shortcut_bias};                                             \
        if (runs_of_four) {                                                                                                         \
            apply<4>(x, mean, inv_std, weight, bias, shortcut, norm, y, c, hw, runs, relu);                                         \
        } else {                                                                                                                    \
            apply<1>(x, mean, inv_std, weight, bias, shortcut, norm, y, c, hw, runs, relu);                                         \
        }                                                                                                                           \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE

// The gradient before the ReLU, from that after it; the ReLU's mask is recomputed from x.
__device__ __forceinline__ float before_relu(float x, float g, float centre, float scale, float offset, int relu) {
    return relu && (x - centre) * scale + offset <= 0.0f ? 0.0f : g;
}

// partial [c, gridDim.x, 2]: Σg and Σg·(x - mean), g the gradient before the ReLU.
template <int N, typename T>
__device__ void gradient_sums(const T* x, const T* g, const float* mean, const float* inv_std, const float* weight, const float* bias,
                              double* partial, int b, int c, int hw, int relu) {
    int channel = blockIdx.y;
    float centre = mean[channel], scale = inv_std[channel] * weight[channel], offset = bias[channel];
    float sum = 0.0f, dot = 0.0f;
    for_each_run<N>(b, c, hw, [&](size_t at) {
        float v[N], d[N];
        load_run<N>(x + at, v);
        load_run<N>(g + at, d);
        for (int i = 0; i < N; ++i) {
            float before = before_relu(v[i], d[i], centre, scale, offset, relu);
            sum += before;
            dot += before * (v[i] - centre);
        }
    });
    double total = block_sum(static_cast<double>(sum));
    double total_dot = block_sum(static_cast<double>(dot));
    if (threadIdx.x == 0) {
        double* out = partial + (static_cast<size_t>(channel) * gridDim.x + blockIdx.x) * 2;
        out[0] = total;
        out[1] = total_dot;
    }
}

// The gradient g before a ReLU with the result y, given that after it in one part or two, with its sums for the batch norm of x, and for that of
// `other` if there is one: as `gradient_sums`, of the numbers as they are stored.
template <int N, typename T>
__device__ void relu_gradient_sums(const T* y, const T* first, const T* second, T* g, const T* x, const float* mean, double* partial, const T* other,
                                   const float* other_mean, double* other_partial, int b, int c, int hw) {
    int channel = blockIdx.y;
    float centre = mean[channel], other_centre = other != nullptr ? other_mean[channel] : 0.0f;
    float sum = 0.0f, dot = 0.0f, other_dot = 0.0f;
    for_each_run<N>(b, c, hw, [&](size_t at) {
        float result[N], d[N], e[N] = {}, v[N], u[N] = {};
        load_run<N>(y + at, result);
        load_run<N>(first + at, d);
        if (second != nullptr) load_run<N>(second + at, e);
        load_run<N>(x + at, v);
        if (other != nullptr) load_run<N>(other + at, u);
        for (int i = 0; i < N; ++i) d[i] = result[i] <= 0.0f ? 0.0f : d[i] + e[i];
        store_run<N>(g + at, d);
        for (int i = 0; i < N; ++i) {
            float stored = to_float(from_float<T>(d[i]));
            sum += stored;
            dot += stored * (v[i] - centre);
            other_dot += stored * (u[i] - other_centre);
        }
    });
    double total = block_sum(static_cast<double>(sum));
    double total_dot = block_sum(static_cast<double>(dot));
    double total_other = block_sum(static_cast<double>(other_dot));
    if (threadIdx.x == 0) {
        size_t at = (static_cast<size_t>(channel) * gridDim.x + blockIdx.x) * 2;
        partial[at] = total;
        partial[at + 1] = total_dot;
        if (other != nullptr) {
            other_partial[at] = total;
            other_partial[at + 1] = total_other;
        }
    }
}

// out [4, c]: the gradients of weight and bias, then what the gradient of x needs, Σg/n and Σg·(x - mean)·inv_std²/n.
KERNEL(batch_norm_gradients, (const double* partial, const float* inv_std, float* out, int splits, int c, double count)) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= c) return;
    double sum = 0.0, dot = 0.0;
    for (int i = 0; i < splits; ++i) {
        sum += partial[(static_cast<size_t>(channel) * splits + i) * 2];
        dot += partial[(static_cast<size_t>(channel) * splits + i) * 2 + 1];
    }
    double inverse = inv_std[channel];
    out[channel] = static_cast<float>(dot * inverse);
    out[c + channel] = static_cast<float>(sum);
    out[2 * c + channel] = static_cast<float>(sum / count);
    out[3 * c + channel] = static_cast<float>(dot * inverse * inverse / count);
}

// grad_x = inv_std·weight·(g - Σg/n - (x - mean)·slope); g and grad_x may be one buffer.
template <int N, typename T>
__device__ void gradient_apply(const T* x, const T* g, const float* mean, const float* inv_std, const float* weight, const float* bias,
                               const float* gradients, T* grad_x, int c, int hw, unsigned runs, int relu) {
    unsigned run = blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    int channel = run / (static_cast<unsigned>(hw) / N) % c;
    float centre = mean[channel], scale = inv_std[channel] * weight[channel], offset = bias[channel];
    float average = gradients[2 * c + channel], slope = gradients[3 * c + channel];
    size_t at = static_cast<size_t>(run) * N;
    float v[N], d[N];
    load_run<N>(x + at, v);
    load_run<N>(g + at, d);
    for (int i = 0; i < N; ++i) {
        float before = before_relu(v[i], d[i], centre, scale, offset, relu);
        d[i] = scale * (before - average - (v[i] - centre) * slope);
    }
    store_run<N>(grad_x + at, d);
}

#define DEFINE(T, suffix)                                                                                                              \
    KERNEL(batch_norm_relu_gradient_sums_##suffix,                                                                                     \
           (const T* y, const T* first, const T* second, T* g, const T* x, const float* mean, double* partial, const T* other,         \
            const float* other_mean, double* other_partial, int b, int c, int hw, int runs_of_four)) {                                 \
        if (runs_of_four) {                                                                                                            \
            relu_gradient_sums<4>(y, first, second, g, x, mean, partial, other, other_mean, other_partial, b, c, hw);                  \
        } else {                                                                                                                       \
            relu_gradient_sums<1>(y, first, second, g, x, mean, partial, other, other_mean, other_partial, b, c, hw);                  \
        }                                                                                                                              \
    }                                                                                                                                  \
    KERNEL(batch_norm_gradient_sums_##suffix,                                                                                          \
           (const T* x, const T* g, const float* mean, const float* inv_std, const float* weight, const float* bias, double* partial, \
            int b, int c, int hw, int relu, int runs_of_four)) {                                                                       \
        if (runs_of_four) {                                                                                                            \
            gradient_sums<4>(x, g, mean, inv_std, weight, bias, partial, b, c, hw, relu);                                              \
        } else {                                                                                                                       \
            gradient_sums<1>(x, g, mean, inv_std, weight, bias, partial, b, c, hw, relu);                                              \
        }                                                                                                                              \
    }                                                                                                                                  \
    KERNEL(batch_norm_gradient_##suffix,                                                                                               \
           (const T* x, const T* g, const float* mean, const float* inv_std, const float* weight, const float* bias,                   \
            const float* gradients, T* grad_x, int c, int hw, unsigned runs, int relu, int runs_of_four)) {                            \
        if (runs_of_four) {                                                                                                            \
            gradient_apply<4>(x, g, mean, inv_std, weight, bias, gradients, grad_x, c, hw, runs, relu);                                \
        } else {                                                                                                                       \
            gradient_apply<1>(x, g, mean, inv_std, weight, bias, gradients, grad_x, c, hw, runs, relu);                                \
        }                                                                                                                              \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
