//! Softmax attention on the CPU.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::softmax::{softmax_rows, softmax_rows_backward};
use crate::cpu::{contiguous_f32, with_f32};
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};

/// As [`super::attention`], but returns `[b, nq, heads, d]`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
    q.apply_op3(k, v, Attention { scale })
}

/// As [`super::multi_head_attention`], for contiguous tokens.
pub(super) fn multi_head(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f32) -> Result<Tensor> {
    q.apply_op3(k, v, MultiHead { heads, scale })
}

/// A `[b, heads, n, d]` tensor of any strides whose last axis is contiguous.
#[derive(Clone, Copy)]
struct Heads<'a> {
    data: &'a [f32],
    dims: (usize, usize, usize, usize),
    strides: (usize, usize, usize),
}

impl<'a> Heads<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let &[batch, head, row, 1] = layout.stride() else {
            bail!("attention: expected a contiguous last axis, found strides {:?}", layout.stride());
        };
        let data = &storage.as_slice::<f32>()?[layout.start_offset()..];
        Ok(Self { data, dims: layout.shape().dims4()?, strides: (batch, head, row) })
    }

    /// The matrix `[n, d]` of head `index` out of b·heads.
    fn head(&self, index: usize) -> MatRef<'a> {
        let (_, heads, n, d) = self.dims;
        let start = index / heads * self.strides.0 + index % heads * self.strides.1;
        MatRef::strided(&self.data[start.min(self.data.len())..], n, d, self.strides.2)
    }
}

impl<'a> Heads<'a> {
    /// The heads of contiguous tokens `[b, n, heads·d]`.
    fn of_tokens(storage: &'a CpuStorage, layout: &Layout, heads: usize) -> Result<Self> {
        let (b, n, c) = layout.shape().dims3()?;
        let data = contiguous_f32(storage, layout, "attention")?;
        Ok(Self { data, dims: (b, heads, n, c / heads), strides: (n * c, c / heads, c) })
    }
}

struct Attention {
    scale: f32,
}

/// Probabilities `[nq, nk]` of one head.
fn probabilities(q: MatRef, k: MatRef, (queries, keys): (usize, usize), scale: f32) -> Vec<f32> {
    let mut scores = vec![0f32; queries * keys];
    matmul_serial(MatMut::new(&mut scores, queries, keys), q, k.t(), scale, Accumulate::No);
    softmax_rows(&mut scores, keys);
    scores
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    /// → `[b, nq, heads, d]`
    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("attention").entered();
        let (q, k, v) = (Heads::new(s1, l1)?, Heads::new(s2, l2)?, Heads::new(s3, l3)?);
        let (b, heads, queries, d) = q.dims;
        Ok((CpuStorage::F32(attend(q, k, v, self.scale)), Shape::from((b, queries, heads, d))))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("attention backward").entered();
        let (b, heads, queries, d) = q.dims4()?;
        let keys = k.dim(2)?;
        let grad = grad.contiguous()?;
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let candle_core::Storage::Cpu(grad_storage) = &*grad_storage else { bail!("attention: expected a gradient on the CPU") };
        let grad_data = contiguous_f32(grad_storage, grad_layout, "attention")?; // [b, nq, heads, d]
        let all =
            q.apply_op3_no_bwd(k, v, &AttentionBackward { scale: self.scale, tokens_of_heads: None, grad: grad_data.to_vec() })?;
        let part = |start: usize, n: usize, tracked: bool| {
            let part = all.narrow(0, start, b * n * heads * d)?.reshape((b, n, heads, d))?.transpose(1, 2);
            tracked.then_some(part).transpose()
        };
        let (of_q, of_k) = (b * queries * heads * d, b * keys * heads * d);
        Ok((part(0, queries, q.track_op())?, part(of_q, keys, k.track_op())?, part(of_q + of_k, keys, v.track_op())?))
    }
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

/// [`Attention`] of tokens with concatenated heads.
struct MultiHead {
    heads: usize,
    scale: f32,
}

impl CustomOp3 for MultiHead {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("attention").entered();
        let heads = |s, l| Heads::of_tokens(s, l, self.heads);
        let out = attend(heads(s1, l1)?, heads(s2, l2)?, heads(s3, l3)?, self.scale);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("attention backward").entered();
        let grad = with_f32(grad, "attention", |grad| Ok(grad.to_vec()))?;
        let all = q.apply_op3_no_bwd(k, v, &AttentionBackward { scale: self.scale, tokens_of_heads: Some(self.heads), grad })?;
        let (of_q, of_k) = (q.elem_count(), k.elem_count());
        let part = |start: usize, of: &Tensor| {
            of.track_op().then(|| all.narrow(0, start, of.elem_count())?.reshape(of.dims())).transpose()
        };
        Ok((part(0, q)?, part(of_q, k)?, part(of_q + of_k, v)?))
    }
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

/// Gradients of q, k and v, each as `[b, n, heads, d]`, one after the other in one flat tensor.
struct AttentionBackward {
    scale: f32,
    /// Number of heads if the inputs are tokens with concatenated heads; `None` if they have an axis of heads.
    tokens_of_heads: Option<usize>,
    grad: Vec<f32>,
}

impl CustomOp3 for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention backward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let heads = |s, l| match self.tokens_of_heads {
            Some(heads) => Heads::of_tokens(s, l, heads),
            None => Heads::new(s, l),
        };
        let (q, k, v) = (heads(s1, l1)?, heads(s2, l2)?, heads(s3, l3)?);
        let ((b, heads, queries, d), keys) = (q.dims, k.dims.2);
        let grad = Heads { data: &self.grad, dims: q.dims, strides: (queries * heads * d, d, heads * d) };
        let gradients: Vec<[Vec<f32>; 3]> = (0..b * heads)
            .into_par_iter()
            .map(|i| head_gradients(q.head(i), k.head(i), v.head(i), grad.head(i), (queries, keys, d), self.scale))
            .collect();
        let (of_q, of_k) = (b * queries * heads * d, b * keys * heads * d);
        let mut all = vec![0f32; of_q + 2 * of_k];
        let (all_q, rest) = all.split_at_mut(of_q);
        let (all_k, all_v) = rest.split_at_mut(of_k);
        let (mut q_parts, mut k_parts, mut v_parts) = (Vec::new(), Vec::new(), Vec::new());
        for [grad_q, grad_k, grad_v] in gradients {
            q_parts.push(grad_q);
            k_parts.push(grad_k);
            v_parts.push(grad_v);
        }
        scatter_heads(&q_parts, (heads, queries, d), all_q);
        scatter_heads(&k_parts, (heads, keys, d), all_k);
        scatter_heads(&v_parts, (heads, keys, d), all_v);
        let shape = Shape::from(all.len());
        Ok((CpuStorage::F32(all), shape))
    }
}
