// Matrix products and number formats of the libraries.
#pragma once

#include "driver.h"

#include <cstring>

namespace host {

// How a matrix is stored.
enum class Format { F32, Bf16, F16, F64 };

inline size_t size_of(Format format) { return format == Format::F64 ? 8 : format == Format::F32 ? 4 : 2; }

inline const char* name_of(Format format) {
    switch (format) {
    case Format::F64: return "f64";
    case Format::F32: return "f32";
    case Format::Bf16: return "bf16";
    default: return "f16";
    }
}

inline float read(const void* from, size_t i, Format format) {
    switch (format) {
    case Format::F32: return static_cast<const float*>(from)[i];
    case Format::F64: return static_cast<float>(static_cast<const double*>(from)[i]);
    case Format::Bf16: {
        uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(from)[i]) << 16;
        float f;
        std::memcpy(&f, &bits, 4);
        return f;
    }
    default: {
        _Float16 h;
        std::memcpy(&h, static_cast<const uint16_t*>(from) + i, 2);
        return static_cast<float>(h);
    }
    }
}

inline void write(void* to, size_t i, Format format, float f) {
    switch (format) {
    case Format::F32: static_cast<float*>(to)[i] = f; return;
    case Format::F64: static_cast<double*>(to)[i] = f; return;
    case Format::Bf16: {
        uint32_t bits;
        std::memcpy(&bits, &f, 4);
        bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
        static_cast<uint16_t*>(to)[i] = nan ? 0x7fff : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
        return;
    }
    default: {
        _Float16 h = static_cast<_Float16>(f);
        std::memcpy(static_cast<uint16_t*>(to) + i, &h, 2);
    }
    }
}

// float32 as the matrix units take it in TF32: 10 bits of mantissa, to nearest, ties away from zero.
inline float to_tf32(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & 0xffffe000u;
    std::memcpy(&f, &bits, 4);
    return f;
}

// A matrix b (k×n) as `multiply` reads it: panels of 16 columns, row by row, the last one filled with zeros.
constexpr size_t COLUMNS = 16;
inline size_t panels_of(size_t n) { return (n + COLUMNS - 1) / COLUMNS; }
inline std::vector<float> room_for_panels(size_t k, size_t n) { return std::vector<float>(panels_of(n) * k * COLUMNS, 0.0f); }

// Fills panel p with value(l, j), in the order in which the matrix lies in memory.
template <typename F>
void pack_panel(size_t k, size_t n, size_t p, bool columns_lie_together, std::vector<float>& packed, F&& value) {
    size_t first = p * COLUMNS, width = std::min(COLUMNS, n - first);
    float* to = &packed[p * k * COLUMNS];
    if (columns_lie_together) {
        for (size_t l = 0; l < k; ++l) {
            for (size_t j = 0; j < width; ++j) to[l * COLUMNS + j] = value(l, first + j);
        }
    } else {
        for (size_t j = 0; j < width; ++j) {
            for (size_t l = 0; l < k; ++l) to[l * COLUMNS + j] = value(l, first + j);
        }
    }
}

// c (m×n, row by row) = a (m×k) · b (k×n, packed), in float32 with sums in the order of k.
inline void multiply(size_t m, size_t n, size_t k, const float* a, const std::vector<float>& packed, float* c) {
    typedef float Eight __attribute__((vector_size(32), aligned(4)));
    constexpr size_t ROWS = 4;
    size_t panels = panels_of(n);
    for (size_t i = 0; i < m; i += ROWS) {
        size_t height = std::min(ROWS, m - i);
        const float* rows[ROWS];
        for (size_t r = 0; r < ROWS; ++r) rows[r] = a + (i + std::min(r, height - 1)) * k;
        for (size_t p = 0; p < panels; ++p) {
            Eight sum[ROWS][2] = {};
            const float* from = &packed[p * k * COLUMNS];
            for (size_t l = 0; l < k; ++l, from += COLUMNS) {
                Eight left = *reinterpret_cast<const Eight*>(from), right = *reinterpret_cast<const Eight*>(from + 8);
                for (size_t r = 0; r < ROWS; ++r) {
                    float factor = rows[r][l];
                    sum[r][0] += factor * left;
                    sum[r][1] += factor * right;
                }
            }
            size_t width = std::min(COLUMNS, n - p * COLUMNS);
            for (size_t r = 0; r < height; ++r) std::memcpy(&c[(i + r) * n + p * COLUMNS], sum[r], width * 4);
        }
    }
}

inline void multiply(size_t m, size_t n, size_t k, const float* a, const float* b, float* c) {
    auto packed = room_for_panels(k, n);
    for (size_t p = 0; p < panels_of(n); ++p) pack_panel(k, n, p, true, packed, [&](size_t l, size_t j) { return b[l * n + j]; });
    multiply(m, n, k, a, packed, c);
}

} // namespace host
