//! Sums with an activation on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::activation::{Activation, in_format};
use crate::cpu::simd::{multiversion, zero_if};
use crate::cpu::{CHUNK, filled_vec, of_two, tensor_from, with_numbers};

/// As [`super::add_relu`].
pub(super) fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    in_format!(a, of_two(a, b, add_relu_chunk))
}

/// As [`super::relu_backward`].
pub(super) fn relu_backward(res: &Tensor, grad: &Tensor) -> Result<Tensor> {
    in_format!(res, of_two(res, grad, relu_backward_chunk))
}

/// As [`super::relu_backward_sum`].
pub(super) fn relu_backward_sum(res: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    in_format!(res, relu_backward_sum_of(res, a, b))
}

fn relu_backward_sum_of<T: Activation>(res: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    with_numbers(res, "relu-backward", |y: &[T]| {
        with_numbers(a, "relu-backward", |a: &[T]| {
            with_numbers(b, "relu-backward", |b: &[T]| {
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

/// As [`super::relu`].
pub(super) fn relu(x: &Tensor) -> Result<Tensor> {
    in_format!(x, of_two(x, x, |x, _, out| relu_chunk(x, out)))
}

/// `gate·a + (1 - gate)·b`; the gate has one element.
pub(super) fn mix(a: &Tensor, b: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let gate = number(gate)?;
    in_format!(a, of_two(a, b, |a, b, out| mix_chunk(a, b, gate, out)))
}

/// The gradient of [`mix`]'s first argument.
pub(super) fn mix_backward_sam(gradient: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let gate = number(gate)?;
    in_format!(gradient, of_two(gradient, gradient, |g, _, out| share_chunk(g, gate, out)))
}

/// The gradient of [`mix`]'s second argument.
pub(super) fn mix_backward_cnn(gradient: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let gate = number(gate)?;
    in_format!(gradient, of_two(gradient, gradient, |g, _, out| rest_chunk(g, gate, out)))
}

/// The gradient of [`mix`]'s gate, of one element. Chunks are summed in their order, whatever the threads.
pub(super) fn mix_backward_gate(gradient: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    in_format!(gradient, mix_backward_gate_of(gradient, a, b))
}

fn mix_backward_gate_of<T: Activation>(gradient: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let sum = with_numbers(gradient, "mix-backward", |g: &[T]| {
        with_numbers(a, "mix-backward", |a: &[T]| {
            with_numbers(b, "mix-backward", |b: &[T]| {
                let chunks = g.par_chunks(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK));
                let sums: Vec<f32> = chunks.map(|((g, a), b)| product_with_difference(g, a, b)).collect();
                Ok(sums.into_iter().map(f64::from).sum::<f64>() as f32)
            })
        })
    })?;
    tensor_from(vec![sum], 1)
}

fn number(tensor: &Tensor) -> Result<f32> {
    tensor.flatten_all()?.get(0)?.to_scalar()
}

multiversion! {
    fn add_relu_chunk<T: Activation>(a: &[T], b: &[T], out: &mut [T]) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            let v = a.value() + b.value();
            *o = T::nearest(if v < 0.0 { 0.0 } else { v });
        }
    }
}

multiversion! {
    fn relu_chunk<T: Activation>(x: &[T], out: &mut [T]) {
        for (o, x) in out.iter_mut().zip(x) {
            let v = x.value();
            *o = T::nearest(if v < 0.0 { 0.0 } else { v });
        }
    }
}

multiversion! {
    fn mix_chunk<T: Activation>(a: &[T], b: &[T], gate: f32, out: &mut [T]) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            let (a, b) = (a.value(), b.value());
            *o = T::nearest((a - b) * gate + b);
        }
    }
}

multiversion! {
    fn share_chunk<T: Activation>(g: &[T], gate: f32, out: &mut [T]) {
        for (o, g) in out.iter_mut().zip(g) {
            *o = T::nearest(g.value() * gate);
        }
    }
}

multiversion! {
    fn rest_chunk<T: Activation>(g: &[T], gate: f32, out: &mut [T]) {
        for (o, g) in out.iter_mut().zip(g) {
            *o = T::nearest(g.value() - g.value() * gate);
        }
    }
}

multiversion! {
    /// `Σ g·(a - b)`, in sixteen sums that are added at the end.
    fn product_with_difference<T: Activation>(g: &[T], a: &[T], b: &[T]) -> f32 {
        const LANES: usize = 16;
        let mut sums = [0f32; LANES];
        for ((g, a), b) in g.chunks(LANES).zip(a.chunks(LANES)).zip(b.chunks(LANES)) {
            for (((sum, g), a), b) in sums.iter_mut().zip(g).zip(a).zip(b) {
                *sum += g.value() * (a.value() - b.value());
            }
        }
        sums.iter().sum()
    }
}

multiversion! {
    fn relu_backward_chunk<T: Activation>(y: &[T], g: &[T], out: &mut [T]) {
        for ((o, y), g) in out.iter_mut().zip(y).zip(g) {
            *o = T::nearest(zero_if(y.value() <= 0.0, g.value()));
        }
    }
}

multiversion! {
    fn relu_backward_sum_chunk<T: Activation>(y: &[T], a: &[T], b: &[T], out: &mut [T]) {
        for (((o, y), a), b) in out.iter_mut().zip(y).zip(a).zip(b) {
            *o = T::nearest(zero_if(y.value() <= 0.0, a.value() + b.value()));
        }
    }
}
