// The matrix units' instructions and copies into shared memory that go on in the background, with their equals on the host.
//
// Fragments lie as the PTX manual lays them down for mma.m16n8k16: lane 4·row + t holds, of each 8 columns, columns 2t and 2t + 1.
#pragma once

#include "device/common.cuh"

#ifdef __CUDACC__

// c (16×8, float32) += a (16×16) · b (16×8)
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8×8 matrices of 16-bit numbers, one register of each. Lanes 8·i.. give the addresses of matrix i's rows, of 16 bytes.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begins to copy 16 bytes into shared memory; zeros if they are not `real`.
__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(real ? 16 : 0) : "memory");
}
// Waits for the copies that this thread has begun.
__device__ __forceinline__ void finish_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2^x, to two units in the last place; 0 for results below the normal numbers.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
    emulated_mma_16816<T>(c, a, b, [](T v) { return to_float(v); });
}

inline void emulated_ldmatrix(uint32_t (&to)[4], const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::machine().fail("a row of a matrix is not aligned to 16 bytes");
    struct Row {
        const uint16_t* elements;
    };
    struct Registers {
        uint16_t pairs[4][2];
    };
    Row mine{static_cast<const uint16_t*>(row)};
    Registers registers = emulation::collective<Registers>(mine, [&](const Row* rows, Registers* results) {
        for (int lane = 0; lane < emulation::WARP; ++lane) {
            for (int i = 0; i < 8; ++i) {
                int matrix = i / 2, pair = 2 * (lane % 4) + i % 2;
                const uint16_t* from = rows[8 * matrix + (transposed ? pair : lane / 4)].elements;
                results[lane].pairs[matrix][i % 2] = from[transposed ? lane / 4 : pair];
            }
        }
    });
    std::memcpy(to, registers.pairs, sizeof to);
}
inline void load_matrices(uint32_t (&to)[4], const void* row) { emulated_ldmatrix(to, row, false); }
inline void load_matrices_transposed(uint32_t (&to)[4], const void* row) { emulated_ldmatrix(to, row, true); }

// A copy arrives when it is waited for, no sooner: who does not wait reads what was there before.
struct PendingCopy {
    int thread;
    void* shared;
    const void* global;
};
inline std::vector<PendingCopy>& pending_copies() {
    static thread_local std::vector<PendingCopy> copies;
    return copies;
}
inline void copy_16_bytes(void* shared, const void* global, bool real) {
    emulation::Machine& m = emulation::machine();
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0) m.fail("a copy is not aligned to 16 bytes");
    pending_copies().push_back({m.current, shared, real ? global : nullptr});
}
inline void finish_copies() {
    int thread = emulation::machine().current;
    std::vector<PendingCopy>& copies = pending_copies();
    auto mine = std::stable_partition(copies.begin(), copies.end(), [&](const PendingCopy& copy) { return copy.thread != thread; });
    for (auto copy = mine; copy != copies.end(); ++copy) {
        if (copy->global) std::memcpy(copy->shared, copy->global, 16);
        else std::memset(copy->shared, 0, 16);
    }
    copies.erase(mine, copies.end());
}

inline float power_of_two(float x) { return std::exp2(x); }

#endif

// Two neighbouring 16-bit numbers as one register.
template <typename T>
struct alignas(4) Pair {
    T v[2];
};
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    Pair<T> pair{{from_float<T>(low), from_float<T>(high)}};
    return *reinterpret_cast<uint32_t*>(&pair);
}
