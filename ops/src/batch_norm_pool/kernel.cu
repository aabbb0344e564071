// Max-pooling after batch norm and ReLU; the reference is cpu.rs.
//
// The forward pass keeps where each window's maximum lies. Backward, no gradient of the size of the input is written but the last: one pass sums
// what the batch norm needs over the outputs, whose maxima alone have a gradient, and another makes the input's gradient.
#include "device/map.cuh"
#include "max_pool/windows.cuh"

// The gradient of N neighbouring outputs, g plus `second` unless that is null.
template <int N, typename T>
__device__ __forceinline__ void load_gradient(const T* g, const T* second, size_t at, float (&to)[N]) {
    load_run<N>(g + at, to);
    if (second == nullptr) return;
    float more[N];
    load_run<N>(second + at, more);
    for (int i = 0; i < N; ++i) to[i] += more[i];
}

// partial [c, gridDim.x, 2]: Σg and Σg·(x - mean), g the gradient before the ReLU of the channel blockIdx.y; N divides the outputs of a plane.
template <int N, typename T>
__device__ void gradient_sums(const T* x, const uint8_t* places, const T* g, const T* second, const float* mean, double* partial, int b, int c,
                              int h, int w) {
    int oh = (h + 1) / 2, ow = (w + 1) / 2, channel = blockIdx.y;
    unsigned outputs = static_cast<unsigned>(oh) * ow, plane_runs = outputs / N, runs = plane_runs * b;
    unsigned share = (runs + gridDim.x - 1) / gridDim.x;
    unsigned begin = blockIdx.x * share, end = begin + share < runs ? begin + share : runs;
    float centre = mean[channel], sum = 0.0f, dot = 0.0f;
    for (unsigned run = begin + threadIdx.x; run < end; run += blockDim.x) {
        size_t plane = static_cast<size_t>(run / plane_runs) * c + channel;
        int first = run % plane_runs * N;
        const T* values = x + plane * h * w;
        Few<N> of = load_places<N>(places + plane * outputs + first);
        float d[N];
        load_gradient<N>(g, second, plane * outputs + first, d);
        for (int i = 0; i < N; ++i) {
            if (of.place[i] == NOWHERE) continue;
            int row = 2 * ((first + i) / ow) + of.place[i] / 3 - 1, column = 2 * ((first + i) % ow) + of.place[i] % 3 - 1;
            sum += d[i];
            dot += d[i] * (to_float(values[static_cast<size_t>(row) * w + column]) - centre);
        }
    }
    double total = block_sum(static_cast<double>(sum));
    double total_dot = block_sum(static_cast<double>(dot));
    if (threadIdx.x == 0) {
        double* out = partial + (static_cast<size_t>(channel) * gridDim.x + blockIdx.x) * 2;
        out[0] = total;
        out[1] = total_dot;
    }
}

// The gradient of x, by `gradients` [4, c] as batch_norm_gradients makes them. A thread has N neighbouring inputs of a row, which N divides;
// blockIdx.y counts planes.
template <int N, typename T>
__device__ void gradient(const T* x, const uint8_t* places, const T* g, const T* second, const float* mean, const float* inv_std,
                         const float* weight, const float* gradients, T* grad, int c, int h, int w) {
    int oh = (h + 1) / 2, ow = (w + 1) / 2;
    int at = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= h * w) return;
    int row = at / w, column = at % w, channel = static_cast<int>(blockIdx.y % c);
    size_t inputs = static_cast<size_t>(blockIdx.y) * h * w + at, outputs = static_cast<size_t>(blockIdx.y) * oh * ow;
    float v[N], d[N] = {};
    load_run<N>(x + inputs, v);
    // An even row lies in one row of windows, an odd one in two; so do columns.
    for (int oy = row / 2; oy <= (row + 1) / 2 && oy < oh; ++oy) {
        for (int ox = column / 2; ox <= (column + N) / 2 && ox < ow; ++ox) {
            size_t output = outputs + static_cast<size_t>(oy) * ow + ox;
            int place = places[output];
            if (place == NOWHERE || 2 * oy + place / 3 - 1 != row) continue;
            int offset = 2 * ox + place % 3 - 1 - column;
            if (offset < 0 || offset >= N) continue;
            float of[1];
            load_gradient<1>(g, second, output, of);
            #pragma unroll
            for (int i = 0; i < N; ++i) d[i] += i == offset ? of[0] : 0.0f;
        }
    }
    float centre = mean[channel], scale = inv_std[channel] * weight[channel];
    float average = gradients[2 * c + channel], slope = gradients[3 * c + channel];
    for (int i = 0; i < N; ++i) d[i] = scale * (d[i] - average - (v[i] - centre) * slope);
    if constexpr (N == 4) {
        store_four(grad + inputs, d);
    } else {
        grad[inputs] = from_float<T>(d[0]);
    }
}

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(norm_relu_max_pool_##suffix, (const T* x, const float* mean, const float* inv_std, const float* weight, const float* bias, \
                                         T* y, uint8_t* places, int c, int h, int w)) {                                              \
        forward<true>(x, mean, inv_std, weight, bias, y, places, c, h, w);                                                           \
    }                                                                                                                                \
    KERNEL(norm_relu_max_pool_gradient_sums_##suffix, (const T* x, const uint8_t* places, const T* g, const T* second,               \
                                                       const float* mean, double* partial, int b, int c, int h, int w, int fours)) { \
        if (fours) {                                                                                                                 \
            gradient_sums<4>(x, places, g, second, mean, partial, b, c, h, w);                                                       \
        } else {                                                                                                                     \
            gradient_sums<1>(x, places, g, second, mean, partial, b, c, h, w);                                                       \
        }                                                                                                                            \
    }                                                                                                                                \
    KERNEL(norm_relu_max_pool_gradient_##suffix,                                                                                     \
           (const T* x, const uint8_t* places, const T* g, const T* second, const float* mean, const float* inv_std,                 \
            const float* weight, const float* gradients, T* grad, int fours, int c, int h, int w)) {                                 \
        if (fours) {                                                                                                                 \
            gradient<4>(x, places, g, second, mean, inv_std, weight, gradients, grad, c, h, w);                                      \
        } else {                                                                                                                     \
            gradient<1>(x, places, g, second, mean, inv_std, weight, gradients, grad, c, h, w);                                      \
        }                                                                                                                            \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
