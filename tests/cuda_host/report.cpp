// What the program did, and faults on request.
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

// NAME:n=CODE, separated by commas.
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

Lock lock() {
    static auto* mutex = new std::recursive_mutex();
    return Lock(*mutex);
}

void stop(const std::string& what) {
    std::fprintf(stderr, "host CUDA driver: %s%s%s\n", what.c_str(), current_work.empty() ? "" : ", during ", current_work.c_str());
    std::fflush(stderr);
    std::abort();
}

int enter(const char* call) {
    static const auto* faults = new std::vector<Fault>(parse_faults());
    uint64_t n = ++counts()[std::string("call: ") + call];
    for (auto& fault : *faults) {
        if (fault.call == call && fault.nth == n) {
            because(call, "asked for by SAM_LADDER_CUDA_FAIL");
            return fault.code;
        }
    }
    return 0;
}

void count(const std::string& what, uint64_t n) { counts()[what] += n; }

void record(const std::string& what) {
    static FILE* file = [] {
        const char* path = std::getenv("SAM_LADDER_CUDA_RECORD");
        return path ? std::fopen(path, "w") : nullptr;
    }();
    static auto* threads = new std::map<std::thread::id, size_t>();
    if (file == nullptr) return;
    size_t thread = threads->emplace(std::this_thread::get_id(), threads->size()).first->second;
    std::fprintf(file, "thread %zu %s\n", thread, what.c_str());
    std::fflush(file);
}

void because(const char* call, const std::string& reason) {
    ++reasons()[std::string(call) + ": " + reason];
    if (std::getenv("SAM_LADDER_CUDA_SAY")) std::fprintf(stderr, "host CUDA driver: %s: %s\n", call, reason.c_str());
}

} // namespace host
