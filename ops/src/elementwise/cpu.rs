//! Sums with an activation on the CPU.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::simd::multiversion;
use crate::cpu::{SendPtr, contiguous_f32, filled_vec, tensor_from, with_f32};

/// Elements that one task works on.
const CHUNK: usize = 1 << 16;

/// As [`super::add_relu`].
pub(super) fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, AddRelu)
}

struct AddRelu;

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "add-relu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("add-relu").entered();
        let (a, b) = (contiguous_f32(s1, l1, self.name())?, contiguous_f32(s2, l2, self.name())?);
        // SAFETY: `map2` writes every element.
        let data = unsafe { filled_vec(a.len(), |out| map2(a, b, out, add_relu_chunk)) };
        Ok((CpuStorage::F32(data), l1.shape().clone()))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _span = tracing::trace_span!("add-relu backward").entered();
        let grad = super::relu_backward(res, grad)?;
        Ok((a.track_op().then(|| grad.clone()), b.track_op().then_some(grad)))
    }
}

/// As [`super::relu_backward`].
pub(super) fn relu_backward(res: &Tensor, grad: &Tensor) -> Result<Tensor> {
    with_f32(res, "relu-backward", |y| {
        with_f32(grad, "relu-backward", |g| {
            // SAFETY: `map2` writes every element.
            tensor_from(unsafe { filled_vec(y.len(), |out| map2(y, g, out, relu_backward_chunk)) }, res.shape())
        })
    })
}

/// As [`super::relu_backward_sum`].
pub(super) fn relu_backward_sum(res: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    with_f32(res, "relu-backward", |y| {
        with_f32(a, "relu-backward", |a| {
            with_f32(b, "relu-backward", |b| {
                let chunks = y.par_chunks(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).enumerate();
                // SAFETY: the chunks are disjoint, lie within the result and are all of it.
                let data = unsafe {
                    filled_vec(y.len(), |out| {
                        chunks.for_each(|(i, ((y, a), b))| relu_backward_sum_chunk(y, a, b, out.slice(i * CHUNK, y.len())));
                    })
                };
                tensor_from(data, res.shape())
            })
        })
    })
}

/// Writes `f(a, b)` to all of `out`, chunk by chunk on all threads.
fn map2(a: &[f32], b: &[f32], out: SendPtr, f: fn(&[f32], &[f32], &mut [f32])) {
    a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)).enumerate().for_each(|(i, (a, b))| {
        // SAFETY: the chunks are disjoint and lie within `out`, which is as long as `a`; `f` only writes.
        f(a, b, unsafe { out.slice(i * CHUNK, a.len()) });
    });
}

multiversion! {
    fn add_relu_chunk(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            let v = a + b;
            *o = if v < 0.0 { 0.0 } else { v };
        }
    }
}

multiversion! {
    fn relu_backward_chunk(y: &[f32], g: &[f32], out: &mut [f32]) {
        for ((o, y), g) in out.iter_mut().zip(y).zip(g) {
            *o = if *y <= 0.0 { 0.0 } else { *g };
        }
    }
}

multiversion! {
    fn relu_backward_sum_chunk(y: &[f32], a: &[f32], b: &[f32], out: &mut [f32]) {
        for (((o, y), a), b) in out.iter_mut().zip(y).zip(a).zip(b) {
            *o = if *y <= 0.0 { 0.0 } else { a + b };
        }
    }
}
