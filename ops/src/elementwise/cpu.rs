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
