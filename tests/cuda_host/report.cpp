// What the program did, and faults on request.
//
// The list of calls has one line per call that reaches the device, in the order in which they are made; a graph's once, when it is recorded.
//   kind             launch, product (cuBLAS), convolution (cuDNN), to_device, to_host, within_device, fill, allocate, free, wait, graph
//   name             the kernel's or the call's
//   thread           of the host, numbered in the order of their first calls
//   stream           that the call is queued on or waits for; none if it is the whole device
//   grid, block      of a launch, as 1x2x3
//   shared_bytes     dynamic shared memory of a launch
//   parameter_bytes  of a launch's parameters
//   bytes            of the device's memory that is read or written. Of a launch: from each pointer among its parameters to the end of its
//                    allocation, also of the pointers within a structure; an upper bound where a kernel reads a part
//   shape            NAME=VALUE: of a launch its parameters p0, p1 … in order (@BYTES of a pointer, otherwise the number; a structure as
//                    BYTES:POINTERS); of a product m, n, k, batch, and the number formats of the factors and of the result, column by column
//                    as cuBLAS has it; of a convolution direction, batch, channels, sizes, kernel, stride and padding; of a copy whether the
//                    host's memory is pinned or pageable; of a wait whether all that it waits for was done
#include "driver.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

namespace host {
namespace {

std::map<std::string, uint64_t>& counts() {
    static auto* all = new std::map<std::string, uint64_t>();
    return *all;
}

std::map<std::string, uint64_t>& reasons() {
    static auto* all = new std::map<std::string, uint64_t>();
    return *all;
}

struct Fault {
    std::string call;
    uint64_t nth;
    int code;
};

// NAME:n=CODE or record/NAME:n=CODE, separated by commas.
std::vector<Fault> parse_faults() {
    std::vector<Fault> faults;
    const char* text = std::getenv("SAM_LADDER_CUDA_FAIL");
    for (std::string rest = text ? text : ""; !rest.empty();) {
        std::string one = rest.substr(0, rest.find(','));
        rest = one.size() < rest.size() ? rest.substr(one.size() + 1) : "";
        size_t colon = one.find(':'), equals = one.find('=');
        if (colon == std::string::npos || equals == std::string::npos) stop("SAM_LADDER_CUDA_FAIL: expected NAME:n=CODE, found " + one);
        faults.push_back({one.substr(0, colon), std::stoull(one.substr(colon + 1)), std::stoi(one.substr(equals + 1))});
    }
    return faults;
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (char c : text) out += c == '"' || c == '\\' ? std::string("\\") + c : c == '\n' ? " " : std::string(1, c);
    return out + "\"";
}

void write_map(FILE* file, const char* name, const std::map<std::string, uint64_t>& map) {
    std::fprintf(file, "  %s: {", quoted(name).c_str());
    const char* separator = "\n";
    for (auto& [key, value] : map) {
        std::fprintf(file, "%s    %s: %llu", separator, quoted(key).c_str(), static_cast<unsigned long long>(value));
        separator = ",\n";
    }
    std::fprintf(file, "\n  }");
}

// Written when the process ends.
struct AtExit {
    ~AtExit() {
        const char* path = std::getenv("SAM_LADDER_CUDA_REPORT");
        if (path == nullptr || counts().empty()) return;
        counts()["left: allocations"] = live_blocks();
        counts()["left: bytes"] = live_bytes();
        std::string aside = std::string(path) + "." + std::to_string(getpid());
        FILE* file = std::fopen(aside.c_str(), "w");
        if (file == nullptr) return;
        std::fprintf(file, "{\n");
        write_map(file, "counts", counts());
        std::fprintf(file, ",\n");
        write_map(file, "errors", reasons());
        std::fprintf(file, "\n}\n");
        std::fclose(file);
        std::rename(aside.c_str(), path);
    }
} at_exit;

} // namespace

bool lists() {
    static const bool asked = std::getenv("SAM_LADDER_CUDA_CALLS") != nullptr;
    return asked;
}

void list(const Call& call) {
    static FILE* file = [] {
        FILE* opened = std::fopen(std::getenv("SAM_LADDER_CUDA_CALLS"), "w");
        if (opened == nullptr) stop("SAM_LADDER_CUDA_CALLS: the file cannot be written");
        std::fprintf(opened, "kind,name,thread,stream,grid,block,shared_bytes,parameter_bytes,bytes,shape\n");
        return opened;
    }();
    static auto* threads = new std::map<std::thread::id, size_t>();
    size_t thread = threads->emplace(std::this_thread::get_id(), threads->size()).first->second;
    auto number = [](uint64_t n) { return static_cast<unsigned long long>(n); };
    std::fprintf(file, "%s,%s,%zu,%s,%s,%s,%llu,%llu,%llu,%s\n", call.kind.c_str(), call.name.c_str(), thread, call.stream.c_str(),
                 call.grid.c_str(), call.block.c_str(), number(call.shared_bytes), number(call.parameter_bytes), number(call.bytes),
                 call.shape.c_str());
}

void count_wait(const char* call, const std::string& stream, bool done) {
    count("waits of the host");
    if (lists()) list({.kind = "wait", .name = call, .stream = stream, .shape = done ? "done=yes" : "done=no"});
}

bool computes() {
    static const bool chosen = [] {
        const char* text = std::getenv("SAM_LADDER_CUDA_COMPUTE");
        if (text != nullptr && std::strcmp(text, "no") != 0) stop(std::string("SAM_LADDER_CUDA_COMPUTE: expected no, found ") + text);
        return text == nullptr;
    }();
    return chosen;
}

Lock lock() {
    static auto* mutex = new std::recursive_mutex();
    return Lock(*mutex);
}

void stop(const std::string& what) {
    std::fprintf(stderr, "host CUDA driver: %s%s%s\n", what.c_str(), current_work.empty() ? "" : ", during ", current_work.c_str());
    std::fflush(nullptr);
    std::abort();
}

int enter(const char* call) {
    static const auto* faults = new std::vector<Fault>(parse_faults());
    uint64_t n = ++counts()[std::string("call: ") + call];
    std::string recorded = std::string("record/") + call;
    uint64_t of_recording = this_thread_records() ? ++counts()["call: " + recorded] : 0;
    for (auto& fault : *faults) {
        if ((fault.call == call && fault.nth == n) || (fault.call == recorded && fault.nth == of_recording)) {
            because(call, "asked for by SAM_LADDER_CUDA_FAIL");
            return fault.code;
        }
    }
    return 0;
}

void count(const std::string& what, uint64_t n) { counts()[what] += n; }

void because(const char* call, const std::string& reason) {
    ++reasons()[std::string(call) + ": " + reason];
    if (std::getenv("SAM_LADDER_CUDA_SAY")) std::fprintf(stderr, "host CUDA driver: %s: %s\n", call, reason.c_str());
}

} // namespace host
