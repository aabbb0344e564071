// cuDNN: convolutions of packed NCHW tensors, as products of unfolded images.
#include "product.h"

#include <cudnn.h>

struct cudnnContext {
    CUstream stream = nullptr;
    bool live = true;
};

struct cudnnTensorStruct {
    host::Format format{};
    int dims[4] = {};
};

struct cudnnFilterStruct {
    host::Format format{};
    int dims[4] = {};
};

struct cudnnConvolutionStruct {
    int padding[2] = {}, stride[2] = {}, dilation[2] = {};
    cudnnMathType_t math = CUDNN_DEFAULT_MATH;
};

namespace {

using namespace host;

Format format_of(cudnnDataType_t type) {
    switch (type) {
    case CUDNN_DATA_FLOAT: return Format::F32;
    case CUDNN_DATA_BFLOAT16: return Format::Bf16;
    case CUDNN_DATA_HALF: return Format::F16;
    default: stop("cuDNN: number format " + std::to_string(type));
    }
}

// The directions, and the algorithms that the heuristics name in each, in this order: one that fails, one whose scratch memory is beyond
// any bound, one that is not deterministic, and one that is.
enum class Direction { Forward, Data, Filter };

struct Algorithm {
    int number;
    cudnnStatus_t status;
    size_t scratch;
    cudnnDeterminism_t determinism;
};

const std::vector<Algorithm>& algorithms(Direction direction) {
    static const std::vector<Algorithm> forward = {
        {CUDNN_CONVOLUTION_FWD_ALGO_FFT, CUDNN_STATUS_NOT_SUPPORTED, 0, CUDNN_DETERMINISTIC},
        {CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED, CUDNN_STATUS_SUCCESS, size_t(6) << 30, CUDNN_DETERMINISTIC},
        {CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM, CUDNN_STATUS_SUCCESS, 1 << 20, CUDNN_DETERMINISTIC},
        {CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM, CUDNN_STATUS_SUCCESS, 0, CUDNN_DETERMINISTIC},
    };
    static const std::vector<Algorithm> data = {
        {CUDNN_CONVOLUTION_BWD_DATA_ALGO_FFT, CUDNN_STATUS_NOT_SUPPORTED, 0, CUDNN_DETERMINISTIC},
        {CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED, CUDNN_STATUS_SUCCESS, size_t(6) << 30, CUDNN_DETERMINISTIC},
        {CUDNN_CONVOLUTION_BWD_DATA_ALGO_0, CUDNN_STATUS_SUCCESS, 0, CUDNN_NON_DETERMINISTIC},
        {CUDNN_CONVOLUTION_BWD_DATA_ALGO_1, CUDNN_STATUS_SUCCESS, 2 << 20, CUDNN_DETERMINISTIC},
    };
    static const std::vector<Algorithm> filter = {
        {CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT, CUDNN_STATUS_NOT_SUPPORTED, 0, CUDNN_DETERMINISTIC},
        {CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD_NONFUSED, CUDNN_STATUS_SUCCESS, size_t(6) << 30, CUDNN_DETERMINISTIC},
        {CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0, CUDNN_STATUS_SUCCESS, 0, CUDNN_NON_DETERMINISTIC},
        {CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1, CUDNN_STATUS_SUCCESS, 3 << 20, CUDNN_DETERMINISTIC},
    };
    return direction == Direction::Forward ? forward : direction == Direction::Data ? data : filter;
}

// The math that an algorithm has for a descriptor's: the deterministic one of 16-bit numbers does not have what the descriptor asks for,
// and has to be told so.
cudnnMathType_t math_of(const Algorithm& algorithm, Format format, cudnnMathType_t asked) {
    if (asked == CUDNN_FMA_MATH || format == Format::F32) return asked;
    return algorithm.determinism == CUDNN_DETERMINISTIC ? CUDNN_DEFAULT_MATH : CUDNN_TENSOR_OP_MATH;
}

const Algorithm& known(Direction direction, int number, const char* call) {
    for (auto& algorithm : algorithms(direction)) {
        if (algorithm.number == number) return algorithm;
    }
    stop(std::string(call) + ": algorithm " + std::to_string(number) + " was never named");
}

struct Convolution {
    size_t b, ci, h, w, co, kh, kw, oh, ow, padding, stride;
    Format format;
    bool tf32;
};

Convolution describe(const cudnnTensorStruct* x, const cudnnFilterStruct* f, const cudnnConvolutionStruct* c, const cudnnTensorStruct* y,
                     const char* call) {
    auto size = [](int n) { return static_cast<size_t>(n); };
    if (x->format != f->format || x->format != y->format) stop(std::string(call) + ": the descriptors have different number formats");
    if (c->dilation[0] != 1 || c->dilation[1] != 1) stop(std::string(call) + ": the host driver knows no dilation");
    auto out = [&](int n, int k, int i) { return (n + 2 * c->padding[i] - k) / c->stride[i] + 1; };
    bool fits = x->dims[0] == y->dims[0] && x->dims[1] == f->dims[1] && y->dims[1] == f->dims[0] && y->dims[2] == out(x->dims[2], f->dims[2], 0) &&
                y->dims[3] == out(x->dims[3], f->dims[3], 1);
    if (!fits) stop(std::string(call) + ": the descriptors' shapes do not go together");
    return {size(x->dims[0]), size(x->dims[1]), size(x->dims[2]), size(x->dims[3]), size(f->dims[0]), size(f->dims[2]),   size(f->dims[3]),
            size(y->dims[2]), size(y->dims[3]), size(c->padding[0]), size(c->stride[0]), x->format,   x->format == Format::F32 && c->math != CUDNN_FMA_MATH};
}

// Outputs 0..n whose tap at `offset` lies within `size` inputs, as first and one past the last.
std::pair<size_t, size_t> inside(size_t n, size_t offset, const Convolution& g, size_t size) {
    size_t first = offset < g.padding ? (g.padding - offset + g.stride - 1) / g.stride : 0;
    size_t limit = size + g.padding > offset ? (size + g.padding - offset + g.stride - 1) / g.stride : 0;
    return {first, std::max(first, std::min(n, limit))};
}

// Calls f(row of the unfolded image, position in the output, position in the image) for all that lie in the image.
template <typename F>
void each_tap(const Convolution& g, F&& f) {
    for (size_t c = 0; c < g.ci; ++c) {
        for (size_t i = 0; i < g.kh; ++i) {
            auto [first_y, end_y] = inside(g.oh, i, g, g.h);
            for (size_t j = 0; j < g.kw; ++j) {
                size_t row = (c * g.kh + i) * g.kw + j;
                auto [first_x, end_x] = inside(g.ow, j, g, g.w);
                for (size_t y = first_y; y < end_y; ++y) {
                    size_t line = (c * g.h + y * g.stride + i - g.padding) * g.w + j - g.padding;
                    for (size_t x = first_x; x < end_x; ++x) f(row, y * g.ow + x, line + x * g.stride);
                }
            }
        }
    }
}

std::vector<float> numbers(const char* from, size_t first, size_t n, const Convolution& g) {
    std::vector<float> values(n);
    for (size_t i = 0; i < n; ++i) {
        values[i] = read(from, first + i, g.format);
        if (g.tf32) values[i] = to_tf32(values[i]);
    }
    return values;
}

std::vector<float> transposed(const std::vector<float>& from, size_t rows, size_t columns) {
    std::vector<float> to(from.size());
    for (size_t i = 0; i < rows; ++i) {
        for (size_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
    }
    return to;
}

void forward(const Convolution& g, const char* x, const char* w, char* y, float alpha, float beta) {
    size_t taps = g.ci * g.kh * g.kw, pixels = g.oh * g.ow;
    auto weight = numbers(w, 0, g.co * taps, g);
    parallel(g.b, [&](uint64_t i) {
        auto image = numbers(x, i * g.ci * g.h * g.w, g.ci * g.h * g.w, g);
        std::vector<float> unfolded(taps * pixels, 0.0f), result(g.co * pixels);
        each_tap(g, [&](size_t row, size_t out, size_t in) { unfolded[row * pixels + out] = image[in]; });
        multiply(g.co, pixels, taps, weight.data(), unfolded.data(), result.data());
        for (size_t n = 0; n < result.size(); ++n) {
            size_t at = i * result.size() + n;
            write(y, at, g.format, alpha * result[n] + (beta == 0 ? 0 : beta * read(y, at, g.format)));
        }
    });
}

void backward_data(const Convolution& g, const char* w, const char* dy, char* dx, float alpha, float beta) {
    size_t taps = g.ci * g.kh * g.kw, pixels = g.oh * g.ow, image = g.ci * g.h * g.w;
    auto weight = transposed(numbers(w, 0, g.co * taps, g), g.co, taps);
    parallel(g.b, [&](uint64_t i) {
        auto gradient = numbers(dy, i * g.co * pixels, g.co * pixels, g);
        std::vector<float> unfolded(taps * pixels), result(image, 0.0f);
        multiply(taps, pixels, g.co, weight.data(), gradient.data(), unfolded.data());
        each_tap(g, [&](size_t row, size_t out, size_t in) { result[in] += unfolded[row * pixels + out]; });
        for (size_t n = 0; n < image; ++n) {
            size_t at = i * image + n;
            write(dx, at, g.format, alpha * result[n] + (beta == 0 ? 0 : beta * read(dx, at, g.format)));
        }
    });
}

void backward_filter(const Convolution& g, const char* x, const char* dy, char* dw, float alpha, float beta) {
    size_t taps = g.ci * g.kh * g.kw, pixels = g.oh * g.ow;
    std::vector<std::vector<float>> parts(g.b);
    parallel(g.b, [&](uint64_t i) {
        auto image = numbers(x, i * g.ci * g.h * g.w, g.ci * g.h * g.w, g);
        auto gradient = numbers(dy, i * g.co * pixels, g.co * pixels, g);
        std::vector<float> unfolded(pixels * taps, 0.0f);
        each_tap(g, [&](size_t row, size_t out, size_t in) { unfolded[out * taps + row] = image[in]; });
        parts[i].resize(g.co * taps);
        multiply(g.co, taps, pixels, gradient.data(), unfolded.data(), parts[i].data());
    });
    for (size_t n = 0; n < g.co * taps; ++n) {
        float sum = 0;
        for (auto& part : parts) sum += part[n];
        write(dw, n, g.format, alpha * sum + (beta == 0 ? 0 : beta * read(dw, n, g.format)));
    }
}

size_t x_bytes(const Convolution& g) { return g.b * g.ci * g.h * g.w * size_of(g.format); }
size_t w_bytes(const Convolution& g) { return g.co * g.ci * g.kh * g.kw * size_of(g.format); }
size_t y_bytes(const Convolution& g) { return g.b * g.co * g.oh * g.ow * size_of(g.format); }

template <typename Perf>
cudnnStatus_t name_algorithms(Direction direction, const Convolution& g, cudnnMathType_t asked, int requested, int* returned, Perf* results) {
    auto& all = algorithms(direction);
    *returned = std::min(requested, static_cast<int>(all.size()));
    for (int i = 0; i < *returned; ++i) {
        auto& algorithm = all[static_cast<size_t>(i)];
        results[i] = Perf{};
        results[i].algo = static_cast<decltype(results[i].algo)>(algorithm.number);
        results[i].status = algorithm.status;
        results[i].time = static_cast<float>(i + 1);
        results[i].memory = algorithm.scratch;
        results[i].determinism = algorithm.determinism;
        results[i].mathType = math_of(algorithm, g.format, asked);
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t scratch_of(Direction direction, int number, const char* call, size_t* bytes) {
    auto& found = known(direction, number, call);
    *bytes = found.scratch;
    return found.status;
}

// A convolution of one direction: y = x * w, or the gradient of x or of w, times alpha, plus beta times what is there.
struct Work {
    Direction direction;
    int algorithm;
    Convolution g;
    cudnnMathType_t math;
    const void *x, *w, *y;
    void* scratch;
    size_t scratch_bytes;
    float alpha, beta;
};

const char* call_of(Direction direction) {
    return direction == Direction::Forward ? "cudnnConvolutionForward"
           : direction == Direction::Data  ? "cudnnConvolutionBackwardData"
                                           : "cudnnConvolutionBackwardFilter";
}

void list_convolution(const Work& work, CUstream stream) {
    auto& g = work.g;
    auto named = [](const char* name, size_t n) { return std::string(name) + "=" + std::to_string(n); };
    list({.kind = "convolution", .name = call_of(work.direction), .stream = name_of(stream), .bytes = x_bytes(g) + w_bytes(g) + y_bytes(g),
          .shape = named("batch", g.b) + named(" in", g.ci) + named(" h", g.h) + named(" w", g.w) + named(" out", g.co) + named(" kernel", g.kh) +
                   named(" out_h", g.oh) + named(" out_w", g.ow) + named(" stride", g.stride) + named(" padding", g.padding) + " factors=" +
                   (g.tf32 ? "tf32" : name_of(g.format)) + " result=" + name_of(g.format)});
}

void compute(const Work& work) {
    auto x = static_cast<const char*>(work.x), w = static_cast<const char*>(work.w), y = static_cast<const char*>(work.y);
    switch (work.direction) {
    case Direction::Forward: forward(work.g, x, w, const_cast<char*>(y), work.alpha, work.beta); break;
    case Direction::Data: backward_data(work.g, w, y, const_cast<char*>(x), work.alpha, work.beta); break;
    case Direction::Filter: backward_filter(work.g, x, y, const_cast<char*>(w), work.alpha, work.beta); break;
    }
}

// Checks a convolution and queues it.
cudnnStatus_t queue(cudnnHandle_t handle, const Work& work) {
    std::string call = call_of(work.direction);
    if (handle == nullptr || !handle->live) stop(call + ": the handle is destroyed or none");
    const Algorithm& algorithm = known(work.direction, work.algorithm, call.c_str());
    if (algorithm.status != CUDNN_STATUS_SUCCESS) {
        because(call.c_str(), "the algorithm does not support this convolution");
        return CUDNN_STATUS_NOT_SUPPORTED;
    }
    if (work.math != math_of(algorithm, work.g.format, work.math) && work.g.format != Format::F32) {
        because(call.c_str(), "the descriptor's math type is not the algorithm's");
        return CUDNN_STATUS_NOT_SUPPORTED;
    }
    if (work.scratch_bytes < algorithm.scratch) {
        because(call.c_str(), "the workspace is smaller than the algorithm asked for");
        return CUDNN_STATUS_BAD_PARAM;
    }
    count("cuDNN convolutions");
    if (lists()) list_convolution(work, handle->stream);
    CUstream stream = handle->stream;
    CUresult queued = submit(stream, {call, [=] {
                                          check_operand(work.x, x_bytes(work.g), stream, call);
                                          check_operand(work.w, w_bytes(work.g), stream, call);
                                          check_operand(work.y, y_bytes(work.g), stream, call);
                                          if (algorithm.scratch > 0) check_operand(work.scratch, algorithm.scratch, stream, call + ", workspace");
                                          if (!computes()) return;
                                          if (algorithm.scratch > 0) std::memset(work.scratch, 0xff, algorithm.scratch);
                                          compute(work);
                                      }});
    return queued == CUDA_SUCCESS ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}

float number(const void* factor) { return *static_cast<const float*>(factor); }

} // namespace

HOST_API cudnnStatus_t cudnnCreate(cudnnHandle_t* out) {
    ENTER("cudnnCreate");
    *out = new cudnnContext();
    count("left: cuDNN handles");
    return CUDNN_STATUS_SUCCESS;
}

HOST_API cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
    ENTER("cudnnDestroy");
    if (handle == nullptr || !handle->live) stop("cudnnDestroy: the handle is destroyed or none");
    handle->live = false;
    count("left: cuDNN handles", static_cast<uint64_t>(-1));
    return CUDNN_STATUS_SUCCESS;
}

HOST_API cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    ENTER("cudnnSetStream");
    handle->stream = reinterpret_cast<CUstream>(stream);
    return CUDNN_STATUS_SUCCESS;
}

HOST_API size_t cudnnGetVersion() { return CUDNN_VERSION; }

#define DESCRIPTOR(Name, Type)                                           \
    HOST_API cudnnStatus_t cudnnCreate##Name##Descriptor(Type* out) {    \
        ENTER("cudnnCreate" #Name "Descriptor");                         \
        *out = new std::remove_pointer_t<Type>();                        \
        count("left: cuDNN descriptors");                                \
        return CUDNN_STATUS_SUCCESS;                                     \
    }                                                                    \
    HOST_API cudnnStatus_t cudnnDestroy##Name##Descriptor(Type which) {  \
        ENTER("cudnnDestroy" #Name "Descriptor");                        \
        delete which;                                                    \
        count("left: cuDNN descriptors", static_cast<uint64_t>(-1));     \
        return CUDNN_STATUS_SUCCESS;                                     \
    }
DESCRIPTOR(Tensor, cudnnTensorDescriptor_t)
DESCRIPTOR(Filter, cudnnFilterDescriptor_t)
DESCRIPTOR(Convolution, cudnnConvolutionDescriptor_t)

HOST_API cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t which, cudnnTensorFormat_t layout, cudnnDataType_t type, int n, int c,
                                                  int h, int w) {
    ENTER("cudnnSetTensor4dDescriptor");
    if (layout != CUDNN_TENSOR_NCHW) stop("cuDNN: the host driver knows NCHW only");
    *which = {format_of(type), {n, c, h, w}};
    return CUDNN_STATUS_SUCCESS;
}

