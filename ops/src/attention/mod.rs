//! Softmax attention, `softmax(scale·q·kᵀ)·v`, differentiable; [`rel_pos`] has the encoder's, with relative positions.

mod cuda;
pub(crate) mod softmax;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::expect_f32;
use crate::device;
use crate::matmul::{Accumulate, MatMut, MatRef, matmul_serial};
pub use softmax::softmax_rows;

/// Attends from every query to every key (Vaswani et al., 2017, equation 1, with the scale given), head by head.
///
/// # Shapes
/// q `[b, heads, nq, d]`, k and v `[b, heads, nk, d]` → `[b, heads, nq, d]`, float32. Any strides will do, as long as the last
/// axis is contiguous (others are copied); the result lies in memory as `[b, nq, heads, d]`, so that joining the heads again
/// copies nothing.
///
/// The scores live one head at a time; the backward pass computes them anew.
///
/// # Errors
/// If shapes do not match or a tensor is not float32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let ((b, heads, _, d), (_, _, keys, _)) = (q.dims4()?, k.dims4()?);
    if k.dims() != [b, heads, keys, d] || v.dims() != k.dims() {
        bail!("attention: queries {:?}, keys {:?} and values {:?} do not go together", q.dims(), k.dims(), v.dims());
    }
    let row_contiguous = |t: &Tensor| if t.stride().last() == Some(&1) { Ok(t.clone()) } else { t.contiguous() };
    if device::runs_on(&[q, k, v]) && cuda::has_width(d) && q.dtype() == k.dtype() && q.dtype() == v.dtype() {
        let (q, k, v) = (row_contiguous(q)?, row_contiguous(k)?, row_contiguous(v)?);
        return cuda::attention(&q, &k, &v, scale as f32)?.transpose(1, 2);
    }
    if !q.device().is_cpu() {
        return attention_composed(q, k, v, scale);
    }
    expect_f32("attention", &[q, k, v])?;
    let (q, k, v) = (row_contiguous(q)?, row_contiguous(k)?, row_contiguous(v)?);
    q.apply_op3(&k, &v, Attention { scale: scale as f32 })?.transpose(1, 2)
}

