// Streams, events and graphs.
#include "driver.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <set>
#include <utility>

struct CUevent_st {
    std::shared_ptr<host::Marker> marker;
    // The recording that the event was recorded in, while it is under way.
    std::weak_ptr<Recording> recording;
};

struct CUgraphExec_st {
    std::shared_ptr<CUgraph_st> work;
    bool frees_on_launch = false;
    bool launched = false;
};

namespace host {

std::string current_work;

namespace {

// Work that may wait; the oldest is done beyond it, so that memory that is to be freed does not pile up.
constexpr size_t LONGEST_QUEUE = 4096;

enum class Order { Late, Eager, CopiesFirst };

// When work is done: as late as possible, at once, or copies from pinned memory at once and the rest late.
Order order() {
    static Order chosen = [] {
        const char* text = std::getenv("SAM_LADDER_CUDA_ORDER");
        if (text == nullptr || std::strcmp(text, "late") == 0) return Order::Late;
        if (std::strcmp(text, "eager") == 0) return Order::Eager;
        if (std::strcmp(text, "copies-first") == 0) return Order::CopiesFirst;
        stop(std::string("SAM_LADDER_CUDA_ORDER: expected late, eager or copies-first, found ") + text);
    }();
    return chosen;
}

std::set<CUstream>& streams() {
    static auto* all = new std::set<CUstream>();
    return *all;
}

// The recordings that this thread has begun and that forbid it calls that wait.
thread_local std::vector<std::weak_ptr<Recording>> recordings;

CUstream resolve(CUstream stream) {
    static auto* legacy = new CUstream_st{"the default stream", {}, nullptr};
    static thread_local auto* own = new CUstream_st{"the thread's default stream", {}, nullptr};
    if (stream == nullptr || stream == CU_STREAM_LEGACY) {
        streams().insert(legacy);
        return legacy;
    }
    if (stream == CU_STREAM_PER_THREAD) {
        streams().insert(own);
        return own;
    }
    if (streams().count(stream) == 0) stop("a stream that is destroyed or none is used");
    return stream;
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void drain(CUstream stream, const Marker* until) {
    while (!stream->queue.empty() && !(until && until->done)) {
        Op op = std::move(stream->queue.front());
        stream->queue.pop_front();
        if (op.after && !op.after->done) drain(op.after->stream, op.after.get());
        std::string before = std::exchange(current_work, op.name);
        if (op.run) op.run();
        current_work = before;
    }
}

bool forbids_waits(const std::weak_ptr<Recording>& held) {
    auto recording = held.lock();
    return recording != nullptr;
}

// SAM_LADDER_CUDA_GRAPH_LEAVES_OUT=20: launches of a graph leave out its 20th kernel, so that it computes something else; 0 is none.
uint64_t left_out() {
    static const uint64_t number = [] {
        const char* text = std::getenv("SAM_LADDER_CUDA_GRAPH_LEAVES_OUT");
        return text == nullptr ? 0 : std::stoull(text);
    }();
    return number;
}

} // namespace

bool this_thread_records() { return std::ranges::any_of(recordings, forbids_waits); }

std::string name_of(CUstream stream) { return resolve(stream)->name; }

bool is_idle(CUstream stream) { return resolve(stream)->queue.empty(); }

bool is_idle() {
    return std::ranges::all_of(streams(), [](CUstream stream) { return stream->queue.empty(); });
}

bool is_recording(CUstream stream) { return resolve(stream)->recording != nullptr; }

CUresult not_while_recording(const char* call) {
    for (auto& held : recordings) {
        if (!forbids_waits(held)) continue;
        held.lock()->invalid = true;
        because(call, "it is not allowed while this thread records a graph");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult submit(CUstream handle, Op op) {
    CUstream stream = resolve(handle);
    if (stream->recording) {
        if (stream->recording->invalid) {
            because(op.name.c_str(), "the recording has failed before");
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        stream->recording->graph->nodes.push_back(std::move(op));
        return CUDA_SUCCESS;
    }
    bool at_once = order() == Order::Eager || (order() == Order::CopiesFirst && op.pinned != nullptr);
    stream->queue.push_back(std::move(op));
    if (at_once || stream->queue.size() > LONGEST_QUEUE) drain(stream, nullptr);
    return CUDA_SUCCESS;
}

CUresult wait_for(CUstream handle, const char* call) {
    CUstream stream = resolve(handle);
    if (stream->recording) {
        stream->recording->invalid = true;
        because(call, "the host waits for a stream that records a graph");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    drain(stream, nullptr);
    return CUDA_SUCCESS;
}

void wait_for_all() {
    for (CUstream stream : streams()) drain(stream, nullptr);
}

bool uses_pinned(const void* begin, const void* end) {
    for (CUstream stream : streams()) {
        for (auto& op : stream->queue) {
            if (op.pinned >= begin && op.pinned < end) return true;
        }
    }
    return false;
}

} // namespace host

using namespace host;

HOST_API CUresult cuStreamCreate(CUstream* out, unsigned) {
    ENTER("cuStreamCreate");
    static int made = 0;
    *out = new CUstream_st{"stream " + std::to_string(++made), {}, nullptr};
    streams().insert(*out);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuStreamDestroy_v2(CUstream stream) {
    ENTER("cuStreamDestroy");
    resolve(stream);
    if (stream->recording) stop(stream->name + " is destroyed while it records a graph");
    drain(stream, nullptr);
    // Markers may still name it.
    streams().erase(stream);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuStreamSynchronize(CUstream stream) {
    ENTER("cuStreamSynchronize");
    count_wait("cuStreamSynchronize", name_of(stream), is_idle(stream));
    return wait_for(stream, "cuStreamSynchronize");
}

HOST_API CUresult cuCtxSynchronize() {
    ENTER("cuCtxSynchronize");
    count_wait("cuCtxSynchronize", "", is_idle());
    if (CUresult error = not_while_recording("cuCtxSynchronize")) return error;
    for (CUstream stream : streams()) {
        if (stream->recording) {
            stream->recording->invalid = true;
            because("cuCtxSynchronize", "a stream records a graph");
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    wait_for_all();
    return CUDA_SUCCESS;
}

HOST_API CUresult cuEventCreate(CUevent* out, unsigned) {
    ENTER("cuEventCreate");
    *out = new CUevent_st();
    count("left: events");
    return CUDA_SUCCESS;
}

HOST_API CUresult cuEventDestroy_v2(CUevent event) {
    ENTER("cuEventDestroy");
    delete event;
    count("left: events", static_cast<uint64_t>(-1));
    return CUDA_SUCCESS;
}

HOST_API CUresult cuEventRecord(CUevent event, CUstream handle) {
    ENTER("cuEventRecord");
    CUstream stream = resolve(handle);
    auto marker = std::make_shared<Marker>();
    marker->stream = stream;
    event->marker = marker;
    event->recording = stream->recording;
    return submit(stream, {"cuEventRecord", [marker] {
                               marker->done = true;
                               marker->seconds = now();
                           }});
}

HOST_API CUresult cuEventSynchronize(CUevent event) {
    ENTER("cuEventSynchronize");
    bool done = event->marker == nullptr || event->marker->done;
    count_wait("cuEventSynchronize", event->marker == nullptr ? "" : event->marker->stream->name, done);
    if (event->recording.lock()) {
        event->recording.lock()->invalid = true;
        because("cuEventSynchronize", "the event was recorded into a graph");
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (!done) drain(event->marker->stream, event->marker.get());
    return CUDA_SUCCESS;
}

HOST_API CUresult cuEventQuery(CUevent event) {
    ENTER("cuEventQuery");
    if (CUresult error = not_while_recording("cuEventQuery")) return error;
    return event->marker == nullptr || event->marker->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

namespace {
CUresult elapsed(float* milliseconds, CUevent start, CUevent end) {
    if (!start->marker || !end->marker) return CUDA_ERROR_INVALID_HANDLE;
    if (!start->marker->done || !end->marker->done) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>((end->marker->seconds - start->marker->seconds) * 1e3);
    return CUDA_SUCCESS;
}
} // namespace

#undef cuEventElapsedTime
HOST_API CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    ENTER("cuEventElapsedTime");
    return elapsed(milliseconds, start, end);
}

HOST_API CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
    ENTER("cuEventElapsedTime");
    return elapsed(milliseconds, start, end);
}

HOST_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned) {
    ENTER("cuStreamWaitEvent");
    CUstream stream = resolve(handle);
    auto inside = event->recording.lock();
    if (inside != stream->recording) {
        if (stream->recording) {
            stream->recording->invalid = true;
            because("cuStreamWaitEvent", "a stream that records a graph waits for an event from outside");
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        stop("a stream waits for an event of a recording: the host driver records one stream only");
    }
    if (event->marker == nullptr) return CUDA_SUCCESS;
    return submit(stream, {"cuStreamWaitEvent", nullptr, stream->recording ? nullptr : event->marker});
}

HOST_API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    ENTER("cuStreamBeginCapture");
    CUstream stream = resolve(handle);
    if (handle == nullptr || handle == CU_STREAM_LEGACY) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->recording) {
        because("cuStreamBeginCapture", "the stream records already: a recording that failed must be ended");
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    if (mode == CU_STREAM_CAPTURE_MODE_GLOBAL) stop("cuStreamBeginCapture: the host driver knows the modes thread-local and relaxed");
    // A graph's memory comes from elsewhere than the pool.
    if (kept_bytes() > 0) count("recordings that begin while the pool keeps freed memory");
    auto recording = std::make_shared<Recording>();
    recording->graph = new CUgraph_st();
    recording->mode = mode;
    recording->thread = std::this_thread::get_id();
    stream->recording = recording;
    if (mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) recordings.push_back(recording);
    count("left: recordings");
    return CUDA_SUCCESS;
}

HOST_API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    ENTER("cuStreamIsCapturing");
    CUstream stream = resolve(handle);
    *status = !stream->recording           ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->recording->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                           : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuStreamEndCapture(CUstream handle, CUgraph* out) {
    auto locked = host::lock();
    // A call that fails on request ends the recording all the same, as NVIDIA's does.
    int asked = host::enter("cuStreamEndCapture");
    CUstream stream = resolve(handle);
    *out = nullptr;
    if (!stream->recording) {
        because("cuStreamEndCapture", "the stream records nothing");
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    auto recording = stream->recording;
    if (recording->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && recording->thread != std::this_thread::get_id()) {
        because("cuStreamEndCapture", "another thread began the recording");
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    stream->recording = nullptr;
    std::erase_if(recordings, [&](auto& held) { return held.lock() == recording || held.expired(); });
    count("left: recordings", static_cast<uint64_t>(-1));
    if (recording->invalid || asked) {
        for (auto& block : recording->graph->memory) drop_block(block);
        delete recording->graph;
        if (asked) return host::Code{asked};
        because("cuStreamEndCapture", "the recording has failed");
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    count("graphs recorded");
    count("nodes recorded", recording->graph->nodes.size());
    count("left: graphs");
    *out = recording->graph;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
    ENTER("cuGraphInstantiate");
    if (graph == nullptr || graph->destroyed) return CUDA_ERROR_INVALID_VALUE;
    if (graph->nodes.empty()) because("cuGraphInstantiate", "the graph is empty");
    auto work = std::shared_ptr<CUgraph_st>(new CUgraph_st(*graph), [](CUgraph_st* done) {
        for (auto& block : done->memory) drop_block(block);
        delete done;
    });
    *out = new CUgraphExec_st{work, (flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH) != 0, false};
    count("left: executable graphs");
    return CUDA_SUCCESS;
}

HOST_API CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
    ENTER("cuGraphUpload");
    if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
    resolve(stream);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    ENTER("cuGraphLaunch");
    if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (is_recording(handle)) stop("a graph is launched while another is recorded");
    count("graph launches");
    if (lists()) list({.kind = "graph", .name = "cuGraphLaunch", .stream = name_of(handle), .shape = "nodes=" + std::to_string(exec->work->nodes.size())});
    count("nodes launched", exec->work->nodes.size());
    bool again = std::exchange(exec->launched, true);
    auto work = exec->work;
    bool frees = exec->frees_on_launch;
    submit(handle, {"cuGraphLaunch", [work, again, frees] {
                        for (auto& block : work->memory) {
                            if (!block->live) continue;
                            if (again && !frees) stop("a graph is launched whose memory its last launch has not freed");
                            block->live = false;
                        }
                    }});
    uint64_t kernels = 0;
    for (auto& node : work->nodes) {
        if (node.name.starts_with("kernel ") && ++kernels == left_out()) continue;
        submit(handle, {node.name + " of a graph", node.run, nullptr, node.pinned});
    }
    return CUDA_SUCCESS;
}

HOST_API CUresult cuGraphExecDestroy(CUgraphExec exec) {
    ENTER("cuGraphExecDestroy");
    // What is queued of it holds its work.
    delete exec;
    count("left: executable graphs", static_cast<uint64_t>(-1));
    return CUDA_SUCCESS;
}

HOST_API CUresult cuGraphDestroy(CUgraph graph) {
    ENTER("cuGraphDestroy");
    if (graph == nullptr || graph->destroyed) return CUDA_ERROR_INVALID_VALUE;
    graph->destroyed = true;
    graph->nodes.clear();
    graph->memory.clear();
    count("left: graphs", static_cast<uint64_t>(-1));
    return CUDA_SUCCESS;
}
