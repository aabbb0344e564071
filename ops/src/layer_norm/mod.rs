//! Layer norm (Ba et al. 2016) over the last axis, and over the channels of an image.

pub(crate) mod cpu;
mod cpu_2d;
pub(crate) mod cuda;

use candle_core::{D, Result, Tensor, bail};

use crate::dispatch::{Path, path};

/// Layer norm over the last axis (`torch.nn.LayerNorm`), differentiable.
///
/// # Shapes
/// x `[.., c]`, weight `[c]`, bias `[c]` → `[.., c]`. The variance is the biased one.
///
/// # Errors
/// If shapes do not match.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_channels("layer norm", x.dims().last().copied().unwrap_or(0), weight, bias)?;
    match path(&[x, weight, bias]) {
        Path::Cuda => cuda::layer_norm(x, weight, bias, eps),
        Path::Cpu => cpu::layer_norm(x, weight, bias, eps),
        Path::Composed => layer_norm_composed(x, weight, bias, eps),
    }
}

/// Layer norm over the channels of each pixel of an image (SAM's `LayerNorm2d`, `modeling/common.py`), differentiable.
///
/// # Shapes
/// x `[b, c, h, w]`, weight `[c]`, bias `[c]` → `[b, c, h, w]`.
///
/// # Errors
/// If shapes do not match.
pub fn layer_norm_2d(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_channels("layer norm 2d", x.dims4()?.1, weight, bias)?;
    match path(&[x, weight, bias]) {
        Path::Cuda => cuda::layer_norm_2d(x, weight, bias, eps),
        Path::Cpu => cpu_2d::layer_norm_2d(x, weight, bias, eps),
        Path::Composed => layer_norm_2d_composed(x, weight, bias, eps),
    }
}

/// [`layer_norm`] composed of candle's operations: the tests' reference.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// [`layer_norm_2d`] composed of candle's operations: the tests' reference.
///
/// # Errors
/// As [`layer_norm_2d`].
pub fn layer_norm_2d_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = x.dims4()?.1;
    let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let normalised = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    normalised.broadcast_mul(&weight.reshape((1, channels, 1, 1))?)?.broadcast_add(&bias.reshape((1, channels, 1, 1))?)
}

fn check_channels(op: &str, channels: usize, weight: &Tensor, bias: &Tensor) -> Result<()> {
    if channels == 0 || weight.dims() != [channels] || bias.dims() != [channels] {
        bail!("{op}: {channels} channels, but a weight of shape {:?} and a bias of shape {:?}", weight.dims(), bias.dims());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_match, uniform};

    #[test]
    fn layer_norm_equals_the_composed_one_and_its_gradients() -> Result<()> {
        for channels in [3, 16, 70] {
            let inputs = [(uniform(&[2, 9, channels], 1)? * 3.0)?, uniform(&[channels], 2)?, uniform(&[channels], 3)?];
            assert_gradients_match(
                &inputs,
                |t| layer_norm(&t[0], &t[1], &t[2], 1e-5),
                |t| layer_norm_composed(&t[0], &t[1], &t[2], 1e-5),
            )?;
        }
        Ok(())
    }

    #[test]
    fn layer_norm_2d_equals_the_composed_one_and_its_gradients() -> Result<()> {
        for (channels, h, w) in [(4, 3, 5), (64, 28, 19), (7, 1, 1)] {
            let inputs = [(uniform(&[3, channels, h, w], 1)? + 0.5)?, uniform(&[channels], 2)?, uniform(&[channels], 3)?];
            assert_gradients_match(
                &inputs,
                |t| layer_norm_2d(&t[0], &t[1], &t[2], 1e-6),
                |t| layer_norm_2d_composed(&t[0], &t[1], &t[2], 1e-6),
            )?;
        }
        Ok(())
    }

    #[test]
    fn wrong_channels_are_refused() -> Result<()> {
        let (x, ok, wrong) = (uniform(&[2, 4], 1)?, uniform(&[4], 1)?, uniform(&[5], 1)?);
        assert!(layer_norm(&x, &wrong, &ok, 1e-6).unwrap_err().to_string().contains("4 channels"));
        assert!(layer_norm_2d(&x.reshape((1, 4, 1, 2))?, &ok, &wrong, 1e-6).is_err());
        Ok(())
    }
}