HOST_API cudnnStatus_t cudnnSetFilter4dDescriptor(cudnnFilterDescriptor_t which, cudnnDataType_t type, cudnnTensorFormat_t layout, int k, int c,
                                                  int h, int w) {
    ENTER("cudnnSetFilter4dDescriptor");
    if (layout != CUDNN_TENSOR_NCHW) stop("cuDNN: the host driver knows NCHW only");
    *which = {format_of(type), {k, c, h, w}};
    return CUDNN_STATUS_SUCCESS;
}

HOST_API cudnnStatus_t cudnnSetConvolution2dDescriptor(cudnnConvolutionDescriptor_t which, int pad_h, int pad_w, int stride_h, int stride_w,
                                                       int dilation_h, int dilation_w, cudnnConvolutionMode_t mode, cudnnDataType_t sums) {
    ENTER("cudnnSetConvolution2dDescriptor");
    if (mode != CUDNN_CROSS_CORRELATION) stop("cuDNN: the host driver knows cross-correlation only");
    if (sums != CUDNN_DATA_FLOAT) stop("cuDNN: sums are not float32's");
    if (pad_h != pad_w || stride_h != stride_w) stop("cuDNN: the host driver knows equal padding and stride only");
    *which = {{pad_h, pad_w}, {stride_h, stride_w}, {dilation_h, dilation_w}, CUDNN_DEFAULT_MATH};
    return CUDNN_STATUS_SUCCESS;
}

