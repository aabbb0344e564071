//! Softmax attention on the CPU.

use candle_core::{Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::Attention;
use super::softmax::{softmax_rows, softmax_rows_backward};
use crate::cpu::{tensor_from, with_f32};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};

/// The heads of tokens `[b, n, heads·d]` whose last axis is contiguous.
#[derive(Clone, Copy)]
struct Heads<'a> {
    data: &'a [f32],
    /// b, heads, n, d
    dims: (usize, usize, usize, usize),
    /// Of batch and row; heads are `d` apart.
    strides: (usize, usize),
}

impl<'a> Heads<'a> {
    fn new(storage: &'a Storage, layout: &Layout, heads: usize) -> Result<Self> {
        let (b, n, c) = layout.shape().dims3()?;
        let (&[batch, row, 1], Storage::Cpu(storage)) = (layout.stride(), storage) else {
            bail!("attention: expected tokens on the CPU with a contiguous last axis, found strides {:?}", layout.stride());
        };
        let data = &storage.as_slice::<f32>()?[layout.start_offset()..];
        Ok(Self { data, dims: (b, heads, n, c / heads), strides: (batch, row) })
    }

    /// The matrix `[n, d]` of head `index` out of b·heads.
    fn head(&self, index: usize) -> MatRef<'a> {
        let (_, heads, n, d) = self.dims;
        let start = index / heads * self.strides.0 + index % heads * d;
        MatRef::strided(&self.data[start.min(self.data.len())..], n, d, self.strides.1)
    }
}

/// Calls `f` with the heads of three tensors.
fn with_heads<R>([q, k, v]: &[Tensor; 3], heads: usize, f: impl FnOnce(Heads, Heads, Heads) -> Result<R>) -> Result<R> {
    let ((q, q_layout), (k, k_layout), (v, v_layout)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    f(Heads::new(&q, q_layout, heads)?, Heads::new(&k, k_layout, heads)?, Heads::new(&v, v_layout, heads)?)
}

/// The attention of queries, keys and values.
pub(super) fn forward(attention: &Attention, tensors: &[Tensor; 3]) -> Result<Tensor> {
    let shape = tensors[0].shape();
    with_heads(tensors, attention.heads, |q, k, v| tensor_from(attend(q, k, v, attention.scale as f32), shape))
}

/// The gradients of the inputs, of which `tensors` are the parts.
pub(super) fn backward(attention: &Attention, packs: &[Tensor], tensors: &[Tensor; 3], gradient: &Tensor) -> Result<Vec<Tensor>> {
    let of_parts = with_heads(tensors, attention.heads, |q, k, v| {
        with_f32(gradient, "attention", |gradient| Ok(gradients(q, k, v, gradient, attention.scale as f32)))
    })?;
    let mut of_packs = vec![Vec::new(); packs.len()];
    // Parts are numbered in the order of queries, keys and values.
    for ((found, tensor), (pack, _)) in of_parts.into_iter().zip(tensors).zip(attention.parts) {
        of_packs[pack].push(tensor_from(found, tensor.shape())?);
    }
    of_packs.into_iter().map(|mut parts| if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 2) }).collect()
}

/// Probabilities `[nq, nk]` of one head.
fn probabilities(q: MatRef, k: MatRef, (queries, keys): (usize, usize), scale: f32) -> Vec<f32> {
    let mut scores = vec![0f32; queries * keys];
    matmul_serial(MatMut::new(&mut scores, queries, keys), q, k.t(), scale, Accumulate::No);
    softmax_rows(&mut scores, keys);
    scores
}

