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
#define NOT_INLINED __attribute__((noinline))
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
    int fiber = -1;
    // Collectives of the warp and of the block so far.
    unsigned collectives = 0, of_block = 0;
};

struct Warp {
    int size = 0, arrived = 0;
    // What each lane gives to the others, in one of two places, of which the next collective takes the other: a lane that is one collective
    // ahead writes the other place, and none is two ahead.
    alignas(16) char values[2][WARP][32];
    // What the last lane to arrive makes of them, for each lane.
    alignas(16) char results[2][WARP][16];
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Thread> threads_of_block;
    std::vector<Warp> warps;
    std::vector<int> order;
    // Threads that a barrier has released, in the order in which they go on.
    std::vector<int> ready, released;
    size_t next_ready = 0;
#ifdef __x86_64__
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif
    // The thread and the fiber that run, threads of a block, those that have not finished, that are at the block's barrier, that have begun.
    int current = 0, fiber = 0, threads = 0, alive = 0, arrived = 0, begun = 0;
    uint3 block_idx{}, grid_dim{}, block_dim{}, thread_idx{};
    std::vector<uint4> shared;
    // What the threads of a block sum, and the sum, each in one of two places as a warp's.
    alignas(16) char block_values[2][MAX_THREADS * 8];
    alignas(16) char block_result[2][8];
    // Whether a block's sum is one collective; otherwise the kernel's own shuffles and barriers.
    bool sums_at_once = true;
    const char* kernel = "";
    void (*entry)(void**) = nullptr;
    void** arguments = nullptr;

    [[noreturn]] void fail(const char* what) const {
        std::fprintf(stderr, "emulated kernel %s, block (%u, %u, %u): %s\n", kernel, block_idx.x, block_idx.y, block_idx.z, what);
        std::abort();
    }

#ifdef __x86_64__
    void to_scheduler() { sam_ladder_switch(&fibers[fiber].stack_pointer, scheduler); }
    void from_scheduler(int i) { sam_ladder_switch(&scheduler, fibers[i].stack_pointer); }
    void to_fiber(int from, int to) { sam_ladder_switch(&fibers[from].stack_pointer, fibers[to].stack_pointer); }
#else
    void to_scheduler() { swapcontext(&fibers[fiber].context, &scheduler); }
    void from_scheduler(int i) { swapcontext(&scheduler, &fibers[i].context); }
    void to_fiber(int from, int to) { swapcontext(&fibers[from].context, &fibers[to].context); }
#endif

    void start(Fiber& fiber);

    void take_up(int thread) {
        current = thread;
        unsigned i = static_cast<unsigned>(thread);
        if (block_dim.y == 1 && block_dim.z == 1) {
            thread_idx = {i, 0, 0};
        } else {
            thread_idx = {i % block_dim.x, i / block_dim.x % block_dim.y, i / block_dim.x / block_dim.y};
        }
    }

    // Takes the next thread that may go on; false if there is none.
    bool take_ready() {
        if (next_ready == ready.size()) {
            ready.swap(released);
            released.clear();
            next_ready = 0;
            if (ready.empty()) return false;
        }
        int thread = ready[next_ready++];
        fiber = threads_of_block[static_cast<size_t>(thread)].fiber;
        take_up(thread);
        return true;
    }

    // Goes on with another thread, until a barrier has released this one.
    void pause() {
        int own = fiber;
        if (begun < threads || !take_ready()) {
            to_scheduler();
        } else if (fiber != own) {
            to_fiber(own, fiber);
        }
    }

    // Calls `last` when all threads have come.
    template <typename F>
    void block_barrier(F&& last) {
        if (++arrived == threads) {
            arrived = 0;
            last();
            released.insert(released.end(), order.begin(), order.end());
        }
        pause();
    }

    // Calls `last` when all lanes have come.
    template <typename F>
    void warp_barrier(Warp& warp, F&& last) {
        if (++warp.arrived == warp.size) {
            warp.arrived = 0;
            last();
            int first = current / WARP * WARP;
            bool backwards = order.front() != 0;
            for (int i = 0; i < warp.size; ++i) released.push_back(first + (backwards ? warp.size - 1 - i : i));
        }
        pause();
    }

    void run_block();
};

// Of the thread of the host that runs; set for each launch.
inline constinit thread_local Machine* running = nullptr;
inline Machine& machine() { return *running; }

// Runs threads until one of them pauses.
inline void fiber_main() {
    Machine& m = machine();
    while (m.begun < m.threads) {
        int thread = m.order[m.begun++];
        m.threads_of_block[thread].fiber = m.fiber;
        m.take_up(thread);
        m.entry(m.arguments);
        --m.alive;
    }
    // Threads that paused go on, each on a fiber of its own; the last one to end returns to the scheduler.
    m.pause();
}