HOST_API cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t which, cudnnMathType_t math) {
    ENTER("cudnnSetConvolutionMathType");
    which->math = math;
    return CUDNN_STATUS_SUCCESS;
}

HOST_API cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t x, const cudnnFilterDescriptor_t w,
                                                              const cudnnConvolutionDescriptor_t c, const cudnnTensorDescriptor_t y,
                                                              const int requested, int* returned, cudnnConvolutionFwdAlgoPerf_t* results) {
    ENTER("cudnnGetConvolutionForwardAlgorithm_v7");
    Convolution g = describe(x, w, c, y, "cudnnGetConvolutionForwardAlgorithm_v7");
    return name_algorithms(Direction::Forward, g, c->math, requested, returned, results);
}

HOST_API cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm_v7(cudnnHandle_t, const cudnnFilterDescriptor_t w, const cudnnTensorDescriptor_t dy,
                                                                   const cudnnConvolutionDescriptor_t c, const cudnnTensorDescriptor_t dx,
                                                                   const int requested, int* returned, cudnnConvolutionBwdDataAlgoPerf_t* results) {
    ENTER("cudnnGetConvolutionBackwardDataAlgorithm_v7");
    Convolution g = describe(dx, w, c, dy, "cudnnGetConvolutionBackwardDataAlgorithm_v7");
    return name_algorithms(Direction::Data, g, c->math, requested, returned, results);
}

