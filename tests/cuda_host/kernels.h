// The kernels that the host driver knows, and one launch of one of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace host {

// A kernel's source, built for the host.
struct Kernel {
    std::string name;
    void (*entry)(void**) = nullptr;
    // Bytes of each parameter.
    std::vector<size_t> parameters;
};

struct alignas(16) Word16 {
    char bytes[16];
};

struct Launch {
    const Kernel* kernel = nullptr;
    std::array<unsigned, 3> grid{}, block{};
    unsigned shared_bytes = 0;
    std::vector<std::vector<Word16>> values;
};

// Null if there is none of that name.
const Kernel* kernel(const std::string& name);
// Does all blocks of a launch.
void run(Launch& launch);

} // namespace host
