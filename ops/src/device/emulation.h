// CUDA's execution model on the host, for the tests: the kernels of this crate are compiled by a C++ compiler and run block by block, every
// thread a fiber of its own.
//
// It is strict where a GPU is lenient. A barrier that some threads of a block or a warp never reach ends the process with the kernel's name,
// dynamic shared memory starts as NaN, and the order in which the threads of a block run between two barriers can be turned round or shuffled
// (SAM_LADDER_EMULATION_ORDER=forward|reverse|shuffle): a kernel that lacks a barrier then gives another result.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifdef __x86_64__
// Goes on with another stack: ucontext's switch asks the kernel each time, which takes most of the tests' time.
extern "C" void sam_ladder_switch(void** save, void* load);
#else
#include <ucontext.h>
#endif

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
// One block at a time runs on a thread of the host.
#define __shared__ static thread_local

struct uint3 {
    unsigned x, y, z;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulation {

constexpr int WARP = 32;
constexpr int MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 96 << 10;

struct Fiber {
#ifdef __x86_64__
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    std::vector<char> stack;
    bool alive = false;
    // What it waits for: nothing, its block or its warp.
    enum { RUNNABLE, AT_BLOCK, AT_WARP } state = RUNNABLE;
};

struct Warp {
    int arrived = 0;
    // What each lane gives to the others.
    const void* published[WARP];
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<int> order;
#ifdef __x86_64__
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
    int current = 0, threads = 0, alive = 0, arrived = 0;
    uint3 block_idx{}, grid_dim{}, block_dim{}, thread_idx{};
    std::vector<uint4> shared;
    const char* kernel = "";
    void (*entry)(void**) = nullptr;
    void** arguments = nullptr;

    [[noreturn]] void fail(const char* what) const {
        std::fprintf(stderr, "emulated kernel %s, block (%u, %u, %u): %s\n", kernel, block_idx.x, block_idx.y, block_idx.z, what);
        std::abort();
    }

#ifdef __x86_64__
    void pause() { sam_ladder_switch(&fibers[current].stack_pointer, scheduler); }
    void resume(int i) { sam_ladder_switch(&scheduler, fibers[i].stack_pointer); }
#else
    void pause() { swapcontext(&fibers[current].context, &scheduler); }
    void resume(int i) { swapcontext(&scheduler, &fibers[i].context); }
#endif

    void start(Fiber& fiber);

    void block_barrier() {
        fibers[current].state = Fiber::AT_BLOCK;
        if (++arrived == threads) {
            arrived = 0;
            for (int i = 0; i < threads; ++i) fibers[i].state = Fiber::RUNNABLE;
        }
        pause();
    }

    void warp_barrier() {
        Warp& warp = warps[current / WARP];
        fibers[current].state = Fiber::AT_WARP;
        if (++warp.arrived == WARP) {
            warp.arrived = 0;
            for (int i = current / WARP * WARP, end = i + WARP; i < end; ++i) fibers[i].state = Fiber::RUNNABLE;
        }
        pause();
    }

    void run_block();
};

inline Machine& machine() {
    static thread_local Machine instance;
    return instance;
}

inline void fiber_main() {
    Machine& m = machine();
    m.entry(m.arguments);
    m.fibers[m.current].alive = false;
    --m.alive;
    m.pause();
}

inline void Machine::start(Fiber& fiber) {
#ifdef __x86_64__
    // As if fiber_main had been called: its address, and six registers below it that the switch takes off.
    uintptr_t top = reinterpret_cast<uintptr_t>(fiber.stack.data() + fiber.stack.size()) / 16 * 16;
    void** frame = reinterpret_cast<void**>(top) - 2;
    frame[0] = reinterpret_cast<void*>(&fiber_main);
    frame[1] = nullptr;
    for (int i = 1; i <= 6; ++i) frame[-i] = nullptr;
    fiber.stack_pointer = frame - 6;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

inline void Machine::run_block() {
    std::memset(static_cast<void*>(shared.data()), 0xff, shared.size() * sizeof(uint4)); // NaN in every floating-point format
    alive = threads;
    arrived = 0;
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        if (fiber.stack.empty()) fiber.stack.resize(STACK_BYTES);
        start(fiber);
        fiber.alive = true;
        fiber.state = Fiber::RUNNABLE;
    }
    for (Warp& warp : warps) warp.arrived = 0;
    while (alive > 0) {
        bool progress = false;
        for (int i : order) {
            if (!fibers[i].alive || fibers[i].state != Fiber::RUNNABLE) continue;
            current = i;
            thread_idx = {static_cast<unsigned>(i), 0, 0};
            resume(i);
            progress = true;
        }
        if (!progress) fail("some threads wait at a barrier that the others have passed by");
    }
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}

using Entry = void (*)(void**);

inline std::map<std::string, Entry>& registry() {
    static std::map<std::string, Entry> entries;
    return entries;
}

struct Registrar {
    Registrar(const char* name, Entry entry) { registry()[name] = entry; }
};

template <typename T>
T exchange(T value, int source) {
    Machine& m = machine();
    Warp& warp = m.warps[m.current / WARP];
    warp.published[m.current % WARP] = &value;
    m.warp_barrier();
    T received = *static_cast<const T*>(warp.published[source & (WARP - 1)]);
    m.warp_barrier();
    return received;
}

} // namespace emulation

#define threadIdx (emulation::machine().thread_idx)
#define blockIdx (emulation::machine().block_idx)
#define blockDim (emulation::machine().block_dim)
#define gridDim (emulation::machine().grid_dim)

inline void __syncthreads() { emulation::machine().block_barrier(); }
inline void __syncwarp() { emulation::machine().warp_barrier(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
    return emulation::exchange(value, (emulation::machine().current % emulation::WARP) ^ lanes);
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulation::exchange(value, lane);
}

// The 16-bit formats, rounded to nearest, ties to even, as the GPU's conversions do.
struct __nv_bfloat16 {
    uint16_t bits;
};

struct __half {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) {
    uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline __nv_bfloat16 __float2bfloat16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

inline float __half2float(__half v) {
    _Float16 h;
    std::memcpy(&h, &v.bits, 2);
    return static_cast<float>(h);
}

inline __half __float2half(float f) {
    _Float16 h = static_cast<_Float16>(f);
    __half v;
    std::memcpy(&v.bits, &h, 2);
    return v;
}

inline float __int_as_float(int bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::isfinite;
using std::isnan;

#define KERNEL(name, parameters)                                                                                            \
    static void name parameters;                                                                                            \
    static emulation::Registrar registrar_##name(#name, [](void** arguments) { emulation::call_kernel(&name, arguments); }); \
    static void name parameters

namespace emulation {
template <typename... A>
void call_kernel(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::make_index_sequence<sizeof...(A)>());
}
} // namespace emulation

#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulation::machine().shared.data())

// mma.sync.aligned.m16n8k16: c (16×8, float32) += a (16×16) · b (16×8), both 16 bits wide, spread over the warp as the PTX manual lays down.
template <typename T>
void emulated_mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*to_float)(T)) {
    struct Registers {
        uint32_t a[4], b[2];
    } mine;
    std::memcpy(mine.a, a, sizeof mine.a);
    std::memcpy(mine.b, b, sizeof mine.b);
    emulation::Machine& m = emulation::machine();
    emulation::Warp& warp = m.warps[m.current / emulation::WARP];
    int lane = m.current % emulation::WARP;
    warp.published[lane] = &mine;
    m.warp_barrier();
    auto of_lane = [&](int other) -> const Registers& { return *static_cast<const Registers*>(warp.published[other]); };
    auto half_of = [&](uint32_t word, int which) {
        uint16_t bits = static_cast<uint16_t>(word >> (16 * which));
        T value;
        std::memcpy(&value, &bits, 2);
        return to_float(value);
    };
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) {
            float left = half_of(of_lane(row % 8 * 4 + k % 8 / 2).a[row / 8 + 2 * (k / 8)], k % 2);
            float right = half_of(of_lane(column * 4 + k % 8 / 2).b[k / 8], k % 2);
            sum += left * right;
        }
        c[i] += sum;
    }
    m.warp_barrier();
}