/// `[b, nq, heads, d]`
fn attend(q: Heads, k: Heads, v: Heads, scale: f32) -> Vec<f32> {
    let ((b, heads, queries, d), keys) = (q.dims, k.dims.2);
    let outputs: Vec<Vec<f32>> = (0..b * heads)
        .into_par_iter()
        .map(|i| {
            let scores = probabilities(q.head(i), k.head(i), (queries, keys), scale);
            let mut out = vec![0f32; queries * d];
            let scores = MatRef::new(&scores, queries, keys);
            matmul_serial(MatMut::new(&mut out, queries, d), scores, v.head(i), 1.0, Accumulate::No);
            out
        })
        .collect();
    let mut joined = vec![0f32; b * queries * heads * d];
    scatter_heads(&outputs, (heads, queries, d), &mut joined);
    joined
}

/// Copies `[n, d]` matrices, one for each of b·heads, into `[b, n, heads, d]`.
fn scatter_heads(matrices: &[Vec<f32>], (heads, n, d): (usize, usize, usize), joined: &mut [f32]) {
    if n * d == 0 {
        return;
    }
    joined.par_chunks_mut(n * heads * d).zip(matrices.par_chunks(heads)).for_each(|(joined, matrices)| {
        for (head, matrix) in matrices.iter().enumerate() {
            for (row, values) in joined.chunks_exact_mut(heads * d).zip(matrix.chunks_exact(d)) {
                row[head * d..(head + 1) * d].copy_from_slice(values);
            }
        }
    });
}

/// Gradients of one head's queries, keys and values, from `grad` `[nq, d]`.
fn head_gradients(
    q: MatRef,
    k: MatRef,
    v: MatRef,
    grad: MatRef,
    (queries, keys, d): (usize, usize, usize),
    scale: f32,
) -> [Vec<f32>; 3] {
    let probabilities = probabilities(q, k, (queries, keys), scale);
    let p = MatRef::new(&probabilities, queries, keys);
    let mut grad_v = vec![0f32; keys * d];
    matmul_serial(MatMut::new(&mut grad_v, keys, d), p.t(), grad, 1.0, Accumulate::No);
    let mut grad_scores = vec![0f32; queries * keys];
    matmul_serial(MatMut::new(&mut grad_scores, queries, keys), grad, v.t(), 1.0, Accumulate::No);
    softmax_rows_backward(&mut grad_scores, &probabilities, keys);
    let grad_scores = MatRef::new(&grad_scores, queries, keys);
    let mut grad_q = vec![0f32; queries * d];
    matmul_serial(MatMut::new(&mut grad_q, queries, d), grad_scores, k, scale, Accumulate::No);
    let mut grad_k = vec![0f32; keys * d];
    matmul_serial(MatMut::new(&mut grad_k, keys, d), grad_scores.t(), q, scale, Accumulate::No);
    [grad_q, grad_k, grad_v]
}

/// The gradients of queries, keys and values `[b, n, heads·d]`, from `gradient` `[b, nq, heads·d]`.
fn gradients(q: Heads, k: Heads, v: Heads, gradient: &[f32], scale: f32) -> [Vec<f32>; 3] {
    let ((b, heads, queries, d), keys) = (q.dims, k.dims.2);
    let gradient = Heads { data: gradient, dims: q.dims, strides: (queries * heads * d, heads * d) };
    let of_heads: Vec<[Vec<f32>; 3]> = (0..b * heads)
        .into_par_iter()
        .map(|i| head_gradients(q.head(i), k.head(i), v.head(i), gradient.head(i), (queries, keys, d), scale))
        .collect();
    let (mut q_parts, mut k_parts, mut v_parts) = (Vec::new(), Vec::new(), Vec::new());
    for [of_q, of_k, of_v] in of_heads {
        q_parts.push(of_q);
        k_parts.push(of_k);
        v_parts.push(of_v);
    }
    let joined = |parts: &[Vec<f32>], n: usize| {
        let mut joined = vec![0f32; b * n * heads * d];
        scatter_heads(parts, (heads, n, d), &mut joined);
        joined
    };
    [joined(&q_parts, queries), joined(&k_parts, keys), joined(&v_parts, keys)]
}
