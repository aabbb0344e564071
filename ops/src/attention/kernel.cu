// Softmax attention between few tokens and many pixels, forward and backward, scores never in memory; the reference is mod.rs.
//
// Each kernel computes one row of its result from all rows of the other side, in two ways. Where the other side is long, a warp takes a row and
// its lanes every 32nd row of the other side; sums over lanes come last, in a fixed order. Where it is short (STAGED rows), a block keeps it in
// shared memory and each thread takes a row. All sums are float32, and each row is read once, 16 bytes at a time.
#include "device/common.cuh"

constexpr int STAGED = 32;

// Where the rows of tokens [b, n, heads·d] lie; the last axis is contiguous, and each row of a head starts at a multiple of 16 bytes.
struct Strides {
    long long batch, head, row;
};

template <typename T>
struct Side {
    const T* from;
    Strides strides;

    __device__ const T* rows(int image, int head) const { return from + image * strides.batch + head * strides.head; }
    __device__ const T* row(int image, int head, int at) const { return rows(image, head) + at * strides.row; }
};

// What all kernels are given. lse [b, heads, queries]: the logarithm of Σ exp(score) of each query.
struct Sizes {
    int b, heads, queries, keys;
    float scale;
};

// A row of one head.
struct Row {
    int image, head, at;
};

template <int D, typename T>
__device__ __forceinline__ void load_row(const T* from, float (&to)[D]) {
    #pragma unroll
    for (int i = 0; i < D; i += RUN<T>) {
        float run[RUN<T>];
        load_16_bytes(from + i, run);
        #pragma unroll
        for (int j = 0; j < RUN<T>; ++j) to[i + j] = run[j];
    }
}

template <int D, typename T>
__device__ __forceinline__ void store_row(T* to, const float (&from)[D]) {
    #pragma unroll
    for (int i = 0; i < D; i += RUN<T>) {
        float run[RUN<T>];
        #pragma unroll
        for (int j = 0; j < RUN<T>; ++j) run[j] = from[i + j];
        store_16_bytes(to + i, run);
    }
}

template <int D>
__device__ __forceinline__ float dot(const float (&a)[D], const float (&b)[D]) {
    float sum = 0.0f;
    #pragma unroll
    for (int i = 0; i < D; ++i) sum += a[i] * b[i];
    return sum;
}

template <int D>
__device__ __forceinline__ void add_scaled(float (&sum)[D], float factor, const float (&row)[D]) {
    #pragma unroll
    for (int i = 0; i < D; ++i) sum[i] += factor * row[i];
}

// The row of this warp out of `n` per head, if there is one.
__device__ __forceinline__ bool row_of_warp(const Sizes& s, int n, Row& row) {
    long long at = static_cast<long long>(blockIdx.x) * (blockDim.x >> 5) + warp_index();
    row = {static_cast<int>(at / n / s.heads), static_cast<int>(at / n % s.heads), static_cast<int>(at % n)};
    return at < static_cast<long long>(s.b) * s.heads * n;
}

// The row of this thread out of `n` per head, if there is one.
__device__ __forceinline__ bool row_of_thread(int n, Row& row) {
    row = {static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x)};
    return row.at < n;
}

// Copies this block's `n` rows of a side to shared memory; a barrier must follow.
template <int D, typename T>
__device__ __forceinline__ void stage(const Side<T>& side, int n, float (&to)[STAGED][D]) {
    const T* rows = side.rows(blockIdx.z, blockIdx.y);
    constexpr int RUNS = D / RUN<T>;
    for (int i = threadIdx.x; i < n * RUNS; i += blockDim.x) {
        float run[RUN<T>];
        load_16_bytes(rows + i / RUNS * side.strides.row + i % RUNS * RUN<T>, run);
        #pragma unroll
        for (int j = 0; j < RUN<T>; ++j) to[i / RUNS][i % RUNS * RUN<T> + j] = run[j];
    }
}

__device__ __forceinline__ long long of_query(const Sizes& s, int image, int head, int query) {
    return (static_cast<long long>(image) * s.heads + head) * s.queries + query;
}

