//! GELU on the CPU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::cpu::simd::{erf, exp, madd, multiversion};
use crate::cpu::{tensor_from, with_f32};

/// Elements that one task works on.
const CHUNK: usize = 16 * 1024;

/// As [`super::gelu`].
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    let mut y = with_f32(x, "gelu", |x| Ok(x.to_vec()))?;
    y.par_chunks_mut(CHUNK).for_each(gelu_in_place);
    tensor_from(y, x.shape())
}

/// The gradient of `x`, given that of its GELU.
pub(super) fn gelu_backward(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let mut of_x = with_f32(gradient, "gelu", |gradient| Ok(gradient.to_vec()))?;
    with_f32(x, "gelu", |x| {
        of_x.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(of_x, x)| gelu_backward_in_place(of_x, x));
        Ok(())
    })?;
    tensor_from(of_x, x.shape())
}

multiversion! {
    /// GELU of every element of a slice, in place.
    pub(crate) fn gelu_in_place(x: &mut [f32]) {
        for x in x {
            let half = 0.5 * *x;
            *x = madd::<FMA>(half, erf::<FMA>(*x * std::f32::consts::FRAC_1_SQRT_2), half);
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
    /// Multiplies `grad`, in place, by the derivative at `x`: `Φ(x) + x·φ(x)`.
    fn gelu_backward_in_place(grad: &mut [f32], x: &[f32]) {
        const FRAC_1_SQRT_2_PI: f32 = 0.398_942_3;
        for (grad, &x) in grad.iter_mut().zip(x) {
            let cdf = madd::<FMA>(0.5, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), 0.5);
            let density = FRAC_1_SQRT_2_PI * exp::<FMA>(-0.5 * x * x);
            *grad *= madd::<FMA>(x, density, cdf);
        }
    }
}
