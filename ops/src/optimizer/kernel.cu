// AdamW, Adam and SGD over all variables in one launch; the reference is cpu.rs.
#include "device/common.cuh"

// Variables of one launch: the table fits the 4 KiB that a kernel's arguments may take.
constexpr int VARIABLES = 80;
// Elements of one block.
constexpr int CHUNK = 4096;

// As `table` in cuda.rs fills it.
struct Table {
    float* value[VARIABLES];
    const void* gradient[VARIABLES];
    float* first[VARIABLES];
    float* second[VARIABLES];
    uint32_t len[VARIABLES];
    // The first block of each variable, and one past the last.
    uint32_t start[VARIABLES + 1];
    // Of each gradient: 0 float32, 1 bfloat16, 2 float16.
    uint32_t format[VARIABLES];
    int32_t count;
};

__device__ __forceinline__ float element(const void* gradient, uint32_t format, size_t i) {
    if (format == 1) return to_float(static_cast<const __nv_bfloat16*>(gradient)[i]);
    if (format == 2) return to_float(static_cast<const __half*>(gradient)[i]);
    return static_cast<const float*>(gradient)[i];
}

struct Rule {
    // 0 SGD, 1 Adam and AdamW.
    int32_t kind;
    float lr, keep, l2, step_size, correction2_sqrt, rest1, beta2, rest2, eps, momentum;
};

// Does nothing if one of the `guarded` numbers at `guard` is not finite: a step whose loss is NaN does not change the variables. The numbers that
// change between steps are read from `moving` if given, since a launch in a CUDA graph keeps its arguments.
KERNEL(optimizer_step, (Table table, Rule rule, const float* guard, int guarded, const float* moving)) {
    for (int i = 0; i < guarded; ++i) {
        if (!isfinite(guard[i])) return;
    }
    if (moving) {
        rule.lr = moving[0];
        rule.keep = moving[1];
        rule.step_size = moving[2];
        rule.correction2_sqrt = moving[3];
    }
    int variable = 0;
    while (variable + 1 < table.count && blockIdx.x >= table.start[variable + 1]) ++variable;
    size_t begin = static_cast<size_t>(blockIdx.x - table.start[variable]) * CHUNK;
    size_t end = begin + CHUNK < table.len[variable] ? begin + CHUNK : table.len[variable];
    float* value = table.value[variable];
    const void* gradient = table.gradient[variable];
    uint32_t format = table.format[variable];
    float* first = table.first[variable];
    float* second = table.second[variable];
    for (size_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
        float g = element(gradient, format, i) + rule.l2 * value[i];
        if (rule.kind == 0) {
            first[i] = rule.momentum * first[i] + g;
            value[i] -= rule.lr * first[i];
        } else {
            first[i] += rule.rest1 * (g - first[i]);
            second[i] = rule.beta2 * second[i] + rule.rest2 * g * g;
            value[i] = rule.keep * value[i] - rule.step_size * (first[i] / (sqrtf(second[i]) / rule.correction2_sqrt + rule.eps));
        }
    }
}
