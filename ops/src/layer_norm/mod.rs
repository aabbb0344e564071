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
    norm_of_sum(&[x], weight, bias, eps)
}

/// [`layer_norm`] of the sum `x + y`, the end of a post-norm transformer's layers.
///
/// # Shapes
/// x and y `[.., c]`, weight `[c]`, bias `[c]` → `[.., c]`
///
/// # Errors
/// If shapes do not match.
pub fn add_layer_norm(x: &Value, y: &Value, weight: &Value, bias: &Value, eps: f64) -> Result<Value> {
    if x.tensor().dims() != y.tensor().dims() || x.tensor().dtype() != y.tensor().dtype() {
        bail!("layer norm: {:?} and {:?} have no sum", x.tensor(), y.tensor());
    }
    norm_of_sum(&[x, y], weight, bias, eps)
}

/// Of one or two terms.
fn norm_of_sum(terms: &[&Value], weight: &Value, bias: &Value, eps: f64) -> Result<Value> {
    let (first, scale, shift) = (terms[0].tensor().contiguous()?, weight.tensor().clone(), bias.tensor().clone());
    check_channels("layer norm", first.dims().last().copied().unwrap_or(0), &scale, &shift)?;
    let second = terms.get(1).map(|term| term.tensor().contiguous()).transpose()?;
    let inputs: Vec<&Value> = terms.iter().copied().chain([weight, bias]).collect();
    let _span = tracing::trace_span!("layer norm").entered();
    let (y, sum, on_gpu) = match path(&[&first, &scale, &shift]) {
        Path::Cuda => {
            let (y, sum) = cuda::norm_of_sum(&first, second.as_ref(), &scale, &shift, eps)?;
            (y, sum, true)
        }
        Path::Cpu => {
            let (y, sum) = cpu::norm_of_sum(&first, second.as_ref(), &scale, &shift, eps)?;
            (y, sum, false)
        }
        Path::Composed => {
            return record_composed(&inputs, move |t| match t {
                [x, weight, bias] => layer_norm_composed(x, weight, bias, eps),
                [x, y, weight, bias] => layer_norm_composed(&(x + y)?, weight, bias, eps),
                _ => bail!("layer norm: expected one or two terms"),
            });
        }
    };
    record(y, &inputs, move |gradient, wanted| {
        let _span = tracing::trace_span!("layer norm backward").entered();
        let (of_terms, of_both) = wanted.split_at(wanted.len() - 2);
        let backward = if on_gpu { cuda::layer_norm_backward } else { cpu::layer_norm_backward };
        let (of_sum, sums) = backward(&sum, &scale, &gradient.contiguous()?, eps, of_both.contains(&true))?;
        let mut found: Vec<Option<Tensor>> = of_terms.iter().map(|&wanted| wanted.then(|| of_sum.clone())).collect();
        for (i, wanted) in of_both.iter().enumerate() {
            let sums = sums.as_ref().filter(|_| *wanted);
            found.push(sums.map(|sums| sums.get(i)?.to_dtype(scale.dtype())).transpose()?);
        }
        Ok(found)
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
            let [x, weight, bias] = inputs;
            assert_gradients_match(
                &[x, uniform(&[2, 9, channels], 4)?, weight, bias],
                |v| add_layer_norm(&v[0], &v[1], &v[2], &v[3], 1e-5),
                |t| layer_norm_composed(&(&t[0] + &t[1])?, &t[2], &t[3], 1e-5),
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