HOST_API cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm_v7(cudnnHandle_t, const cudnnTensorDescriptor_t x,
                                                                     const cudnnTensorDescriptor_t dy, const cudnnConvolutionDescriptor_t c,
                                                                     const cudnnFilterDescriptor_t dw, const int requested, int* returned,
                                                                     cudnnConvolutionBwdFilterAlgoPerf_t* results) {
    ENTER("cudnnGetConvolutionBackwardFilterAlgorithm_v7");
    Convolution g = describe(x, dw, c, dy, "cudnnGetConvolutionBackwardFilterAlgorithm_v7");
    return name_algorithms(Direction::Filter, g, c->math, requested, returned, results);
}

HOST_API cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(cudnnHandle_t, const cudnnTensorDescriptor_t, const cudnnFilterDescriptor_t,
                                                               const cudnnConvolutionDescriptor_t, const cudnnTensorDescriptor_t,
                                                               cudnnConvolutionFwdAlgo_t algorithm, size_t* bytes) {
    ENTER("cudnnGetConvolutionForwardWorkspaceSize");
    return scratch_of(Direction::Forward, algorithm, "cudnnGetConvolutionForwardWorkspaceSize", bytes);
}

HOST_API cudnnStatus_t cudnnGetConvolutionBackwardDataWorkspaceSize(cudnnHandle_t, const cudnnFilterDescriptor_t, const cudnnTensorDescriptor_t,
                                                                    const cudnnConvolutionDescriptor_t, const cudnnTensorDescriptor_t,
                                                                    cudnnConvolutionBwdDataAlgo_t algorithm, size_t* bytes) {
    ENTER("cudnnGetConvolutionBackwardDataWorkspaceSize");
    return scratch_of(Direction::Data, algorithm, "cudnnGetConvolutionBackwardDataWorkspaceSize", bytes);
}