// Contiguous tokens, as results and their gradients are.
template <int D>
__device__ __forceinline__ Strides contiguous(const Sizes& s) {
    long long width = static_cast<long long>(s.heads) * D;
    return {s.queries * width, D, width};
}

// A softmax of which the largest score so far is known.
template <int D>
struct Softmax {
    float largest = -INFINITY, total = 0.0f, sum[D] = {};

    __device__ void add(float score, const float (&value)[D]) {
        float now = fmaxf(largest, score), kept = expf(largest - now), weight = expf(score - now);
        total = total * kept + weight;
        #pragma unroll
        for (int i = 0; i < D; ++i) sum[i] = sum[i] * kept + weight * value[i];
        largest = now;
    }

    // The lanes' parts together, in every lane.
    __device__ void join_lanes() {
        float all = warp_max(largest), kept = expf(largest - all);
        total = warp_sum(total * kept);
        #pragma unroll
        for (int i = 0; i < D; ++i) sum[i] = warp_sum(sum[i] * kept);
        largest = all;
    }

    template <typename T>
    __device__ void store(T* to, float* lse) {
        #pragma unroll
        for (int i = 0; i < D; ++i) sum[i] /= total;
        store_row(to, sum);
        *lse = largest + logf(total);
    }
};

template <int D, typename T>
__device__ void forward(Side<T> q, Side<T> k, Side<T> v, T* out, float* lse, Sizes s) {
    Row own;
    if (!row_of_warp(s, s.queries, own)) return;
    float query[D];
    load_row(q.row(own.image, own.head, own.at), query);
    Softmax<D> softmax;
    for (int j = lane_index(); j < s.keys; j += 32) {
        float key[D], value[D];
        load_row(k.row(own.image, own.head, j), key);
        load_row(v.row(own.image, own.head, j), value);
        softmax.add(dot(query, key) * s.scale, value);
    }
    softmax.join_lanes();
    Strides to = contiguous<D>(s);
    if (lane_index() == 0) {
        softmax.store(out + own.image * to.batch + own.head * to.head + own.at * to.row, lse + of_query(s, own.image, own.head, own.at));
    }
}

template <int D, typename T>
__device__ void forward_few_keys(Side<T> q, Side<T> k, Side<T> v, T* out, float* lse, Sizes s) {
    __shared__ float keys[STAGED][D], values[STAGED][D];
    stage(k, s.keys, keys);
    stage(v, s.keys, values);
    __syncthreads();
    Row own;
    if (!row_of_thread(s.queries, own)) return;
    float query[D];
    load_row(q.row(own.image, own.head, own.at), query);
    Softmax<D> softmax;
    for (int j = 0; j < s.keys; ++j) softmax.add(dot(query, keys[j]) * s.scale, values[j]);
    Strides to = contiguous<D>(s);
    softmax.store(out + own.image * to.batch + own.head * to.head + own.at * to.row, lse + of_query(s, own.image, own.head, own.at));
}

// A query's gradient. With p the softmax, that of a score is p·(g·v - Σ p·g·v), and Σ p·g·v is g·out.
template <int D>
struct QueryGradient {
    float query[D], grad[D], sum[D] = {}, lse, delta, scale;

    __device__ void add(const float (&key)[D], const float (&value)[D]) {
        float p = expf(dot(query, key) * scale - lse);
        add_scaled(sum, p * (dot(grad, value) - delta) * scale, key);
    }
};

template <int D, typename T>
__device__ __forceinline__ QueryGradient<D> query_gradient(Side<T> q, const T* g, const T* out, const float* lse, const Sizes& s, const Row& own) {
    QueryGradient<D> found;
    Strides as_out = contiguous<D>(s);
    Side<T> gradients = {g, as_out}, results = {out, as_out};
    float result[D];
    load_row(q.row(own.image, own.head, own.at), found.query);
    load_row(gradients.row(own.image, own.head, own.at), found.grad);
    load_row(results.row(own.image, own.head, own.at), result);
    found.lse = lse[of_query(s, own.image, own.head, own.at)];
    found.delta = dot(found.grad, result);
    found.scale = s.scale;
    return found;
}