/// As [`attention`], of tokens whose heads lie side by side. It is one node of the graph: on the way back nothing is split or joined.
///
/// # Shapes
/// q `[b, nq, heads·d]`, k and v `[b, nk, heads·d]` → `[b, nq, heads·d]`, float32.
///
/// # Errors
/// As [`attention`].
pub fn multi_head_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scale: f64) -> Result<Tensor> {
    let ((b, queries, c), (_, keys, _)) = (q.dims3()?, k.dims3()?);
    if k.dims() != [b, keys, c] || v.dims() != k.dims() || heads == 0 || !c.is_multiple_of(heads) {
        bail!(
            "attention: queries {:?}, keys {:?} and values {:?} of {heads} heads do not go together",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    let width = c / heads;
    if device::runs_on(&[q, k, v]) && cuda::has_width(width) && q.dtype() == k.dtype() && q.dtype() == v.dtype() {
        return cuda::multi_head(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, heads, scale as f32);
    }
    if !q.device().is_cpu() {
        let split = |t: &Tensor| t.reshape((b, t.dim(1)?, heads, width))?.transpose(1, 2);
        return attention_composed(&split(q)?, &split(k)?, &split(v)?, scale)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((b, queries, c));
    }
    expect_f32("attention", &[q, k, v])?;
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, MultiHead { heads, scale: scale as f32 })
}

/// [`attention`] made of candle's own operations: the path of other devices and the reference of the tests.
///
/// # Errors
/// As [`attention`].
pub fn attention_composed(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let scores = (q.contiguous()?.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?; // [b, heads, nq, nk]
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probabilities = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    probabilities.matmul(&v.contiguous()?)
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
        let data = crate::cpu::contiguous_f32(storage, layout, "attention")?;
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
        let grad_data = crate::cpu::contiguous_f32(grad_storage, grad_layout, "attention")?; // [b, nq, heads, d]
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

/// [`Attention`] of tokens whose heads lie side by side.
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
        let grad = crate::cpu::with_f32(grad, "attention", |grad| Ok(grad.to_vec()))?;
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

/// Gradients of q, k and v, each as `[b, n, heads, d]`, one after the other in one flat tensor.
struct AttentionBackward {
    scale: f32,
    /// How many heads the tokens have that the inputs are; inputs without have an axis of heads.
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
            .map(|i| {
                let (q, k, v, grad) = (q.head(i), k.head(i), v.head(i), grad.head(i));
                let probabilities = probabilities(q, k, (queries, keys), self.scale);
                let p = MatRef::new(&probabilities, queries, keys);
                let mut grad_v = vec![0f32; keys * d];
                matmul_serial(MatMut::new(&mut grad_v, keys, d), p.t(), grad, 1.0, Accumulate::No);
                let mut grad_scores = vec![0f32; queries * keys];
                matmul_serial(MatMut::new(&mut grad_scores, queries, keys), grad, v.t(), 1.0, Accumulate::No);
                softmax::softmax_rows_backward(&mut grad_scores, &probabilities, keys);
                let grad_scores = MatRef::new(&grad_scores, queries, keys);
                let mut grad_q = vec![0f32; queries * d];
                matmul_serial(MatMut::new(&mut grad_q, queries, d), grad_scores, k, self.scale, Accumulate::No);
                let mut grad_k = vec![0f32; keys * d];
                matmul_serial(MatMut::new(&mut grad_k, keys, d), grad_scores.t(), q, self.scale, Accumulate::No);
                [grad_q, grad_k, grad_v]
            })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn equals_the_composed_one_and_its_gradients() -> Result<()> {
        for (b, heads, queries, keys, d) in [(2, 3, 5, 11, 16), (1, 8, 10, 196, 32), (2, 2, 70, 9, 16), (1, 1, 1, 1, 4)] {
            let inputs =
                [uniform(&[b, heads, queries, d], 1)?, uniform(&[b, heads, keys, d], 2)?, uniform(&[b, heads, keys, d], 3)?];
            assert_gradients_match(
                &inputs,
                |t| attention(&t[0], &t[1], &t[2], 0.7),
                |t| attention_composed(&t[0], &t[1], &t[2], 0.7),
            )?;
        }
        Ok(())
    }

    #[test]
    fn takes_heads_split_by_a_view() -> Result<()> {
        let inputs = [uniform(&[2, 5, 24], 1)?, uniform(&[2, 7, 24], 2)?, uniform(&[2, 7, 24], 3)?];
        let split = |t: &Tensor| t.reshape((2, t.dim(1)?, 3, 8))?.transpose(1, 2);
        assert_gradients_match(
            &inputs,
            |t| attention(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.3)?.transpose(1, 2)?.reshape((2, 5, 24)),
            |t| attention_composed(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.3)?.transpose(1, 2)?.reshape((2, 5, 24)),
        )
    }

    #[test]
    fn tokens_of_several_heads_need_no_splitting() -> Result<()> {
        let inputs = [uniform(&[2, 5, 24], 1)?, uniform(&[2, 7, 24], 2)?, uniform(&[2, 7, 24], 3)?];
        let split = |t: &Tensor| t.reshape((2, t.dim(1)?, 3, 8))?.transpose(1, 2);
        assert_gradients_match(
            &inputs,
            |t| multi_head_attention(&t[0], &t[1], &t[2], 3, 0.3),
            |t| attention_composed(&split(&t[0])?, &split(&t[1])?, &split(&t[2])?, 0.3)?.transpose(1, 2)?.reshape((2, 5, 24)),
        )?;
        let reason = multi_head_attention(&inputs[0], &inputs[1], &inputs[2], 5, 1.0).unwrap_err().to_string();
        assert!(reason.contains("of 5 heads"), "{reason}");
        Ok(())
    }

    #[test]
    fn large_scores_do_not_overflow() -> Result<()> {
        let (q, v) = ((uniform(&[1, 1, 4, 8], 1)? * 100.0)?, uniform(&[1, 1, 4, 8], 2)?);
        let y = attention(&q, &q, &v, 10.0)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(y.iter().all(|y| y.is_finite()));
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_refused() -> Result<()> {
        let (q, k) = (uniform(&[1, 2, 3, 4], 1)?, uniform(&[1, 2, 3, 5], 1)?);
        assert!(attention(&q, &k, &k, 1.0).unwrap_err().to_string().contains("do not go together"));
        Ok(())
    }
}