HOST_API cudnnStatus_t cudnnGetConvolutionBackwardFilterWorkspaceSize(cudnnHandle_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
                                                                      const cudnnConvolutionDescriptor_t, const cudnnFilterDescriptor_t,
                                                                      cudnnConvolutionBwdFilterAlgo_t algorithm, size_t* bytes) {
    ENTER("cudnnGetConvolutionBackwardFilterWorkspaceSize");
    return scratch_of(Direction::Filter, algorithm, "cudnnGetConvolutionBackwardFilterWorkspaceSize", bytes);
}

HOST_API cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t handle, const void* alpha, const cudnnTensorDescriptor_t x_desc, const void* x,
                                               const cudnnFilterDescriptor_t w_desc, const void* w, const cudnnConvolutionDescriptor_t c,
                                               cudnnConvolutionFwdAlgo_t algorithm, void* scratch, size_t bytes, const void* beta,
                                               const cudnnTensorDescriptor_t y_desc, void* y) {
    ENTER("cudnnConvolutionForward");
    Convolution g = describe(x_desc, w_desc, c, y_desc, "cudnnConvolutionForward");
    return queue(handle, {Direction::Forward, algorithm, g, c->math, x, w, y, scratch, bytes, number(alpha), number(beta)});
}

HOST_API cudnnStatus_t cudnnConvolutionBackwardData(cudnnHandle_t handle, const void* alpha, const cudnnFilterDescriptor_t w_desc, const void* w,
                                                    const cudnnTensorDescriptor_t dy_desc, const void* dy, const cudnnConvolutionDescriptor_t c,
                                                    cudnnConvolutionBwdDataAlgo_t algorithm, void* scratch, size_t bytes, const void* beta,
                                                    const cudnnTensorDescriptor_t dx_desc, void* dx) {
    ENTER("cudnnConvolutionBackwardData");
    Convolution g = describe(dx_desc, w_desc, c, dy_desc, "cudnnConvolutionBackwardData");
    return queue(handle, {Direction::Data, algorithm, g, c->math, dx, w, dy, scratch, bytes, number(alpha), number(beta)});
}

HOST_API cudnnStatus_t cudnnConvolutionBackwardFilter(cudnnHandle_t handle, const void* alpha, const cudnnTensorDescriptor_t x_desc, const void* x,
                                                      const cudnnTensorDescriptor_t dy_desc, const void* dy, const cudnnConvolutionDescriptor_t c,
                                                      cudnnConvolutionBwdFilterAlgo_t algorithm, void* scratch, size_t bytes, const void* beta,
                                                      const cudnnFilterDescriptor_t dw_desc, void* dw) {
    ENTER("cudnnConvolutionBackwardFilter");
    Convolution g = describe(x_desc, dw_desc, c, dy_desc, "cudnnConvolutionBackwardFilter");
    return queue(handle, {Direction::Filter, algorithm, g, c->math, x, dw, dy, scratch, bytes, number(alpha), number(beta)});
}
