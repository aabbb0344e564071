// A CUDA driver on the host, for tests: the program built with `--features cuda` runs against it on a machine without a GPU.
//
// Memory of the device is memory of the process, between pages that nobody may touch. Work is queued per stream and done as late as the
// program's own waits allow, so that a wait that is missing shows in the numbers. A mistake that a GPU might hide ends the process with
// what was wrong; what NVIDIA documents as an error is returned as that error.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#define HOST_API extern "C" __attribute__((visibility("default")))
// What the libraries of this folder call in each other.
#define HOST_SHARED __attribute__((visibility("default")))

namespace host {

using Lock = std::unique_lock<std::recursive_mutex>;
// Taken by every call.
HOST_SHARED Lock lock();

// ---- report.cpp: what is counted, and which call fails.

// Ends the process with a mistake of the program.
[[noreturn]] HOST_SHARED void stop(const std::string& what);
// Counts a call. The n-th call of NAME fails with CODE where SAM_LADDER_CUDA_FAIL says NAME:n=CODE, and the n-th within recordings where it
// says record/NAME:n=CODE.
HOST_SHARED int enter(const char* call);
// An error's number, as any library's type of errors.
struct Code {
    int number;
    template <typename E>
    operator E() const {
        return static_cast<E>(number);
    }
};
// What every call begins with.
#define ENTER(call)             \
    auto locked = host::lock(); \
    if (int code = host::enter(call)) return host::Code{code}
// Adds to a number of the report.
HOST_SHARED void count(const std::string& what, uint64_t n = 1);
// Keeps the reason of an error that is returned, for the report; printed where SAM_LADDER_CUDA_SAY is set.
HOST_SHARED void because(const char* call, const std::string& reason);

// A line of the list of calls (SAM_LADDER_CUDA_CALLS=calls.csv); its columns are in report.cpp.
struct Call {
    std::string kind, name;
    // The name of the stream that it is queued on or waits for.
    std::string stream;
    // Of a launch.
    std::string grid, block;
    uint64_t shared_bytes = 0, parameter_bytes = 0;
    // Of the device's memory that the call reads or writes.
    uint64_t bytes = 0;
    // NAME=VALUE, separated by blanks.
    std::string shape;
};
// Whether calls are listed.
HOST_SHARED bool lists();
HOST_SHARED void list(const Call& call);
// Counts and lists a call in which the host waits for a stream, or for the device if that has no name. `done`: whether nothing was left to do.
void count_wait(const char* call, const std::string& stream, bool done);
// Whether numbers are computed. With SAM_LADDER_CUDA_COMPUTE=no calls are checked and counted only, for sizes that a host takes hours for:
// memory reads as zero.
HOST_SHARED bool computes();

// ---- streams.cpp: queues of work.

// A moment in a stream.
struct Marker {
    CUstream_st* stream = nullptr;
    bool done = false;
    double seconds = 0;
};

// A piece of work.
struct Op {
    std::string name;
    std::function<void()> run;
    // Another stream's moment that has to come first.
    std::shared_ptr<Marker> after;
    // Pinned memory that is read or written.
    const void* pinned = nullptr;
};

// Queues work on a stream, or adds it to the graph that the stream is recording.
HOST_SHARED CUresult submit(CUstream stream, Op op);
// Does all work of a stream; an error within a recording.
HOST_SHARED CUresult wait_for(CUstream stream, const char* call);
// Does all work of all streams.
void wait_for_all();
// An error if this thread is recording a graph, which the call does not allow; it then ends the recording.
CUresult not_while_recording(const char* call);
// Whether this thread is recording a graph.
bool this_thread_records();
// Whether a stream is recording.
HOST_SHARED bool is_recording(CUstream stream);
// The name of a stream, for messages and the list of calls.
HOST_SHARED std::string name_of(CUstream stream);
// Whether nothing is queued on a stream, or on any.
bool is_idle(CUstream stream);
bool is_idle();
// Whether work that is not yet done uses pinned memory.
bool uses_pinned(const void* begin, const void* end);
// The work that is being done, for messages.
extern std::string current_work;

// ---- memory.cpp

// A piece of the device's memory.
struct Block {
    char* user = nullptr;
    size_t size = 0;
    char* map = nullptr;
    size_t map_size = 0;
    bool of_graph = false;
    // Whether the work that has been done so far has allocated and not freed it.
    bool live = true;
    // Whether the program has asked to free it.
    bool freed = false;
    // The stream that it was allocated on.
    CUstream stream = nullptr;
};

// Ends the process unless these bytes lie in one live piece of the device's memory.
HOST_SHARED void check_range(const void* pointer, size_t bytes, const std::string& what);
// As `check_range`, for an operand of a library whose handle has a stream.
HOST_SHARED void check_operand(const void* pointer, size_t bytes, CUstream stream, const std::string& what);
// What lies at an address, in words.
std::string describe(const void* pointer);
// Bytes from an address to the end of the device's memory there; 0 if there is none.
uint64_t reach_of(const void* pointer);
// Bytes that are allocated.
uint64_t live_bytes();
// Bytes that are freed and that the pool keeps.
uint64_t kept_bytes();
size_t live_blocks();
// Makes memory that a graph allocates, and gives it back.
std::shared_ptr<Block> make_block(size_t size);
void drop_block(const std::shared_ptr<Block>& block);
void poison(Block& block);

// ---- modules.cpp: cards and kernels.

// Limits of a card, by NVIDIA's table of compute capabilities.
struct Card {
    const char* name;
    int major, minor;
    int multiprocessors;
    // Shared memory of a block, after asking for more than 48 KiB.
    int shared_bytes;
    int registers;
};
HOST_SHARED const Card& card();

// Threads that do the blocks of a kernel or the rows of a product: calls f(0..n).
HOST_SHARED void parallel(uint64_t n, const std::function<void(uint64_t)>& f);

} // namespace host

struct CUstream_st {
    std::string name;
    std::deque<host::Op> queue;
    // The recording that is under way.
    std::shared_ptr<struct Recording> recording;
};

// Work in order, and the memory that it allocates.
struct CUgraph_st {
    std::vector<host::Op> nodes;
    std::vector<std::shared_ptr<host::Block>> memory;
    bool destroyed = false;
};

struct Recording {
    CUgraph graph = nullptr;
    CUstreamCaptureMode mode{};
    std::thread::id thread;
    bool invalid = false;
};
