// Windows of 3×3 with stride 2 and padding 1, over a plane, either plain or after batch norm and ReLU.
//
// After batch norm the forward pass keeps where each window's maximum lies. Every input gathers its gradient from its windows: no atomics are needed,
// and the normalised activations are never in memory.
#pragma once
#include "device/common.cuh"

// A window's input: the elements of a plane, after batch norm and ReLU if NORMALISE.
template <bool NORMALISE, typename T>
struct Plane {
    const T* x;
    int h, w;
    float centre, scale, offset;

    __device__ __forceinline__ float at(int row, int column) const {
        float v = to_float(x[static_cast<size_t>(row) * w + column]);
        if (NORMALISE) {
            v = (v - centre) * scale + offset;
            v = v < 0.0f ? 0.0f : v;
        }
        return v;
    }

    // The maximum of a window and its place in it, 0..9: the first of equal ones, the last NaN, the centre where all is minus infinity.
    __device__ __forceinline__ float window(int row, int column, int& place) const {
        float best = -INFINITY;
        place = 4;
        for (int dy = 0; dy < 3; ++dy) {
            for (int dx = 0; dx < 3; ++dx) {
                int y = 2 * row + dy - 1, x_ = 2 * column + dx - 1;
                if (y < 0 || y >= h || x_ < 0 || x_ >= w) continue;
                float v = at(y, x_);
                if (v > best || isnan(v)) {
                    best = v;
                    place = 3 * dy + dx;
                }
            }
        }
        return best;
    }
};

template <bool NORMALISE, typename T>
__device__ __forceinline__ Plane<NORMALISE, T> plane_of(const T* x, size_t plane, int c, int h, int w, const float* mean, const float* inv_std,
                                                        const float* weight, const float* bias) {
    Plane<NORMALISE, T> p{x + plane * h * w, h, w, 0.0f, 1.0f, 0.0f};
    if (NORMALISE) {
        int channel = static_cast<int>(plane % c);
        p.centre = mean[channel];
        p.scale = inv_std[channel] * weight[channel];
        p.offset = bias[channel];
    }
    return p;
}

// The place of a window's maximum that no gradient passes, since the ReLU is closed.
constexpr uint8_t NOWHERE = 9;

// Places of N neighbouring windows.
template <int N>
struct alignas(N) Few {
    uint8_t place[N];
};

template <int N>
__device__ __forceinline__ Few<N> load_places(const uint8_t* from) {
    return *reinterpret_cast<const Few<N>*>(from);
}

// One thread per output; blockIdx.y counts planes. Unless `places` is null, it gets where each window's maximum lies in it.
template <bool NORMALISE, typename T>
__device__ void forward(const T* x, const float* mean, const float* inv_std, const float* weight, const float* bias, T* y, uint8_t* places, int c,
                        int h, int w) {
    int oh = (h + 1) / 2, ow = (w + 1) / 2;
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= oh * ow) return;
    size_t plane = blockIdx.y;
    int place;
    float best = plane_of<NORMALISE>(x, plane, c, h, w, mean, inv_std, weight, bias).window(at / ow, at % ow, place);
    y[plane * oh * ow + at] = from_float<T>(best);
    if (places != nullptr) places[plane * oh * ow + at] = NORMALISE && best <= 0.0f ? NOWHERE : static_cast<uint8_t>(place);
}
