//! Sums of tensors on the CPU.

use candle_core::{Result, Tensor};

use crate::cpu::of_two;
use crate::cpu::simd::multiversion;

/// As [`super::add`], of one shape.
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    of_two(a, b, add_chunk)
}

multiversion! {
    fn add_chunk(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            *o = a + b;
        }
    }
}