inline void Machine::start(Fiber& fiber) {
    // Stacks that lie a multiple of a page apart share a few lines of the processor's cache.
    if (fiber.stack.empty()) fiber.stack.resize(STACK_BYTES + static_cast<size_t>(&fiber - fibers.data()) % 61 * 64);
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
    ready.clear();
    released.clear();
    next_ready = 0;
    for (int used = 0; begun < threads; ++used) {
        if (fibers.size() <= static_cast<size_t>(used)) fibers.resize(static_cast<size_t>(used) + 1);
        fiber = used;
        start(fibers[used]);
        from_scheduler(used);
    }
    while (alive > 0) {
        if (!take_ready()) fail("some threads wait at a barrier that the others have passed by");
        from_scheduler(fiber);
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

// Each lane gives a value; the last lane to come calls make(values of the lanes, results of the lanes), and each lane gets its own result.
template <typename R, typename V, typename F>
R collective(const V& value, F&& make) {
    Machine& m = machine();
    Warp& warp = m.warps[static_cast<size_t>(m.current / WARP)];
    int lane = m.current % WARP;
    static_assert(sizeof(V) <= sizeof warp.values[0][0] && sizeof(R) <= sizeof warp.results[0][0]);
    unsigned place = m.threads_of_block[static_cast<size_t>(m.current)].collectives++ % 2;
    std::memcpy(warp.values[place][lane], &value, sizeof value);
    m.warp_barrier(warp, [&] {
        V values[WARP];
        R results[WARP];
        for (int i = 0; i < WARP; ++i) std::memcpy(static_cast<void*>(&values[i]), warp.values[place][i], sizeof(V));
        make(values, results);
        for (int i = 0; i < WARP; ++i) std::memcpy(warp.results[place][i], &results[i], sizeof(R));
    });
    R result;
    std::memcpy(static_cast<void*>(&result), warp.results[place][lane], sizeof result);
    return result;
}

template <typename T>
T exchange(T value, int source) {
    struct Asked {
        T value;
        int source;
    };
    return collective<T>(Asked{value, source & (WARP - 1)}, [](const Asked* lanes, T* results) {
        for (int i = 0; i < WARP; ++i) results[i] = lanes[lanes[i].source & (WARP - 1)].value;
    });
}

// What `value = f(value, that of lane ^ 16)`, then of lane ^ 8 and so on to lane ^ 1 gives for an f that does not ask for the order of its
// two values: the same in every lane.
template <typename T, typename F>
T butterfly(const T* values, F&& f) {
    T now[WARP];
    std::copy(values, values + WARP, now);
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        for (int i = 0; i < lanes; ++i) now[i] = f(now[i], now[i + lanes]);
    }
    return now[0];
}

// A butterfly as one collective.
template <typename T, typename F>
T reduce(T value, F&& f) {
    return collective<T>(value, [&](const T* values, T* results) { std::fill_n(results, WARP, butterfly(values, f)); });
}

// The sum over a block as `block_sum` in common.cuh has it, as one collective.
template <typename T>
T sum_of_block(T value) {
    Machine& m = machine();
    static_assert(sizeof(T) <= 8);
    unsigned place = m.threads_of_block[static_cast<size_t>(m.current)].of_block++ % 2;
    T* values = reinterpret_cast<T*>(m.block_values[place]);
    T* result = reinterpret_cast<T*>(m.block_result[place]);
    values[m.current] = value;
    m.block_barrier([&] {
        auto add = [](T a, T b) { return a + b; };
        T total = butterfly(values, add);
        for (int warp = 1; warp < m.threads / WARP; ++warp) total += butterfly(values + warp * WARP, add);
        *result = total;
    });
    return *result;
}

} // namespace emulation

#define threadIdx (emulation::machine().thread_idx)
#define blockIdx (emulation::machine().block_idx)
#define blockDim (emulation::machine().block_dim)
#define gridDim (emulation::machine().grid_dim)

inline void __syncthreads() {
    emulation::machine().block_barrier([] {});
}
inline void __syncwarp() {
    emulation::Machine& m = emulation::machine();
    m.warp_barrier(m.warps[static_cast<size_t>(m.current / emulation::WARP)], [] {});
}

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
    struct Sums {
        float c[4];
    };
    std::memcpy(mine.a, a, sizeof mine.a);
    std::memcpy(mine.b, b, sizeof mine.b);
    Sums sums = emulation::collective<Sums>(mine, [&](const Registers* lanes, Sums* results) {
        float left[16][16], right[16][8];
        auto take = [&](uint32_t word, float& low, float& high) {
            T halves[2];
            std::memcpy(static_cast<void*>(halves), &word, 4);
            low = to_float(halves[0]);
            high = to_float(halves[1]);
        };
        for (int lane = 0; lane < emulation::WARP; ++lane) {
            int row = lane / 4, pair = lane % 4 * 2;
            for (int i = 0; i < 4; ++i) {
                float* to = &left[row + i % 2 * 8][pair + i / 2 * 8];
                take(lanes[lane].a[i], to[0], to[1]);
            }
            for (int i = 0; i < 2; ++i) take(lanes[lane].b[i], right[pair + 8 * i][row], right[pair + 1 + 8 * i][row]);
        }
        for (int row = 0; row < 16; ++row) {
            float sum[8] = {};
            for (int k = 0; k < 16; ++k) {
                for (int column = 0; column < 8; ++column) sum[column] += left[row][k] * right[k][column];
            }
            for (int column = 0; column < 8; ++column) results[row % 8 * 4 + column / 2].c[row / 8 * 2 + column % 2] = sum[column];
        }
    });
    for (int i = 0; i < 4; ++i) c[i] += sums.c[i];
}
