// Runs the kernels' blocks (see ops/src/device/emulation.h).
#include "device/emulation.h"

#include "driver.h"
#include "kernels.h"

#include <random>

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

std::map<std::string, host::Kernel>& kernels() {
    static auto* all = new std::map<std::string, host::Kernel>();
    return *all;
}

} // namespace

void emulation::add_kernel(const char* name, Entry entry, std::vector<size_t> parameter_bytes) {
    if (!kernels().emplace(name, host::Kernel{name, entry, std::move(parameter_bytes)}).second) {
        host::stop(std::string("two kernels are called ") + name);
    }
}

const host::Kernel* host::kernel(const std::string& name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

namespace {

// What runs blocks; kept for the next launch, since its stacks are large.
class Borrowed {
public:
    Borrowed() {
        std::lock_guard<std::mutex> held(mutex());
        if (idle().empty()) {
            machine_ = new emulation::Machine();
        } else {
            machine_ = idle().back();
            idle().pop_back();
        }
        emulation::running = machine_;
    }
    ~Borrowed() {
        emulation::running = nullptr;
        std::lock_guard<std::mutex> held(mutex());
        idle().push_back(machine_);
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    emulation::Machine& operator*() const { return *machine_; }

private:
    static std::mutex& mutex() {
        static auto* one = new std::mutex();
        return *one;
    }
    static std::vector<emulation::Machine*>& idle() {
        static auto* all = new std::vector<emulation::Machine*>();
        return *all;
    }
    emulation::Machine* machine_;
};

void prepare(emulation::Machine& m, const host::Launch& launch, uint64_t index) {
    static const Order order = chosen_order();
    m.kernel = launch.kernel->name.c_str();
    m.entry = launch.kernel->entry;
    m.threads = static_cast<int>(launch.block[0] * launch.block[1] * launch.block[2]);
    m.warps.resize(static_cast<size_t>(m.threads + emulation::WARP - 1) / emulation::WARP);
    for (size_t i = 0; i < m.warps.size(); ++i) {
        m.warps[i].size = std::min(emulation::WARP, m.threads - static_cast<int>(i) * emulation::WARP);
    }
    m.shared.resize((launch.shared_bytes + 15) / 16);
    // The other orders are for barriers that are missing: there the kernels' own sums have to hold.
    m.sums_at_once = order == Order::Forward && m.threads % emulation::WARP == 0;
    m.order.resize(static_cast<size_t>(m.threads));
    for (int i = 0; i < m.threads; ++i) m.order[static_cast<size_t>(i)] = order == Order::Reverse ? m.threads - 1 - i : i;
    if (order == Order::Shuffle) std::shuffle(m.order.begin(), m.order.end(), std::mt19937(static_cast<unsigned>(index)));
    m.grid_dim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    m.block_dim = {launch.block[0], launch.block[1], launch.block[2]};
}

} // namespace

void host::run(Launch& launch) {
    std::vector<void*> arguments;
    for (auto& value : launch.values) arguments.push_back(value.data());
    uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    uint64_t threads = uint64_t(launch.block[0]) * launch.block[1] * launch.block[2];
    // Some blocks at a time, since the first has more to do; few threads are not worth waking others for.
    uint64_t part = blocks * threads <= 2048 ? blocks : std::max<uint64_t>(1, blocks / 64), parts = (blocks + part - 1) / part;
    parallel(parts, [&](uint64_t index) {
        Borrowed borrowed;
        emulation::Machine& m = *borrowed;
        prepare(m, launch, index);
        std::vector<void*> own = arguments;
        m.arguments = own.data();
        for (uint64_t block = index * part; block < std::min(blocks, (index + 1) * part); ++block) {
            m.block_idx = {static_cast<unsigned>(block % launch.grid[0]), static_cast<unsigned>(block / launch.grid[0] % launch.grid[1]),
                           static_cast<unsigned>(block / launch.grid[0] / launch.grid[1])};
            m.run_block();
        }
    });
}
