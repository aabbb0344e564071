//! Softmax attention on the CPU.

use candle_core::{Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::Attention;
use super::softmax::{softmax_rows, softmax_rows_backward};
use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::multiversion;
use crate::cpu::{tensor_from, with_numbers, with_scratch};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};

/// The heads of tokens `[b, n, heads·d]` whose last axis is contiguous.
#[derive(Clone, Copy)]
struct Heads<'a, T> {
    data: &'a [T],
    /// b, heads, n, d
    dims: (usize, usize, usize, usize),
    /// Of batch and row; heads are `d` apart.
    strides: (usize, usize),
}

impl<'a, T: Activation> Heads<'a, T> {
    fn new(storage: &'a Storage, layout: &Layout, heads: usize) -> Result<Self> {
        let (b, n, c) = layout.shape().dims3()?;
        let (&[batch, row, 1], Storage::Cpu(storage)) = (layout.stride(), storage) else {
            bail!("attention: expected tokens on the CPU with a contiguous last axis, found strides {:?}", layout.stride());
        };
        let data = &storage.as_slice::<T>()?[layout.start_offset()..];
        Ok(Self { data, dims: (b, heads, n, c / heads), strides: (batch, row) })
    }

    /// The first number of head `index` out of b·heads, and what follows it.
    fn start_of(&self, index: usize) -> &'a [T] {
        let (_, heads, _, d) = self.dims;
        let start = index / heads * self.strides.0 + index % heads * d;
        &self.data[start.min(self.data.len())..]
    }

    /// Calls `f` with the matrix `[n, d]` of head `index` out of b·heads, in float32.
    fn with_head<R>(&self, index: usize, f: impl FnOnce(MatRef) -> R) -> R {
        let ((_, _, n, d), from) = (self.dims, self.start_of(index));
        if let Some(floats) = T::floats(from) {
            return f(MatRef::strided(floats, n, d, self.strides.1));
        }
        with_scratch(n * d, |head| {
            gather_rows(from, self.strides.1, d, head);
            f(MatRef::new(head, n, d))
        })
    }
}

multiversion! {
    /// Rows of `d` numbers, `stride` apart.
    fn gather_rows<T: Activation>(from: &[T], stride: usize, d: usize, to: &mut [f32]) {
        for (row, to) in to.chunks_exact_mut(d.max(1)).enumerate() {
            for (to, from) in to.iter_mut().zip(&from[row * stride..][..d]) {
                *to = from.value();
            }
        }
    }
}

/// Calls `f` with the heads of three tensors.
fn with_heads<T: Activation, R>(
    [q, k, v]: &[Tensor; 3],
    heads: usize,
    f: impl FnOnce(Heads<T>, Heads<T>, Heads<T>) -> Result<R>,
) -> Result<R> {
    let ((q, q_layout), (k, k_layout), (v, v_layout)) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    f(Heads::new(&q, q_layout, heads)?, Heads::new(&k, k_layout, heads)?, Heads::new(&v, v_layout, heads)?)
}

/// The attention of queries, keys and values, computed in float32 whatever their number format.
pub(super) fn forward(attention: &Attention, tensors: &[Tensor; 3]) -> Result<Tensor> {
    in_format!(tensors[0], forward_of(attention, tensors))
}

fn forward_of<T: Activation>(attention: &Attention, tensors: &[Tensor; 3]) -> Result<Tensor> {
    let shape = tensors[0].shape();
    with_heads(tensors, attention.heads, |q: Heads<T>, k, v| tensor_from(attend(q, k, v, attention.scale as f32), shape))
}

/// The gradients of the inputs, of which `tensors` are the parts.
pub(super) fn backward(attention: &Attention, packs: &[Tensor], tensors: &[Tensor; 3], gradient: &Tensor) -> Result<Vec<Tensor>> {
    in_format!(gradient, backward_of(attention, packs, tensors, gradient))
}

fn backward_of<T: Activation>(
    attention: &Attention,
    packs: &[Tensor],
    tensors: &[Tensor; 3],
    gradient: &Tensor,
) -> Result<Vec<Tensor>> {
    let of_parts = with_heads(tensors, attention.heads, |q: Heads<T>, k, v| {
        with_numbers(gradient, "attention", |gradient| Ok(gradients(q, k, v, gradient, attention.scale as f32)))
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
fn attend<T: Activation>(q: Heads<T>, k: Heads<T>, v: Heads<T>, scale: f32) -> Vec<T> {
    let ((b, heads, queries, d), keys) = (q.dims, k.dims.2);
    let outputs: Vec<Vec<f32>> = (0..b * heads)
        .into_par_iter()
        .map(|i| {
            let scores = q.with_head(i, |q| k.with_head(i, |k| probabilities(q, k, (queries, keys), scale)));
            let mut out = vec![0f32; queries * d];
            let scores = MatRef::new(&scores, queries, keys);
            v.with_head(i, |v| matmul_serial(MatMut::new(&mut out, queries, d), scores, v, 1.0, Accumulate::No));
            out
        })
        .collect();
    let mut joined = vec![T::zero(); b * queries * heads * d];
    scatter_heads(&outputs, (heads, queries, d), &mut joined);
    joined
}

/// Writes `[n, d]` matrices, one for each of b·heads, to `[b, n, heads, d]`.
fn scatter_heads<T: Activation>(matrices: &[Vec<f32>], (heads, n, d): (usize, usize, usize), joined: &mut [T]) {
    if n * d == 0 {
        return;
    }
    let tasks = joined.par_chunks_mut(n * heads * d).zip(matrices.par_chunks(heads));
    tasks.for_each(|(joined, matrices)| scatter_rows(matrices, d, joined));
}

multiversion! {
    fn scatter_rows<T: Activation>(matrices: &[Vec<f32>], d: usize, joined: &mut [T]) {
        for (row, joined) in joined.chunks_exact_mut(matrices.len() * d).enumerate() {
            for (to, matrix) in joined.chunks_exact_mut(d).zip(matrices) {
                for (to, value) in to.iter_mut().zip(&matrix[row * d..][..d]) {
                    *to = T::nearest(*value);
                }
            }
        }
    }
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
fn gradients<T: Activation>(q: Heads<T>, k: Heads<T>, v: Heads<T>, gradient: &[T], scale: f32) -> [Vec<T>; 3] {
    let ((b, heads, queries, d), keys) = (q.dims, k.dims.2);
    let gradient = Heads { data: gradient, dims: q.dims, strides: (queries * heads * d, heads * d) };
    let of_heads: Vec<[Vec<f32>; 3]> = (0..b * heads)
        .into_par_iter()
        .map(|i| {
            q.with_head(i, |q| {
                k.with_head(i, |k| {
                    v.with_head(i, |v| gradient.with_head(i, |grad| head_gradients(q, k, v, grad, (queries, keys, d), scale)))
                })
            })
        })
        .collect();
    let (mut q_parts, mut k_parts, mut v_parts) = (Vec::new(), Vec::new(), Vec::new());
    for [of_q, of_k, of_v] in of_heads {
        q_parts.push(of_q);
        k_parts.push(of_k);
        v_parts.push(of_v);
    }
    let joined = |parts: &[Vec<f32>], n: usize| {
        let mut joined = vec![T::zero(); b * n * heads * d];
        scatter_heads(parts, (heads, n, d), &mut joined);
        joined
    };
    [joined(&q_parts, queries), joined(&k_parts, keys), joined(&v_parts, keys)]
}
