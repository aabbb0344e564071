//! GELU, the exact one (Hendrycks and Gimpel 2016; `torch.nn.GELU()`).

pub(crate) mod cpu;
mod cuda;

use candle_core::{Result, Tensor};

use crate::dispatch::{Path, path};
use crate::tape::{Value, record, record_composed};

/// Gaussian error linear unit, `x·Φ(x)` with the exact error function, differentiable.
///
/// # Shapes
/// any → the same. The absolute error is below `2e-7·|x|`.
///
/// # Errors
/// Those of the tensor library.
pub fn gelu(x: &Value) -> Result<Value> {
    let tensor = x.tensor().contiguous()?;
    let _span = tracing::trace_span!("gelu").entered();
    let (y, backward): (_, fn(&Tensor, &Tensor) -> Result<Tensor>) = match path(&[&tensor]) {
        Path::Cuda => (cuda::gelu(&tensor)?, cuda::gelu_backward),
        Path::Cpu => (cpu::gelu(&tensor)?, cpu::gelu_backward),
        Path::Composed => return record_composed(&[x], |t| t[0].gelu_erf()),
    };
    record(y, &[x], move |gradient, _| {
        let _span = tracing::trace_span!("gelu backward").entered();
        Ok(vec![Some(backward(&tensor, gradient)?)])
    })
}

#[cfg(test)]
mod tests {
    use super::cpu::{bias_gelu_in_place, gelu_chunk};
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn equals_candle_and_its_gradient() -> Result<()> {
        let x = (uniform(&[3, 1000], 5)? * 6.0)?;
        // Differentiates the definition through erf, independently of candle's derivative of gelu_erf.
        let composed = |x: &Tensor| (x * 0.5)? * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?;
        assert_gradients_match(std::slice::from_ref(&x), |v| gelu(&v[0]), |t| composed(&t[0]))?;
        assert_gradients_match(&[x.t()?.contiguous()?], |v| gelu(&v[0].permute(&[1, 0])?), |t| composed(&t[0].t()?))
    }

    #[test]
    fn bias_is_added_before() {
        let mut x = [0.5f32, -1.0, 2.0, 0.0];
        bias_gelu_in_place(&mut x, &[0.25, -0.5]);
        let mut want = [0f32; 4];
        gelu_chunk(&[0.75f32, -1.5, 2.25, -0.5], &mut want);
        assert_eq!(x, want);
    }
}
