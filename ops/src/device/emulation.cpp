// The way from Rust into the emulated kernels.
#include "emulation.h"

#ifdef __x86_64__
// Saves the registers that a callee must keep on this stack, and takes those of the other off its own.
asm(R"(
.text
.globl sam_ladder_switch
.type sam_ladder_switch, @function
sam_ladder_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size sam_ladder_switch, .-sam_ladder_switch
)");
#endif

namespace {

enum class Order { Forward, Reverse, Shuffle };

Order chosen_order() {
    const char* text = std::getenv("SAM_LADDER_EMULATION_ORDER");
    if (text == nullptr || std::strcmp(text, "forward") == 0) return Order::Forward;
    return std::strcmp(text, "reverse") == 0 ? Order::Reverse : Order::Shuffle;
}

} // namespace

// Runs blocks first..first + count of a grid; 0 where there is no kernel of that name.
extern "C" int sam_ladder_emulate(const char* name, const uint32_t* grid, uint64_t first, uint64_t count, uint32_t threads,
                                  uint32_t shared_bytes, void** arguments) {
    auto found = emulation::registry().find(name);
    if (found == emulation::registry().end()) return 0;
    emulation::Machine& m = emulation::machine();
    m.kernel = name;
    if (threads == 0 || threads > emulation::MAX_THREADS || threads % emulation::WARP != 0) m.fail("expected whole warps, up to 1024 threads");
    if (m.fibers.size() < threads) m.fibers.resize(threads);
    m.warps.assign(threads / emulation::WARP, emulation::Warp());
    m.threads = static_cast<int>(threads);
    m.shared.assign((shared_bytes + 15) / 16, uint4());
    m.order.resize(threads);
    for (uint32_t i = 0; i < threads; ++i) m.order[i] = static_cast<int>(i);
    Order order = chosen_order();
    if (order == Order::Reverse) std::reverse(m.order.begin(), m.order.end());
    if (order == Order::Shuffle) std::shuffle(m.order.begin(), m.order.end(), std::mt19937(static_cast<unsigned>(first)));
    m.entry = found->second;
    m.arguments = arguments;
    m.grid_dim = {grid[0], grid[1], grid[2]};
    m.block_dim = {threads, 1, 1};
    for (uint64_t block = first; block < first + count; ++block) {
        m.block_idx = {static_cast<uint32_t>(block % grid[0]), static_cast<uint32_t>(block / grid[0] % grid[1]),
                       static_cast<uint32_t>(block / grid[0] / grid[1])};
        m.run_block();
    }
    return 1;
}
