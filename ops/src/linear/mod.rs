//! The linear layer, `y = x·Wᵀ + b` (`torch.nn.functional.linear`).

mod cpu;
pub(crate) mod cuda;

use candle_core::{Result, Tensor, bail};

use crate::device::F32Math;
use crate::dispatch::{Path, path};

/// Applies a linear layer; `math` says how a GPU rounds float32 factors.
///
/// # Shapes
/// x `[.., in]`, weight `[out, in]`, bias `[out]` → `[.., out]`. There may be a bias per row, `[n, out]` for x `[.., n, in]`.
///
/// Gradients are computed only for tracked tensors, so that a frozen layer costs only the input's gradient.
///
/// # Errors
/// If shapes do not match.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, math: F32Math) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    if x.dims().last() != Some(&in_features) {
        bail!("linear: the weight takes {in_features} features, the input has shape {:?}", x.dims());
    }
    let rows = x.dims().iter().rev().nth(1).copied().unwrap_or(1);
    if let Some(bias) = bias
        && bias.dims() != [out_features]
        && bias.dims() != [rows, out_features]
    {
        bail!("linear: the weight gives {out_features} features, the bias has shape {:?}", bias.dims());
    }
    match path(&[x, weight, bias.unwrap_or(weight)]) {
        Path::Cuda => cuda::linear(x, weight, bias, math),
        Path::Cpu => cpu::linear(x, weight, bias),
        Path::Composed => linear_composed(x, weight, bias),
    }
}

/// [`linear`] composed of candle's operations: for other devices and number formats, and as the tests' reference.
///
/// # Errors
/// As [`linear`].
pub fn linear_composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    let y = x.reshape(((), in_features))?.matmul(&weight.t()?)?; // [n, out]
    if let Some(last) = dims.last_mut() {
        *last = out_features;
    }
    let y = y.reshape(dims)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn equals_the_composed_layer_and_its_gradients() -> Result<()> {
        let (x, weight, bias) = (uniform(&[2, 3, 5], 1)?, uniform(&[7, 5], 2)?, uniform(&[7], 3)?);
        assert_gradients_match(
            &[x.clone(), weight.clone(), bias],
            |t| linear(&t[0], &t[1], Some(&t[2]), F32Math::Exact),
            |t| linear_composed(&t[0], &t[1], Some(&t[2])),
        )?;
        assert_gradients_match(
            &[x.clone(), weight.clone()],
            |t| linear(&t[0], &t[1], None, F32Math::Exact),
            |t| linear_composed(&t[0], &t[1], None),
        )?;
        // A bias per row.
        assert_gradients_match(
            &[x.clone(), weight.clone(), uniform(&[3, 7], 5)?],
            |t| linear(&t[0], &t[1], Some(&t[2]), F32Math::Exact),
            |t| linear_composed(&t[0], &t[1], Some(&t[2])),
        )?;
        // An input that is a view.
        let x = uniform(&[5, 4], 4)?;
        assert_gradients_match(
            &[x, weight],
            |t| linear(&t[0].t()?, &t[1], None, F32Math::Exact),
            |t| linear_composed(&t[0].t()?, &t[1], None),
        )
    }

    #[test]
    fn frozen_weights_get_no_gradient() -> Result<()> {
        let x = candle_core::Var::from_tensor(&uniform(&[4, 5], 1)?)?;
        let weight = uniform(&[7, 5], 2)?;
        let grads = linear(x.as_tensor(), &weight, None, F32Math::Exact)?.sqr()?.sum_all()?.backward()?;
        assert!(grads.get(x.as_tensor()).is_some() && grads.get(&weight).is_none());
        Ok(())
    }

    #[test]
    fn wrong_shapes_are_refused() -> Result<()> {
        let (x, weight, bias) = (uniform(&[4, 5], 1)?, uniform(&[7, 6], 2)?, uniform(&[3], 3)?);
        assert!(linear(&x, &weight, None, F32Math::Exact).unwrap_err().to_string().contains("takes 6 features"));
        assert!(linear(&uniform(&[2, 6], 1)?, &weight, Some(&bias), F32Math::Exact).is_err());
        assert_eq!(linear(&uniform(&[0, 6], 1)?, &weight, None, F32Math::Exact)?.dims(), [0, 7]);
        Ok(())
    }
}