// grad_q has the strides of q; delta [b, heads, queries]: g·out of each query, for the keys' kernels.
template <int D, typename T>
__device__ void backward_queries(Side<T> q, Side<T> k, Side<T> v, const T* g, const T* out, const float* lse, T* grad_q, float* delta, Sizes s) {
    Row own;
    if (!row_of_warp(s, s.queries, own)) return;
    QueryGradient<D> found = query_gradient<D>(q, g, out, lse, s, own);
    for (int j = lane_index(); j < s.keys; j += 32) {
        float key[D], value[D];
        load_row(k.row(own.image, own.head, j), key);
        load_row(v.row(own.image, own.head, j), value);
        found.add(key, value);
    }
    #pragma unroll
    for (int i = 0; i < D; ++i) found.sum[i] = warp_sum(found.sum[i]);
    if (lane_index() == 0) {
        store_row(grad_q + (q.row(own.image, own.head, own.at) - q.from), found.sum);
        delta[of_query(s, own.image, own.head, own.at)] = found.delta;
    }
}

template <int D, typename T>
__device__ void backward_queries_few_keys(Side<T> q, Side<T> k, Side<T> v, const T* g, const T* out, const float* lse, T* grad_q, float* delta,
                                          Sizes s) {
    __shared__ float keys[STAGED][D], values[STAGED][D];
    stage(k, s.keys, keys);
    stage(v, s.keys, values);
    __syncthreads();
    Row own;
    if (!row_of_thread(s.queries, own)) return;
    QueryGradient<D> found = query_gradient<D>(q, g, out, lse, s, own);
    for (int j = 0; j < s.keys; ++j) found.add(keys[j], values[j]);
    store_row(grad_q + (q.row(own.image, own.head, own.at) - q.from), found.sum);
    delta[of_query(s, own.image, own.head, own.at)] = found.delta;
}

// The gradients of a key and its value.
template <int D>
struct KeyGradient {
    float key[D], value[D], of_key[D] = {}, of_value[D] = {};

    __device__ void add(const float (&query)[D], const float (&grad)[D], float lse, float delta, float scale) {
        float p = expf(dot(query, key) * scale - lse);
        add_scaled(of_key, p * (dot(grad, value) - delta) * scale, query);
        add_scaled(of_value, p, grad);
    }
};

// grad_k and grad_v have the strides of k and v.
template <int D, typename T>
__device__ void backward_keys(Side<T> q, Side<T> k, Side<T> v, const T* g, const float* lse, const float* delta, T* grad_k, T* grad_v, Sizes s) {
    Row own;
    if (!row_of_warp(s, s.keys, own)) return;
    KeyGradient<D> found;
    load_row(k.row(own.image, own.head, own.at), found.key);
    load_row(v.row(own.image, own.head, own.at), found.value);
    Side<T> gradients = {g, contiguous<D>(s)};
    for (int i = lane_index(); i < s.queries; i += 32) {
        float query[D], grad[D];
        load_row(q.row(own.image, own.head, i), query);
        load_row(gradients.row(own.image, own.head, i), grad);
        long long at = of_query(s, own.image, own.head, i);
        found.add(query, grad, lse[at], delta[at], s.scale);
    }
    #pragma unroll
    for (int i = 0; i < D; ++i) {
        found.of_key[i] = warp_sum(found.of_key[i]);
        found.of_value[i] = warp_sum(found.of_value[i]);
    }
    if (lane_index() == 0) {
        store_row(grad_k + (k.row(own.image, own.head, own.at) - k.from), found.of_key);
        store_row(grad_v + (v.row(own.image, own.head, own.at) - v.from), found.of_value);
    }
}

