// cuBLAS: products with float32 sums.
#include "product.h"

#include <cublas_v2.h>

struct cublasContext {
    CUstream stream = nullptr;
    cublasPointerMode_t pointer_mode = CUBLAS_POINTER_MODE_HOST;
    void* workspace = nullptr;
    size_t workspace_bytes = 0;
    bool live = true;
};

namespace {

using namespace host;

Format format_of(cudaDataType type) {
    switch (type) {
    case CUDA_R_32F: return Format::F32;
    case CUDA_R_16BF: return Format::Bf16;
    case CUDA_R_16F: return Format::F16;
    case CUDA_R_64F: return Format::F64;
    default: stop("cuBLAS: number format " + std::to_string(type));
    }
}

struct Product {
    bool transpose_a, transpose_b;
    size_t m, n, k, lda, ldb, ldc, batch;
    long long stride_a, stride_b, stride_c;
    const char *a, *b;
    char* c;
    Format a_format, b_format, c_format;
    float alpha, beta;
    bool tf32;
};

// Bytes from the first to the last number of a matrix of `columns` columns.
size_t extent(size_t rows, size_t columns, size_t leading, Format format) { return ((columns - 1) * leading + rows) * size_of(format); }

// Column by column as cuBLAS lays matrices: the transposed result, row by row, is b'·a'.
void multiply(const Product& p, CUstream stream) {
    for (size_t i = 0; i < p.batch; ++i) {
        auto a = p.a + p.stride_a * static_cast<long long>(i * size_of(p.a_format));
        auto b = p.b + p.stride_b * static_cast<long long>(i * size_of(p.b_format));
        auto c = p.c + p.stride_c * static_cast<long long>(i * size_of(p.c_format));
        check_operand(a, p.transpose_a ? extent(p.k, p.m, p.lda, p.a_format) : extent(p.m, p.k, p.lda, p.a_format), stream, "cuBLAS, a");
        check_operand(b, p.transpose_b ? extent(p.n, p.k, p.ldb, p.b_format) : extent(p.k, p.n, p.ldb, p.b_format), stream, "cuBLAS, b");
        check_operand(c, extent(p.m, p.n, p.ldc, p.c_format), stream, "cuBLAS, c");
    }
    if (!computes()) return;
    auto factor = [&](const char* from, size_t at, Format format) {
        float value = read(from, at, format);
        return p.tf32 ? to_tf32(value) : value;
    };
    // A part of the rows of one product at a time.
    size_t rows = p.batch > 1 ? p.n : std::max<size_t>(4, (p.n + 15) / 16), parts = (p.n + rows - 1) / rows;
    size_t panels = panels_of(p.m);
    std::vector<std::vector<float>> rights(p.batch, room_for_panels(p.k, p.m));
    parallel(p.batch * panels, [&](uint64_t index) {
        size_t i = index / panels;
        auto a = p.a + p.stride_a * static_cast<long long>(i * size_of(p.a_format));
        pack_panel(p.k, p.m, index % panels, !p.transpose_a, rights[i],
                   [&](size_t l, size_t j) { return factor(a, p.transpose_a ? l + j * p.lda : j + l * p.lda, p.a_format); });
    });
    parallel(p.batch * parts, [&](uint64_t index) {
        size_t i = index / parts, first = index % parts * rows, count = std::min(rows, p.n - first);
        auto b = p.b + p.stride_b * static_cast<long long>(i * size_of(p.b_format));
        auto c = p.c + p.stride_c * static_cast<long long>(i * size_of(p.c_format));
        std::vector<float> left(count * p.k), result(count * p.m);
        for (size_t j = 0; j < count; ++j) {
            for (size_t l = 0; l < p.k; ++l) left[j * p.k + l] = factor(b, p.transpose_b ? (first + j) + l * p.ldb : l + (first + j) * p.ldb, p.b_format);
        }
        host::multiply(count, p.m, p.k, left.data(), rights[i], result.data());
        for (size_t j = 0; j < count; ++j) {
            for (size_t r = 0; r < p.m; ++r) {
                size_t at = r + (first + j) * p.ldc;
                float before = p.beta == 0.0f ? 0.0f : p.beta * read(c, at, p.c_format);
                write(c, at, p.c_format, p.alpha * result[j * p.m + r] + before);
            }
        }
    });
}

void list_product(const Product& p, CUstream stream, const char* call) {
    uint64_t bytes = p.batch * (p.m * p.k * size_of(p.a_format) + p.k * p.n * size_of(p.b_format) + p.m * p.n * size_of(p.c_format));
    auto named = [](const char* name, size_t n) { return std::string(name) + "=" + std::to_string(n); };
    list({.kind = "product", .name = call, .stream = name_of(stream), .bytes = bytes,
          .shape = named("m", p.m) + named(" n", p.n) + named(" k", p.k) + named(" batch", p.batch) + named(" transpose_a", p.transpose_a) +
                   named(" transpose_b", p.transpose_b) + " factors=" + (p.tf32 ? "tf32" : name_of(p.a_format)) + " result=" + name_of(p.c_format)});
}

void check_handle(cublasHandle_t handle, const char* call) {
    if (handle == nullptr || !handle->live) stop(std::string(call) + ": the handle is destroyed or none");
}

cublasStatus_t queue(cublasHandle_t handle, Product p, const char* call) {
    check_handle(handle, call);
    if (handle->pointer_mode != CUBLAS_POINTER_MODE_HOST) stop(std::string(call) + ": the host driver reads factors from the host");
    bool fits = p.m > 0 && p.n > 0 && p.k > 0 && p.lda >= (p.transpose_a ? p.k : p.m) && p.ldb >= (p.transpose_b ? p.n : p.k) && p.ldc >= p.m;
    if (!fits) {
        because(call, "a dimension is 0, or a leading dimension is too small");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    count("cuBLAS products");
    if (lists()) list_product(p, handle->stream, call);
    if (is_recording(handle->stream) && handle->workspace == nullptr) count("cuBLAS workspaces that a graph allocates");
    CUstream stream = handle->stream;
    return submit(stream, {call, [p, stream] { multiply(p, stream); }}) == CUDA_SUCCESS ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

cublasStatus_t gemm_ex(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k, const void* alpha,
                       const void* A, cudaDataType a_type, int lda, long long stride_a, const void* B, cudaDataType b_type, int ldb,
                       long long stride_b, const void* beta, void* C, cudaDataType c_type, int ldc, long long stride_c, int batch,
                       cublasComputeType_t compute, const char* call) {
    if (m < 0 || n < 0 || k < 0 || batch < 1) return CUBLAS_STATUS_INVALID_VALUE;
    bool tf32 = compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    if (compute != CUBLAS_COMPUTE_32F && !tf32 && compute != CUBLAS_COMPUTE_32F_PEDANTIC) {
        stop(std::string(call) + ": sums of type " + std::to_string(compute) + " are not float32's");
    }
    if (tf32 && a_type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a_type != b_type || (c_type != a_type && c_type != CUDA_R_32F) || a_type == CUDA_R_64F) return CUBLAS_STATUS_NOT_SUPPORTED;
    auto size = [](int x) { return static_cast<size_t>(x); };
    Product p{transa != CUBLAS_OP_N,  transb != CUBLAS_OP_N,  size(m),   size(n),  size(k),  size(lda), size(ldb), size(ldc), size(batch), stride_a,
              stride_b,               stride_c,               static_cast<const char*>(A), static_cast<const char*>(B), static_cast<char*>(C),
              format_of(a_type),      format_of(b_type),      format_of(c_type),
              *static_cast<const float*>(alpha), *static_cast<const float*>(beta), tf32};
    return queue(handle, p, call);
}

} // namespace

HOST_API cublasStatus_t cublasCreate_v2(cublasHandle_t* out) {
    ENTER("cublasCreate");
    *out = new cublasContext();
    count("left: cuBLAS handles");
    return CUBLAS_STATUS_SUCCESS;
}

HOST_API cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    ENTER("cublasDestroy");
    check_handle(handle, "cublasDestroy");
    handle->live = false;
    count("left: cuBLAS handles", static_cast<uint64_t>(-1));
    return CUBLAS_STATUS_SUCCESS;
}

HOST_API cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    ENTER("cublasSetStream");
    check_handle(handle, "cublasSetStream");
    handle->stream = reinterpret_cast<CUstream>(stream);
    // "resets the cuBLAS library workspace to the default" (cuBLAS, cublasSetStream)
    handle->workspace = nullptr;
    return CUBLAS_STATUS_SUCCESS;
}

