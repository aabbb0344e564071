// Devices and contexts: one card, whose limits are those of SAM_LADDER_CUDA_CARD.
#include "driver.h"

#include <cstdlib>
#include <cstring>

namespace host {

const Card& card() {
    // NVIDIA's table of compute capabilities; the shared memory of a block after asking for more than 48 KiB.
    static const Card cards[] = {
        {"rtx3090", 8, 6, 82, 101376, 65536},
        {"a100", 8, 0, 108, 166912, 65536},
        {"rtx4090", 8, 9, 128, 101376, 65536},
        {"h100", 9, 0, 132, 232448, 65536},
    };
    static const Card* chosen = [] {
        const char* name = std::getenv("SAM_LADDER_CUDA_CARD");
        for (auto& one : cards) {
            if (name == nullptr || std::strcmp(name, one.name) == 0) return &one;
        }
        stop(std::string("SAM_LADDER_CUDA_CARD: expected rtx3090, a100, rtx4090 or h100, found ") + name);
    }();
    return *chosen;
}

namespace {
int context;
thread_local bool current = false;
} // namespace

} // namespace host

using namespace host;

HOST_API CUresult cuInit(unsigned) {
    ENTER("cuInit");
    return CUDA_SUCCESS;
}

HOST_API CUresult cuDeviceGetCount(int* n) {
    ENTER("cuDeviceGetCount");
    *n = 1;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    ENTER("cuDeviceGet");
    if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
    *device = 0;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuDeviceGetName(char* out, int length, CUdevice) {
    ENTER("cuDeviceGetName");
    std::string name = std::string("host driver as ") + card().name;
    std::strncpy(out, name.c_str(), static_cast<size_t>(length));
    return CUDA_SUCCESS;
}

HOST_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    size_t free = 0;
    return cuMemGetInfo_v2(&free, bytes);
}

HOST_API CUresult cuDeviceGetAttribute(int* out, CUdevice_attribute attribute, CUdevice) {
    ENTER("cuDeviceGetAttribute");
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *out = 1; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *out = card().major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *out = card().minor; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *out = card().multiprocessors; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *out = card().shared_bytes; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *out = 48 << 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *out = 1024; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *out = 32; break;
    default: stop("cuDeviceGetAttribute: the host driver does not know attribute " + std::to_string(attribute));
    }
    return CUDA_SUCCESS;
}

HOST_API CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice) {
    ENTER("cuDevicePrimaryCtxRetain");
    *out = reinterpret_cast<CUcontext>(&context);
    return CUDA_SUCCESS;
}

HOST_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) {
    ENTER("cuDevicePrimaryCtxRelease");
    return CUDA_SUCCESS;
}

HOST_API CUresult cuCtxGetCurrent(CUcontext* out) {
    *out = current ? reinterpret_cast<CUcontext>(&context) : nullptr;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuCtxSetCurrent(CUcontext to) {
    ENTER("cuCtxSetCurrent");
    if (to != nullptr && to != reinterpret_cast<CUcontext>(&context)) return CUDA_ERROR_INVALID_CONTEXT;
    current = to != nullptr;
    return CUDA_SUCCESS;
}

HOST_API CUresult cuGetErrorName(CUresult error, const char** out) {
    static thread_local std::string text;
    text = "CUDA error " + std::to_string(error);
    *out = text.c_str();
    return CUDA_SUCCESS;
}

HOST_API CUresult cuGetErrorString(CUresult error, const char** out) {
    static thread_local std::string text;
    text = "error " + std::to_string(error) + " of the host driver";
    *out = text.c_str();
    return CUDA_SUCCESS;
}
