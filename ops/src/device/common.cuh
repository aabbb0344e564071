// Shared by the kernels: number formats, reductions, and the words that differ between nvcc and the host's compiler (see emulation.h).
//
// Every reduction has a fixed order, without atomics, so that a kernel gives the same bits each time.
#pragma once

#ifdef __CUDACC__
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KERNEL(name, parameters) extern "C" __global__ void name parameters
#define NOT_INLINED __noinline__
#define DYNAMIC_SHARED(T, name)                                       \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];   \
    T* name = reinterpret_cast<T*>(dynamic_shared)
#else
#include "emulation.h"
#endif

// M(type, suffix of the kernel's name)
#define FOR_EACH_TYPE(M)   \
    M(float, f32)          \
    M(__nv_bfloat16, bf16) \
    M(__half, f16)

constexpr unsigned FULL_WARP = 0xffffffffu;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
    return __float2bfloat16(v);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
    return __float2half(v);
}

// Four neighbouring elements, moved as one.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
    T v[4];
};

template <typename T>
__device__ __forceinline__ void load_four(const T* from, float (&to)[4]) {
    Four<T> four = *reinterpret_cast<const Four<T>*>(from);
    for (int i = 0; i < 4; ++i) to[i] = to_float(four.v[i]);
}

template <typename T>
__device__ __forceinline__ void store_four(T* to, const float (&from)[4]) {
    Four<T> four;
    for (int i = 0; i < 4; ++i) four.v[i] = from_float<T>(from[i]);
    *reinterpret_cast<Four<T>*>(to) = four;
}

// As many neighbouring elements as fill 16 bytes, moved as one.
template <typename T>
constexpr int RUN = 16 / sizeof(T);

template <typename T>
struct alignas(16) Run {
    T v[RUN<T>];
};

template <typename T>
__device__ __forceinline__ void load_16_bytes(const T* from, float (&to)[RUN<T>]) {
    Run<T> run = *reinterpret_cast<const Run<T>*>(from);
    for (int i = 0; i < RUN<T>; ++i) to[i] = to_float(run.v[i]);
}

template <typename T>
__device__ __forceinline__ void store_16_bytes(T* to, const float (&from)[RUN<T>]) {
    Run<T> run;
    for (int i = 0; i < RUN<T>; ++i) run.v[i] = from_float<T>(from[i]);
    *reinterpret_cast<Run<T>*>(to) = run;
}

__device__ __forceinline__ int lane_index() { return threadIdx.x & 31; }
__device__ __forceinline__ int warp_index() { return threadIdx.x >> 5; }

// The sum over a warp, in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T v) {
#ifdef __CUDACC__
    for (int lanes = 16; lanes > 0; lanes >>= 1) v += __shfl_xor_sync(FULL_WARP, v, lanes);
    return v;
#else
    return emulation::reduce(v, [](T a, T b) { return a + b; });
#endif
}

__device__ __forceinline__ float warp_max(float v) {
#ifdef __CUDACC__
    for (int lanes = 16; lanes > 0; lanes >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, lanes));
    return v;
#else
    return emulation::reduce(v, [](float a, float b) { return fmaxf(a, b); });
#endif
}

// The sum over a block of up to 1024 threads, in every thread. Ends with a barrier, so it can be called again directly.
template <typename T>
__device__ T block_sum(T v) {
#ifndef __CUDACC__
    if (emulation::machine().sums_at_once) return emulation::sum_of_block(v);
#endif
    __shared__ T parts[32];
    v = warp_sum(v);
    if (lane_index() == 0) parts[warp_index()] = v;
    __syncthreads();
    int warps = blockDim.x >> 5;
    T total = parts[0];
    for (int i = 1; i < warps; ++i) total += parts[i];
    __syncthreads();
    return total;
}