HOST_API cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
    ENTER("cublasSetWorkspace");
    check_handle(handle, "cublasSetWorkspace");
    if (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % 32 != 0) return CUBLAS_STATUS_INVALID_VALUE;
    handle->workspace = workspace;
    handle->workspace_bytes = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

HOST_API cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
    ENTER("cublasSetPointerMode");
    handle->pointer_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

HOST_API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t* mode) {
    *mode = handle->pointer_mode;
    return CUBLAS_STATUS_SUCCESS;
}

HOST_API cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k,
                                                   const void* alpha, const void* A, cudaDataType a_type, int lda, long long stride_a, const void* B,
                                                   cudaDataType b_type, int ldb, long long stride_b, const void* beta, void* C, cudaDataType c_type,
                                                   int ldc, long long stride_c, int batch, cublasComputeType_t compute, cublasGemmAlgo_t) {
    ENTER("cublasGemmStridedBatchedEx");
    return gemm_ex(handle, transa, transb, m, n, k, alpha, A, a_type, lda, stride_a, B, b_type, ldb, stride_b, beta, C, c_type, ldc, stride_c, batch,
                   compute, "cublasGemmStridedBatchedEx");
}

HOST_API cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k,
                                     const void* alpha, const void* A, cudaDataType a_type, int lda, const void* B, cudaDataType b_type, int ldb,
                                     const void* beta, void* C, cudaDataType c_type, int ldc, cublasComputeType_t compute, cublasGemmAlgo_t) {
    ENTER("cublasGemmEx");
    return gemm_ex(handle, transa, transb, m, n, k, alpha, A, a_type, lda, 0, B, b_type, ldb, 0, beta, C, c_type, ldc, 0, 1, compute, "cublasGemmEx");
}
