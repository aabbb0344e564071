//! Layer norm (Ba et al. 2016) over the last axis.

pub(crate) mod cpu;
pub(crate) mod cuda;

use candle_core::{D, Result, Tensor, bail};

use crate::dispatch::{Path, path};
use crate::tape::{Value, record, record_composed};

/// Layer norm over the last axis (`torch.nn.LayerNorm`), differentiable. With the pixels of an image as rows it is SAM's `LayerNorm2d`
/// (`modeling/common.py`).
///
/// # Shapes
/// x `[.., c]`, weight `[c]`, bias `[c]` → `[.., c]`. The variance is the biased one.
///
/// # Errors
/// If shapes do not match.
pub fn layer_norm(x: &Value, weight: &Value, bias: &Value, eps: f64) -> Result<Value> {
    let (tensor, scale, shift) = (x.tensor().contiguous()?, weight.tensor().clone(), bias.tensor().clone());
    check_channels("layer norm", tensor.dims().last().copied().unwrap_or(0), &scale, &shift)?;
    let _span = tracing::trace_span!("layer norm").entered();
    let (y, on_gpu) = match path(&[&tensor, &scale, &shift]) {
        Path::Cuda => (cuda::layer_norm(&tensor, &scale, &shift, eps)?, true),
        Path::Cpu => (cpu::layer_norm(&tensor, &scale, &shift, eps)?, false),
        Path::Composed => return record_composed(&[x, weight, bias], move |t| layer_norm_composed(&t[0], &t[1], &t[2], eps)),
    };
    record(y, &[x, weight, bias], move |gradient, wanted| {
        let _span = tracing::trace_span!("layer norm backward").entered();
        let parameters = wanted[1] || wanted[2];
        let backward = if on_gpu { cuda::layer_norm_backward } else { cpu::layer_norm_backward };
        let (of_x, of_parameters) = backward(&tensor, &scale, &gradient.contiguous()?, eps, parameters)?;
        let part = |i: usize| -> Result<Option<Tensor>> {
            let Some(both) = of_parameters.as_ref().filter(|_| wanted[1 + i]) else { return Ok(None) };
            Ok(Some(both.get(i)?.to_dtype(scale.dtype())?))
        };
        Ok(vec![wanted[0].then_some(of_x), part(0)?, part(1)?])
    })
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

/// SAM's `LayerNorm2d` of `[b, c, h, w]`, composed of candle's operations: the tests' reference.
///
/// # Errors
/// As [`layer_norm`].
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
                |v| layer_norm(&v[0], &v[1], &v[2], 1e-5),
                |t| layer_norm_composed(&t[0], &t[1], &t[2], 1e-5),
            )?;
        }
        Ok(())
    }

    #[test]
    fn with_pixels_as_rows_it_is_the_norm_of_an_image() -> Result<()> {
        for (channels, h, w) in [(4, 3, 5), (64, 28, 19), (7, 1, 1)] {
            let inputs = [(uniform(&[3, h * w, channels], 1)? + 0.5)?, uniform(&[channels], 2)?, uniform(&[channels], 3)?];
            let image = |rows: &Tensor| rows.transpose(1, 2)?.contiguous()?.reshape((3, channels, h, w));
            assert_gradients_match(
                &inputs,
                |v| layer_norm(&v[0], &v[1], &v[2], 1e-6),
                |t| layer_norm_2d_composed(&image(&t[0])?, &t[1], &t[2], 1e-6)?.flatten_from(2)?.transpose(1, 2)?.contiguous(),
            )?;
        }
        Ok(())
    }

    #[test]
    fn wrong_channels_are_refused() -> Result<()> {
        let [x, ok, wrong] = [&[2, 4][..], &[4], &[5]].map(|shape| uniform(shape, 1).map(Value::from));
        let (x, ok, wrong) = (x?, ok?, wrong?);
        assert!(layer_norm(&x, &wrong, &ok, 1e-6).unwrap_err().to_string().contains("4 channels"));
        assert!(layer_norm(&x, &ok, &wrong, 1e-6).is_err());
        Ok(())
    }
}
