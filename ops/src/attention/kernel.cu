// Softmax attention between few tokens and many pixels, forward and backward, scores never in memory; the reference is mod.rs.
//
// One warp works on one query, its lanes on every 32nd key; in the keys' gradients one warp works on one key. Sums over lanes come last, in a
// fixed order, all in float32.
#include "device/common.cuh"

// Where a [b, heads, n, d] tensor's rows lie; the last axis is contiguous.
struct Strides {
    long long batch, head, row;
};

template <int D, typename T>
__device__ __forceinline__ void load_row(const T* from, float (&to)[D]) {
    #pragma unroll
    for (int i = 0; i < D; i += 4) {
        float four[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) four[j] = to_float(from[i + j]);
        #pragma unroll
        for (int j = 0; j < 4; ++j) to[i + j] = four[j];
    }
}

template <int D>
__device__ __forceinline__ float dot(const float (&a)[D], const float (&b)[D]) {
    float sum = 0.0f;
    #pragma unroll
    for (int i = 0; i < D; ++i) sum += a[i] * b[i];
    return sum;
}

// The largest score of a query and Σ exp(score - largest), in every lane.
template <int D, typename T>
__device__ __forceinline__ void score_statistics(const float (&query)[D], const T* k, long long stride, int keys, float scale, float& largest,
                                                 float& sum) {
    largest = -INFINITY;
    for (int j = lane_index(); j < keys; j += 32) {
        float key[D];
        load_row(k + j * stride, key);
        largest = fmaxf(largest, dot(query, key) * scale);
    }
    largest = warp_max(largest);
    sum = 0.0f;
    for (int j = lane_index(); j < keys; j += 32) {
        float key[D];
        load_row(k + j * stride, key);
        sum += expf(dot(query, key) * scale - largest);
    }
    sum = warp_sum(sum);
}

// out [b, queries, heads, d]
template <int D, typename T>
__device__ void forward(const T* q, const T* k, const T* v, T* out, Strides sq, Strides sk, Strides sv, int b, int heads, int queries, int keys,
                        float scale) {
    long long at = static_cast<long long>(blockIdx.x) * (blockDim.x >> 5) + warp_index(); // (image, head, query)
    if (at >= static_cast<long long>(b) * heads * queries) return;
    int query_index = static_cast<int>(at % queries), head = static_cast<int>(at / queries % heads), image = static_cast<int>(at / queries / heads);
    float query[D], sum[D] = {};
    load_row(q + image * sq.batch + head * sq.head + query_index * sq.row, query);
    const T* k_head = k + image * sk.batch + head * sk.head;
    const T* v_head = v + image * sv.batch + head * sv.head;
    float largest, total;
    score_statistics(query, k_head, sk.row, keys, scale, largest, total);
    for (int j = lane_index(); j < keys; j += 32) {
        float key[D], value[D];
        load_row(k_head + j * sk.row, key);
        load_row(v_head + j * sv.row, value);
        float weight = expf(dot(query, key) * scale - largest);
        #pragma unroll
        for (int i = 0; i < D; ++i) sum[i] += weight * value[i];
    }
    T* to = out + ((static_cast<long long>(image) * queries + query_index) * heads + head) * D;
    #pragma unroll
    for (int i = 0; i < D; ++i) {
        float all = warp_sum(sum[i]) / total;
        if (lane_index() == i % 32) to[i] = from_float<T>(all);
    }
}

// grad_q has the strides of q; statistics [3, b·heads·queries]: largest score, Σ exp, Σ p·(g·v), for the keys' kernel.
template <int D, typename T>
__device__ void backward_queries(const T* q, const T* k, const T* v, const T* g, T* grad_q, float* statistics, Strides sq, Strides sk, Strides sv,
                                 int b, int heads, int queries, int keys, float scale) {
    long long count = static_cast<long long>(b) * heads * queries;
    long long at = static_cast<long long>(blockIdx.x) * (blockDim.x >> 5) + warp_index();
    if (at >= count) return;
    int query_index = static_cast<int>(at % queries), head = static_cast<int>(at / queries % heads), image = static_cast<int>(at / queries / heads);
    long long row = ((static_cast<long long>(image) * queries + query_index) * heads + head) * D;
    float query[D], grad[D], sum[D] = {};
    load_row(q + image * sq.batch + head * sq.head + query_index * sq.row, query);
    load_row(g + row, grad);
    const T* k_head = k + image * sk.batch + head * sk.head;
    const T* v_head = v + image * sv.batch + head * sv.head;
    float largest, total, delta = 0.0f;
    score_statistics(query, k_head, sk.row, keys, scale, largest, total);
    for (int j = lane_index(); j < keys; j += 32) {
        float key[D], value[D];
        load_row(k_head + j * sk.row, key);
        load_row(v_head + j * sv.row, value);
        delta += expf(dot(query, key) * scale - largest) / total * dot(grad, value);
    }
    delta = warp_sum(delta);
    for (int j = lane_index(); j < keys; j += 32) {
        float key[D], value[D];
        load_row(k_head + j * sk.row, key);
        load_row(v_head + j * sv.row, value);
        float p = expf(dot(query, key) * scale - largest) / total;
        float slope = p * (dot(grad, value) - delta) * scale;
        #pragma unroll
        for (int i = 0; i < D; ++i) sum[i] += slope * key[i];
    }
    T* to = grad_q + image * sq.batch + head * sq.head + query_index * sq.row;
    #pragma unroll
    for (int i = 0; i < D; ++i) {
        float all = warp_sum(sum[i]);
        if (lane_index() == i % 32) to[i] = from_float<T>(all);
    }
    if (lane_index() == 0) {
        statistics[at] = largest;
        statistics[count + at] = total;
        statistics[2 * count + at] = delta;
    }
}

