//! GELU on the CPU.

use candle_core::{Result, Tensor};

use crate::cpu::activation::{Activation, in_format};
use crate::cpu::of_two;
use crate::cpu::simd::{erf, exp, madd, multiversion};

/// As [`super::gelu`].
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    in_format!(x, of_two(x, x, |x, _, y| gelu_chunk(x, y)))
}

/// The gradient of `x`, given that of its GELU.
pub(super) fn gelu_backward(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    in_format!(x, of_two(x, gradient, gelu_backward_chunk))
}

multiversion! {
    /// GELU of every number of a slice.
    pub(crate) fn gelu_chunk<T: Activation>(x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            let x = x.value();
            let half = 0.5 * x;
            *y = T::nearest(madd::<FMA>(half, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), half));
        }
    }
}

multiversion! {
    /// GELU of `x + bias`, in place, where every row of `x` has the bias's length.
    pub(crate) fn bias_gelu_in_place(x: &mut [f32], bias: &[f32]) {
        bias_gelu_rows::<FMA>(x, bias);
    }
}

/// The body of [`bias_gelu_in_place`], for callers that are compiled for an instruction set.
#[inline(always)]
pub(crate) fn bias_gelu_rows<const FMA: bool>(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        for (x, &bias) in row.iter_mut().zip(bias) {
            let sum = *x + bias;
            let half = 0.5 * sum;
            *x = madd::<FMA>(half, erf::<FMA>(sum * std::f32::consts::FRAC_1_SQRT_2), half);
        }
    }
}

multiversion! {
    /// Each gradient times the derivative at `x`: `Φ(x) + x·φ(x)`.
    fn gelu_backward_chunk<T: Activation>(x: &[T], gradient: &[T], of_x: &mut [T]) {
        const FRAC_1_SQRT_2_PI: f32 = 0.398_942_3;
        for ((of_x, x), gradient) in of_x.iter_mut().zip(x).zip(gradient) {
            let x = x.value();
            let cdf = madd::<FMA>(0.5, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), 0.5);
            let density = FRAC_1_SQRT_2_PI * exp::<FMA>(-0.5 * x * x);
            *of_x = T::nearest(gradient.value() * madd::<FMA>(x, density, cdf));
        }
    }
}
