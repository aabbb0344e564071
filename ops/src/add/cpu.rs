//! Sums of tensors on the CPU.

use candle_core::{Result, Tensor};

use crate::cpu::activation::{Activation, in_format};
use crate::cpu::of_two;
use crate::cpu::simd::multiversion;

/// As [`super::add`], of one shape and number format.
pub(super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    in_format!(a, of_two(a, b, add_chunk))
}

multiversion! {
    fn add_chunk<T: Activation>(a: &[T], b: &[T], out: &mut [T]) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            *o = T::nearest(a.value() + b.value());
        }
    }
}
