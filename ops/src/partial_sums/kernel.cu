#include "device/common.cuh"

// out [c] = Σ over the splits of partial [c, splits], in order. One thread per sum.
KERNEL(sum_partials, (const double* partial, float* out, int splits, int c)) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= c) return;
    double sum = 0.0;
    for (int i = 0; i < splits; ++i) sum += partial[static_cast<size_t>(at) * splits + i];
    out[at] = static_cast<float>(sum);
}
