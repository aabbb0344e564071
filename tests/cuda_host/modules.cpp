// Modules and launches: a kernel is known by its name in the PTX or in the machine code, and done by the host's build of its source.
#include "driver.h"
#include "kernels.h"

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <regex>
#include <unistd.h>

struct CUfunc_st {
    std::string name;
    // Bytes of each parameter, by the PTX, and its type there.
    std::vector<size_t> parameters;
    std::vector<std::string> types;
    size_t static_shared = 0;
    unsigned most_threads = 1024;
    int dynamic_shared = 48 << 10;
    const host::Kernel* kernel = nullptr;
};

struct CUmod_st {
    std::map<std::string, CUfunc_st> functions;
};

namespace host {
namespace {

size_t bytes_of(const std::string& type) {
    static const std::map<std::string, size_t> sizes = {{"b8", 1},  {"u8", 1},  {"s8", 1},  {"b16", 2}, {"u16", 2}, {"s16", 2}, {"f16", 2}, {"b32", 4},
                                                        {"u32", 4}, {"s32", 4}, {"f32", 4}, {"b64", 8}, {"u64", 8}, {"s64", 8}, {"f64", 8}};
    auto found = sizes.find(type);
    if (found == sizes.end()) stop("the PTX has a parameter of type ." + type);
    return found->second;
}

// Sums the sizes that `pattern` finds: type, then a number of elements or none.
template <typename F>
void each_variable(const std::string& text, const char* pattern, F&& f) {
    std::regex variable(pattern);
    for (std::sregex_iterator at(text.begin(), text.end(), variable), end; at != end; ++at) {
        size_t n = (*at)[2].matched ? std::stoull((*at)[2]) : 1;
        f(bytes_of((*at)[1]) * n, (*at)[1]);
    }
}

CUmod_st* parse(const std::string& ptx) {
    auto* module = new CUmod_st();
    const std::string word = ".entry ";
    for (size_t at = ptx.find(word); at != std::string::npos; at = ptx.find(word, at + 1)) {
        size_t open = ptx.find('(', at), close = ptx.find(')', open), body = ptx.find('{', close);
        size_t end = ptx.find(word, at + 1);
        CUfunc_st function;
        function.name = ptx.substr(at + word.size(), open - at - word.size());
        each_variable(ptx.substr(open, close - open), R"(\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+[\w$]+(?:\[(\d+)\])?)",
                      [&](size_t bytes, const std::string& type) {
                          function.parameters.push_back(bytes);
                          function.types.push_back(type);
                      });
        std::string directives = ptx.substr(close, body - close);
        std::smatch found;
        if (std::regex_search(directives, found, std::regex(R"(\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?)"))) {
            function.most_threads = 1;
            for (int i = 1; i <= 3; ++i) function.most_threads *= found[i].matched ? static_cast<unsigned>(std::stoul(found[i])) : 1;
        }
        // Variables are declared at the start of a body; the rest is long.
        std::string declarations = ptx.substr(body, std::min(end == std::string::npos ? ptx.size() : end, body + 6000) - body);
        each_variable(declarations, R"(\.shared\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+[\w$]+(?:\[(\d+)\])?)",
                      [&](size_t bytes, const std::string&) { function.static_shared += bytes; });
        module->functions[function.name] = function;
    }
    return module;
}

template <typename T>
T read_at(const char* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// A kernel's attributes in machine code: entries of a format, an attribute and 16 bits, which in one format are the number of bytes that follow.
void read_attributes(const char* at, size_t bytes, CUfunc_st& function) {
    constexpr unsigned char WITH_BYTES = 4, MOST_THREADS = 0x05, PARAMETER = 0x17;
    std::map<uint16_t, size_t> sizes;
    for (const char* end = at + bytes; at + 4 <= end;) {
        auto format = read_at<unsigned char>(at), attribute = read_at<unsigned char>(at + 1);
        auto length = read_at<uint16_t>(at + 2);
        const char* value = at + 4;
        at = format == WITH_BYTES ? value + length : value;
        if (format != WITH_BYTES) continue;
        if (attribute == MOST_THREADS && length >= 12) {
            function.most_threads = read_at<uint32_t>(value) * read_at<uint32_t>(value + 4) * read_at<uint32_t>(value + 8);
        }
        if (attribute == PARAMETER && length >= 12) sizes[read_at<uint16_t>(value + 4)] = read_at<uint32_t>(value + 8) >> 18;
    }
    for (auto& [ordinal, size] : sizes) {
        function.parameters.push_back(size);
        function.types.push_back("b" + std::to_string(8 * size));
    }
}

// The architecture that machine code is for, as 80 for compute capability 8.0; 0 if it is no machine code of a GPU.
unsigned architecture_of(const char* image) {
    auto header = read_at<Elf64_Ehdr>(image);
    constexpr uint16_t CUDA = 190;
    if (header.e_machine != CUDA) return 0;
    // Where the number lies depends on the version of the format.
    return header.e_ident[EI_ABIVERSION] >= 8 ? header.e_flags >> 8 & 0xff : header.e_flags & 0xff;
}

CUmod_st* parse_machine_code(const char* image) {
    auto* module = new CUmod_st();
    auto header = read_at<Elf64_Ehdr>(image);
    auto section = [&](size_t index) { return read_at<Elf64_Shdr>(image + header.e_shoff + index * header.e_shentsize); };
    const char* names = image + section(header.e_shstrndx).sh_offset;
    auto each = [&](const std::string& prefix, auto&& f) {
        for (size_t i = 0; i < header.e_shnum; ++i) {
            auto one = section(i);
            std::string name = names + one.sh_name;
            if (name.starts_with(prefix)) f(name.substr(prefix.size()), one);
        }
    };
    each(".text.", [&](const std::string& name, const Elf64_Shdr&) { module->functions[name].name = name; });
    each(".nv.info.", [&](const std::string& name, const Elf64_Shdr& at) {
        auto found = module->functions.find(name);
        if (found != module->functions.end()) read_attributes(image + at.sh_offset, at.sh_size, found->second);
    });
    each(".nv.shared.", [&](const std::string& name, const Elf64_Shdr& at) {
        auto found = module->functions.find(name);
        if (found != module->functions.end()) found->second.static_shared = at.sh_size;
    });
    return module;
}

std::atomic<const char*> running{nullptr};

// Tells which kernel touched what it must not.
void on_fault(int signal, siginfo_t* info, void*) {
    const char* kernel = running.load();
    if (kernel == nullptr && current_work.empty()) {
        std::signal(signal, SIG_DFL);
        raise(signal);
    }
    std::string what = std::string(kernel ? "kernel " : "") + (kernel ? kernel : current_work) + (signal == SIGILL ? " reads or writes misaligned" : " touches ");
    if (signal != SIGILL) what += describe(info->si_addr);
    std::fprintf(stderr, "host CUDA driver: %s\n", what.c_str());
    _exit(134);
}

// A fiber's stack is no place for the handler. Threads of the program have one of Rust's for it.
void give_handler_a_stack() {
    static thread_local std::vector<char> stack(64 << 10);
    stack_t alternative{};
    alternative.ss_sp = stack.data();
    alternative.ss_size = stack.size();
    sigaltstack(&alternative, nullptr);
}

void catch_faults() {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : {SIGSEGV, SIGBUS, SIGILL}) sigaction(signal, &action, nullptr);
}

template <typename T>
T as(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// A parameter in words, and the bytes of the device's memory that it points to.
std::string describe_parameter(const char* from, size_t bytes, const std::string& type, uint64_t& reached) {
    if (type == "f32") return std::to_string(as<float>(from));
    if (type == "f64") return std::to_string(as<double>(from));
    if (bytes == 4 && type != "b8") return std::to_string(as<int32_t>(from));
    if (bytes == 8 && type != "b8") {
        uint64_t reach = reach_of(as<const void*>(from));
        reached += reach;
        return reach > 0 ? "@" + std::to_string(reach) : std::to_string(as<int64_t>(from));
    }
    uint64_t before = reached;
    for (size_t at = 0; at + 8 <= bytes; at += 8) reached += reach_of(as<const void*>(from + at));
    return std::to_string(bytes) + ":" + std::to_string(reached - before);
}

std::string extent(const unsigned (&sizes)[3]) {
    return std::to_string(sizes[0]) + "x" + std::to_string(sizes[1]) + "x" + std::to_string(sizes[2]);
}

void list_launch(const CUfunc_st& function, const unsigned (&grid)[3], const unsigned (&block)[3], unsigned shared, CUstream stream,
                 void** parameters) {
    Call call{.kind = "launch", .name = function.name, .stream = name_of(stream), .grid = extent(grid), .block = extent(block), .shared_bytes = shared};
    for (size_t i = 0; i < function.parameters.size(); ++i) {
        call.parameter_bytes += function.parameters[i];
        call.shape += (i > 0 ? " p" : "p") + std::to_string(i) + "=" +
                      describe_parameter(static_cast<const char*>(parameters[i]), function.parameters[i], function.types[i], call.bytes);
    }
    list(call);
}

CUresult refuse_launch(const CUfunc_st& function, const std::string& reason) {
    because("cuLaunchKernel", function.name + ": " + reason);
    return CUDA_ERROR_INVALID_VALUE;
}

} // namespace

namespace {

// Work that several threads of the host do, and who is at it.
struct Pool {
    std::mutex mutex;
    std::condition_variable start, finished;
    const std::function<void(uint64_t)>* work = nullptr;
    uint64_t n = 0, round = 0;
    std::atomic<uint64_t> next{0};
    unsigned busy = 0;