// grad_k and grad_v have the strides of k and v.
template <int D, typename T>
__device__ void backward_keys(const T* q, const T* k, const T* v, const T* g, const float* statistics, T* grad_k, T* grad_v, Strides sq, Strides sk,
                              Strides sv, int b, int heads, int queries, int keys, float scale) {
    long long at = static_cast<long long>(blockIdx.x) * (blockDim.x >> 5) + warp_index(); // (image, head, key)
    if (at >= static_cast<long long>(b) * heads * keys) return;
    int key_index = static_cast<int>(at % keys), head = static_cast<int>(at / keys % heads), image = static_cast<int>(at / keys / heads);
    long long count = static_cast<long long>(b) * heads * queries;
    float key[D], value[D], sum_k[D] = {}, sum_v[D] = {};
    load_row(k + image * sk.batch + head * sk.head + key_index * sk.row, key);
    load_row(v + image * sv.batch + head * sv.head + key_index * sv.row, value);
    for (int i = lane_index(); i < queries; i += 32) {
        float query[D], grad[D];
        load_row(q + image * sq.batch + head * sq.head + i * sq.row, query);
        load_row(g + ((static_cast<long long>(image) * queries + i) * heads + head) * D, grad);
        long long of_query = (static_cast<long long>(image) * heads + head) * queries + i;
        float p = expf(dot(query, key) * scale - statistics[of_query]) / statistics[count + of_query];
        float slope = p * (dot(grad, value) - statistics[2 * count + of_query]) * scale;
        #pragma unroll
        for (int j = 0; j < D; ++j) {
            sum_k[j] += slope * query[j];
            sum_v[j] += p * grad[j];
        }
    }
    T* to_k = grad_k + image * sk.batch + head * sk.head + key_index * sk.row;
    T* to_v = grad_v + image * sv.batch + head * sv.head + key_index * sv.row;
    #pragma unroll
    for (int i = 0; i < D; ++i) {
        float all_k = warp_sum(sum_k[i]), all_v = warp_sum(sum_v[i]);
        if (lane_index() == i % 32) {
            to_k[i] = from_float<T>(all_k);
            to_v[i] = from_float<T>(all_v);
        }
    }
}

#define DEFINE(T, suffix, D)                                                                                                              \
    KERNEL(attention_##D##_##suffix, (const T* q, const T* k, const T* v, T* out, Strides sq, Strides sk, Strides sv, int b, int heads,   \
                                      int queries, int keys, float scale)) {                                                              \
        forward<D>(q, k, v, out, sq, sk, sv, b, heads, queries, keys, scale);                                                             \
    }                                                                                                                                     \
    KERNEL(attention_backward_queries_##D##_##suffix,                                                                                     \
           (const T* q, const T* k, const T* v, const T* g, T* grad_q, float* statistics, Strides sq, Strides sk, Strides sv, int b,      \
            int heads, int queries, int keys, float scale)) {                                                                             \
        backward_queries<D>(q, k, v, g, grad_q, statistics, sq, sk, sv, b, heads, queries, keys, scale);                                  \
    }                                                                                                                                     \
    KERNEL(attention_backward_keys_##D##_##suffix,                                                                                        \
           (const T* q, const T* k, const T* v, const T* g, const float* statistics, T* grad_k, T* grad_v, Strides sq, Strides sk,        \
            Strides sv, int b, int heads, int queries, int keys, float scale)) {                                                          \
        backward_keys<D>(q, k, v, g, statistics, grad_k, grad_v, sq, sk, sv, b, heads, queries, keys, scale);                             \
    }
#define DEFINE_WIDTHS(T, suffix) \
    DEFINE(T, suffix, 8)         \
    DEFINE(T, suffix, 16)        \
    DEFINE(T, suffix, 32)
FOR_EACH_TYPE(DEFINE_WIDTHS)
#undef DEFINE_WIDTHS
#undef DEFINE
