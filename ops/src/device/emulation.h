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
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __x86_64__
// Goes on with another stack: ucontext's switch asks the kernel each time, which takes most of the tests' time.
extern "C" void sam_ladder_switch(void** save, void* load);
#else
#include <ucontext.h>
#endif

#define __device__
#ifndef __global__
#define __global__
#endif
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

// A stack on which threads run one after the other, each from its start or from the barrier at which it paused.
struct Fiber {
#ifdef __x86_64__
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    std::vector<char> stack;
};

struct Thread {
    // What it waits for: nothing, its block or its warp.
    enum { RUNNABLE, AT_BLOCK, AT_WARP, FINISHED } state = RUNNABLE;
    int fiber = -1;
    // Exchanges so far.
    unsigned exchanges = 0;
};

struct Warp {
    int size = 0, arrived = 0;
    // What each lane gives to the others: an address, or a value in one of two places, of which the next exchange takes the other.
    const void* published[WARP];
    alignas(16) char values[2][WARP][16];
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Thread> threads_of_block;
    std::vector<Warp> warps;
    std::vector<int> order;
    // Threads that a barrier has released, in the order in which they go on.
    std::vector<int> ready, released;
#ifdef __x86_64__
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
    // The thread and the fiber that run, threads of a block, those that have not finished, that are at the block's barrier, that have begun.
    int current = 0, fiber = 0, threads = 0, alive = 0, arrived = 0, begun = 0;
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
    void pause() { sam_ladder_switch(&fibers[fiber].stack_pointer, scheduler); }
    void resume(int i) { sam_ladder_switch(&scheduler, fibers[i].stack_pointer); }
#else
    void pause() { swapcontext(&fibers[fiber].context, &scheduler); }
    void resume(int i) { swapcontext(&scheduler, &fibers[i].context); }
#endif

    void start(Fiber& fiber);

    void take_up(int thread) {
        current = thread;
        unsigned i = static_cast<unsigned>(thread);
        thread_idx = {i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y};
    }

    void block_barrier() {
        threads_of_block[current].state = Thread::AT_BLOCK;
        if (++arrived == threads) {
            arrived = 0;
            for (Thread& thread : threads_of_block) thread.state = Thread::RUNNABLE;
            released.insert(released.end(), order.begin(), order.end());
        }
        pause();
    }

    void warp_barrier() {
        int first = current / WARP * WARP;
        Warp& warp = warps[current / WARP];
        threads_of_block[current].state = Thread::AT_WARP;
        if (++warp.arrived == warp.size) {
            warp.arrived = 0;
            bool backwards = order.front() != 0;
            for (int i = 0; i < warp.size; ++i) {
                int thread = first + (backwards ? warp.size - 1 - i : i);
                threads_of_block[thread].state = Thread::RUNNABLE;
                released.push_back(thread);
            }
        }
        pause();
    }

    void run_block();
};

inline Machine& machine() {
    static thread_local Machine instance;
    return instance;
}

// Runs threads until one of them pauses.
inline void fiber_main() {
    Machine& m = machine();
    while (m.begun < m.threads) {
        int thread = m.order[m.begun++];
        m.threads_of_block[thread].fiber = m.fiber;
        m.take_up(thread);
        m.entry(m.arguments);
        m.threads_of_block[m.current].state = Thread::FINISHED;
        --m.alive;
    }
    m.pause();
}

inline void Machine::start(Fiber& fiber) {
    if (fiber.stack.empty()) fiber.stack.resize(STACK_BYTES);
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
    arrived = begun = 0;
    threads_of_block.assign(static_cast<size_t>(threads), Thread());
    for (Warp& warp : warps) warp.arrived = 0;
    released.clear();
    for (int used = 0; begun < threads; ++used) {
        if (fibers.size() <= static_cast<size_t>(used)) fibers.resize(static_cast<size_t>(used) + 1);
        fiber = used;
        start(fibers[used]);
        resume(used);
    }
    while (alive > 0) {
        if (released.empty()) fail("some threads wait at a barrier that the others have passed by");
        ready.swap(released);
        released.clear();
        for (int i : ready) {
            fiber = threads_of_block[i].fiber;
            take_up(i);
            resume(fiber);
        }
    }
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}

using Entry = void (*)(void**);

// A kernel by its name; defined by whoever runs the kernels.
void add_kernel(const char* name, Entry entry, std::vector<size_t> parameter_bytes);

template <typename... A>
std::vector<size_t> parameter_bytes(void (*)(A...)) {
    return {sizeof(A)...};
}

struct Registrar {
    template <typename... A>
    Registrar(const char* name, void (*kernel)(A...), Entry entry) {
        add_kernel(name, entry, parameter_bytes(kernel));
    }
};

template <typename T>
T exchange(T value, int source) {
    Machine& m = machine();
    Warp& warp = m.warps[m.current / WARP];
    static_assert(sizeof(T) <= sizeof warp.values[0][0]);
    // A lane that is one exchange ahead writes the other place, and none is two ahead.
    auto& values = warp.values[m.threads_of_block[m.current].exchanges++ % 2];
    std::memcpy(values[m.current % WARP], &value, sizeof value);
    m.warp_barrier();
    T received;
    std::memcpy(static_cast<void*>(&received), values[source & (WARP - 1)], sizeof received);
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
T __shfl_xor_sync(unsigned, T value, int lanes, int = 32) {
    return emulation::exchange(value, (emulation::machine().current % emulation::WARP) ^ lanes);
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulation::exchange(value, lane);
}

// The 16-bit formats, rounded to nearest, ties to even, as the GPU's conversions do. They convert from and to numbers as NVIDIA's do.
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    template <typename V, typename = std::enable_if_t<std::is_arithmetic_v<V>>>
    __nv_bfloat16(V v) : bits(round(static_cast<float>(v))) {}
    operator float() const {
        uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float f;
        std::memcpy(&f, &wide, 4);
        return f;
    }
    static uint16_t round(float f) {
        uint32_t wide;
        std::memcpy(&wide, &f, 4);
        if ((wide & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
        return static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1)) >> 16);
    }
};

struct __half {
    uint16_t bits;
    __half() = default;
    template <typename V, typename = std::enable_if_t<std::is_arithmetic_v<V>>>
    __half(V v) : bits(round(static_cast<float>(v))) {}
    operator float() const {
        _Float16 h;
        std::memcpy(&h, &bits, 2);
        return static_cast<float>(h);
    }
    static uint16_t round(float f) {
        _Float16 h = static_cast<_Float16>(f);
        uint16_t bits;
        std::memcpy(&bits, &h, 2);
        return bits;
    }
};

inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
inline float __half2float(__half v) { return v; }
inline __half __float2half(float f) { return f; }

inline float __int_as_float(int bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::isfinite;
using std::isnan;
using std::min;

#define KERNEL(name, parameters)                                                                                            \
    static void name parameters;                                                                                            \
    static emulation::Registrar registrar_##name(#name, &name, [](void** arguments) { emulation::call_kernel(&name, arguments); }); \
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
