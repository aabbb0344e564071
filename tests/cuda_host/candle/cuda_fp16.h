// What candle's kernels take from CUDA's headers, for the host.
#pragma once

#include "device/emulation.h"

#include <cassert>
#include <cmath>
#include <limits>

using std::max;
using std::min;
using std::signbit;

struct float2 {
    float x, y;
};

inline float2 make_float2(float x, float y) { return {x, y}; }

// Each operation rounds its result.
#define SAM_LADDER_ARITHMETIC(T)                                        \
    inline T operator+(T a, T b) { return float(a) + float(b); }        \
    inline T operator-(T a, T b) { return float(a) - float(b); }        \
    inline T operator*(T a, T b) { return float(a) * float(b); }        \
    inline T operator/(T a, T b) { return float(a) / float(b); }        \
    inline T operator-(T a) { return -float(a); }                       \
    inline T& operator+=(T& a, T b) { return a = a + b; }               \
    inline T& operator*=(T& a, T b) { return a = a * b; }               \
    inline bool __hisnan(T a) { return std::isnan(float(a)); }          \
    inline T hsqrt(T a) { return std::sqrt(float(a)); }                 \
    inline T hcos(T a) { return std::cos(float(a)); }                   \
    inline T hsin(T a) { return std::sin(float(a)); }                   \
    inline T hlog(T a) { return std::log(float(a)); }                   \
    inline T hexp(T a) { return std::exp(float(a)); }                   \
    inline T __habs(T a) { return std::fabs(float(a)); }                \
    inline T __hmax_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : T(std::fmax(float(a), float(b))); } \
    inline T __hmin_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : T(std::fmin(float(a), float(b))); }
SAM_LADDER_ARITHMETIC(__half)
SAM_LADDER_ARITHMETIC(__nv_bfloat16)

// Two neighbours at once.
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x - b.x, a.y - b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }
inline __nv_bfloat162 __h2div(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x / b.x, a.y / b.y}; }

inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short bits) {
    __half v;
    v.bits = bits;
    return v;
}

inline float normcdff(float x) { return 0.5f * std::erfc(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.7071067811865476); }

template <typename To, typename From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float v) { return same_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return same_bits<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return same_bits<float>(v); }
inline long long __double_as_longlong(double v) { return same_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return same_bits<double>(v); }

// Blocks run on several threads of the host.
template <typename T, typename F>
T atomically(T* address, F&& next) {
    static_assert(sizeof(T) <= 8);
    T old, wanted;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        wanted = next(old);
    } while (!__atomic_compare_exchange(address, &old, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <typename T>
T atomicAdd(T* address, T value) {
    return atomically(address, [&](T old) { return T(old + value); });
}
template <typename T>
T atomicMin(T* address, T value) {
    return atomically(address, [&](T old) { return std::min(old, value); });
}
template <typename T>
T atomicMax(T* address, T value) {
    return atomically(address, [&](T old) { return std::max(old, value); });
}
inline unsigned long long atomicMin(unsigned long long* address, long long value) {
    return atomicMin(address, static_cast<unsigned long long>(value));
}
inline unsigned long long atomicMax(unsigned long long* address, long long value) {
    return atomicMax(address, static_cast<unsigned long long>(value));
}
template <typename T>
T atomicCAS(T* address, T compare, T value) {
    __atomic_compare_exchange(address, &compare, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return compare;
}