    // Takes indices until there are none.
    void take(const std::function<void(uint64_t)>& f) {
        for (uint64_t i = next++; i < n; i = next++) f(i);
    }

    [[noreturn]] void help() {
        give_handler_a_stack();
        for (uint64_t seen = 0;;) {
            std::unique_lock<std::mutex> held(mutex);
            start.wait(held, [&] { return work != nullptr && round != seen; });
            seen = round;
            ++busy;
            // The caller may take `work` back as soon as no index is left to begin.
            const auto& f = *work;
            held.unlock();
            take(f);
            held.lock();
            if (--busy == 0) finished.notify_all();
        }
    }
};

} // namespace

void parallel(uint64_t n, const std::function<void(uint64_t)>& f) {
    static const unsigned helpers = std::max(1u, std::thread::hardware_concurrency()) - 1;
    static auto* pool = [] {
        auto* made = new Pool();
        for (unsigned i = 0; i < helpers; ++i) std::thread([made] { made->help(); }).detach();
        catch_faults();
        return made;
    }();
    if (n <= 1 || helpers == 0) {
        for (uint64_t i = 0; i < n; ++i) f(i);
        return;
    }
    // Everybody who works holds the driver's lock, so that one caller at a time comes here.
    std::unique_lock<std::mutex> held(pool->mutex);
    pool->work = &f;
    pool->n = n;
    pool->next = 0;
    ++pool->round;
    held.unlock();
    pool->start.notify_all();
    pool->take(f);
    held.lock();
    // Whoever has not begun by now has nothing to do.
    pool->work = nullptr;
    pool->finished.wait(held, [] { return pool->busy == 0; });
}

} // namespace host

using namespace host;

HOST_API CUresult cuModuleLoadData(CUmodule* out, const void* image) {
    ENTER("cuModuleLoadData");
    if (CUresult error = not_while_recording("cuModuleLoadData")) return error;
    auto text = static_cast<const char*>(image);
    bool is_machine_code = std::memcmp(text, "\x7f" "ELF", 4) == 0;
    if (is_machine_code) {
        // A fault of its own, since the program then loads the PTX.
        if (int code = host::enter("load machine code")) return host::Code{code};
        unsigned architecture = architecture_of(text);
        if (static_cast<int>(architecture / 10) != card().major || static_cast<int>(architecture % 10) > card().minor) {
            because("cuModuleLoadData", "machine code for " + std::to_string(architecture) + " does not run on " + card().name);
            return CUDA_ERROR_NO_BINARY_FOR_GPU;
        }
    }
    *out = is_machine_code ? parse_machine_code(text) : parse(text);
    if ((*out)->functions.empty()) stop("cuModuleLoadData: a module has no kernels");
    // By one of its kernels, which says whose it is.
    count((is_machine_code ? "module as machine code: " : "module as PTX: ") + (*out)->functions.begin()->first);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuModuleUnload(CUmodule module) {
    ENTER("cuModuleUnload");
    wait_for_all();
    delete module;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
    ENTER("cuModuleGetFunction");
    auto found = module->functions.find(name);
    if (found == module->functions.end()) {
        because("cuModuleGetFunction", std::string("the PTX has no kernel ") + name);
        return CUDA_ERROR_NOT_FOUND;
    }
    CUfunc_st& function = found->second;
    if (function.kernel == nullptr) {
        function.kernel = kernel(name);
        if (function.kernel == nullptr) stop(std::string("the host driver has no kernel ") + name);
        if (function.kernel->parameters != function.parameters) stop(std::string(name) + ": parameters in the module and in the source differ");
    }
    *out = &function;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    ENTER("cuFuncSetAttribute");
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value < 0 || static_cast<size_t>(value) + function->static_shared > static_cast<size_t>(card().shared_bytes)) {
        because("cuFuncSetAttribute", function->name + ": " + std::to_string(value) + " bytes of shared memory are more than a block has on " + card().name);
        return CUDA_ERROR_INVALID_VALUE;
    }
    function->dynamic_shared = std::max(function->dynamic_shared, value);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuFuncGetAttribute(int* out, CUfunction_attribute attribute, CUfunction function) {
    ENTER("cuFuncGetAttribute");
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *out = static_cast<int>(function->static_shared); break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *out = static_cast<int>(function->most_threads); break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *out = function->dynamic_shared; break;
    default: stop("cuFuncGetAttribute: the host driver does not know attribute " + std::to_string(attribute));
    }
    return CUDA_SUCCESS;
}

HOST_API CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                 unsigned shared, CUstream stream, void** parameters, void** extra) {
    ENTER("cuLaunchKernel");
    if (extra != nullptr) stop("cuLaunchKernel: the host driver takes parameters one by one");
    uint64_t threads = uint64_t(bx) * by * bz;
    if (uint64_t(gx) * gy * gz == 0 || threads == 0) return refuse_launch(*function, "the grid or the block is empty");
    if (gx > 0x7fffffffu || gy > 65535 || gz > 65535) return refuse_launch(*function, "the grid is too large");
    if (threads > function->most_threads || bz > 64) return refuse_launch(*function, std::to_string(threads) + " threads in a block are too many");
    if (shared > static_cast<unsigned>(function->dynamic_shared)) {
        return refuse_launch(*function, std::to_string(shared) + " bytes of shared memory were not asked for");
    }
    if (shared + function->static_shared > static_cast<size_t>(card().shared_bytes)) {
        return refuse_launch(*function, "static and dynamic shared memory are more than a block has on " + std::string(card().name));
    }
    count("launches");
    count("launch: " + function->name);
    if (lists()) list_launch(*function, {gx, gy, gz}, {bx, by, bz}, shared, stream, parameters);
    // Parameters are read when the call is made.
    auto launch = std::make_shared<Launch>();
    launch->kernel = function->kernel;
    launch->grid = {gx, gy, gz};
    launch->block = {bx, by, bz};
    launch->shared_bytes = shared;
    for (size_t i = 0; i < function->parameters.size(); ++i) {
        auto from = static_cast<const char*>(parameters[i]);
        launch->values.emplace_back((function->parameters[i] + 15) / 16);
        std::memcpy(launch->values.back().data(), from, function->parameters[i]);
    }
    return submit(stream, {"kernel " + function->name, [launch] {
                               if (!computes()) return;
                               running = launch->kernel->name.c_str();
                               run(*launch);
                               running = nullptr;
                           }});
}
