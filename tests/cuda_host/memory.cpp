// The device's memory: each allocation ends at a page that nobody may touch, starts as NaN, and is out of reach once it is freed.
#include "driver.h"

#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

namespace host {
namespace {

constexpr size_t PAGE = 4096;
// A GPU aligns to 256 bytes. Less is stricter; vectors of four doubles need 32.
constexpr size_t ALIGNMENT = 32;
constexpr unsigned char CANARY = 0xa5;
// Freed allocations that stay out of reach before their addresses are used again.
constexpr size_t QUARANTINE = 2048;

std::map<uintptr_t, std::shared_ptr<Block>>& blocks() {
    static auto* all = new std::map<uintptr_t, std::shared_ptr<Block>>();
    return *all;
}

std::map<uintptr_t, size_t>& pinned() {
    static auto* all = new std::map<uintptr_t, size_t>();
    return *all;
}

uint64_t allocated = 0;
// What the pool keeps of freed memory: it grows with what is allocated and shrinks when it is trimmed.
uint64_t reserved = 0;

uint64_t total_bytes() {
    static uint64_t bytes = [] {
        const char* text = std::getenv("SAM_LADDER_CUDA_MEMORY");
        return text ? std::strtoull(text, nullptr, 10) : 8ull << 30;
    }();
    return bytes;
}

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

std::shared_ptr<Block> find(const void* pointer) {
    auto after = blocks().upper_bound(reinterpret_cast<uintptr_t>(pointer));
    if (after == blocks().begin()) return nullptr;
    auto block = std::prev(after)->second;
    return static_cast<const char*>(pointer) <= block->user + block->size ? block : nullptr;
}

CUresult allocate(CUdeviceptr* out, size_t size, const char* call, CUstream stream, bool async) {
    if (lists()) list({.kind = "allocate", .name = call, .stream = name_of(stream), .bytes = size});
    if (out == nullptr || size == 0) {
        because(call, "0 bytes are asked for");
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (async && is_recording(stream)) {
        auto block = make_block(size);
        block->of_graph = true;
        block->live = false;
        block->stream = stream;
        stream->recording->graph->memory.push_back(block);
        *out = reinterpret_cast<CUdeviceptr>(block->user);
        return submit(stream, {std::string(call) + " of " + std::to_string(size) + " bytes", [block] {
                                   if (block->live) stop("a graph allocates memory that its last launch has not freed");
                                   block->live = true;
                                   poison(*block);
                               }});
    }
    if (allocated + size > total_bytes()) {
        because(call, "no memory is left");
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    auto block = make_block(size);
    block->stream = stream;
    *out = reinterpret_cast<CUdeviceptr>(block->user);
    return CUDA_SUCCESS;
}

void check_canary(const Block& block) {
    if (!computes()) return;
    for (char* p = block.user + block.size; p < block.map + block.map_size - PAGE; ++p) {
        if (static_cast<unsigned char>(*p) != CANARY) stop("something wrote behind " + describe(block.user));
    }
}

CUresult free_block(CUdeviceptr pointer, const char* call, CUstream stream, bool async) {
    auto found = blocks().find(pointer);
    if (found == blocks().end() || found->second->freed) {
        because(call, "the address is not the start of a live allocation");
        return CUDA_ERROR_INVALID_VALUE;
    }
    auto block = found->second;
    if (lists()) list({.kind = "free", .name = call, .stream = name_of(stream), .bytes = block->size});
    if (async && is_recording(stream)) {
        // "must therefore be passed the address of a graph allocation" (CUDA driver API, cuMemFreeAsync)
        if (!block->of_graph) {
            because(call, "memory from outside is freed while a graph is recorded");
            return CUDA_ERROR_INVALID_VALUE;
        }
        return submit(stream, {call, [block] {
                                   if (!block->live) stop("a graph frees memory that is not allocated");
                                   check_canary(*block);
                                   poison(*block);
                                   block->live = false;
                               }});
    }
    if (block->of_graph) {
        return submit(stream, {call, [block] { block->live = false; }});
    }
    block->freed = true;
    Op op{std::string(call) + " of " + std::to_string(block->size) + " bytes", [block] {
              check_canary(*block);
              drop_block(block);
          }};
    if (async) return submit(stream, std::move(op));
    wait_for_all();
    op.run();
    return CUDA_SUCCESS;
}

bool is_pinned(const void* pointer, size_t bytes) {
    auto address = reinterpret_cast<uintptr_t>(pointer);
    auto after = pinned().upper_bound(address);
    if (after == pinned().begin()) return false;
    auto& [start, size] = *std::prev(after);
    return address + bytes <= start + size;
}

CUresult to_device(CUdeviceptr to, const void* from, size_t bytes, CUstream stream, const char* call) {
    char* target = reinterpret_cast<char*>(to);
    std::string name = std::string(call) + " of " + std::to_string(bytes) + " bytes";
    count("bytes to the device", bytes);
    bool pinned = is_pinned(from, bytes);
    if (lists()) list({.kind = "to_device", .name = call, .stream = name_of(stream), .bytes = bytes, .shape = pinned ? "from=pinned" : "from=pageable"});
    if (pinned) {
        count("copies to the device from pinned memory");
        return submit(stream, {name, [=] {
                                   check_range(target, bytes, name);
                                   if (computes()) std::memcpy(target, from, bytes);
                               },
                               nullptr, from});
    }
    if (is_recording(stream)) {
        because(call, "pageable memory is copied while a graph is recorded");
        stream->recording->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    count("copies to the device from pageable memory");
    // The driver has read pageable memory when the call returns.
    auto copy = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + (computes() ? bytes : 0));
    return submit(stream, {name, [=] {
                               check_range(target, bytes, name);
                               std::memcpy(target, copy->data(), copy->size());
                           }});
}

CUresult to_host(void* to, CUdeviceptr from, size_t bytes, CUstream stream, const char* call) {
    const char* source = reinterpret_cast<const char*>(from);
    std::string name = std::string(call) + " of " + std::to_string(bytes) + " bytes";
    count("bytes to the host", bytes);
    bool pinned = is_pinned(to, bytes);
    if (lists()) list({.kind = "to_host", .name = call, .stream = name_of(stream), .bytes = bytes, .shape = pinned ? "to=pinned" : "to=pageable"});
    Op op{name, [=] {
              check_range(source, bytes, name);
              std::memcpy(to, source, bytes);
          }};
    if (pinned) {
        count("copies to the host into pinned memory");
        op.pinned = to;
        return submit(stream, std::move(op));
    }
    if (is_recording(stream)) {
        because(call, "the device is copied to pageable memory while a graph is recorded");
        stream->recording->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    // The driver waits until pageable memory is written.
    count("copies to the host into pageable memory");
    count_wait(call, name_of(stream), false);
    if (CUresult error = submit(stream, std::move(op))) return error;
    return wait_for(stream, call);
}

} // namespace

std::shared_ptr<Block> make_block(size_t size) {
    auto block = std::make_shared<Block>();
    size_t used = up(size, ALIGNMENT), pages = up(used, PAGE);
    block->size = size;
    block->map_size = pages + 2 * PAGE;
    void* map = mmap(nullptr, block->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) stop("the host has no memory for " + std::to_string(size) + " bytes");
    block->map = static_cast<char*>(map);
    if (mprotect(block->map + PAGE, pages, PROT_READ | PROT_WRITE) != 0) stop("the host has no memory for " + std::to_string(size) + " bytes");
    block->user = block->map + PAGE + (pages - used);
    if (computes()) std::memset(block->user + size, CANARY, used - size);
    poison(*block);
    blocks()[reinterpret_cast<uintptr_t>(block->user)] = block;
    allocated += size;
    reserved = std::max(reserved, allocated);
    return block;
}

void poison(Block& block) {
    if (computes()) std::memset(block.user, 0xff, block.size);
}

void drop_block(const std::shared_ptr<Block>& block) {
    if (blocks().erase(reinterpret_cast<uintptr_t>(block->user)) == 0) return;
    allocated -= block->size;
    block->live = false;
    mmap(block->map, block->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    static auto* quarantine = new std::deque<std::pair<void*, size_t>>();
    quarantine->emplace_back(block->map, block->map_size);
    if (quarantine->size() > QUARANTINE) {
        munmap(quarantine->front().first, quarantine->front().second);
        quarantine->pop_front();
    }
}

void check_range(const void* pointer, size_t bytes, const std::string& what) {
    auto block = find(pointer);
    auto start = static_cast<const char*>(pointer);
    if (!block || !block->live) stop(what + ": the address is not of live device memory");
    if (start + bytes > block->user + block->size) {
        stop(what + ": " + std::to_string(bytes) + " bytes at " + describe(pointer) + " reach beyond its end");
    }
}

void check_operand(const void* pointer, size_t bytes, CUstream stream, const std::string& what) {
    check_range(pointer, bytes, what);
    if (find(pointer)->stream != stream) stop(what + ": the library's handle has another stream than the memory");
}

std::string describe(const void* pointer) {
    auto block = find(pointer);
    if (!block) return "an address outside the device's memory";
    return "byte " + std::to_string(static_cast<const char*>(pointer) - block->user) + " of an allocation of " +
           std::to_string(block->size) + " bytes";
}

uint64_t reach_of(const void* pointer) {
    auto block = find(pointer);
    return block ? static_cast<uint64_t>(block->user + block->size - static_cast<const char*>(pointer)) : 0;
}

uint64_t kept_bytes() { return reserved - allocated; }
uint64_t live_bytes() { return allocated; }
size_t live_blocks() { return blocks().size(); }

} // namespace host

using namespace host;

HOST_API CUresult cuMemAllocAsync(CUdeviceptr* out, size_t size, CUstream stream) {
    ENTER("cuMemAllocAsync");
    return allocate(out, size, "cuMemAllocAsync", stream, true);
}

HOST_API CUresult cuMemAlloc_v2(CUdeviceptr* out, size_t size) {
    ENTER("cuMemAlloc");
    if (CUresult error = not_while_recording("cuMemAlloc")) return error;
    return allocate(out, size, "cuMemAlloc", nullptr, false);
}

HOST_API CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
    ENTER("cuMemFreeAsync");
    return free_block(pointer, "cuMemFreeAsync", stream, true);
}

HOST_API CUresult cuMemFree_v2(CUdeviceptr pointer) {
    ENTER("cuMemFree");
    if (CUresult error = not_while_recording("cuMemFree")) return error;
    count_wait("cuMemFree", "", is_idle());
    return free_block(pointer, "cuMemFree", nullptr, false);
}

HOST_API CUresult cuMemHostAlloc(void** out, size_t size, unsigned) {
    ENTER("cuMemHostAlloc");
    if (CUresult error = not_while_recording("cuMemHostAlloc")) return error;
    if (size == 0) return CUDA_ERROR_INVALID_VALUE;
    *out = std::aligned_alloc(PAGE, up(size, PAGE));
    if (*out == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
    std::memset(*out, 0xff, size);
    pinned()[reinterpret_cast<uintptr_t>(*out)] = size;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuMemFreeHost(void* pointer) {
    ENTER("cuMemFreeHost");
    if (CUresult error = not_while_recording("cuMemFreeHost")) return error;
    auto found = pinned().find(reinterpret_cast<uintptr_t>(pointer));
    if (found == pinned().end()) return CUDA_ERROR_INVALID_VALUE;
    if (uses_pinned(pointer, static_cast<char*>(pointer) + found->second)) stop("pinned memory is freed before the copy that uses it is done");
    pinned().erase(found);
    std::free(pointer);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    ENTER("cuMemcpyHtoDAsync");
    return to_device(to, from, bytes, stream, "cuMemcpyHtoDAsync");
}

HOST_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER("cuMemcpyHtoD");
    if (CUresult error = not_while_recording("cuMemcpyHtoD")) return error;
    if (CUresult error = to_device(to, from, bytes, nullptr, "cuMemcpyHtoD")) return error;
    count_wait("cuMemcpyHtoD", name_of(nullptr), is_idle(nullptr));
    return wait_for(nullptr, "cuMemcpyHtoD");
}

HOST_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER("cuMemcpyDtoHAsync");
    return to_host(to, from, bytes, stream, "cuMemcpyDtoHAsync");
}

HOST_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER("cuMemcpyDtoH");
    if (CUresult error = not_while_recording("cuMemcpyDtoH")) return error;
    return to_host(to, from, bytes, nullptr, "cuMemcpyDtoH");
}

HOST_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER("cuMemcpyDtoDAsync");
    count("copies within the device");
    if (lists()) list({.kind = "within_device", .name = "cuMemcpyDtoDAsync", .stream = name_of(stream), .bytes = 2 * bytes});
    auto target = reinterpret_cast<char*>(to);
    auto source = reinterpret_cast<const char*>(from);
    std::string name = "cuMemcpyDtoDAsync of " + std::to_string(bytes) + " bytes";
    return submit(stream, {name, [=] {
                               check_range(target, bytes, name);
                               check_range(source, bytes, name);
                               if (computes()) std::memmove(target, source, bytes);
                           }});
}

HOST_API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    ENTER("cuMemsetD8Async");
    count("fills");
    if (lists()) list({.kind = "fill", .name = "cuMemsetD8Async", .stream = name_of(stream), .bytes = bytes, .shape = "value=" + std::to_string(value)});
    auto target = reinterpret_cast<char*>(to);
    std::string name = "cuMemsetD8Async of " + std::to_string(bytes) + " bytes";
    return submit(stream, {name, [=] {
                               if (bytes > 0) check_range(target, bytes, name);
                               if (computes()) std::memset(target, value, bytes);
                           }});
}

HOST_API CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER("cuMemGetInfo");
    *total = total_bytes();
    *free = total_bytes() - std::min(total_bytes(), reserved);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice) {
    ENTER("cuDeviceGetDefaultMemPool");
    *pool = reinterpret_cast<CUmemoryPool>(&reserved);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
    ENTER("cuMemPoolSetAttribute");
    if (pool != reinterpret_cast<CUmemoryPool>(&reserved) || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (attribute != CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) stop("cuMemPoolSetAttribute: the host driver knows only the release threshold");
    return CUDA_SUCCESS;
}

HOST_API CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t bytes) {
    ENTER("cuMemPoolTrimTo");
    if (pool != reinterpret_cast<CUmemoryPool>(&reserved)) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult error = not_while_recording("cuMemPoolTrimTo")) return error;
    reserved = std::max<uint64_t>(allocated, std::min<uint64_t>(reserved, bytes));
    return CUDA_SUCCESS;
}
