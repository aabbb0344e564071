//! GELU on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::contiguous_f32;
use crate::cpu::simd::{erf, exp, madd, multiversion};

/// Elements that one task works on.
const CHUNK: usize = 16 * 1024;

/// As [`super::gelu`].
pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
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

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = tracing::trace_span!("gelu").entered();
        let mut y = contiguous_f32(storage, layout, "gelu")?.to_vec();
        y.par_chunks_mut(CHUNK).for_each(gelu_in_place);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = tracing::trace_span!("gelu backward").entered();
        Ok(Some(grad.contiguous()?.apply_op2_no_bwd(x, &GeluBackward)?))
    }
}

struct GeluBackward;

impl CustomOp2 for GeluBackward {
    fn name(&self) -> &'static str {
        "gelu backward"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut grad = contiguous_f32(s1, l1, "gelu backward")?.to_vec();
        let x = contiguous_f32(s2, l2, "gelu backward")?;
        grad.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(grad, x)| gelu_backward_in_place(grad, x));
        Ok((CpuStorage::F32(grad), l1.shape().clone()))
    }
}