template <int D, typename T>
__device__ void backward_keys_few_queries(Side<T> q, Side<T> k, Side<T> v, const T* g, const float* lse, const float* delta, T* grad_k, T* grad_v,
                                          Sizes s) {
    __shared__ float queries[STAGED][D], grads[STAGED][D], lses[STAGED], deltas[STAGED];
    Side<T> gradients = {g, contiguous<D>(s)};
    stage(q, s.queries, queries);
    stage(gradients, s.queries, grads);
    for (int i = threadIdx.x; i < s.queries; i += blockDim.x) {
        long long at = of_query(s, blockIdx.z, blockIdx.y, i);
        lses[i] = lse[at];
        deltas[i] = delta[at];
    }
    __syncthreads();
    Row own;
    if (!row_of_thread(s.keys, own)) return;
    KeyGradient<D> found;
    load_row(k.row(own.image, own.head, own.at), found.key);
    load_row(v.row(own.image, own.head, own.at), found.value);
    for (int i = 0; i < s.queries; ++i) found.add(queries[i], grads[i], lses[i], deltas[i], s.scale);
    store_row(grad_k + (k.row(own.image, own.head, own.at) - k.from), found.of_key);
    store_row(grad_v + (v.row(own.image, own.head, own.at) - v.from), found.of_value);
}

#define SIZES int b, int heads, int queries, int keys, float scale
#define DEFINE(T, suffix, D)                                                                                                              \
    KERNEL(attention_##D##_##suffix, (const T* q, const T* k, const T* v, Strides sq, Strides sk, Strides sv, T* out, float* lse,         \
                                      SIZES)) {                                                                                           \
        forward<D, T>({q, sq}, {k, sk}, {v, sv}, out, lse, {b, heads, queries, keys, scale});                                             \
    }                                                                                                                                     \
    KERNEL(attention_few_keys_##D##_##suffix, (const T* q, const T* k, const T* v, Strides sq, Strides sk, Strides sv, T* out,            \
                                               float* lse, SIZES)) {                                                                      \
        forward_few_keys<D, T>({q, sq}, {k, sk}, {v, sv}, out, lse, {b, heads, queries, keys, scale});                                    \
    }                                                                                                                                     \
    KERNEL(attention_backward_queries_##D##_##suffix,                                                                                     \
           (const T* q, const T* k, const T* v, Strides sq, Strides sk, Strides sv, const T* g, const T* out, const float* lse,           \
            T* grad_q, float* delta, SIZES)) {                                                                                            \
        backward_queries<D, T>({q, sq}, {k, sk}, {v, sv}, g, out, lse, grad_q, delta, {b, heads, queries, keys, scale});                  \
    }                                                                                                                                     \
    KERNEL(attention_backward_queries_few_keys_##D##_##suffix,                                                                            \
           (const T* q, const T* k, const T* v, Strides sq, Strides sk, Strides sv, const T* g, const T* out, const float* lse,           \
            T* grad_q, float* delta, SIZES)) {                                                                                            \
        backward_queries_few_keys<D, T>({q, sq}, {k, sk}, {v, sv}, g, out, lse, grad_q, delta, {b, heads, queries, keys, scale});         \
    }                                                                                                                                     \
    KERNEL(attention_backward_keys_##D##_##suffix,                                                                                        \
           (const T* q, const T* k, const T* v, Strides sq, Strides sk, Strides sv, const T* g, const float* lse, const float* delta,     \
            T* grad_k, T* grad_v, SIZES)) {                                                                                               \
        backward_keys<D, T>({q, sq}, {k, sk}, {v, sv}, g, lse, delta, grad_k, grad_v, {b, heads, queries, keys, scale});                  \
    }                                                                                                                                     \
    KERNEL(attention_backward_keys_few_queries_##D##_##suffix,                                                                            \
           (const T* q, const T* k, const T* v, Strides sq, Strides sk, Strides sv, const T* g, const float* lse, const float* delta,     \
            T* grad_k, T* grad_v, SIZES)) {                                                                                               \
        backward_keys_few_queries<D, T>({q, sq}, {k, sk}, {v, sv}, g, lse, delta, grad_k, grad_v, {b, heads, queries, keys, scale});      \
    }
#define DEFINE_WIDTHS(T, suffix) \
    DEFINE(T, suffix, 8)         \
    DEFINE(T, suffix, 16)        \
    DEFINE(T, suffix, 32)
FOR_EACH_TYPE(DEFINE_WIDTHS)
#undef DEFINE_WIDTHS
#undef DEFINE
#undef SIZES
